"""What `recsys compare` puts side by side: two model versions, or any two recommendation tables."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.caps import Cap, catalogue_caps, longest, pick
from features.clean import clean_ids, ids_like, settled_ids
from features.files import CSV
from features.read import read_csv
from recsys.config import Config
from recsys.copies import Copies, Fetched
from recsys.errors import ConfigError, DataError, ModelError, shown
from recsys.ids import IdMap
from recsys.progress import Reporter
from recsys.registry import CHAMPION, Registry
from recsys.types import BoolArray
from serving import releases
from serving.labels import Judges, Window, among, is_blocked
from serving.lengths import MOST_COUNTED
from serving.models import copies_of, evaluation_in
from serving.remade import recipe, refuse_other_windows, refuse_unlike, score_before, train_again, training_facts
from serving.report.tables import ranked
from serving.report.world import Arm, Cost

_TABLES = (".parquet", ".csv", ".gz")


@dataclass(frozen=True)
class Sides:
    """Two arms, the window that judges them, and where they came from.

    Args:
        fetched: the versions, None for tables.
        champion: to stand beside, where neither arm is it and its lists are of the same window.
        notes: what the page must say of the arms, such as why no champion stands beside them.
    """

    arms: tuple[Arm, Arm]
    window: Window
    fetched: tuple[Fetched, Fetched] | None = None
    champion: Arm | None = None
    notes: tuple[str, ...] = ()


def sides(
    config: Config,
    a: str,
    b: str,
    as_of: pd.Timestamp,
    test_start: pd.Timestamp | None,
    reporter: Reporter,
    n_windows: int = 0,
) -> Sides:
    """Two of a kind: versions by the window of the later one, tables by `test_start` to `as_of`.

    Args:
        n_windows: on how many windows both recipes may be trained again; 0 where none is.

    Raises:
        ConfigError: the arms are of two kinds, no common window is known, or it ends after `as_of`.
    """
    is_table = [Path(name).exists() for name in (a, b)]
    for name in (a, b):
        if not Path(name).exists() and (os.sep in name or name.lower().endswith(_TABLES)):
            raise ConfigError(f"{shown(name)}: no such file or folder; give a table, a release's folder, or a version")
    if is_table[0] != is_table[1]:
        raise ConfigError(f"{shown(a)} and {shown(b)}: one is a table, the other a model; give two of a kind")
    if not all(is_table):
        if test_start is not None:
            raise ConfigError(
                "--test-start is for tables: versions are judged on the window that they were evaluated on"
            )
        return _versions(config, (a, b), as_of, reporter, n_windows)
    arms = _told_apart(Path(a), Path(b))
    note = "Tables stand alone: no champion is beside them, as its lists of this window are not at hand."
    return Sides(arms, Window(_start_of(arms, test_start), as_of), notes=(note,))


def _told_apart(a: Path, b: Path) -> tuple[Arm, Arm]:
    """Two tables as arms; where their files have one name, those of their folders stand before it."""
    arms = table_arm(a), table_arm(b)
    parts = a.resolve().parts, b.resolve().parts
    n_parts = next((n for n in range(1, len(parts[0])) if parts[0][-n:] != parts[1][-n:]), 1)
    one, other = (replace(arm, name="/".join(own[-n_parts:])) for arm, own in zip(arms, parts, strict=True))
    return one, other


def table_arm(path: Path) -> Arm:
    """A recommendation table as an arm: a release folder (verified), a folder of Parquet, a Parquet or CSV file.

    Without ranks, as some libraries export, rows are ranked by score, ties by item id.

    Raises:
        DataError: it cannot be read, or lacks user_id, item_id, or both rank and score.
    """
    info: dict[str, str] = {}
    facts: dict[str, Any] = {}
    cost = Cost()
    path = path.resolve()  # once: a night may move `current` meanwhile
    try:
        if (path / "manifest.json").exists():
            facts = releases.manifest(path)
            # a model may have seen what is later than its lists: those of a past date, made today
            until = facts["data"]["until"]
            until = max(until, facts.get("model", {}).get("trained_until", until), key=pd.Timestamp)
            info = {"trained_until": until, "code_revision": str(facts.get("code_revision", ""))}
            if "model" in facts:
                info["model"] = f"{facts['model']['name']} {facts['model']['version']}"
                info["artifact_sha256"] = facts["model"].get("sha256", "")
            info["data_from"] = facts["data"].get("from", "")
            info["data_sha256"] = facts["data"].get("sha256", "")
            cost = _release_cost(facts)
            table = releases.read(path).to_pandas()
        elif path.name.lower().endswith(CSV):
            table = read_csv(path)
        else:
            table = pd.read_parquet(path)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: no recommendation table: {error}; give Parquet or CSV, or a release folder"
        ) from error
    missing = [column for column in ("user_id", "item_id") if column not in table]
    missing += ["rank"] if "rank" not in table and "score" not in table else []
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; found {', '.join(map(shown, table.columns))}; add it")
    if "rank" not in table:
        info["ranks"] = "by score, ties by item id, as the table has none"
    # two `current` of two folders would bear one name on the page
    told = {key: value for key, value in info.items() if value}
    return Arm(path.name, table, info=told, cost=cost, longest=facts.get("longest"), asked=facts.get("k"))


def with_ids_like(both: Sides, labels: pd.DataFrame) -> Sides:
    """Tables with the ids typed as in the data, one that came as CSV holds texts, and ranked. Versions are as they are."""
    if both.fetched is not None:
        return both
    a, b = (replace(arm, table=ranked(arm.table.assign(**dict(_typed_ids(arm, labels))))) for arm in both.arms)
    return replace(both, arms=(a, b))


def _typed_ids(arm: Arm, labels: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    for column in ("user_id", "item_id"):
        ids = ids_like(clean_ids(arm.table[column], arm.name), labels[column])
        yield column, settled_ids(ids.fillna(-1)) if pd.api.types.is_integer_dtype(ids.dtype) else ids


def _versions(config: Config, names: tuple[str, str], as_of: pd.Timestamp, reporter: Reporter, n_windows: int) -> Sides:
    """Two versions on the last window of the one with later data; B where they are as late."""
    copies = copies_of(Registry(config.mlflow), config)
    fetched = copies.fetch(names[0]), copies.fetch(names[1])
    base = max(reversed(fetched), key=_data_until)
    told = _evaluation(base)
    window = Window(
        pd.Timestamp(told["test_start"]), pd.Timestamp(told["test_end"]), bool(told["by_column"]), _judged_users(base)
    )
    if as_of < window.end and not window.by_column:  # before anything is trained again
        raise ConfigError(
            f"--as-of {as_of}: these versions are judged from {window.start} to {window.end}; "
            "name versions trained as of an earlier moment, or leave --as-of out"
        )
    # also where the older version as it is does for this window: with other seeds and for other windows it does not
    refuse_other_windows(config, fetched, _data_until(base), min(n_windows, 1) if window.by_column else n_windows)
    made = [_version_arm(name, one, base, window, config, reporter) for name, one in zip(names, fetched, strict=True)]
    users = made[0][1].intersection(made[1][1])
    arms = _unblocked(made[0][0], config), _unblocked(made[1][0], config)
    window = Window(window.start, window.end, window.by_column, users)
    champion, notes = _champion(config, copies, fetched, base)
    return Sides(arms, window, fetched, champion, notes)


def _version_arm(
    name: str, one: Fetched, base: Fetched, window: Window, config: Config, reporter: Reporter
) -> tuple[Arm, pd.Index]:
    """A version's lists on the window, and whom they cover.

    What its evaluation stored, where that is the window; else the version as it is, where it saw none of the
    window; else its recipe, trained again on the data of the other.
    """
    info = _facts(one, config)
    if _same_window(one, base):
        return _stored_arm(name, one, info, config, window), _judged_users(one)
    if not window.by_column and _data_until(one) <= window.start:
        users = _judged_users(base)
        table = score_before(one, config, window.start, users, window.end, reporter)
        info |= {"trained_until": _data_until(one).isoformat(), "lists": "of the version as it is"}
        return Arm(name, table, one.version.version, info, _cost(one)), users
    refuse_other_windows(config, (one, base), _data_until(base), 1)
    again = train_again(recipe(one, config), _data_until(base), reruns_folder(config), reporter)
    refuse_unlike(config, (one, base), (again.window, (window.start, window.end)))
    info |= again.facts | {
        "trained_until": window.start.isoformat(),
        "lists": f"of its recipe, trained again on the data of version {base.version.version}",
    }
    return Arm(name, again.table, one.version.version, info, _cost(one)), again.users


def _stored_arm(name: str, one: Fetched, info: dict[str, str], config: Config, window: Window) -> Arm:
    """The lists that a version's evaluation stored; no event of its window has touched them."""
    told = {"lists": "those its evaluation stored"} | training_facts(_evaluation(one))
    if window.by_column:  # an order, not times: neither can be held against the window
        told.pop("latest_training_event", None)
    else:
        told["trained_until"] = window.start.isoformat()
    per_user = _stored(one, "per_user")
    found = per_user[per_user["source"] == "ranker"].drop_duplicates("user_id").set_index("user_id")
    table = _stored(one, "recommendations")
    version = one.version.version
    return Arm(name, table, version, info | told, _cost(one), found["candidate_recall"])


def _champion(
    config: Config, copies: Copies, fetched: tuple[Fetched, Fetched], base: Fetched
) -> tuple[Arm | None, tuple[str, ...]]:
    """The present champion, where it is neither arm; or why it cannot stand beside them."""
    if any(CHAMPION in one.version.aliases for one in fetched):
        return None, ()
    champion = copies.fetch(CHAMPION)
    version = champion.version.version
    if not _same_window(champion, base):
        told = f"The present champion, version {version}, was evaluated on another window: it does not stand beside."
        return None, (told,)
    return _unblocked(Arm(CHAMPION, _stored(champion, "recommendations"), version), config), ()


def _unblocked(arm: Arm, config: Config) -> Arm:
    """Lists without what was blocked since they were made, ranks closed up: those made today have none of it."""
    is_out = is_blocked(arm.table["item_id"], config) if config.rules.blocked else np.zeros(len(arm.table), dtype=bool)
    if not is_out.any():
        return arm
    told = f"{is_out.sum():,} rows of items that rules.blocked names taken out, ranks closed up"
    return replace(_without(arm, is_out), info=arm.info | {"blocked": told})


def with_rules(both: Sides, tables: Judges, config: Config) -> Sides:
    """Versions' lists as this run's rules of lists leave them, ranks closed up. Tables are as they are."""
    if both.fetched is None:
        return both
    caps = catalogue_caps(config.rules, tables.items)
    sold = tables.items["item_id"].isin(tables.history["item_id"].unique()).to_numpy().nonzero()[0]

    def ruled(arm: Arm) -> Arm:
        arm = _unhidden(arm, tables)
        if not caps:
            return arm
        n_items = longest(sold, caps, MOST_COUNTED) // len(caps)  # two that cross may leave it half as long
        return replace(_capped(arm, tables.items, caps), longest=n_items)

    a, b = map(ruled, both.arms)
    return replace(both, arms=(a, b), champion=ruled(both.champion) if both.champion else None)


def _unhidden(arm: Arm, tables: Judges) -> Arm:
    """Lists without what their users had hidden before the window, by a rule that may be younger than the lists."""
    is_out = among(arm.table, tables.hidden)
    if not is_out.any():
        return arm
    told = f"{is_out.sum():,} rows of items that their users hid (rules.hidden_by) taken out, ranks closed up"
    return replace(_without(arm, is_out), info=arm.info | {"hidden": told})


def _capped(arm: Arm, items: pd.DataFrame, caps: tuple[Cap, ...]) -> Arm:
    table = arm.table.sort_values(["user_id", "rank"], kind="stable", ignore_index=True)
    row = pd.factorize(table["user_id"])[0]
    slot = table.groupby(row).cumcount().to_numpy()
    item_at = np.full((row.max(initial=-1) + 1, slot.max(initial=-1) + 1), -1)
    known = IdMap.from_values(items["item_id"])
    row_of = np.argsort(known.positions(items["item_id"]))  # of the catalogue, by position
    found = known.positions(table["item_id"])
    item_at[row, slot] = np.where(found >= 0, row_of[found], -1)
    is_there = np.zeros(item_at.shape, dtype=bool)
    is_there[row, slot] = True
    picked = pick(is_there, tuple(cap.of(item_at) for cap in caps), item_at.shape[1])
    is_kept = np.zeros(item_at.shape, dtype=bool)
    who, place = np.nonzero(picked >= 0)
    is_kept[who, picked[who, place]] = True
    is_out = ~is_kept[row, slot]
    if not is_out.any():
        return arm
    rules = " and ".join(f"rules.max_per_{cap.column} = {cap.most}" for cap in caps)
    told = f"{is_out.sum():,} rows beyond {rules} taken out, ranks closed up"
    return replace(_without(replace(arm, table=table), is_out), info=arm.info | {"caps": told})


def _without(arm: Arm, is_out: BoolArray) -> Arm:
    """Lists without some rows, (n_rows,), ranks closed up."""
    kept = arm.table[~is_out]
    rank = kept.groupby("user_id")["rank"].rank(method="first").astype(kept["rank"].dtype)
    return replace(arm, table=kept.assign(rank=rank))


def reruns_folder(config: Config) -> Path:
    """Where lists of recipes trained again lie."""
    return Path(config.serving.output) / "compare" / "reruns"


def _same_window(one: Fetched, other: Fetched) -> bool:
    """Of the same data, cut at the same moment; where it ends may differ, as nothing happened between the two ends."""
    starts = _evaluation(one)["test_start"], _evaluation(other)["test_start"]
    data = one.version.tags.get("data_sha256"), other.version.tags.get("data_sha256")
    return starts[0] == starts[1] and data[0] == data[1]


def _data_until(one: Fetched) -> pd.Timestamp:
    if "data_until" not in one.version.tags:
        raise _incomparable(one, "does not say until when its data reach")
    return pd.Timestamp(one.version.tags["data_until"])


def _judged_users(one: Fetched) -> pd.Index:
    return pd.Index(_stored(one, "per_user")["user_id"].unique())


def _facts(one: Fetched, config: Config) -> dict[str, str]:
    """What the page says of a version's making."""
    tags = one.version.tags
    return {
        "registry": f"models:/{config.mlflow.model_name}/{one.version.version}",
        "data_until": tags["data_until"],
        "seed": str(recipe(one, config).seed),
        "config_sha256": tags.get("config_sha256", ""),
        "data_sha256": tags.get("data_sha256", ""),
        "code_revision": tags.get("code_revision", ""),
        "artifact_sha256": one.version.sha256,
    }


def _cost(one: Fetched) -> Cost:
    """What its training measured: for all versions alike, whether they ever made a release or not."""
    told = _evaluation(one)
    folder = one.bundle.folder
    return Cost(
        train_s=sum(told.get("seconds", {}).values()) or None,
        ms_per_user=told.get("cpu_ms_per_user"),
        peak_memory_mib=told.get("peak_memory_mib"),
        model_bytes=sum(
            path.stat().st_size for path in folder.rglob("*") if path.is_file() and "evaluation" not in path.parts
        ),
    )


def _release_cost(facts: dict[str, Any]) -> Cost:
    """What a release took: the stage that scores alone, as its night may have trained too.

    By the clock, once, beside whatever else the machine did: for the reader, not for the verdict.
    """
    return Cost(score_s=facts.get("timings", {}).get("scoring"), peak_memory_mib=facts.get("peak_memory_mib"))


def _start_of(arms: tuple[Arm, Arm], given: pd.Timestamp | None) -> pd.Timestamp:
    if given is not None:
        return given
    known = [pd.Timestamp(arm.info["trained_until"]) for arm in arms if "trained_until" in arm.info]
    if not known:
        raise ConfigError("neither table says until when it was made; give --test-start, the moment labels begin")
    return max(known)


def _evaluation(fetched: Fetched) -> dict[str, Any]:
    try:
        return evaluation_in(fetched.bundle.folder)
    except FileNotFoundError:
        raise _incomparable(fetched, "holds no evaluation") from None


def _incomparable(one: Fetched, why: str) -> ModelError:
    return ModelError(f"version {one.version.version} {why}; train one with: recsys train")


def _stored(fetched: Fetched, name: str) -> pd.DataFrame:
    return pd.read_parquet(fetched.bundle.folder / "evaluation" / f"{name}.parquet")
