"""The report as a value, and as files: JSON is the truth, the others show it."""

import json
import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import Verdict
from recsys.errors import ResourceError
from recsys.whole import replacing
from serving.report import page
from serving.report.counterfactual import Counterfactual
from serving.report.decision import EXIT_CODES, Check, Number
from serving.report.guardrails import Guardrail
from serving.report.measures import Relevance
from serving.report.overlap import Overlap
from serving.report.samples import Sample
from serving.report.segments import Segment
from serving.report.stability import Stability
from serving.report.statistics import Effect
from serving.report.world import Cost

SCHEMA = "recsys.compare/3"


@dataclass(frozen=True)
class ArmHeader:
    """What is known of an arm; `sha256` is over its (user, item, rank) rows in any order."""

    name: str
    version: str
    info: dict[str, str]
    rows: int
    users: int
    deepest_rank: int
    sha256: str
    cost: Cost


@dataclass(frozen=True)
class Header:
    """What was compared, on what, and how to do it again.

    Args:
        config, config_sha256: the thresholds; settings_sha256: all settings of the run, "" where none were given.
        filters: what counts as a label, and for whom.
        data_sha256: of labels, history and items, whatever the order of their rows.
        has_times: whether the history says when.
    """

    command: str
    code_revision: str
    packages: dict[str, str]
    config: dict[str, Any]
    config_sha256: str
    settings_sha256: str
    filters: tuple[str, ...]
    seed: int
    k: int
    test_start: str
    test_end: str
    labels: int
    data_sha256: dict[str, str]
    users: int
    users_with_labels: int
    catalogue_items: int
    has_history: bool
    has_times: bool
    a: ArmHeader
    b: ArmHeader


@dataclass(frozen=True)
class Curve:
    """One line for each arm and for the popularity baseline, which is None without a history.

    Recall: means at 1, 2, ... slots. Exposure: share of all showings that the least shown 0%, 2%, ... 100% of
    the catalogue has.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]
    popularity: tuple[float, ...] | None


@dataclass(frozen=True)
class Histogram:
    """Users by their difference in the primary metric: `counts[i]` lie in `edges[i]..edges[i + 1]`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class NextStep:
    """Users in each arm of an online test with a power of 80%, by the spread of the primary metric.

    Args:
        for_lift: to see the lift found offline; nan where B is not better.
        for_min_lift: to see the smallest lift worth it.
    """

    for_lift: float
    for_min_lift: float


@dataclass(frozen=True)
class Report:
    """The outcome of a comparison; everything in it but `made_at` depends on the inputs alone.

    Args:
        unmet: conditions of a promotion that do not hold, where the verdict is HOLD.
        candidate_recall: ceilings of both rankings; None where an arm does not know its own.
        curve, exposure: recall by length of the list, and Lorenz curves of what is shown.
        per_user: every metric of both arms by user; written beside, not into the JSON.
    """

    schema: str
    made_at: str
    verdict: Verdict
    rule: int
    reason: str
    numbers: tuple[Number, Number, Number]
    unmet: tuple[str, ...]
    header: Header
    checks: tuple[Check, ...]
    relevance: tuple[Relevance, ...]
    candidate_recall: Effect | None
    guardrails: tuple[Guardrail, ...]
    segments: tuple[Segment, ...]
    stability: Stability
    counterfactual: Counterfactual
    overlap: Overlap
    curve: Curve
    exposure: Curve
    histogram: Histogram
    samples: tuple[Sample, ...]
    next_step: NextStep
    limits: tuple[str, ...]
    per_user: pd.DataFrame

    def __repr__(self) -> str:
        return f"Report({self.verdict}: {self.reason} The page: write(folder))"

    @property
    def exit_code(self) -> int:
        """0 PROMOTE, 10 HOLD, 20 REJECT, 30 INVALID."""
        return EXIT_CODES[self.verdict]

    @property
    def awaits_runs(self) -> bool:
        """Nothing but missing seeds and windows keeps B from promotion."""
        return bool(self.unmet) and set(self.unmet) <= set(self.stability.shortfall)

    def to_json(self) -> str:
        """The report without the per-user table; what does not exist is null, never NaN."""
        whole = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "per_user"}
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"

    def write(self, folder: str | Path) -> None:
        """Writes report.json, report.html, report.md and per_user.parquet; each is whole or not there.

        Raises:
            ResourceError: the folder cannot be written.
        """
        folder = Path(folder)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pandas(self.per_user, preserve_index=False), sink)
        contents = {
            "report.json": self.to_json().encode(),
            "report.html": page.html(self).encode(),
            "report.md": page.markdown(self).encode(),
            "per_user.parquet": sink.getvalue().to_pybytes(),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as written:  # none is replaced before all are written, the JSON last
                for name, content in contents.items():
                    written.enter_context(replacing(folder / name)).write_bytes(content)
        except OSError as error:
            raise ResourceError(
                f"{folder}: the report cannot be written: {error}; free space or name another folder"
            ) from error


def _plain(value: Any) -> Any:
    """What `json` can write: dataclasses as objects, numpy as numbers, nan and infinity as None."""
    if hasattr(value, "__dataclass_fields__"):
        return {key: _plain(part) for key, part in asdict(value).items()}
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
