"""`compare`: two arms, one window of labels, one verdict, and everything the page says about it."""

import hashlib
import platform
from datetime import date
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from recsys.config import ReportConfig
from recsys.errors import shown
from recsys.moments import moment_of
from recsys.types import FloatArray
from serving.report import checks, measures, samples, stability
from serving.report.counterfactual import counterfactual
from serving.report.decision import Check, Judged, decide
from serving.report.document import SCHEMA, ArmHeader, Curve, Header, Histogram, NextStep, Report
from serving.report.guardrails import guardrails
from serving.report.measures import Lists, Relevance, candidate_recall, recall_curve
from serving.report.overlap import overlap
from serving.report.segments import Segment, segments
from serving.report.stability import Repetition, Stability
from serving.report.statistics import lorenz, online_users
from serving.report.tables import Recommends, arm_of, plain_events, plain_items, plain_table
from serving.report.world import Arm, World, positive, ranks

MAX_SLOTS = 50
_PACKAGES = ("numpy", "pandas", "scipy", "pyarrow", "implicit", "lightgbm", "torch", "transformers", "mlflow")
_STILL_OUT = (
    "The labels were gathered under whatever was shown then: items that nobody was shown cannot hit, in either arm.",
    "Offline lists do not change what people do next; an online test is the proof.",
)


def compare(
    a: Arm | Recommends | pd.DataFrame,
    b: Arm | Recommends | pd.DataFrame,
    events: pd.DataFrame,
    items: pd.DataFrame,
    config: ReportConfig,
    *,
    test_start: date | str,
    test_end: date | str,
    now: date | str,
    k: int = 10,
    users: pd.DataFrame | None = None,
    history: pd.DataFrame | None = None,
    hidden: pd.DataFrame | None = None,
    impressions: pd.DataFrame | None = None,
    champion: Arm | None = None,
    reruns: tuple[Repetition, ...] = (),
    min_seeds: int = 0,
    min_windows: int = 0,
    filters: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    settings_sha256: str = "",
    code_revision: str = "",
    command: str = "",
    rng_seed: int = 0,
) -> Report:
    """Decides whether B should follow A.

    Args:
        a, b: the present arm and the one that wants its place: an `Arm`; its table alone; or a model, fitted on events
            before `test_start`, that is asked for lists by `recommend(users, k)`. Without an `Arm`, they are "a" and "b".
        events: positive events of the test window: user_id, item_id, optionally weight (rows at or below
            0 do not count) and timestamp. Every one counts as a label, so leave out what no arm may
            recommend, such as items already taken where those are excluded. Those without a user or an item
            are left out, and counted on the page.
        items: the catalogue: item_id, title, optionally created_at.
        config: thresholds, fixed before.
        test_start, test_end: the window, end excluded: dates or moments, as text, too; here and in the tables UTC where they
            name no zone.
        now: the date on the page, likewise.
        k: length of the lists that counts; less where an arm was asked for less.
        users: optional attributes by user_id; columns of 2 to 12 values, and numbers by quarters, become segments.
        history: events before `test_start`: novelty, cold items, segments and the popularity baseline need it.
        hidden: user_id and item_id of what users took out of their own lists before `test_start`: the popularity baseline
            lists none of it to them, and their lists may be as much shorter.
        impressions: what was shown and clicked, as `features.impressions` reads it, for the counterfactual section.
        champion: the present champion, to stand beside the arms where neither is it.
        reruns: the comparison with other seeds and earlier windows, without this one.
        min_seeds, min_windows: how many, with this one, a promotion needs; 0 where arms cannot be trained again.
        filters: what counts as a label, and for whom, in sentences for the page.
        notes: more limits of the comparison, for the page.
        settings_sha256: of all settings of the run, for the page.
        code_revision, command: how to make the report again.
        rng_seed: seed of the samples, checks and sign flips.

    Raises:
        DataError: a column is missing, ids are integers in one table and text in another, or times are numbers.
        ConfigError: an arm is none, or `test_start`, `test_end` or `now` no moment.
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; lists need at least one item")
    start, end = moment_of(test_start, "test_start"), moment_of(test_end, "test_end")
    n_given, events, items = len(events), plain_events(events, "events"), plain_items(items)
    if n_nameless := n_given - len(events):
        notes = (*notes, f"{n_nameless:,} labels without a user_id or item_id were left out.")
    users = None if users is None else plain_table(users)
    history = None if history is None else plain_events(history, "history")
    hidden = None if hidden is None else plain_events(hidden, "hidden")
    impressions = None if impressions is None else plain_events(impressions, "impressions")
    # One stream per use, so that a change in one draw leaves the others as they were.
    for_world, for_checks, for_flips, for_samples = np.random.default_rng(rng_seed).spawn(4)
    deepest = max(k, MAX_SLOTS)
    arms, window = (arm_of(a, "a", events, deepest), arm_of(b, "b", events, deepest)), (start, end)
    champion = champion and arm_of(champion, "champion", events, deepest)
    all_arms = arms if champion is None else (*arms, champion)
    k, cut = _as_asked(arms, k)
    world = World.of(all_arms, events, items, history, config.max_users, for_world, start, hidden)
    headers = [_arm_header(arm) for arm in arms]
    # A deeper cut than an arm's lists would blame it for what it was not asked.
    n_slots = max(k, min(MAX_SLOTS, *(header.deepest_rank for header in headers)))
    cuts = tuple(cut for cut in (2 * k, 5 * k) if cut <= n_slots)
    in_a, in_b = (Lists.of(world.lists(arm.table, n_slots), world, k, cuts) for arm in arms)
    beside = _beside(world, champion, n_slots, k, cuts)

    checked = checks.validity(
        world, arms, (in_a, in_b), events, items, history, hidden, window, k, config, for_checks, impressions
    )
    relevance = measures.relevance(in_a, in_b, beside, config, for_flips)
    guarded = guardrails(world, arms, in_a, in_b, beside, k, config)
    grouped = segments(world, in_a, in_b, k, config, users)
    held = _stability(relevance[0], world, in_a, in_b, events, window, k, config, reruns, (min_seeds, min_windows))
    unlogged = counterfactual(impressions, arms, window, k, config)
    veto = ("the counterfactual estimate is significantly negative",) if unlogged.is_veto else ()
    decision = decide(
        checked,
        relevance[0].effect,
        relevance[0].p_holm,
        tuple(Judged(row.metric, row.effect.low, row.effect.high, row.margin) for row in relevance),
        tuple(row.judged for row in guarded),
        tuple(_judged(segment, config) for segment in grouped if segment.is_protected and segment.effect),
        config,
        (*_too_few(relevance[0].effect.n, config), *held.objections, *veto),
    )
    primary = relevance[0].effect
    values = in_a.values[in_a.primary], in_b.values[in_b.primary]
    popular = beside.get("Popularity")
    return Report(
        schema=SCHEMA,
        made_at=moment_of(now, "now").isoformat(),
        verdict=decision.verdict,
        rule=decision.rule,
        reason=decision.reason,
        numbers=decision.numbers,
        unmet=decision.unmet,
        header=Header(
            command=command,
            code_revision=code_revision,
            packages={"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
            config=config.model_dump(mode="json"),
            config_sha256=hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
            settings_sha256=settings_sha256,
            filters=filters or (_repeats(world),),
            seed=rng_seed,
            k=k,
            test_start=start.isoformat(),
            test_end=end.isoformat(),
            labels=len(positive(events)),
            data_sha256={
                "labels": _fingerprint(_known(events, "user_id", "item_id", "timestamp", "weight")),
                "history": _fingerprint(_known(history, "user_id", "item_id", "timestamp")),
                "items": _fingerprint(items.reindex(columns=sorted(items.columns)).astype(str)),
            },
            users=len(world.users),
            users_with_labels=world.n_candidates,
            catalogue_items=len(world.catalogue),
            has_history=history is not None,
            has_times=history is not None and "timestamp" in history,
            a=headers[0],
            b=headers[1],
        ),
        checks=checked,
        relevance=relevance,
        candidate_recall=candidate_recall(world, arms, config.alpha),
        guardrails=guarded,
        segments=grouped,
        stability=held,
        counterfactual=unlogged,
        overlap=overlap(in_a.ranked[:, :k], in_b.ranked[:, :k]),
        curve=Curve(
            recall_curve(in_a, world), recall_curve(in_b, world), recall_curve(popular, world) if popular else None
        ),
        exposure=Curve(
            _exposure(in_a, world, k), _exposure(in_b, world, k), _exposure(popular, world, k) if popular else None
        ),
        histogram=_histogram(values[1] - values[0]),
        samples=samples.draw(world, arms, (in_a, in_b), history, k, for_samples),
        next_step=NextStep(
            online_users(*values, primary.diff, config.alpha),
            online_users(*values, config.min_lift * primary.a, config.alpha),
        ),
        limits=(
            *_limits(world, headers, k, history, held, checked),
            *_doubts(relevance[0], grouped, config),
            *cut,
            *notes,
        ),
        per_user=_per_user(world, in_a, in_b),
    )


def _undated(world: World) -> int:
    """Labels of listed items that nobody took before the window, and of which no date says that they were there."""
    if world.popularity is None:
        return 0
    is_told = world.is_listed & (world.popularity == 0)
    if "created_at" in world.attributes:
        is_told &= world.attributes["created_at"].isna().to_numpy()
    return int(is_told[world.relevant.indices].sum())


def _as_asked(arms: tuple[Arm, Arm], k: int) -> tuple[int, tuple[str, ...]]:
    """How many items of a list count, and why these are fewer than k: what an arm was not asked for is not held against it."""
    shorter = min(arms, key=lambda arm: k if arm.asked is None else arm.asked)
    if shorter.asked is None or shorter.asked >= k:
        return k, ()
    told = f"{shown(shorter.name)} was asked for lists of {shorter.asked}: so many items count, not {k}."
    return shorter.asked, (told,)


def _beside(world: World, champion: Arm | None, n_slots: int, k: int, cuts: tuple[int, ...]) -> dict[str, Lists]:
    """What stands beside the arms: the most popular items, and the champion where it is neither."""
    ranked = {"Popularity": world.popular_lists(n_slots)}
    if champion is not None:
        ranked["Champion"] = world.lists(champion.table, n_slots)
    return {name: Lists.of(lists, world, k, cuts) for name, lists in ranked.items() if lists is not None}


def _stability(
    primary: Relevance,
    world: World,
    a: Lists,
    b: Lists,
    events: pd.DataFrame,
    window: tuple[pd.Timestamp, pd.Timestamp],
    k: int,
    config: ReportConfig,
    reruns: tuple[Repetition, ...],
    needed: tuple[int, int],
) -> Stability:
    parts = stability.over_parts(world, a, b, events, window, k, config)
    if not any(needed):
        return Stability((*reruns, *parts))
    start, end = (moment.isoformat() for moment in window)
    own = (
        Repetition("seed", "the seed compared", start, end, primary.effect),
        Repetition("window", "the window compared", start, end, primary.effect),
    )
    return Stability((*own, *reruns, *parts), *needed)


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
        cost=arm.cost,
    )


def _known(table: pd.DataFrame | None, *columns: str) -> pd.DataFrame:
    """Those of the columns that a table has."""
    return pd.DataFrame() if table is None else table[[column for column in columns if column in table]]


def _repeats(world: World) -> str:
    """Whether labels repeat what the history holds, as the tables show it."""
    if world.seen is None:
        return "whether labels repeat what a user took before is unknown, as no history is given"
    n = world.relevant.multiply(world.seen).nnz
    return f"{n:,} labels repeat what their user took before" if n else "no label repeats what its user took before"


def _fingerprint(table: pd.DataFrame) -> str:
    """sha256 of the rows, whatever their order."""
    return hashlib.sha256(np.sort(pd.util.hash_pandas_object(table, index=False).to_numpy()).tobytes()).hexdigest()


def _histogram(gain: FloatArray) -> Histogram:
    counts, edges = np.histogram(gain, bins=41, range=(-1.025, 1.025) if len(gain) else (-1, 1))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _exposure(lists: Lists, world: World, k: int) -> tuple[float, ...]:
    """Lorenz curve of showings over the catalogue."""
    shown = lists.ranked[:, :k]
    return lorenz(np.bincount(shown[shown >= 0], minlength=len(world.items))[world.catalogue])


def _per_user(world: World, a: Lists, b: Lists) -> pd.DataFrame:
    columns: dict[str, Any] = {"user_id": world.users.ids, "n_relevant": world.n_relevant}
    if world.n_history is not None:
        columns["n_history"] = world.n_history
    for name in a.values:
        slug = name.lower().replace("@", "_").replace(" ", "_")
        columns |= {f"{slug}_a": a.values[name], f"{slug}_b": b.values[name]}
    return pd.DataFrame(columns)


def _too_few(n_users: int, config: ReportConfig) -> tuple[str, ...]:
    """What is too little to judge a segment by is too little to promote by."""
    if n_users >= config.min_segment_users:
        return ()
    return (f"{n_users:,} users are too few to promote by, {config.min_segment_users:,} are needed",)


def _doubts(primary: Relevance, grouped: tuple[Segment, ...], config: ReportConfig) -> list[str]:
    """What the numbers themselves leave open."""
    told = [
        f"{segment.kind}: {segment.name} is protected, but {segment.n:,} users are too few to judge it."
        for segment in grouped
        if segment.is_protected and segment.n > 0 and segment.effect is None
    ]
    if (primary.effect.p < config.alpha) != (primary.p_sign_flip < config.alpha):
        told.append(
            f"The t-test (p {primary.effect.p:.4f}) and sign flips (p {primary.p_sign_flip:.4f}) disagree about "
            f"{primary.metric}: too few users differ for either to be sure."
        )
    return told


def _limits(
    world: World,
    arms: list[ArmHeader],
    k: int,
    history: pd.DataFrame | None,
    held: Stability,
    checked: tuple[Check, ...],
) -> tuple[str, ...]:
    limits = list(_STILL_OUT)
    if not held.of("seed"):
        limits.append(
            "Intervals are over users: they know nothing of training noise, and tables cannot be trained again."
        )
    if len(world.users) < world.n_candidates:
        limits.append(f"{len(world.users):,} of {world.n_candidates:,} users with labels were drawn by seed.")
    if history is None:
        limits.append("No history was given: no popularity baseline, novelty, cold items or segments by history.")
    if undated := _undated(world):
        limits.append(
            f"{undated:,} of {world.relevant.nnz:,} labels are of items that nobody had taken before and that have no created_at: "
            "that the items table lists them may be knowledge of the window."
        )
    shortest = min(arm.deepest_rank for arm in arms)
    if shortest < min(MAX_SLOTS, 5 * k):
        limits.append(f"Lists of the shorter arm end at {shortest}: recall is not compared beyond that.")
    unknown = sum(check.status == "unknown" for check in checked)
    if unknown:
        limits.append(f"{unknown} validity checks could not be made for want of data; the table above says which.")
    return tuple(limits)
