"""Quality against tuned baselines, all items ranked: python -m benchmarks.quality [--quick] [--tables amazon,...].

Every baseline has the same number of settings to try, judged by NDCG@10 on the validation window (the ranker's
labels); the best is fitted again on all that precedes the test window and measured there once. The system runs with
its defaults; text baselines read the encoder alone. Its seeded parts (text head, ALS, ranker) are trained `--seeds`
times, without text once. Writes benchmarks/quality.md and benchmarks/quality.json, table by table; tables that are not
run stay as they were. Data are read from ../shared/data.
"""

import argparse
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import CosineRecommender

from features.candidates import top_k
from features.chunks import chunks
from features.dataset import Dataset
from features.histories import Histories
from features.ingest import load_tables
from features.snapshot import Snapshot
from recsys import metrics
from recsys.cf_tower import CFTower, ease_weights
from recsys.config import CFConfig, Config, load_config
from recsys.machine import one_blas_thread
from recsys.revision import code_revision
from recsys.split import Windows
from recsys.types import BoolArray, FloatArray, IntArray
from recsys.vectors import unit_rows
from training.evaluate import rank_all
from training.moments import Moment, cut
from training.pipeline import fit_text, fit_towers, recency
from training.ranker import fit_ranker
from training.text_space import TextSpace

FOLDER = Path(__file__).parent
N_SLOTS = 50
ITEM_SEGMENTS = {"0": (0, 0), "1-4": (1, 4), "5-19": (5, 19), "20+": (20, np.inf)}
NEVER = 10_000.0  # days: a half-life that leaves weights as they are
Row = dict[str, Any]
Settings = dict[str, float]
Scorer = Callable[[Histories], FloatArray]


@dataclass(frozen=True)
class World:
    """A data set cut into windows, with every text encoded before and after fine-tuning; made once."""

    config: Config
    dataset: Dataset
    windows: Windows
    space: TextSpace

    @classmethod
    def open(
        cls, data: str, as_of: str, change: Callable[[Dataset], Dataset], overrides: tuple[str, ...] = ()
    ) -> "World":
        """Loads the tables, changes them and fine-tunes the encoder."""
        moment = pd.Timestamp(as_of, tz="UTC")
        config = load_config(FOLDER / "configs" / f"{data}.toml", overrides)
        dataset = change(Dataset.from_tables(load_tables(config.data, moment), moment))
        windows = cut(dataset, config)
        early = Moment.of(dataset, windows, 1)
        return cls(config, dataset, windows, fit_text(dataset, early, windows, config, silent))

    @property
    def frozen(self) -> FloatArray:
        """Unit vectors of the items by the untrained encoder, (n_items, dim)."""
        return unit_rows(self.space.frozen)[self.space.row]


@dataclass(frozen=True)
class Judge:
    """Who is judged on what: users with a target, what they knew, which items may be ranked.

    known: (n_users,) histories; targets: (n_users, n_items); allowed: (n_items,).
    """

    known: Histories
    targets: sp.csr_matrix
    allowed: BoolArray
    exclude_seen: bool

    @classmethod
    def of(
        cls, histories: Histories, targets: sp.csr_matrix, allowed: BoolArray, exclude_seen: bool, most: int
    ) -> "Judge":
        """All users with a target, or `most` of them, drawn with seed 0."""
        targets = histories.listable(targets, exclude_seen)
        users = np.flatnonzero(np.diff(targets.indptr) > 0)
        users = np.sort(np.random.default_rng(0).permutation(users)[:most])
        return cls(histories.of_users(users), targets[users], allowed, exclude_seen)

    def ranked(self, scorer: Scorer) -> IntArray:
        """First items of each user by a scorer of all items, (n_users, N_SLOTS)."""
        lists = []
        for chunk in chunks(np.arange(self.known.n_users), 256):
            some = self.known.of_users(chunk)
            scores = np.array(scorer(some), dtype=np.float32)
            scores[:, ~self.allowed] = -np.inf
            if self.exclude_seen:
                scores[some.user_pos, some.item_pos] = -np.inf
            lists.append(top_k(scores, N_SLOTS))
        return np.concatenate(lists)

    def measured(self, items: IntArray) -> pd.DataFrame:
        """One row per user: the metrics of their list."""
        hits, n = metrics.hits_of(items, self.targets), np.diff(self.targets.indptr)
        recalls = {f"Recall@{k}": metrics.recall(hits, n, k) for k in (10, 20, 50)}
        return pd.DataFrame({"NDCG@10": metrics.ndcg(hits, n, 10)} | recalls)

    def found_by_count(self, items: IntArray, counts: FloatArray) -> dict[str, float]:
        """Share of the targets among the first `N_SLOTS`, by how many events the item had."""
        user, target = self.targets.nonzero()
        key = user * self.targets.shape[1]
        is_found = np.isin(key + target, (np.arange(len(items))[:, None] * self.targets.shape[1] + items)[items >= 0])
        return {
            name: float(is_found[inside].mean())
            if (inside := (counts[target] >= low) & (counts[target] <= high)).any()
            else np.nan
            for name, (low, high) in ITEM_SEGMENTS.items()
        }


def popular(past: Histories, frozen: FloatArray, settings: Settings) -> Scorer:
    """Event weight of the last days; an item without any is never listed."""
    mass = past.popularity(settings["days"])
    return lambda some: np.tile(np.where(mass > 0, mass, -np.inf), (some.n_users, 1))


def repurchase(past: Histories, frozen: FloatArray, settings: Settings) -> Scorer:
    """What one took before, the newest first; popular in the last week where nothing is left to say."""
    mass = past.popularity(7)
    mass = 1e-6 * mass / max(1.0, mass.max())
    return lambda some: some.decayed(settings["decay"]).toarray() + mass


def item_item(past: Histories, frozen: FloatArray, settings: Settings) -> Scorer:
    """Cosine of the columns of users (implicit)."""
    model = CosineRecommender(K=int(settings["neighbours"]))
    model.fit(past.confidence(settings["half_life"]).astype(np.float64), show_progress=False)
    return lambda some: (some.decayed(settings["decay"]) @ model.similarity).toarray()


def als(past: Histories, frozen: FloatArray, settings: Settings) -> Scorer:
    """Alternating least squares of implicit, users folded in."""
    with one_blas_thread():
        model = AlternatingLeastSquares(
            factors=int(settings["factors"]), regularization=settings["regularization"], alpha=settings["alpha"],
            iterations=15, random_state=0,
        )  # fmt: skip
        model.fit(past.confidence(settings["half_life"]), show_progress=False)

    def score(some: Histories) -> FloatArray:
        rows = some.confidence(settings["half_life"])
        with one_blas_thread():
            users = model.recalculate_user(np.arange(some.n_users), rows)
        return np.asarray(users @ model.item_factors.T)

    return score


def ease(past: Histories, frozen: FloatArray, settings: Settings) -> Scorer:
    """EASE; with a `text_share` above 0 it is pulled towards frozen texts (L3AE)."""
    config = CFConfig(
        ease_regularization=settings["regularization"],
        ease_text_share=settings.get("text_share", 0.0),
        neighbours=10**6,
    )
    weights = ease_weights(past.confidence(settings["half_life"]), [frozen], config).toarray()
    return lambda some: some.decayed(settings["decay"]) @ weights


def text(past: Histories, frozen: FloatArray, settings: Settings) -> Scorer:
    """Cosine of the untrained encoder's vectors with their decayed mean over the history."""
    return lambda some: unit_rows(some.decayed(settings["decay"]) @ frozen) @ frozen.T


def ridge(past: Histories, frozen: FloatArray, settings: Settings) -> Scorer:
    """Each user's history regressed on the items' text vectors, all known items weighing the same."""
    seen = frozen[np.bincount(past.item_pos, minlength=past.n_items) > 0]
    directions = seen.T @ seen + settings["penalty"] * np.eye(frozen.shape[1], dtype=np.float32)
    weights = np.linalg.solve(directions, frozen.T)
    return lambda some: (some.counts().minimum(1) @ frozen) @ weights


def ease_and_text(past: Histories, frozen: FloatArray, settings: Settings) -> Scorer:
    """Standardised scores of EASE and frozen text, added."""
    parts = ease(past, frozen, settings), text(past, frozen, {"decay": 0.6})
    return lambda some: _standardised(parts[0](some)) + settings["text_weight"] * _standardised(parts[1](some))


def grid(**values: list[float]) -> list[Settings]:
    """All combinations."""
    rows: list[Settings] = [{}]
    for name, some in values.items():
        rows = [row | {name: value} for row in rows for value in some]
    return rows


Fit = Callable[[Histories, FloatArray, Settings], Scorer]
TIME = {"half_life": [45.0, NEVER], "decay": [0.8, 0.95]}
BASELINES: dict[str, tuple[Fit, list[Settings]]] = {
    "popular": (popular, grid(days=[NEVER])),
    "popular 30 days": (popular, grid(days=[30.0])),
    "popular 7 days": (popular, grid(days=[7.0])),
    "repurchase": (repurchase, grid(decay=[0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0])),
    "item-item": (item_item, grid(neighbours=[50.0, 200.0], **TIME)),
    "ALS": (als, grid(factors=[64.0, 256.0], regularization=[0.1], alpha=[5.0, 20.0], half_life=[45.0, NEVER])),
    "EASE": (ease, grid(regularization=[8.0, 24.0], **TIME)),
    "frozen text": (text, grid(decay=[0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])),
    "EASE + frozen text": (ease_and_text, grid(regularization=[16.0], text_weight=[0.5, 1.0], **TIME)),
    "L3AE": (ease, grid(regularization=[16.0], text_share=[0.4, 0.7], **TIME)),
}
COLD_BASELINES: dict[str, tuple[Fit, list[Settings]]] = {
    "frozen text, cosine": (text, grid(decay=[0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0])),
    "frozen text, ridge": (ridge, grid(penalty=[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0])),
}


def as_it_is(dataset: Dataset) -> Dataset:
    """The data set itself."""
    return dataset


def in_han_characters(dataset: Dataset) -> Dataset:
    """The same shop with each word of its texts as two Chinese characters, without spaces: the encoder knows next to none."""

    def character(number: int) -> str:
        return chr(0x4E00 + 3 * (number % 2000))

    def rewritten(text: str) -> str:
        words = (int(hashlib.md5(word.encode()).hexdigest(), 16) for word in re.findall(r"\w+", text.lower()))
        return "".join(character(word) + character(word >> 20) for word in words)

    texts = dataset.catalogue.select_dtypes("string").drop(columns="item_id")
    return replace(dataset, catalogue=dataset.catalogue.assign(**{c: texts[c].map(rewritten, "ignore") for c in texts}))


@dataclass(frozen=True)
class Table:
    """One table: a data set, the moment its test window ends, what counts, the number to reach."""

    title: str
    data: str
    as_of: str
    overrides: tuple[str, ...] = ()
    change: Callable[[Dataset], Dataset] = as_it_is


TABLES = {
    "amazon": Table("amazon-scientific, last event of each user", "amazon-scientific", "2000-02-21"),
    "retail": Table("online-retail from 2011-11-02, new items only", "online-retail", "2011-12-10"),
    "repeats": Table(
        "online-retail from 2011-11-02, repeats count",
        "online-retail",
        "2011-12-10",
        ("rules.exclude_seen=false",),
    ),
    "han": Table(
        "amazon-scientific, every word in Chinese characters",
        "amazon-scientific",
        "2000-02-21",
        change=in_han_characters,
    ),
}
COLD = Table("movies, a fifth of the items without events, only these ranked", "movies", "2018-09-25")
SYSTEM = {  # what `rank_all` calls it: what we call it here
    "text": "fine-tuned text alone", "als": "our ALS", "ease": "our EASE", "fusion": "our linear fusion", "ranker": "**whole system**",
}  # fmt: skip


def shortcuts(quick: bool) -> tuple[str, ...]:
    """Settings of a quick run: the encoder as it came, seconds of training."""
    return ("text.epochs=0", "text.head_steps=100", "ranker.max_users=2000") if quick else ()


def tuned(
    name: str,
    fit: Fit,
    settings: list[Settings],
    valid: tuple[Histories, Judge],
    test: tuple[Histories, Judge],
    frozen: FloatArray,
    by: str,
) -> Row:
    """A baseline with the settings that did best on validation, measured on test."""
    with costs() as spent:
        best = settings[0]
        if len(settings) > 1:
            values = [float(valid[1].measured(valid[1].ranked(fit(valid[0], frozen, s)))[by].mean()) for s in settings]
            best = settings[int(np.argmax(values))]
        items = test[1].ranked(fit(test[0], frozen, best))
    chosen = ", ".join(f"{k} {'never' if v == NEVER else format(v, 'g')}" for k, v in best.items())
    return {"source": name, "settings": chosen, "lists": [items], **spent}


def without_text(snapshot: Snapshot, config: Config) -> Snapshot:
    """The same moment without a word: no text vectors, EASE and ALS from behaviour alone."""
    nothing = np.zeros((snapshot.histories.n_items, 1), dtype=np.float32)
    settings = config.cf.model_copy(update={"ease_text_share": 0.0})
    cf = CFTower.fit(snapshot.histories.confidence(settings.half_life_days), [nothing], settings, config.seed)
    return replace(snapshot, text_vectors=nothing, cf=cf)


def system(world: World, config: Config, judge: Judge, seed: int, window: int = 2) -> dict[str, IntArray]:
    """Lists of the whole and its parts, trained with one seed, for the users of a judge of a window.

    The whole without text is trained with seed 0 only: it is there to say what text is worth, not to be chosen.
    """
    first, last = (Moment.of(world.dataset, world.windows, n) for n in (1, window))
    space = world.space.at(first.exists, seed)
    config = recency(first, space, config.model_copy(update={"seed": seed}))
    early = fit_towers(first, space, config, silent)
    late = fit_towers(last, world.space.at(last.exists, seed), config, silent)
    late = replace(late, is_eligible=judge.allowed)
    found: dict[str, IntArray] = {}
    worlds = {"": (early, late)}
    if seed == 0:
        worlds[", no text"] = without_text(early, config), without_text(late, config)
    for suffix, (before, after) in worlds.items():
        ranker = fit_ranker(before, first.targets, config, np.random.default_rng([seed, 3]))
        lists: dict[str, list[IntArray]] = {name: [] for name in SYSTEM}
        for chunk in chunks(np.arange(judge.known.n_users), config.serving.chunk_users):
            ranked = rank_all(after, world.frozen, ranker, judge.known.of_users(chunk))[0]
            for name in SYSTEM:
                lists[name].append(_filled(ranked[name]))
        names = SYSTEM if not suffix else {"ranker": "whole" + suffix}
        found |= {label: np.concatenate(lists[name]) for name, label in names.items()}
    return found


def systems(world: World, config: Config, judge: Judge, seeds: int, window: int = 2) -> list[Row]:
    """A row per part of the system, with the lists of every seed."""
    with costs() as spent:
        runs = [system(world, config, judge, seed, window) for seed in range(seeds)]
    each = {"seconds": spent["seconds"] / seeds, "MiB": spent["MiB"]}
    return [
        {"source": label, "settings": "defaults", "lists": [run[label] for run in runs if label in run], **each}
        for label in runs[0]
    ]


def warm_table(table: Table, world: World, quick: bool, seeds: int) -> tuple[list[Row], Judge, FloatArray]:
    """Baselines and system on the two later windows of a data set."""
    config = load_config(FOLDER / "configs" / f"{table.data}.toml", (*table.overrides, *shortcuts(quick)))
    parts = []
    for window in (1, 2):
        moment = Moment.of(world.dataset, world.windows, window)
        past, seen = moment.histories, config.rules.exclude_seen
        judge = Judge.of(past, moment.targets, world.dataset.available, seen, 1000 if quick else 10**9)
        parts.append((past, judge))
    rows = []
    for name, (fit, settings) in BASELINES.items():
        if name == "repurchase" and config.rules.exclude_seen:
            continue
        rows.append(tuned(name, fit, settings[:: 4 if quick else 1], *parts, world.frozen, "NDCG@10"))
        _say(parts[1][1], rows[-1])
    rows += systems(world, config, parts[1][1], seeds)
    return rows, parts[1][1], np.bincount(parts[1][0].item_pos, minlength=parts[1][0].n_items)


def cold_table(table: Table, quick: bool, seeds: int) -> tuple[list[Row], Judge, FloatArray]:
    """A fifth of the items loses its events; tuning hides another fifth in the same way."""
    moment = pd.Timestamp(table.as_of, tz="UTC")
    config = load_config(FOLDER / "configs" / f"{table.data}.toml", (*table.overrides, *shortcuts(quick)))
    full = Dataset.from_tables(load_tables(config.data, moment), moment)
    order = np.random.default_rng(0).permutation(len(full.items))
    fifths = [np.isin(np.arange(len(full.items)), part) for part in np.array_split(order, 5)]
    world = World.open(table.data, table.as_of, partial(without_items, hidden=fifths[0]), shortcuts(quick))
    parts = []
    for hidden, pool in ((fifths[0] | fifths[1], fifths[1]), (fifths[0], fifths[0])):
        left = without_items(full, hidden)
        past = Moment.of(left, cut(left, config), 3).histories
        taken = np.isin(full.item_pos, np.flatnonzero(pool))
        targets = sp.csr_matrix(
            (full.weight[taken], (full.user_pos[taken], full.item_pos[taken])), shape=(len(full.users), len(full.items))
        )
        parts.append((past, Judge.of(past, targets, pool, exclude_seen=True, most=10**9)))
    rows = []
    for name, (fit, settings) in COLD_BASELINES.items():
        rows.append(tuned(name, fit, settings[:: 4 if quick else 1], *parts, world.frozen, "Recall@20"))
        _say(parts[1][1], rows[-1])
    rows += systems(world, config, parts[1][1], seeds, window=3)
    return rows, parts[1][1], np.bincount(parts[1][0].item_pos, minlength=parts[1][0].n_items)


def without_items(dataset: Dataset, hidden: BoolArray) -> Dataset:
    """The data set without the events of some items, (n_items,); the items stay in the catalogue."""
    return dataset.with_events(dataset.events()[~hidden[dataset.item_pos]])


def summary(rows: list[Row], judge: Judge, counts: FloatArray, by: str) -> list[Row]:
    """Numbers of each row: means over users and seeds, intervals over users, spread over seeds, gain over the best."""
    out, per_user = [], {}
    for row in rows:
        runs = [judge.measured(items) for items in row["lists"]]
        mean = pd.concat(runs).groupby(level=0).mean()
        per_user[row["source"]] = mean[by].to_numpy()
        values: Row = {name: float(mean[name].mean()) for name in mean}
        for name in mean:
            interval = metrics.mean_interval(mean[name].to_numpy())
            values[f"{name} half"] = interval.mean - interval.low
        spread = float(np.std([run[by].mean() for run in runs], ddof=1)) if len(runs) > 1 else None
        segments = pd.DataFrame([judge.found_by_count(items, counts) for items in row["lists"]]).mean().to_dict()
        kept = {k: row[k] for k in ("source", "settings", "seconds", "MiB")}
        out.append(kept | values | {"seeds": len(runs), "sd over seeds": spread, "found by count": segments})
    theirs = [row for row in out if row["settings"] != "defaults"]
    best = max(theirs, key=lambda row: row[by])["source"]
    for row in out:
        if row["settings"] == "defaults":
            gain = metrics.paired_interval(per_user[best], per_user[row["source"]])
            row["against"] = {"baseline": best, "gain": gain.mean, "low": gain.low, "high": gain.high, "p": gain.p}
    return out


def markdown(key: str, table: Table, judge: Judge, rows: list[Row], by: str) -> str:
    """The table as Markdown."""
    shown = ["NDCG@10", "Recall@10", "Recall@20", "Recall@50"]
    lines = [
        f"## {table.title}", "",
        f"`python -m benchmarks.quality --tables {key} --seeds {max(row['seeds'] for row in rows)}`: {judge.known.n_users:,} users, {int(judge.allowed.sum()):,} items ranked, "
        f"{max(row['seeds'] for row in rows)} seeds. Found: share of targets among the first 50, by the item's events so far.", "",
        "| source | " + " | ".join(shown) + " | found 0 | 1-4 | 5-19 | 20+ | s | MiB | tuned to |",
        "|---|" + "---|" * (len(shown) + 7),
    ]  # fmt: skip
    for row in rows:
        cells = [f"{_short(row[name])} ±{_short(row[name + ' half'])}" for name in shown]
        cells += ["" if np.isnan(v) else _short(v, 3) for v in row["found by count"].values()]
        lines.append(
            f"| {row['source']} | "
            + " | ".join(cells)
            + f" | {row['seconds']:.0f} | {row['MiB']:.0f} | {row['settings']} |"
        )
    lines.append("")
    for row in rows:
        if "against" in row:
            a = row["against"]
            spread = "" if row["sd over seeds"] is None else f"; sd over seeds {_short(row['sd over seeds'])}"
            share = a["gain"] / next(r[by] for r in rows if r["source"] == a["baseline"])
            lines.append(
                f"- {row['source']} against {a['baseline']}, {by}: {a['gain']:+.4f} ({a['low']:+.4f} to {a['high']:+.4f}), "
                f"{share:+.0%}{spread}"
            )
    return "\n".join([*lines, ""])


def sections_of(page: str) -> dict[str, str]:
    """The tables of a page written earlier, by title, so that one of them can be made again."""
    parts = page.split("\n## ")[1:]
    return {part.split("\n", 1)[0]: f"## {part.rstrip()}\n" for part in parts}


@contextmanager
def costs() -> Iterator[Row]:
    """Seconds and peak resident MiB of a block, sampled twenty times a second."""
    spent: Row = {"seconds": 0.0, "MiB": _resident_mib()}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            spent["MiB"] = max(spent["MiB"], _resident_mib())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began = time.monotonic()
    try:
        yield spent
    finally:
        spent["seconds"] = time.monotonic() - began
        over.set()
        watcher.join()


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@contextmanager
def silent(name: str) -> Iterator[Callable[[int, int], None]]:
    """A stage without a progress bar; its name and seconds go to the terminal."""
    began = time.monotonic()
    yield lambda done, total: None
    print(f"    {name}: {time.monotonic() - began:.0f} s", flush=True)


def _filled(items: IntArray) -> IntArray:
    """Padded with empty slots to `N_SLOTS`, so that chunks have one shape."""
    out = np.full((len(items), N_SLOTS), -1, dtype=np.int64)
    out[:, : items.shape[1]] = items[:, :N_SLOTS]
    return out


def _standardised(scores: FloatArray) -> FloatArray:
    return np.asarray((scores - scores.mean(axis=1, keepdims=True)) / (scores.std(axis=1, keepdims=True) + 1e-9))


def _short(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}".removeprefix("0")


def _say(judge: Judge, row: Row) -> None:
    mean = judge.measured(row["lists"][0]).mean()
    print(f"  {row['source']:22} {'  '.join(f'{k} {v:.4f}' for k, v in mean.items())}  {row['settings']}", flush=True)


def main() -> None:
    """Makes the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one seed, two settings a baseline, 1,000 users, the encoder as it came; into out/quality-quick",
    )
    parser.add_argument("--seeds", type=int, default=5, help="trainings of the system per table")
    parser.add_argument("--tables", default="amazon,retail,repeats,cold", help="some of: %(default)s,han")
    parser.add_argument("--output", type=Path, help="folder of quality.md and quality.json; default: benchmarks")
    arguments = parser.parse_args()
    folder = arguments.output or (FOLDER.parent / "out" / "quality-quick" if arguments.quick else FOLDER)
    seeds = 1 if arguments.quick else arguments.seeds
    world_of = lru_cache(maxsize=1)(World.open)  # tables of one data set follow each other
    revision = code_revision()  # now: the pages written below are changes too
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "quality.md", folder / "quality.json"
    sections = sections_of(page.read_text() if page.exists() else "")
    numbers = json.loads(data.read_text()) if data.exists() else {}
    for key in arguments.tables.split(","):
        table = COLD if key == "cold" else TABLES[key]
        print(table.title, flush=True)
        began = time.monotonic()
        if key == "cold":
            rows, judge, counts = cold_table(table, arguments.quick, seeds)
        else:
            world = world_of(table.data, table.as_of, table.change, shortcuts(arguments.quick))
            rows, judge, counts = warm_table(table, world, arguments.quick, seeds)
        by = "Recall@20" if key == "cold" else "NDCG@10"
        numbers[key] = summary(rows, judge, counts, by)
        seconds = time.monotonic() - began
        sections[table.title] = (
            f"{markdown(key, table, judge, numbers[key], by)}\nRevision {revision}, {seconds:.0f} s.\n"
        )
        print(sections[table.title], flush=True)
        head = ["# Quality against tuned baselines", "", *(__doc__ or "").splitlines()[2:], ""]
        page.write_text("\n".join([*head, *sections.values()]))
        data.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
