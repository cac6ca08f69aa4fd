"""Validity checks; one that fails makes the comparison INVALID."""

import numpy as np
import pandas as pd
from scipy import stats

from recsys import metrics
from recsys.config import ReportConfig
from recsys.errors import shown
from recsys.types import FloatArray, IntArray
from serving.report.decision import Check
from serving.report.measures import Lists
from serving.report.world import Arm, World, positive, ranks, sold

N_SELF_USERS = 2_000
N_HALVES = 500
MIN_HALVED = 100  # users above 0, and users unlike most, under which a t-test of halves is not yet uniform
TINY = 1e-9  # a spread that is rounding
CHANCE_P = 1e-6
RATIO_P = 1e-3  # usual for sample ratios: they are looked at every time
MAX_CROSSED = 0.01  # share of the users whom both arms met; beyond it, arms were not drawn by user
_HALF_CELLS = 4_000_000  # memberships held at once


def validity(
    world: World,
    arms: tuple[Arm, Arm],
    lists: tuple[Lists, Lists],
    events: pd.DataFrame,
    items: pd.DataFrame,
    history: pd.DataFrame | None,
    hidden: pd.DataFrame | None,
    window: tuple[pd.Timestamp, pd.Timestamp],
    k: int,
    config: ReportConfig,
    rng: np.random.Generator,
    impressions: pd.DataFrame | None = None,
) -> tuple[Check, ...]:
    """All checks, in the order of the page."""
    start, end = window
    checks = [_same_users(world, arms, lists, config), _window(events, history, start, end)]
    for arm in arms:
        checks += [
            _trained_before(arm, events, start),
            _no_duplicates(arm),
            _sound_ranks(arm),
            _long_enough(arm, world, history, hidden, k, config),
            _listed(arm, world),
            _existed(arm, items, history, start),
        ]
    checks += [_against_itself(world, arm, own, rng) for arm, own in zip(arms, lists, strict=True)]
    checks += [_halves(arm, own, rng) for arm, own in zip(arms, lists, strict=True)]
    checks += [_random_labels(world, lists, k, rng), _oracle(world, k)]
    return (*checks, _sample_ratio(arms, impressions, window, config))


def _check(name: str, is_sound: bool, good: str, bad: str) -> Check:
    return Check(name, "pass" if is_sound else "fail", good if is_sound else bad)


def _same_users(world: World, arms: tuple[Arm, Arm], lists: tuple[Lists, Lists], config: ReportConfig) -> Check:
    n = len(world.users)
    name = "Both arms are judged on the same users"
    if n < 2:
        return Check(name, "fail", f"{n} users acted in the test window, at least 2 are needed; widen the window")
    is_empty = [(own.ranked < 0).all(axis=1) for own in lists]
    without = ", ".join(
        f"{int(empty.sum()):,} without a list in {shown(arm.name)}" for arm, empty in zip(arms, is_empty, strict=True)
    )
    n_one_sided = int((is_empty[0] != is_empty[1]).sum())
    detail = f"{n:,} users; {without}: these score 0, none is dropped"
    if max(int(empty.sum()) for empty in is_empty) == n:
        return Check(name, "fail", f"{detail}; an arm without any list cannot be compared: check its ids")
    bad = (
        f"{detail}; {n_one_sided:,} have a list in one arm alone, over {config.max_missing_users:.0%}: "
        "score the same users with both"
    )
    return _check(name, n_one_sided <= config.max_missing_users * n, detail, bad)


def _window(events: pd.DataFrame, history: pd.DataFrame | None, start: pd.Timestamp, end: pd.Timestamp) -> Check:
    name = "Labels lie in the test window, the history before it"
    if "timestamp" not in events:
        return Check(name, "unknown", "the labels carry no timestamp")
    outside = int((~events["timestamp"].between(start, end, inclusive="left")).sum())  # also one without a moment
    late = int((history["timestamp"] >= start).sum()) if history is not None and "timestamp" in history else 0
    bad = f"{outside:,} labels outside the window, {late:,} events of the history not before it; cut both at {start}"
    return _check(name, outside + late == 0, f"{len(events):,} labels checked", bad)


def _trained_before(arm: Arm, events: pd.DataFrame, start: pd.Timestamp) -> Check:
    """Nothing at or after `trained_until` was read; `latest_training_event` is the last that was."""
    name = f"{shown(arm.name)} was trained on nothing from the test window"
    told = {key: arm.info[key] for key in ("trained_until", "latest_training_event") if arm.info.get(key)}
    if not told:
        return Check(name, "unknown", "the arm does not say until when it was trained")
    is_sound, details = True, [f"the window starts {_at(start)}"]
    for key, text in told.items():
        try:
            moment = pd.Timestamp(text)
            at = moment.tz_localize("UTC") if moment.tzinfo is None else moment.tz_convert("UTC")
        except ValueError:
            return Check(name, "fail", f"{key} is {shown(text)}, no time; write it as 2024-01-31T00:00:00Z")
        if key == "trained_until":
            is_sound &= bool(at <= start)
            details.insert(0, f"trained until {_at(at)}")
        else:
            first = events["timestamp"].min() if "timestamp" in events and len(events) else start
            is_sound &= bool(at < first)
            details.append(f"the last training event is of {_at(at)}, the first test event of {_at(first)}")
    detail = ", ".join(details)
    return _check(name, is_sound, detail, f"{detail}: it has seen labels; score with a model from before")


def _at(moment: pd.Timestamp) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _no_duplicates(arm: Arm) -> Check:
    pairs = int(arm.table.duplicated(["user_id", "item_id"]).sum())
    slots = int(arm.table.duplicated(["user_id", "rank"]).sum())
    bad = f"{pairs:,} repeated (user, item) rows, {slots:,} repeated (user, rank) rows; write one row per pair"
    return _check(f"{shown(arm.name)} has no duplicates", pairs + slots == 0, f"{len(arm.table):,} rows", bad)


def _sound_ranks(arm: Arm) -> Check:
    rank = ranks(arm.table)
    broken = ~(rank >= 1) | (rank % 1 != 0)
    scores = pd.to_numeric(arm.table["score"], errors="coerce") if "score" in arm.table else pd.Series(dtype=float)
    n_broken, n_nan = int(broken.sum()), int(scores.isna().sum())
    lengths = pd.Series(rank).groupby(arm.table["user_id"].to_numpy()).agg(["max", "size"])
    n_gaps = int((lengths["max"] > lengths["size"]).sum())
    bad = f"{n_broken:,} ranks are no whole number from 1, {n_nan:,} scores are NaN, {n_gaps:,} lists have gaps; rank anew from 1"
    return _check(
        f"{shown(arm.name)} has whole ranks from 1 and no NaN",
        n_broken + n_nan + n_gaps == 0,
        f"{len(lengths):,} lists",
        bad,
    )


def _long_enough(
    arm: Arm,
    world: World,
    history: pd.DataFrame | None,
    hidden: pd.DataFrame | None,
    k: int,
    config: ReportConfig,
) -> Check:
    """Lists of users who have one; a user without any is seen by another check. Nobody can list more than there is."""
    name = f"{shown(arm.name)} has no short lists"
    lengths = arm.table.groupby("user_id").size()
    offered = np.flatnonzero(world.is_offered)
    most = len(offered) if arm.longest is None else min(arm.longest, len(offered))
    left = np.full(len(lengths), most)
    barred = [] if hidden is None else [hidden]
    if history is not None and (world.leaves_out_seen or arm.longest is not None):
        barred.append(positive(history))
    if barred:
        past = pd.concat([rows[["user_id", "item_id"]] for rows in barred])
        past = past[past["user_id"].isin(lengths.index) & past["item_id"].isin(world.items.values(offered))]
        left -= past.groupby("user_id")["item_id"].nunique().reindex(lengths.index, fill_value=0).to_numpy()
    n_short = int((lengths.to_numpy() < np.minimum(k, left)).sum())
    n_allowed = int(config.max_short_lists * len(lengths))
    detail = f"{n_short:,} of {len(lengths):,} lists hold fewer than {min(k, most)} items"
    if n_short <= n_allowed:
        return Check(name, "pass", detail)
    mend = (
        "fill them up, for example with popular items"
        if arm.longest is None
        else "train or score again, as rules keep them short"
    )
    holds = int(np.sort(lengths.to_numpy())[n_allowed])  # so many nearly all of them do
    return Check(name, "fail", f"{detail}, over {config.max_short_lists:.0%}; {mend}, or compare with -k {holds}")


def _listed(arm: Arm, world: World) -> Check:
    position = world.items.positions(arm.table["item_id"])
    is_known = (position >= 0) & world.is_listed[position]
    unknown = arm.table["item_id"][~is_known]
    bad = (
        f"{len(unknown):,} rows name unknown items, first {shown(unknown.iloc[0])}; give both the same catalogue"
        if len(unknown)
        else ""
    )
    return _check(
        f"{shown(arm.name)} recommends items of the catalogue", not len(unknown), f"{len(world.catalogue):,} items", bad
    )


def _existed(arm: Arm, items: pd.DataFrame, history: pd.DataFrame | None, start: pd.Timestamp) -> Check:
    name = f"{shown(arm.name)} recommends nothing before it existed"
    if "created_at" not in items:
        return Check(name, "unknown", "the items table has no created_at")
    created = pd.to_datetime(items["created_at"], utc=True, errors="coerce")
    young = items["item_id"][(created > start) & ~items["item_id"].isin(sold(history))]
    early = int(arm.table["item_id"].isin(young).sum())
    bad = f"{early:,} rows name items created after {start}; the lists were made with later knowledge"
    return _check(name, early == 0, f"{len(young):,} items are younger than the window's start, none is in a list", bad)


def _against_itself(world: World, arm: Arm, own: Lists, rng: np.random.Generator) -> Check:
    """Reads some users' rows once more, in another order: every metric must come out exactly equal."""
    chosen = np.sort(rng.permutation(len(world.users))[:N_SELF_USERS])
    rows = arm.table[arm.table["user_id"].isin(world.users.values(chosen))]
    again = world.lists(rows.iloc[rng.permutation(len(rows))], own.ranked.shape[1])
    hits = metrics.hits_of(again[chosen], world.relevant[chosen])
    k = int(own.primary.rpartition("@")[2])
    before = own.values[own.primary][chosen]
    gap = float(np.abs(metrics.ndcg(hits, world.n_relevant[chosen], k) - before).max(initial=0.0))
    name = f"{shown(arm.name)} against itself differs by exactly 0"
    detail = f"largest difference {gap:g} over {len(chosen):,} users"
    return _check(name, gap == 0, detail, f"{detail}; rows with equal ranks make the list ambiguous")


def _halves(arm: Arm, own: Lists, rng: np.random.Generator) -> Check:
    """Splits the users at random and tests half against half: the p-values must be uniform.

    They are not where the test does not hold its level on this metric, or where users are not independent.
    """
    name = f"{shown(arm.name)}: p-values of random half-splits are uniform"
    values = own.values[own.primary]
    alike = int(np.unique(values, return_counts=True)[1].max(initial=0))
    n_telling = min(int((values > 0).sum()), len(values) - alike)
    if n_telling < MIN_HALVED or values.std() < TINY:
        return Check(
            name, "unknown", f"{n_telling} users score above 0 and unlike most, at least {MIN_HALVED} are needed"
        )
    p = half_splits(values, N_HALVES, rng)
    uniform = float(stats.kstest(p, "uniform").pvalue)
    detail = f"{(p < 0.05).mean():.1%} of {N_HALVES} splits reject at 5%; Kolmogorov-Smirnov p {uniform:.3g}"
    return _check(name, uniform > CHANCE_P, detail, f"{detail}; intervals over these users mean nothing")


def half_splits(values: FloatArray, n_splits: int, rng: np.random.Generator) -> FloatArray:
    """p-values of Welch's t-test between random halves of the users, (n_splits,)."""
    n = len(values)
    moments = np.column_stack([np.ones(n), values, values**2])
    p = np.empty(n_splits)
    step = max(1, _HALF_CELLS // max(1, n))
    for start in range(0, n_splits, step):
        rows = min(step, n_splits - start)
        is_first = rng.random((rows, n), dtype=np.float32) < 0.5
        first = is_first.astype(np.float64) @ moments
        second = moments.sum(0) - first
        (n1, m1, v1), (n2, m2, v2) = (_moments(half) for half in (first, second))
        e1, e2 = v1 / n1, v2 / n2
        freedom = (e1 + e2) ** 2 / (e1**2 / (n1 - 1) + e2**2 / (n2 - 1))
        p[start : start + rows] = 2 * stats.t.sf(np.abs(m1 - m2) / np.sqrt(e1 + e2), freedom)
    return p


def _moments(sums: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Size, mean and variance from sums of 1, x and x^2, (n_splits, 3)."""
    n, total, squares = sums.T
    return n, total / n, (squares - total**2 / n) / (n - 1)


def _sample_ratio(
    arms: tuple[Arm, Arm],
    impressions: pd.DataFrame | None,
    window: tuple[pd.Timestamp, pd.Timestamp],
    config: ReportConfig,
) -> Check:
    """Where both arms ran online, users must have met them in the ratio that was meant.

    A user who met both would be counted twice, and no binomial draw is like that: such users are left out.
    """
    name = "Users met the arms online in the ratio meant"
    if impressions is None or "policy" not in impressions:
        return Check(name, "unknown", "the arms were not logged online")
    inside = impressions[(impressions["timestamp"] >= window[0]) & (impressions["timestamp"] < window[1])]
    met = [set(inside.loc[inside["policy"].isin({arm.name, arm.version} - {""}), "user_id"]) for arm in arms]
    if arms[0].name == arms[1].name or not all(met):
        return Check(name, "unknown", "the log's policies do not name both arms")
    n_all, n_both = len(met[0] | met[1]), len(met[0] & met[1])
    if n_both > MAX_CROSSED * n_all:
        crossed = f"{n_both:,} of {n_all:,} users met both arms, over {MAX_CROSSED:.0%}"
        return Check(name, "unknown", f"{crossed}: they crossed over, so users cannot tell the ratio")
    users = [len(own) - n_both for own in met]
    p = float(stats.binomtest(users[1], sum(users), config.online_share_b).pvalue)
    detail = f"{users[0]:,} users met A alone, {users[1]:,} B, {config.online_share_b:.0%} were meant for B (p {p:.3g})"
    return _check(name, p > RATIO_P, detail, f"{detail}; find out who is lost before reading any metric")


def _random_labels(world: World, lists: tuple[Lists, Lists], k: int, rng: np.random.Generator) -> Check:
    """Draws random items as labels and counts hits, which chance alone foretells."""
    n_users, n_items = len(world.users), len(world.items)
    name = "Shuffled labels fall to chance"
    if n_users == 0 or n_items == 0:
        return Check(name, "unknown", "there are no labels")
    shuffled = world.relevant.copy()
    shuffled.indices = rng.integers(0, n_items, size=shuffled.nnz).astype(shuffled.indices.dtype)
    # m draws touch a given item with probability 1 - (1 - 1/n)^m.
    touched = 1 - (1 - 1 / n_items) ** world.n_relevant
    told = []
    for own in lists:
        first = own.ranked[:, :k]
        found = int(metrics.hits_of(first, shuffled).sum())
        expected = float((_distinct(first) * touched).sum())
        tail = min(stats.poisson.cdf(found, expected), stats.poisson.sf(found - 1, expected))
        told.append((found, expected, float(tail)))
    detail = ", ".join(f"{found:,} hits where chance gives {expected:,.1f}" for found, expected, _ in told)
    return _check(name, min(tail for *_, tail in told) > CHANCE_P, detail, f"{detail}; the scoring leaks")


def _distinct(ranked: IntArray) -> IntArray:
    """Different items in each row, (n_users,)."""
    ordered = np.sort(ranked, axis=1)
    is_new = np.column_stack([np.ones(len(ordered), dtype=bool), ordered[:, 1:] != ordered[:, :-1]])
    return np.asarray((is_new & (ordered >= 0)).sum(1))


def _oracle(world: World, k: int) -> Check:
    """Lists made of the labels themselves must score 1."""
    row = np.repeat(np.arange(len(world.users)), world.n_relevant)
    slot = np.arange(len(row)) - world.relevant.indptr[row]
    ranked = np.full((len(world.users), k), -1, dtype=np.int64)
    ranked[row[slot < k], slot[slot < k]] = world.relevant.indices[slot < k]
    worst = float(metrics.ndcg(metrics.hits_of(ranked, world.relevant), world.n_relevant, k).min(initial=1.0))
    return _check(
        "An oracle arm scores 1", abs(worst - 1) < 1e-9, f"lowest NDCG@{k} {worst:g}", f"lowest NDCG@{k} {worst:g}"
    )
