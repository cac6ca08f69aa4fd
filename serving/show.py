"""A person's look at what the system does: tables on a terminal."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from features.ingest import load_tables
from features.text import distinct_texts, item_texts, pooled_vectors
from recsys.config import Config
from recsys.errors import ConfigError, DataError, plain, shown
from recsys.ids import IdMap
from recsys.progress import Reporter
from recsys.schema import lists_frame
from recsys.types import BoolArray, FloatArray, IntArray
from serving import releases
from serving.door import dataset_of
from serving.models import fetched_version
from serving.publish import ReleaseStore
from serving.releases import read_parts
from training.model import Model

N_SHOWN = 8  # items of a list in a night's report
_METRICS = (
    ("ndcg_10", "NDCG@10"),
    ("recall_20", "Recall@20"),
    ("candidate_recall", "candidate recall"),
    ("cold_recall_50", "cold Recall@50"),
)


def print_evaluation(stored: dict[str, Any], console: Console, whose: str = "") -> None:
    """The per-source table and NDCG@10 by length of history, with 95% intervals.

    Args:
        whose: model version that the evaluation is of, for the title.
    """
    window = f", {stored['test_start'][:10]} to {stored['test_end'][:10]}" if "test_start" in stored else ""
    title = f"Each source on the last window{f' of model version {whose}' * bool(whose)}{window}: {stored['table'][0]['users']:,} users, 95% intervals"
    table = _narrow(title)
    table.add_column("source")
    for _, heading in _METRICS:
        table.add_column(heading, justify="right")
    table.add_column("coverage", justify="right")
    for row in stored["table"]:
        cells = [_with_interval(row, name) for name, _ in _METRICS]
        table.add_row(row["source"], *cells, f"{row['coverage']:.1%}")
    console.print(table)
    console.print(
        f"cold Recall@50: only items without events are ranked, {stored.get('cold_users', 0):,} users, - where no more than 50 are "
        "cold; coverage: of the items that may be listed, those in anybody's first 10",
        highlight=False,
        soft_wrap=True,
    )
    if stored.get("labels"):
        console.print(_labels_line(**stored["labels"]), highlight=False, soft_wrap=True)
    _print_segments(stored["segments"], stored.get("segment_margins", {}), console)
    if stored.get("calibration"):
        console.print(_reliability_line(stored["calibration"]), highlight=False, soft_wrap=True)


def _labels_line(taken: int, seen: int, gone: int) -> str:
    """What of the window counts.

    >>> _labels_line(10, 6, 1)
    'labels: 3 of 10 pairs of user and item; acted on or hidden before 6 (rules.exclude_seen, seen_by, hidden_by), withdrawn or not there yet 1'
    """
    left_out = [f"acted on or hidden before {seen:,} (rules.exclude_seen, seen_by, hidden_by)"] * bool(seen)
    left_out += [f"withdrawn or not there yet {gone:,}"] * bool(gone)
    counted = f"labels: {taken - seen - gone:,} of {taken:,} pairs of user and item"
    return "; ".join([counted, *[", ".join(left_out)] * bool(left_out)])


def _reliability_line(calibration: dict[str, dict[str, Any]]) -> str:
    """How far `p` can be relied on, in one line; the bins are in the JSON."""
    parts = [
        f"{name}: said {found['mean_p']:.4f}, taken {found['base_rate']:.4f}, "
        f"calibration error {found['error']:.4f}, Brier {found['brier']:.4f}"
        for name, found in calibration.items()
    ]
    return "p of users with a history; " + "; ".join(parts)


def _print_segments(
    segments: dict[str, dict[str, float | None]], margins: dict[str, dict[str, float | None]], console: Console
) -> None:
    table = _narrow("NDCG@10 by events in the user's history")
    table.add_column("source")
    names = list(segments["users"])
    for name in names:
        table.add_column(f"{name} events\n{segments['users'][name] or 0:,.0f} users", justify="right")
    for source, row in segments.items():
        if source != "users":
            of_source = margins.get(source, {})
            table.add_row(source, *[_with_margin(row[name], of_source.get(name)) for name in names])
    console.print(table)


def print_lists(config: Config, release: Path, console: Console, n_users: int) -> None:
    """Histories and lists of a few users of a release, with titles and reasons."""
    is_own = (pc.field("rank") == 1) & (pc.field("source") != "recent")
    people = releases.read(release, ["user_id"], is_own)["user_id"].to_pandas()
    if people.empty:  # all are new: one popular list for everybody
        return
    chosen = people.iloc[np.linspace(0, len(people) - 1, min(n_users, len(people))).astype(int)]
    tables = load_tables(config.data, _as_of(release))
    lists = read_parts(release, where=pc.field("user_id").isin(list(chosen))).to_pandas()
    for user in chosen:
        mine = lists[lists["user_id"] == user]
        _print_user(user, mine, tables.history_of(user), tables.items, console, N_SHOWN)


def show_user(config: Config, user: str, n: int, console: Console, as_json: bool) -> None:
    """A user's history and served list.

    Raises:
        DataError: nothing is published, or the user has no list.
    """
    release = served_release(config)
    mine = lists_frame(releases.read(release, where=pc.field("user_id").cast(pa.string()) == user))
    if not len(mine):
        others = releases.read(release, ["user_id"], pc.field("rank") == 1)["user_id"][:3].to_pylist()
        raise DataError(
            f"user {shown(user)} has no recommendations in {release.name}; "
            f"users there look like {', '.join(map(shown, others))}"
        )
    tables = load_tables(config.data, _as_of(release))
    if as_json:
        titles = tables.items.set_index("item_id")["title"]
        frame = mine.assign(title=mine["item_id"].map(titles)).head(n)
        console.print_json(frame.to_json(orient="records", date_format="iso"))
        return
    _print_user(mine["user_id"].iloc[0], mine, tables.history_of(mine["user_id"].iloc[0]), tables.items, console, n)


def _print_user(
    user: object, mine: pd.DataFrame, history: pd.DataFrame, items: pd.DataFrame, console: Console, n: int
) -> None:
    titles = items.set_index("item_id")["title"].to_dict()
    history = history[::-1].sort_values("timestamp", ascending=False, kind="stable")
    had = set(history["item_id"])
    table = Table(title=Text(f"user {plain(user)}: {len(history):,} events"), title_justify="left")
    for heading in ("", "item", "title", "new", "p", "source", "reason"):
        table.add_column(heading, overflow="fold" if heading == "item" else "ellipsis")  # half an id is none
    last = history.drop_duplicates("item_id").head(5)
    for item, when in zip(last["item_id"], last["timestamp"], strict=True):
        table.add_row("had", _cell(item), _cell(titles.get(item, "")), "", "", "", f"{when:%Y-%m-%d}", style="dim")
    table.add_section()
    mine = mine.assign(chance=[f"{p:.1%}" if p == p else "" for p in mine["p"].astype(float)])
    for row in mine.sort_values("rank").head(n).itertuples():
        new = "" if row.item_id in had else "new"
        table.add_row(
            str(row.rank),
            _cell(row.item_id),
            _cell(titles.get(row.item_id, "")),
            new,
            str(row.chance),
            _cell(row.source),
            _cell(row.reason or ""),
        )
    console.print(table)


def show_similar(config: Config, item: str, n: int, console: Console, as_json: bool) -> None:
    """Items nearest to one by text, and by behaviour.

    Raises:
        DataError: the item is unknown.
    """
    reporter = Reporter()
    model = Model.load(fetched_version(config, "champion", reporter).bundle.folder)
    with reporter.stage("reading tables"):
        dataset = dataset_of(config, pd.Timestamp.now(tz="UTC"))
    pos = _item_position(dataset.items, item)
    texts, text_of = distinct_texts(item_texts(dataset.catalogue, model.config.text.fields))
    with reporter.stage("item vectors") as progress:
        vectors = model.text.project(
            model.text.inputs(texts, pooled_vectors(model.text, texts, config.text.cache, progress))
        )[text_of]
    by_text = vectors @ vectors[pos]
    cf = model.cf.for_catalogue(model.items.positions(dataset.items.ids))
    by_behaviour = np.asarray(cf.similarity[[pos]].todense()).ravel()
    titles = dataset.catalogue["title"].fillna("").astype(str)
    if not as_json:  # a person learns nothing from nine items of one text
        by_text = np.where(_first_of_its_text(by_text * dataset.available, text_of, pos), by_text, 0)
    frames = {
        name: _nearest(np.where(dataset.available, scores, 0), pos, n, dataset.items, titles)
        for name, scores in (("text", by_text), ("behaviour", by_behaviour))
    }
    if as_json:
        console.print_json(json.dumps({k: json.loads(f.to_json(orient="records")) for k, f in frames.items()}))
        return
    for name, frame in frames.items():
        what = plain(titles.iloc[pos]) or f"item {plain(item)}, which has no title"
        table = Table(title=Text(f"like {what}, by {name}"), title_justify="left")
        for heading in ("item", "title", "score"):
            table.add_column(heading)
        for row in frame.itertuples():
            table.add_row(_cell(row.item_id), _cell(row.title), f"{row.score:.3f}")
        console.print(table)
    n_twins = int((text_of == text_of[pos]).sum()) - 1
    if n_twins and texts[text_of[pos]]:
        console.print(
            f"by text: {n_twins:,} more items with this very text are left out; of others that share a text, one is shown"
        )


def _first_of_its_text(scores: FloatArray, text_of: IntArray, pos: int) -> BoolArray:
    """The best item of each text, (n_items,), but for the text of one item."""
    order = np.argsort(-scores, kind="stable")
    best = order[np.unique(text_of[order], return_index=True)[1]]
    is_first = np.zeros(len(scores), dtype=bool)
    is_first[best] = True
    return is_first & (text_of != text_of[pos])


def _cell(value: object) -> Text:
    return Text(plain(value))


def _nearest(scores: FloatArray, pos: int, n: int, items: IdMap, titles: pd.Series) -> pd.DataFrame:
    scores = np.array(scores, dtype=np.float64)
    scores[pos] = -np.inf
    order = np.argsort(-scores, kind="stable")[:n]
    order = order[scores[order] > 0]
    return pd.DataFrame(
        {"item_id": items.values(order), "title": titles.iloc[order].to_numpy(), "score": scores[order]}
    )


def _item_position(items: IdMap, item: str) -> int:
    matches = np.flatnonzero(items.ids.astype(str) == item)
    if not len(matches):
        raise DataError(f"item {shown(item)} is not in the items table; {items.look}")
    return int(matches[0])


def served_release(config: Config) -> Path:
    """What is served now.

    Raises:
        ConfigError: nothing is.
    """
    release = ReleaseStore(Path(config.serving.output)).current()
    if release is None:
        raise ConfigError(f"{config.serving.output}: nothing is published yet; run: recsys nightly")
    return release


def _as_of(release: Path) -> pd.Timestamp:
    return pd.Timestamp(releases.manifest(release)["data"]["until"])


def _narrow(title: str) -> Table:
    """A table whose columns of means with intervals fit a log of 80 columns."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _with_interval(row: dict[str, Any], name: str) -> str:
    mean, high = row[name], row[f"{name}_high"]
    return _with_margin(mean, None if mean is None or high is None else high - mean)


def _with_margin(mean: float | None, half: float | None) -> str:
    """A mean and half its interval, where that is known and no wider than any metric: of a few users it says nothing.

    >>> _with_margin(0.25, 0.01), _with_margin(0.1941, 2.4666), _with_margin(None, None)
    ('.2500 ±.0100', '.1941', '-')
    """
    return _number(mean) if half is None or half > 1 else f"{_number(mean)} ±{_number(half)}"


def _number(value: float | None) -> str:
    """Four places; no zero before the point, so that a table with intervals fits a log of 80 columns."""
    return "-" if value is None else f"{value:.4f}".removeprefix("0")
