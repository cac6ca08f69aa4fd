"""Batch scoring of a data set with a registered model: shards, audit, publication."""

import hashlib
import json
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.caps import Cap, catalogue_caps, longest
from features.clean import clean_ids
from features.dataset import Dataset
from features.quarantine import PLACES
from features.read import read_table
from recsys.config import Config, DataConfig
from recsys.copies import Fetched
from recsys.errors import DataError, ResourceError, shown
from recsys.machine import peak_memory_mib
from recsys.revision import code_revision
from recsys.schema import TableSchema
from recsys.types import BoolArray, IntArray
from serving import releases
from serving.audit import COLUMNS, AuditContext, LastRelease, audit
from serving.columns import columns_known, refuse_lost_columns
from serving.lengths import MOST_COUNTED, n_all_barred, n_listable, usual_length
from serving.models import copies_of
from serving.publish import ReleaseStore
from serving.releases import read_parts
from serving.runs import Run
from serving.score import Scorer, Stamp, users_to_score
from serving.soundness import sound_model

EARLY = pd.Timedelta(hours=1)  # more than clocks differ by
BYTES_PER_ROW = 120  # of a compressed part, measured on the demo; the estimate behind the disk check


@dataclass(frozen=True)
class Released:
    """What a scoring ended in.

    release: folder that holds the lists; is_new: False when the same inputs were published before;
    moved: whether `current` points to it now; is_pinned: whether a rollback holds it; is_part: of some users or items only;
    is_early: as of a moment to come; move_current: `current` was to move whatever the lists are;
    rows, users: sizes; late_events: of before the release that was served then; stale_model: the registry was down, and a
    verified copy scored; seconds: of the whole.
    """

    release: Path
    model_version: str
    model_sha256: str
    rows: int
    users: int
    late_events: int
    is_new: bool
    moved: bool
    is_pinned: bool
    is_part: bool
    is_early: bool
    move_current: bool
    stale_model: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}

    def sentence(self) -> str:
        """One line for a person."""
        what = "published" if self.is_new else "nothing to do, the same inputs are published already:"
        if (self.is_part or self.is_early) and not self.move_current:
            whose = "of some users or items" if self.is_part else "of a later day"
            why = f"these are lists {whose}: --move-current"
        elif self.is_pinned:
            why = "it is pinned: recsys rollback --unpin"
        else:
            why = "it serves a later date: --move-current"
        served = "" if self.moved else f" (current was not moved: {why})"
        served += " (the registry was down: model from the last verified copy)" if self.stale_model else ""
        return f"{what} {self.release.name}: {self.rows:,} rows for {self.users:,} users, model {self.model_version}{served}"


def publish_lists(
    dataset: Dataset,
    run: Run,
    *,
    model: str = "champion",
    wanted: pd.Series | None = None,
    items: pd.Series | None = None,
    k: int | None = None,
    move_current: bool = False,
) -> Released:
    """Scores, audits and publishes; the same inputs a second time are not scored again.

    Args:
        run: holds the lock; see `serving.runs.recorded`.
        model: an alias or a version; resolved once, so an alias that moves meanwhile changes nothing.
        wanted: ids of users; all by default.
        items: ids of the only items to list; all that may be recommended by default.
        k: items per user; `serving.k` by default.
        move_current: lets a backfill of a past date, lists of some users or items alone, or those of a day to come become
            what is served.

    Raises:
        DataError: none of the users or items is known, or none of the items may be recommended.
    """
    config, store = run.config, run.store
    k = k or config.serving.k
    refuse_lost_columns(dataset, store, config)
    fetched = copies_of(run.registry, config).fetch(model)
    if fetched.stale:
        run.reporter.say(f"the registry is down: scoring with version {fetched.version.version}, the last one verified")
    if items is not None:
        dataset = _only(dataset, items, run)
    caps = catalogue_caps(config.rules, dataset.catalogue)
    for cap in caps:
        if (n_items := longest(dataset.available.nonzero()[0], (cap,), k)) < min(k, dataset.available.sum()):
            rule = f"rules.max_per_{cap.column} = {cap.most}"
            run.reporter.say(f"{rule}: the catalogue's fill lists of {n_items} items at most, not {k}")
    users = users_to_score(dataset, wanted)
    is_part = len(users) < len(dataset.users) or items is not None
    if wanted is not None and (n_strangers := wanted.nunique() - len(users)):
        run.reporter.say(f"--users: {n_strangers:,} of {wanted.nunique():,} ids have no events; they get no list")
    key = {
        "run_date": f"{dataset.as_of:%Y-%m-%d}",
        "model_sha256": fetched.bundle.sha256,
        "data_sha256": dataset.sha256,
        "request_sha256": _request_sha256(config, k, users, None if items is None else dataset.available),
    }
    release = store.find(key)
    is_new = release is None
    if release is None:
        store.check_space(len(users) * k * BYTES_PER_ROW)
        n_late = _count_late(dataset, run)
        staging = _score_shards(dataset, run, fetched, key, users, k, items is not None)
        is_aside = items is not None or (is_part and not move_current)  # not to be like what is served
        last_release = None if is_aside else _last_release(store, staging, len(users), k, dataset)
        _audit(staging, dataset, run, users, k, caps, fetched.version.tags, last_release)
        release = store.finish(
            staging,
            _facts(key, dataset, run, fetched)
            | {"late_events": n_late, "k": k, "is_part": is_part, "only_items": items is not None}
            | {"longest": n_listable(dataset, caps, MOST_COUNTED) if caps or items is not None else None},
        )
    is_early = dataset.as_of > pd.Timestamp.now(tz="UTC") + EARLY
    # also where it is no new one: a run may have died between the two; lists of some would take all others away, and
    # those of a day to come would keep the nights until then from being served
    moved = _served(release, run, move_current) if move_current or not (is_part or is_early) else False
    manifest = releases.manifest(release)
    released = Released(
        release=release,
        model_version=fetched.version.version,
        model_sha256=fetched.bundle.sha256,
        rows=manifest["rows"],
        users=manifest["users"],
        late_events=manifest.get("late_events", 0),
        is_new=is_new,
        moved=moved,
        is_pinned=store.is_pinned,
        is_part=is_part,
        is_early=is_early,
        move_current=move_current,
        stale_model=fetched.stale,
        seconds=run.seconds,
    )
    run.facts |= released.to_dict() | {"release": release.name}
    run.facts.pop("seconds")
    run.write("running")  # a comparison that comes after may be killed
    return released


def _served(release: Path, run: Run, move_current: bool) -> bool:
    """Publishes a release; where that ends in an error after the swap, the record says that it is out all the same."""
    try:
        return run.store.publish(release, allow_backfill=move_current)
    finally:
        if run.store.current() == release:
            run.facts["release"] = release.name


def _only(dataset: Dataset, items: pd.Series, run: Run) -> Dataset:
    """The data set with no other items to recommend than these; who acted on the others did so all the same."""
    positions = dataset.items.positions(clean_ids(items, "items"))
    is_asked = np.zeros(len(dataset.items), dtype=bool)
    is_asked[positions[positions >= 0]] = True
    if not (is_asked & dataset.available).any():
        raise DataError(
            f"--items: none of {items.nunique():,} ids is in the items table and may be recommended; ids there are "
            f"{dataset.items.ids.dtype}; mend the file"
        )
    if n_unknown := items[positions < 0].nunique():
        run.reporter.say(f"--items: {n_unknown:,} of {items.nunique():,} ids are not in the items table")
    return replace(dataset, available=dataset.available & is_asked)


def read_ids(path: str, of: Literal["users", "items"], config: DataConfig) -> pd.Series:
    """The column of ids, `user_id` or `item_id`, of a file like those of the tables, or the one that `data.columns` calls so.

    Raises:
        DataError: it cannot be read, names a column twice, or has no such column or no row.
    """
    ours = f"{of[:-1]}_id"
    is_url = "://" in path
    if not is_url and not Path(path).exists():
        raise DataError(f"{path}: no such file; give Parquet or CSV with a column {ours} to --{of}")
    # with nothing required and nothing mapped: any of some names will do
    any_columns, unmapped = TableSchema(of, {}, {}), config.model_copy(update={"columns": {}})
    given = read_table(path if is_url else escape(path), any_columns, unmapped).drop(columns=PLACES)
    mappings = (*config.mappings(of), *config.mappings("events"))
    names = list(dict.fromkeys([ours, *(one[ours] for one in mappings if ours in one)]))
    column = next((name for name in names if name in given), None)
    if column is None:
        raise DataError(f"{path}: no column {' or '.join(names)}; found {', '.join(map(shown, given))}; add it")
    if given.empty:
        raise DataError(f"{path}: it has no rows; name at least one {of[:-1]}, or leave --{of} out for all")
    return given[column]


def _score_shards(
    dataset: Dataset, run: Run, fetched: Fetched, key: dict[str, str], users: IntArray, k: int, only_items: bool
) -> Path:
    """Staged parts, one per shard of users; those that a run with the same key finished before it died are kept."""
    config, store, reporter = run.config, run.store, run.reporter
    size = config.serving.users_per_shard
    run_id = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(key, sort_keys=True)).hex[:12]  # same inputs, same bytes
    staging = store.begin(key["run_date"], run_id, key | {"code": code_revision(), "users_per_shard": str(size)})
    shards = list(enumerate(range(0, len(users), size)))
    missing = [(number, start) for number, start in shards if store.staged_part(staging, number) is None]
    if len(missing) < len(shards):
        reporter.say(f"scoring: {len(shards) - len(missing)} of {len(shards)} shards kept from a run that was cut off")
    if not missing:
        return staging
    sound = sound_model(fetched, dataset, config, reporter)
    if sound.warning:
        run.facts["other_settings"] = sound.warning
    scorer = Scorer.of(
        dataset, sound.snapshot, sound.model.ranker, Stamp(run_id, fetched.version.version, key["run_date"])
    )
    if only_items:
        scorer = scorer.without_p()
    with reporter.stage("scoring") as progress:
        for number, start in missing:
            part = scorer.score(
                users[start : start + size],
                k,
                lambda done, _, start=start: progress(start + done, len(users)),  # type: ignore[misc]
            )
            releases.write_part(staging, number, part)
    return staging


def _audit(
    staging: Path,
    dataset: Dataset,
    run: Run,
    users: IntArray,
    k: int,
    caps: tuple[Cap, ...],
    tags: dict[str, str],
    last_release: LastRelease | None,
) -> None:
    """Judges what was read back from disk; refused lists go to quarantine."""
    config, store = run.config, run.store
    eligible = dataset.available.nonzero()[0]
    trained_until = pd.Timestamp(tags["data_until"]) if "data_until" in tags else dataset.as_of
    context = AuditContext(
        eligible_users=len(users) - n_all_barred(dataset, users, config.rules.exclude_seen),
        k=k,
        catalogue=pa.array(dataset.items.values(eligible)),
        last_release=last_release,
        model_age_days=(dataset.as_of - trained_until).total_seconds() / 86_400,
        data_age_hours=(dataset.as_of - dataset.newest).total_seconds() / 3600,
        config=config.serving.audit,
        length=usual_length(dataset, users, k, caps, config.rules.exclude_seen),
        caps=tuple(cap.of(eligible) for cap in caps),
    )
    result = audit(releases.each_part(staging, COLUMNS), context)
    run.facts["audit"] = {gate.name: gate.number for gate in result.gates}
    for gate in result.warnings:
        run.reporter.say(f"audit warns: {gate.name} {gate.number} (limit {gate.limit}); {gate.remedy}")
    if result.growing:
        run.facts["audit_warning"] = result.growing
    if result.is_refused:
        run.facts["quarantine"] = str(store.quarantine(staging))
    result.raise_if_refused()


def _last_release(store: ReleaseStore, staging: Path, n_users: int, k: int, dataset: Dataset) -> LastRelease | None:
    """What staged lists are held against: those served, unless they are of a later date.

    Its rows are as many as it would have with lists of the length asked for now, and, where it was for some users alone,
    of as many users. Lists of some items alone are like no others.
    """
    served = store.last_whole()
    if served is None or staging.name[:10] < served.name[:10]:
        return None
    manifest = releases.manifest(served)
    if manifest.get("only_items"):
        return None
    known_type = manifest["schema"]["user_id"].removeprefix("large_")

    def lists_of(users: pa.Array) -> pa.Table:
        ends, field = pc.min_max(users).as_py(), pc.field("user_id")
        within = (field >= ends["min"]) & (field <= ends["max"])
        is_same_type = str(users.type).removeprefix("large_") == known_type  # else they are compared as text
        return read_parts(served, ["user_id", "item_id"], within if is_same_type else None)

    n_available = max(1, int(dataset.available.sum()))
    longer = min(k, n_available) / min(manifest.get("k", k), n_available)
    more = n_users / manifest["users"] if manifest.get("is_part") else 1.0
    return LastRelease(round(manifest["rows"] * longer * more), lists_of)


def _count_late(dataset: Dataset, run: Run) -> int:
    """Events of the time before the served release that were not there yet when it was made; 0 where others count now."""
    served = run.store.current()
    if served is None:
        return 0
    with suppress(ResourceError, KeyError):  # a damaged or older release says nothing about it
        data = releases.manifest(served)["data"]
        if data.get("labels") != _labels(run.config):
            return 0
        until = pd.Timestamp(data["until"])
        n_late = dataset.n_before(until) - int(data["events"])
        if until <= dataset.as_of and n_late > 0:
            run.reporter.say(f"{n_late:,} events of before {until:%Y-%m-%d %H:%M} came late; they count from now on")
            return n_late
    return 0


def _facts(key: dict[str, str], dataset: Dataset, run: Run, fetched: Fetched) -> dict[str, Any]:
    version = fetched.version
    model = {"name": run.config.mlflow.model_name, "version": version.version, "sha256": fetched.bundle.sha256}
    if "data_until" in version.tags:  # which may be after the moment of the lists, where these are of a past date
        model["trained_until"] = version.tags["data_until"]
    return {
        **key,
        "key": key,
        "model": model,
        "data": {
            "from": dataset.oldest.isoformat(),
            "until": dataset.as_of.isoformat(),
            "sha256": dataset.sha256,
            "events": dataset.n_before(dataset.as_of),
            "labels": _labels(run.config),
        },
        "columns": columns_known(dataset, run.config),
        "config_sha256": run.config.fingerprint(),
        "code_revision": code_revision(),
        "seconds": run.seconds,
        "timings": run.reporter.seconds,
        "peak_memory_mib": peak_memory_mib(),
    }


def _labels(config: Config) -> list[str]:
    """Types of events that count."""
    return sorted(config.data.event_weights)


def _request_sha256(config: Config, k: int, users: IntArray, only: BoolArray | None = None) -> str:
    """What was asked of a model: labels, rules, k, the users, and the items where not all were to be listed."""
    asked = f"{config.fingerprint('data', 'rules', 'candidates')} {k} {users.tobytes().hex()}"
    asked += "" if only is None else f" {np.packbits(only).tobytes().hex()}"
    return hashlib.sha256(asked.encode()).hexdigest()
