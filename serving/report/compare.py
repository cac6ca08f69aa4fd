"""`compare`: two arms, one window of labels, one verdict, and everything the page says about it."""

import hashlib
import json
import math
import os
import platform
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import ReportConfig, Verdict
from recsys.errors import ResourceError
from recsys.types import FloatArray
from serving.report import checks, measures, page, samples
from serving.report.decision import EXIT_CODES, Check, Judged, Number, decide
from serving.report.measures import Guardrail, Lists, Relevance, Segment
from serving.report.samples import Sample
from serving.report.world import Arm, World, ranks

SCHEMA = "recsys.compare/1"
RECALL_AT = 20
MAX_SLOTS = 50
_PACKAGES = ("numpy", "pandas", "scipy", "pyarrow", "matplotlib", "jinja2")
_STILL_OUT = (
    "The labels were gathered under whatever was shown then: items that nobody was shown cannot hit, in either arm.",
    "Intervals are over users. They know nothing of training noise: another seed or another week may differ.",
    "No counterfactual estimate is made; an online test is the proof.",
)


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


@dataclass(frozen=True)
class Header:
    """What was compared, on what, and how to do it again."""

    command: str
    code_revision: str
    packages: dict[str, str]
    config: dict[str, Any]
    config_sha256: str
    seed: int
    k: int
    test_start: str
    test_end: str
    labels: int
    labels_sha256: str
    users: int
    users_with_labels: int
    catalogue_items: int
    has_history: bool
    a: ArmHeader
    b: ArmHeader


@dataclass(frozen=True)
class Curve:
    """Mean recall at 1, 2, ... slots; `popularity` is None without a history."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    popularity: tuple[float, ...] | None


@dataclass(frozen=True)
class Histogram:
    """Users by their difference in the primary metric: `counts[i]` lie in `edges[i]..edges[i + 1]`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """The outcome of a comparison; everything in it but `made_at` depends on the inputs alone."""

    schema: str
    made_at: str
    verdict: Verdict
    rule: int
    reason: str
    numbers: tuple[Number, Number, Number]
    header: Header
    checks: tuple[Check, ...]
    relevance: tuple[Relevance, ...]
    guardrails: tuple[Guardrail, ...]
    segments: tuple[Segment, ...]
    overlap: float
    curve: Curve
    histogram: Histogram
    samples: tuple[Sample, ...]
    limits: tuple[str, ...]
    per_user: pd.DataFrame

    @property
    def exit_code(self) -> int:
        """0 PROMOTE, 10 HOLD, 20 REJECT, 30 INVALID."""
        return EXIT_CODES[self.verdict]

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
            "per_user.parquet": sink.getvalue().to_pybytes(),
            "report.md": page.markdown(self).encode(),
            "report.html": page.html(self).encode(),
            "report.json": self.to_json().encode(),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            parts = {name: folder / f".{name}.{os.getpid()}.part" for name in contents}
            try:
                for name, content in contents.items():
                    _write_through(parts[name], content)
                for name, part in parts.items():
                    part.replace(folder / name)
            finally:
                for part in parts.values():
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(
                f"{folder}: the report cannot be written: {error}; free space or name another folder"
            ) from error


def compare(
    a: Arm,
    b: Arm,
    events: pd.DataFrame,
    items: pd.DataFrame,
    config: ReportConfig,
    *,
    test_start: pd.Timestamp,
    test_end: pd.Timestamp,
    now: pd.Timestamp,
    k: int = 10,
    users: pd.DataFrame | None = None,
    history: pd.DataFrame | None = None,
    code_revision: str = "",
    command: str = "",
    rng_seed: int = 0,
) -> Report:
    """Decides whether B should follow A.

    Args:
        a, b: the present arm and the one that wants its place.
        events: positive events of the test window: user_id, item_id, optionally weight (rows at or below
            0 do not count) and timestamp. Every one counts as a label, so leave out what no arm may
            recommend, such as items already taken where those are excluded.
        items: the catalogue: item_id, title, optionally created_at.
        config: thresholds, fixed before.
        test_start, test_end: the window, UTC, end excluded.
        now: the date on the page.
        k: length of the lists that counts.
        users: optional attributes by user_id; columns of 2 to 12 values become segments.
        history: events before `test_start`: novelty, cold items, segments and the popularity baseline need it.
        code_revision, command: how to make the report again.
        rng_seed: seed of the samples, sign flips and bootstrap.

    Raises:
        DataError: a column is missing, or ids are integers in one table and text in another.
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; lists need at least one item")
    # One stream per use, so that a change in one draw leaves the others as they were.
    for_world, for_checks, for_flips, for_draws, for_samples = np.random.default_rng(rng_seed).spawn(5)
    arms = (a, b)
    world = World.of(arms, events, items, history, config.max_users, for_world)
    headers = [_arm_header(arm) for arm in arms]
    recall_at = max(RECALL_AT, 2 * k)
    n_slots = max(recall_at, min(MAX_SLOTS, max(header.deepest_rank for header in headers)))
    in_a, in_b = (Lists.of(world.lists(arm.table, n_slots), world, k, recall_at) for arm in arms)
    popular_ranked = world.popular_lists(n_slots)
    popular = Lists.of(popular_ranked, world, k, recall_at) if popular_ranked is not None else None

    checked = checks.validity(world, arms, (in_a, in_b), events, items, history, (test_start, test_end), k, for_checks)
    relevance = measures.relevance(in_a, in_b, popular, config, for_flips)
    guardrails = measures.guardrails(world, in_a, in_b, popular, k, config, for_draws)
    segments = measures.segments(world, in_a, in_b, k, config, users)
    decision = decide(
        checked,
        relevance[0].effect,
        relevance[0].p_holm,
        tuple(Judged(row.metric, row.effect.low, row.effect.high, row.margin) for row in relevance),
        tuple(row.judged for row in guardrails),
        tuple(_judged(segment, config) for segment in segments if segment.is_protected and segment.effect),
        config,
    )
    primary = relevance[0].metric
    return Report(
        schema=SCHEMA,
        made_at=now.isoformat(),
        verdict=decision.verdict,
        rule=decision.rule,
        reason=decision.reason,
        numbers=decision.numbers,
        header=Header(
            command=command,
            code_revision=code_revision,
            packages={"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
            config=config.model_dump(mode="json"),
            config_sha256=hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
            seed=rng_seed,
            k=k,
            test_start=test_start.isoformat(),
            test_end=test_end.isoformat(),
            labels=len(events),
            labels_sha256=_fingerprint(events[["user_id", "item_id"]]),
            users=len(world.users),
            users_with_labels=world.n_candidates,
            catalogue_items=len(world.catalogue),
            has_history=history is not None,
            a=headers[0],
            b=headers[1],
        ),
        checks=checked,
        relevance=relevance,
        guardrails=guardrails,
        segments=segments,
        overlap=measures.overlap(in_a, in_b, k),
        curve=Curve(
            measures.recall_curve(in_a, world),
            measures.recall_curve(in_b, world),
            measures.recall_curve(popular, world) if popular else None,
        ),
        histogram=_histogram(in_b.values[primary] - in_a.values[primary]),
        samples=samples.draw(world, arms, (in_a, in_b), history, k, for_samples),
        limits=_limits(world, headers, recall_at, history),
        per_user=_per_user(world, in_a, in_b),
    )


def _judged(segment: Segment, config: ReportConfig) -> Judged:
    assert segment.effect is not None
    effect = segment.effect
    return Judged(f"{segment.kind}: {segment.name}", effect.low, effect.high, config.guardrail_margin * effect.a)


def _arm_header(arm: Arm) -> ArmHeader:
    deepest = ranks(arm.table)
    return ArmHeader(
        name=arm.name,
        version=arm.version,
        info=dict(arm.info),
        rows=len(arm.table),
        users=int(arm.table["user_id"].nunique()),
        deepest_rank=int(np.nanmax(deepest[np.isfinite(deepest)], initial=0)),
        sha256=_fingerprint(arm.table[["user_id", "item_id", "rank"]]),
    )


def _fingerprint(table: pd.DataFrame) -> str:
    """sha256 of the rows, whatever their order."""
    return hashlib.sha256(np.sort(pd.util.hash_pandas_object(table, index=False).to_numpy()).tobytes()).hexdigest()


def _histogram(gain: FloatArray) -> Histogram:
    counts, edges = np.histogram(gain, bins=40, range=(-1.025, 1.025) if len(gain) else (-1, 1))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _per_user(world: World, a: Lists, b: Lists) -> pd.DataFrame:
    columns: dict[str, Any] = {"user_id": world.users.ids, "n_relevant": world.n_relevant}
    if world.n_history is not None:
        columns["n_history"] = world.n_history
    for name in a.values:
        slug = name.lower().replace("@", "_").replace(" ", "_")
        columns |= {f"{slug}_a": a.values[name], f"{slug}_b": b.values[name]}
    return pd.DataFrame(columns)


def _limits(world: World, arms: list[ArmHeader], recall_at: int, history: pd.DataFrame | None) -> tuple[str, ...]:
    limits = list(_STILL_OUT)
    if len(world.users) < world.n_candidates:
        limits.append(f"{len(world.users):,} of {world.n_candidates:,} users with labels were drawn by seed.")
    if history is None:
        limits.append("No history was given: no popularity baseline, novelty, cold items or segments by history.")
    limits += [
        f"Arm {letter} has no list longer than {arm.deepest_rank}: its recall at {recall_at} counts no more than that."
        for letter, arm in zip("AB", arms, strict=True)
        if arm.deepest_rank < recall_at
    ]
    return tuple(limits)


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


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
