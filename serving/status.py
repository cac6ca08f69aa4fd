"""What is served and what to do about it, for a person on call at four in the morning."""

import fcntl
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from recsys.config import Config
from recsys.errors import ModelError, ResourceError, plain
from recsys.registry import Registry
from serving import releases
from serving.publish import ReleaseStore
from serving.releases import made_hours_ago
from serving.runs import age, last_runs

LATE_H = 36.0  # a nightly release older than this missed a night
CLOCK_H = 1.0  # clocks that differ by less are right

_NEXT = {
    0: "",
    2: "mend the command or recsys.toml, then run: recsys nightly",
    3: "mend what the error names, then run: recsys nightly",
    4: "look at the lists in quarantine; mend the cause, or the limit in [serving.audit], then run: recsys nightly",
    5: "mend the disk or make room (recsys gc --delete), then run: recsys nightly",
    6: "start or mend the registry, or do what the error below says, then run: recsys nightly",
    7: "the lists are out; make the report again: recsys report",
    8: "the lists are out, by the model of before; mend what the error names, then run: recsys nightly",
    124: "run again, it goes on where it stopped: recsys nightly (with more time, --deadline)",
    130: "run again, it goes on where it stopped: recsys nightly",
    143: "run again, it goes on where it stopped: recsys nightly",
}

_JUDGE = "nothing for the lists; to judge the new version: recsys nightly"

_WARNINGS = {  # facts of a run that ended well, and what to do about them before they cost a night
    "training_error": ("published, but no new model", "start or mend the registry; the next night trains again"),
    "other_settings": (
        "published, by a model that learned with other settings",
        "train, and promote what comes of it: recsys nightly --train always --promote",
    ),
    "stale_model": ("published, by the last verified copy of the model", "start or mend the registry"),
    "lost_registry": (
        "published, by a registry that begins anew",
        "if nobody meant that: bring its store back, or set [mlflow] tracking_uri and model_name as they were",
    ),
    "promotion_error": ("published, but the new version could not be judged", "see why: recsys promote challenger"),
    "audit_warning": (
        "published, but model or data grow too old to publish",
        "do what it says below, before nights are refused",
    ),
}


@dataclass(frozen=True)
class Served:
    """The release that readers get.

    age_hours: since it was written, None where its manifest is gone; damage: what is wrong with its files, or None.
    """

    release: str
    run_date: str
    age_hours: float | None
    rows: int
    users: int
    model_version: str
    damage: str | None


@dataclass(frozen=True)
class Standing:
    """The state of an output folder.

    Args:
        verdict: "ok", or what is wrong in a few words.
        next: what to do, or "nothing to do".
        served: None where nothing is published.
        last_run: its record, None before the first; "cut off" as its outcome where the run was killed.
        aliases: alias -> model version, None where the registry does not answer; registry_error says why.
    """

    verdict: str
    next: str
    served: Served | None
    previous: str | None
    pinned: bool
    last_run: dict[str, Any] | None
    aliases: Mapping[str, str] | None
    output: str
    registry_error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """Name and words, the most urgent first."""
        found = [("state", self.verdict), ("next", self.next), ("served", self._served())]
        if self.served and self.served.damage:
            found.append(("damage", self.served.damage))
        pinned = "yes, by a rollback: nights publish, but current stays; let them move it: recsys rollback --unpin"
        found += [("pinned", pinned if self.pinned else "no"), ("before it", self.previous or "none")]
        found.append(("last run", _run_line(self.last_run) if self.last_run else "none"))
        if self.last_run and self.last_run.get("error"):
            found.append(("its error", str(self.last_run["error"])))
        for fact in _WARNINGS:
            if self.last_run and isinstance(self.last_run.get(fact), str):
                found.append(("it warned", str(self.last_run[fact])))
        aliases = f"the registry does not answer: {self.registry_error}" if self.aliases is None else ", ".join(
            f"{alias} is version {version}" for alias, version in sorted(self.aliases.items())
        )  # fmt: skip
        return [*found, ("models", aliases or "none registered"), ("folder", self.output)]

    def _served(self) -> str:
        one = self.served
        if one is None:
            return "nothing"
        return (
            f"{one.release}, {age(one.age_hours)} old: {one.rows:,} rows for {one.users:,} users, "
            f"model version {one.model_version}"
        )


def standing(config: Config) -> Standing:
    """The state of a config's output folder; asks the registry, and does without it."""
    store = ReleaseStore(Path(config.serving.output))
    served = served_by(store)
    last = _last_run(store, served)
    before = store.previous()
    verdict, todo = _judge(served, store, last)
    aliases, error = _aliases(config)
    return Standing(
        verdict,
        todo,
        served,
        before.name if before else None,
        store.is_pinned,
        last,
        aliases,
        config.serving.output,
        error,
    )


def show_status(config: Config, console: Console, as_json: bool, path: str = "") -> None:
    """Prints the state as plain lines, so that an error is read whole and can be copied, and commands run as they stand.

    Args:
        path: the config file that commands must be given, "" where they find it themselves.
    """
    state = standing(config)
    if as_json:
        console.print_json(json.dumps(state.to_dict()))
        return
    for name, words in state.lines():
        if path and name in ("next", "pinned"):
            words = re.sub(r"\brecsys [a-z]+", lambda found: f"{found[0]} -c {shlex.quote(path)}", words)
        console.print(Text(f"{name:<10} {plain(words, 2000)}"), soft_wrap=True)


def served_by(store: ReleaseStore) -> Served | None:
    """What readers of a store get, verified."""
    release = store.current()
    if release is None:
        return None
    try:
        facts = releases.manifest(release)
        made = made_hours_ago(release)
        damage = None
        try:
            releases.verify(release)
        except ResourceError as error:
            damage = str(error)
        version = str(facts["model"]["version"])
        return Served(release.name, facts["run_date"], round(made, 1), facts["rows"], facts["users"], version, damage)
    except (ResourceError, OSError, KeyError) as error:
        return Served(release.name, release.name[:10], None, 0, 0, "unknown", str(error))


def _aliases(config: Config) -> tuple[dict[str, str] | None, str | None]:
    """Alias -> model version; None, and why, where the registry does not answer."""
    try:
        return {alias: v.version for v in Registry(config.mlflow).versions() for alias in v.aliases}, None
    except ModelError as error:
        return None, str(error)


def _judge(served: Served | None, store: ReleaseStore, last: dict[str, Any] | None) -> tuple[str, str]:
    """What is wrong in a few words, and what to do; the worst thing counts."""
    if served is not None and served.damage:
        return "BROKEN: what is served is damaged on disk", _mends(store)
    return _of_run(served, last) or _of_served(served, store.is_pinned, last)


def _mends(store: ReleaseStore) -> str:
    """What brings whole lists back."""
    before, is_pinned = store.previous(), store.is_pinned
    anew = "make it anew at once: " + "recsys rollback --unpin, then " * is_pinned + "recsys nightly"
    if before is None or before == store.current() or not store.is_whole(before):
        return anew
    back = "serve what the rollback took away: recsys rollback --undo" if is_pinned else "go back: recsys rollback"
    return f"{anew}; or {back}"


def _of_run(served: Served | None, last: dict[str, Any] | None) -> tuple[str, str] | None:
    """What the last run calls for; None where it ended well."""
    outcome, code = (last["outcome"], last["exit_code"]) if last else ("done", 0)
    if last and outcome == "running":
        if served is not None and served.age_hours is not None and served.age_hours > LATE_H:
            late = f"LATE: no new release for {age(served.age_hours)}, and a run is at work"
            return late, f"see in its log that it makes headway; if not: kill {last['pid']}, then run: recsys nightly"
        return "ok, a run is at work", "wait for it; it holds the lock"
    is_out = last is not None and bool(last.get("release"))
    if outcome == "cut off":
        if is_out:
            return "published, but killed before its end", _JUDGE
        return "LATE: the last run was killed", "run again, it goes on where it stopped: recsys nightly"
    if not code:
        return None
    if is_out and outcome == "stopped":
        return "published, but stopped before its end", _JUDGE
    still = "yesterday's lists are served" if served else "nothing is served"
    published = {7: "published, but the report failed", 8: "published, but no new model: the training failed"}
    todo = _NEXT.get(code, "look at the error below, then run: recsys nightly")
    failed = "published, but failed before its end" if is_out else f"FAILED: the last run did not publish, {still}"
    return published.get(code, failed), todo


def _of_served(served: Served | None, is_pinned: bool, last: dict[str, Any] | None) -> tuple[str, str]:
    """What the release calls for, after a run that ended well."""
    if served is None:
        return "nothing is published yet", "run: recsys nightly"
    # nights publish beside what is pinned
    hours = _hours_since(last["began"]) if is_pinned and last else served.age_hours
    if hours is not None and hours > LATE_H:
        return f"LATE: no new release for {age(hours)}", "see that cron runs, then run: recsys nightly"
    if is_pinned:
        return "ok, pinned by a rollback", "when the cause is mended: recsys rollback --unpin"
    if served.run_date > f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}":
        return (
            f"WARNING: lists of a day to come are served, {served.run_date}",
            "nights before it publish, but current stays; let one move it: recsys nightly --move-current",
        )
    for fact, (verdict, todo) in _WARNINGS.items():
        if last and last.get(fact):
            return f"WARNING: {verdict}", todo
    return "ok", "nothing to do"


def _last_run(store: ReleaseStore, served: Served | None) -> dict[str, Any] | None:
    """The newest record of a run that was to move what is served; "running" is "cut off" when nobody holds the lock.

    Lists of some users were not, nor a backfill of an earlier date, nor lists of a day to come, but with --move-current. A
    record that began in the future was written while the clock was wrong.
    """
    records = (r for r in last_runs(store.output) if r["command"] in ("nightly", "score"))
    for record in (r for r in records if _hours_since(r["began"]) > -CLOCK_H):
        if record["outcome"] == "running":
            if _is_held(store.output / ".lock"):
                return record
            record["outcome"] = "cut off"
        is_past = served is not None and record["as_of"][:10] < served.run_date
        is_early = _hours_since(record["began"]) - _hours_since(record["as_of"]) > CLOCK_H
        is_beside = not (record.get("moved", True) or record.get("is_pinned"))
        is_aside = record.get("is_part") or is_past or is_early or is_beside
        if record.get("move_current") or not is_aside:
            return record
    return None


def _is_held(lock: Path) -> bool:
    try:
        with lock.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _run_line(run: dict[str, Any]) -> str:
    words = f"{run['command']} as of {run['as_of'][:16]}, began {age(_hours_since(run['began']))} ago, {run['outcome']}"
    if run["outcome"] == "running":
        return f"{words}, pid {run['pid']}"
    if run["outcome"] == "cut off":
        return f"{words} (killed, or the machine went down)"
    return words + (
        f" with exit code {run['exit_code']} in {run['stage'] or 'the beginning'}" if run["exit_code"] else ""
    )


def _hours_since(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds() / 3600
