"""The per-source table on a window of labels: every source and the whole, by segment, with intervals."""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from features import pairs
from features.activity import GROUPS, group_of
from features.candidates import Candidates, gather, source_scores, top_k
from features.caps import Cap, capped, pick_of
from features.chunks import chunk_size, chunks
from features.cold_order import score_pairs
from features.histories import Histories
from features.pairs import PairTable
from features.reasons import quoted, reasons
from features.snapshot import Snapshot
from recsys import metrics
from recsys.calibration import Reliability
from recsys.ranker import Ranker
from recsys.types import BoolArray, FloatArray, IntArray, Progress
from recsys.vectors import unit_rows
from training.calibration import measure_reliability

N_SLOTS = 50
N_CAPPED = 20 * N_SLOTS  # first items of a source that its list is picked from where caps may bar most of them
N_EXPLAINED = 10  # places that say why: as many as a report shows
N_TIMED = 500  # users whose ranking is timed, at most
N_TIMINGS = 3  # the quickest counts: another process can only slow one down
SOURCES = ("popular", "popular 7d", "repeat", "frozen text", "text", "als", "item-item", "ease", "fusion", "ranker")


@dataclass(frozen=True)
class Evaluation:
    """Outcome of an evaluation.

    Args:
        per_user: one row per (source, user): user_pos, segment, ndcg_10, recall_20, candidate_recall, cold_recall_50 (nan
            without a cold target, or where there are so few cold items that any order finds them all).
        coverage: share of eligible items in anybody's first 10, per source.
        lists: the ranker's first 50 items of each evaluated user: user_pos, item_pos, rank, score; source and reason
            of the first 10, null beyond and where nobody explains.
        n_cold_users: users with a target that had no event before the window.
        cpu_ms_per_user: CPU time to rank all items for a user as serving does; nan without users.
        reliability: how far `p` can be relied on; see `training.calibration.measure_reliability`.
        labels: pairs of user and item of the window: "taken" in all; of these "seen" had been acted on before and "gone" were of
            items withdrawn or not there yet, neither of which count.
    """

    per_user: pd.DataFrame
    coverage: dict[str, float]
    lists: pd.DataFrame
    n_cold_users: int
    cpu_ms_per_user: float
    reliability: dict[str, Reliability] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per source: means with the ends of their 95% intervals."""
        rows = []
        for source, group in self.per_user.groupby("source", sort=False, observed=True):
            row: dict[str, object] = {"source": source, "users": len(group)}
            for name in ("ndcg_10", "recall_20", "candidate_recall", "cold_recall_50"):
                interval = metrics.mean_interval(group[name].to_numpy(dtype=float))
                row[name] = interval.mean
                row[f"{name}_low"], row[f"{name}_high"] = interval.low, interval.high
            row["coverage"] = self.coverage[str(source)]
            rows.append(row)
        return pd.DataFrame(rows)

    def segments(self) -> pd.DataFrame:
        """NDCG@10 per source and length of history; columns are segments, with users in the first row."""
        mean = self.per_user.pivot_table("ndcg_10", "source", "segment", "mean", observed=True, sort=False)
        mean = mean[[s for s in GROUPS if s in mean.columns]]
        first = self.per_user[self.per_user["source"] == self.per_user["source"].iloc[0]]
        counts = first["segment"].value_counts().reindex(mean.columns)
        return pd.concat([counts.to_frame("users").T, mean])

    def segment_margins(self) -> pd.DataFrame:
        """Half-widths of the intervals of `segments`, the same rows but the first; nan where a single user is there, or a few who
        are all the same.
        """

        def margin(values: pd.Series) -> float:
            interval = metrics.mean_interval(values.to_numpy(dtype=float))
            return (interval.high - interval.low) / 2

        found = self.per_user.pivot_table("ndcg_10", "source", "segment", margin, observed=True, sort=False)
        of = self.segments()
        return found.reindex(of.index.drop("users"), columns=of.columns)  # of nan alone pandas makes no row

    def to_dict(self) -> dict[str, Any]:
        """What people read of it, as plain values for JSON."""
        return {
            "table": json.loads(self.table().to_json(orient="records")),
            "segments": json.loads(self.segments().to_json(orient="index")),
            "segment_margins": json.loads(self.segment_margins().to_json(orient="index")),
            "cold_users": self.n_cold_users,
            "labels": self.labels,
            "calibration": {name: asdict(found) for name, found in self.reliability.items()},
        }


def evaluate(
    snapshot: Snapshot,
    frozen_vectors: FloatArray,
    ranker: Ranker,
    targets: sp.csr_matrix,
    titles: pd.Series,
    *,
    max_users: int,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Evaluation:
    """Scores every source on what users took after the snapshot's moment.

    All eligible items are ranked. Users who came during the window count too, with an empty history.

    Args:
        snapshot: the world when the window began.
        frozen_vectors: unit vectors of the items by the untrained encoder, (n_items, dim).
        targets: what each user took in the window, (n_users, n_items).
        titles: of the items, (n_items,), for the reasons of listed ones.
        max_users: a larger number of users is sampled.
    """
    taken, targets = targets, snapshot.countable(targets)
    users = np.sort(rng.permutation(np.flatnonzero(np.diff(targets.indptr) > 0))[:max_users])
    is_cold = snapshot.facts.counts == 0
    is_listed = snapshot.is_eligible & is_cold
    # as deep as it goes: caps would tell how few kinds there are
    cold_only = replace(snapshot, is_eligible=is_listed, config=snapshot.config.with_rules_of(None))
    cold_targets = sp.csr_matrix(targets @ sp.diags(is_cold.astype(np.float32)))
    cold_targets.eliminate_zeros()
    frames, lists, quotes = [], [], quoted(titles)
    shown = {source: np.zeros(snapshot.histories.n_items, dtype=bool) for source in SOURCES}
    size = chunk_size(snapshot.histories.n_items)
    for chunk in chunks(users, size, progress):
        some = snapshot.histories.of_users(chunk)
        ranked, scores, candidates, table = rank_all(snapshot, frozen_vectors, ranker, some)
        has_cold = np.flatnonzero(np.diff(cold_targets[chunk].indptr))
        cold = {}
        if len(has_cold) and is_listed.sum() > N_SLOTS:  # else any order would find them all
            cold = rank_all(cold_only, frozen_vectors, ranker, snapshot.histories.of_users(chunk[has_cold]))[0]
        frames += _frames(
            chunk, some, ranked, candidates, targets[chunk], cold, cold_targets[chunk[has_cold]], has_cold
        )
        for source, items in ranked.items():
            shown[source][items[:, :10][items[:, :10] >= 0]] = True
        listed = _list_frame(chunk, ranked["ranker"], scores)
        lists.append(_explained(listed, chunk, candidates, table, quotes))
    per_user = pd.concat(frames, ignore_index=True)
    per_user["segment"] = pd.Categorical(per_user["segment"], GROUPS, ordered=True)
    per_user["source"] = pd.Categorical(per_user["source"], SOURCES, ordered=True)
    n_eligible = max(1, int(snapshot.is_eligible.sum()))
    coverage = {source: float(seen.sum() / n_eligible) for source, seen in shown.items()}
    n_cold = int((np.diff(cold_targets[users].indptr) > 0).sum())
    cost = _cpu_ms_per_user(snapshot, ranker, users[: min(N_TIMED, size)])
    reliability = measure_reliability(snapshot, ranker, targets, rng)
    per_user = per_user.sort_values(["source", "user_pos"])
    return Evaluation(
        per_user, coverage, pd.concat(lists), n_cold, cost, reliability, _labels(snapshot, taken, targets)
    )


def _labels(snapshot: Snapshot, taken: sp.csr_matrix, countable: sp.csr_matrix) -> dict[str, int]:
    """How many pairs a window took, and why some do not count; see `Evaluation`."""
    n_there = int((taken @ sp.diags(snapshot.is_eligible.astype(np.float32))).astype(bool).sum())
    return {"taken": taken.nnz, "seen": n_there - countable.nnz, "gone": taken.nnz - n_there}


def rank_all(
    snapshot: Snapshot, frozen_vectors: FloatArray, ranker: Ranker, some: Histories
) -> tuple[dict[str, IntArray], FloatArray, Candidates, PairTable]:
    """The first 50 items of every source for a chunk of users; the ranker's scores; its candidates; their features."""
    allowed = np.tile(snapshot.is_eligible, (some.n_users, 1))
    allowed[some.barred(snapshot.config.rules.exclude_seen)] = False
    caps = snapshot.caps

    def listed(scores: FloatArray, is_known: BoolArray | bool = True) -> IntArray:
        best = top_k(np.where(allowed & is_known, scores, -np.inf), N_CAPPED if caps else N_SLOTS)
        return capped(best, caps, N_SLOTS)

    scores = source_scores(snapshot, some)
    decayed = some.decayed(snapshot.config.text.history_decay)
    scores["frozen text"] = unit_rows(decayed @ frozen_vectors) @ frozen_vectors.T
    names = {"text": "text", "als": "cf", "item-item": "item_item", "ease": "ease", "frozen text": "frozen text"}
    ranked = {name: listed(scores[key]) for name, key in names.items()}
    for name, mass in (("popular", snapshot.facts.counts), ("popular 7d", snapshot.facts.counts_7d)):
        ranked[name] = listed(mass, mass > 0)
    if not snapshot.config.rules.only_new:
        ranked["repeat"] = listed(scores["repeat"], scores["repeat"] > 0)
    candidates = gather(snapshot, some)
    table = pairs.build(snapshot, some, candidates)
    best_scores: FloatArray = np.empty(0)
    for name, by in (("fusion", "fusion"), ("ranker", None)):
        by_score = score_pairs(ranker, candidates, table, by)
        ranked[name], best_scores = rank_pairs(candidates, by_score, N_SLOTS, caps)
    return {source: ranked[source] for source in SOURCES if source in ranked}, best_scores, candidates, table


def rank_pairs(
    candidates: Candidates, scores: FloatArray, k: int, caps: tuple[Cap, ...] = ()
) -> tuple[IntArray, FloatArray]:
    """The k best candidates of each user that the caps leave, ties by item position.

    Returns:
        Items and scores, (n_users, k); -1, nan where empty.
    """
    user, bounds = candidates.user_row, candidates.indptr
    slot = np.arange(len(user)) - bounds[user]
    padded = np.full((candidates.n_users, max(k, int(np.diff(bounds).max(initial=0)))), -np.inf)
    item_at = np.full(padded.shape, -1, dtype=np.int64)
    padded[user, slot], item_at[user, slot] = scores, candidates.item_pos
    row = np.arange(candidates.n_users)[:, None]
    best = top_k(padded, padded.shape[1] if caps else k)  # slots are in order of item position
    if caps:
        ordered = np.where(best >= 0, item_at[row, best], -1)
        picked = pick_of(ordered, caps, k)
        best = np.where(picked >= 0, best[row, picked], -1)
    is_there = best >= 0
    return np.where(is_there, item_at[row, best], -1), np.where(is_there, padded[row, best], np.nan)


def _frames(
    users: IntArray,
    some: Histories,
    ranked: dict[str, IntArray],
    candidates: Candidates,
    targets: sp.csr_matrix,
    cold: dict[str, IntArray],
    cold_targets: sp.csr_matrix,
    has_cold: IntArray,
) -> list[pd.DataFrame]:
    """Per-user metrics of a chunk, a frame per source; lists of cold items and their targets are of the users `has_cold`."""
    n_relevant = np.diff(targets.indptr)
    inside = candidates.values_of(targets) > 0
    found = np.bincount(candidates.user_row, inside, minlength=some.n_users) / np.maximum(n_relevant, 1)
    segment = np.array(GROUPS)[group_of(some.n_events)]
    frames = []
    for source, items in ranked.items():
        hits = metrics.hits_of(items, targets)
        cold_recall = np.full(some.n_users, np.nan)
        if cold:
            cold_hits = metrics.hits_of(cold[source], cold_targets)
            cold_recall[has_cold] = metrics.recall(cold_hits, np.diff(cold_targets.indptr), N_SLOTS)
        columns = {
            "source": source,
            "user_pos": users,
            "segment": segment,
            "ndcg_10": metrics.ndcg(hits, n_relevant, 10),
            "recall_20": metrics.recall(hits, n_relevant, 20),
            "candidate_recall": found if source in ("fusion", "ranker") else np.nan,
            "cold_recall_50": cold_recall,
        }
        frames.append(pd.DataFrame(columns))
    return frames


def _cpu_ms_per_user(snapshot: Snapshot, ranker: Ranker, users: IntArray) -> float:
    """Candidates, features and ranking of some users: time of this process alone, so that a busy machine counts less."""
    some = snapshot.histories.of_users(users)
    spent = []
    for _ in range(N_TIMINGS if len(users) else 0):
        began = time.process_time()
        candidates = gather(snapshot, some)
        scores = score_pairs(ranker, candidates, pairs.build(snapshot, some, candidates))
        rank_pairs(candidates, scores, N_SLOTS, snapshot.caps)
        spent.append(1000 * (time.process_time() - began) / len(users))
    return min(spent, default=float("nan"))


def _explained(
    listed: pd.DataFrame, users: IntArray, candidates: Candidates, table: PairTable, quotes: pa.Array
) -> pd.DataFrame:
    """Lists of a chunk of users with the source and reason that a release would carry in the first places."""
    first = np.flatnonzero(listed["rank"] <= N_EXPLAINED)
    n_items = len(quotes)
    keys = np.searchsorted(users, listed["user_pos"].iloc[first]) * n_items + listed["item_pos"].iloc[first].to_numpy()
    rows = np.searchsorted(candidates.user_row * n_items + candidates.item_pos, keys)
    why = reasons(quotes, candidates, table, rows)
    said = {name: np.full(len(listed), None, dtype=object) for name in ("source", "reason")}
    for name, texts in said.items():
        texts[first] = why[name].to_pylist()
    return listed.assign(**said)


def _list_frame(users: IntArray, items: IntArray, scores: FloatArray) -> pd.DataFrame:
    row, slot = np.nonzero(items >= 0)
    columns = {"user_pos": users[row], "item_pos": items[row, slot], "rank": slot + 1, "score": scores[row, slot]}
    return pd.DataFrame(columns).assign(source=None, reason=None)
