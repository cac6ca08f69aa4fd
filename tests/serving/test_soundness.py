"""Models that would score wrongly without a word."""

from types import SimpleNamespace
from typing import Any

import pytest

from features.pairs import NAMES
from recsys.errors import ModelError
from serving.soundness import check_parts


def test_a_ranker_of_as_many_features_in_another_order_is_refused() -> None:
    model: Any = SimpleNamespace(ranker=SimpleNamespace(names=(NAMES[1], NAMES[0], *NAMES[2:])))
    with pytest.raises(ModelError, match="other features than are computed today; train again"):
        check_parts(model, "version 3")
