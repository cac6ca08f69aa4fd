"""Names for the arrays that travel between modules; axes and units stand in each docstring."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]
Progress = Callable[[int, int], None]  # done, of how many
