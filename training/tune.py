"""`recsys tune`: looks for better settings on the ranker's window; the report window is not in the data it gets.

Trial 0 is the settings as they are. Then groups of dials take turns, three trials each: a trial turns the dials of its
group, by Optuna's TPE, and leaves the others where the best trial so far has them. Everything is kept in a folder after
every trial, so that a search that was stopped goes on where it was and ends as if it had not been.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from features.dataset import Dataset
from recsys.config import Config
from recsys.errors import AlreadyRunningError, ConfigError
from recsys.metrics import Interval, paired_interval
from recsys.progress import Reporter
from recsys.registry import Registry, RegistryDownError, TrackedRun
from recsys.revision import code_revision
from recsys.whole import replacing, write_whole
from training.dials import GROUPS, MARK, Dial, Settings, free_dials, group_of, toml_lines, value_of, with_settings
from training.moments import cut
from training.workbench import Workbench, encoded, without_report

STARTUP = 5  # trials before TPE believes what it has seen
ALPHA = 0.05


@dataclass(frozen=True)
class Trial:
    """One finished trial; number 0 is the settings as they are."""

    number: int
    group: str
    settings: Settings
    ndcg_10: float
    chosen: str
    seconds: float


@dataclass(frozen=True)
class Tuning:
    """What a search came to.

    Args:
        trials: finished ones in order.
        best: the number of the best; the earliest of equals.
        gain: best less default, paired over the users, with an interval as wide as that many attempts at luck need
            (Bonferroni).
        n_users: who were judged.
        n_wanted: trials asked for.
        folder: where it is kept.
    """

    trials: tuple[Trial, ...]
    best: int
    gain: Interval
    n_users: int
    n_wanted: int
    folder: Path

    @property
    def changed(self) -> Settings:
        """The best settings that differ from the defaults."""
        default = self.trials[0].settings
        return {k: v for k, v in self.trials[self.best].settings.items() if v != default[k]}

    @property
    def is_noise(self) -> bool:
        """Whether the best trial may be no better than the defaults."""
        return not self.gain.low > 0

    def sentences(self) -> list[str]:
        """The outcome for a person."""
        default, best = self.trials[0], self.trials[self.best]
        lines = [
            f"{len(self.trials)} of {self.n_wanted} trials, {self.n_users:,} users of the ranker's window, NDCG@10 by "
            f"models of other users: as configured {default.ndcg_10:.4f} ({default.chosen}), "
            f"best {best.ndcg_10:.4f} ({best.chosen}, trial {best.number})"
        ]
        if len(self.trials) < self.n_wanted:
            lines.append("not finished: the same command goes on")
        if not self.changed:
            return [*lines, "nothing tried is better than the settings as they are"]
        lines.append(
            f"difference {self.gain.mean:+.4f}, {self.gain.low:+.4f} to {self.gain.high:+.4f} "
            f"(95% for the best of {len(self.trials) - 1}, paired by user)"
        )
        if self.is_noise:
            lines.append("WARNING: that is within noise; keep the settings as they are, or let it try more")
        return lines

    def toml(self) -> list[str]:
        """The best settings that differ, as lines of recsys.toml."""
        return toml_lines(self.changed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "trials": [asdict(trial) for trial in self.trials],
            "best": self.best,
            "settings": self.changed,
            "gain": asdict(self.gain),
            "within_noise": self.is_noise,
            "users": self.n_users,
            "finished": len(self.trials) >= self.n_wanted,
            "folder": str(self.folder),
        }

    def write(self, path: Path) -> None:
        """Writes the best settings as TOML, with what they are worth in a comment above."""
        worth = [MARK, *(f"# {line}" for line in self.sentences())]
        write_whole(path, "\n".join([*worth, *self.toml()]) + "\n")


def tune(
    dataset: Dataset,
    config: Config,
    reporter: Reporter,
    registry: Registry,
    *,
    n_trials: int,
    timeout_s: float | None = None,
    groups: Sequence[str] = GROUPS,
) -> Tuning:
    """Searches until there are `n_trials` finished trials or the time is up, and says what the best is worth.

    Args:
        dataset: up to the moment of knowledge; its report window is cut off before anything looks at it.
        n_trials: in all, with those of earlier calls on the same data and settings.
        timeout_s: after this time no trial is begun; the first one always is.
        groups: of dials that are turned.
    """
    ends = None if timeout_s is None else time.monotonic() + timeout_s
    free, fixed = free_dials(config, groups)
    for dial in fixed:
        reporter.say(f"{dial.name} is {value_of(config, dial.name)}, outside {dial.low:g} to {dial.high:g}: left alone")
    if not free:
        raise ConfigError(f"--only {', '.join(groups)}: every dial there is set outside its range; nothing to turn")
    folder = _folder(dataset, config, free)
    known, windows = without_report(dataset, cut(dataset, config))
    with _locked(folder), closing(Journal(folder, free, config)) as journal:
        if len(journal.trials) < n_trials:
            bench = Workbench(known, windows, encoded(known, windows, config, reporter.stage, folder), config)
            with reporter.stage("tuning") as progress, _logged(registry, config, dataset, folder, reporter) as log:
                while len(journal.trials) < n_trials:
                    progress(len(journal.trials), n_trials)
                    if journal.trials and ends is not None and time.monotonic() >= ends:
                        break
                    trial = journal.next(bench)
                    log(trial)
                    reporter.say(_line(trial, journal.trials, n_trials))
                progress(len(journal.trials), n_trials)
        return journal.outcome(n_trials)


class Journal:
    """The trials of one search, on disk: an Optuna study, and the users' values of each trial beside it."""

    def __init__(self, folder: Path, dials: tuple[Dial, ...], config: Config) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._folder, self._dials, self._config = folder, dials, config
        self._groups = [g for g in GROUPS if any(d.group == g for d in dials)]
        self._space: dict[str, optuna.distributions.BaseDistribution] = {d.name: _range(d) for d in dials}
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{folder.resolve() / 'study.db'}")
        self._study = optuna.create_study(
            storage=self._storage, study_name="tune", direction="maximize", load_if_exists=True
        )
        # whoever began these is dead: the lock is ours
        for trial in self._study.get_trials(states=(TrialState.RUNNING,), deepcopy=False):
            self._study.tell(trial.number, state=TrialState.FAIL)
        for _ in self._study.get_trials(states=(TrialState.WAITING,), deepcopy=False):
            self._study.tell(self._study.ask(), state=TrialState.FAIL)  # asking begins one that waits
        self.trials = [self._trial(n, t) for n, t in enumerate(self._done())]

    def close(self) -> None:
        """Lets go of the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def next(self, bench: Workbench) -> Trial:
        """Makes one trial; what is cut off leaves nothing but a number that is not used again."""
        began, n = time.monotonic(), len(self.trials)
        group = group_of(n, self._groups) if n else "defaults"
        base = self._done()[self.best].params if n else {d.name: value_of(self._config, d.name) for d in self._dials}
        self._study.enqueue_trial({d.name: base[d.name] for d in self._dials if d.group != group})
        # a sampler of its own per trial: a search that goes on draws what one that never stopped would have drawn
        seed = int(np.random.SeedSequence([self._config.seed, n]).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP, multivariate=False, constant_liar=False
        )
        asked = self._study.ask(self._space)
        try:
            judged = bench.judge(with_settings(self._config, self._settings(asked.params)))
        except BaseException:
            self._study.tell(asked, state=TrialState.FAIL)
            raise
        seconds = round(time.monotonic() - began, 1)
        for name, value in (("group", group), ("chosen", judged.chosen), ("seconds", seconds)):
            asked.set_user_attr(name, value)
        with replacing(self._users_file(asked.number)) as unfinished, unfinished.open("wb") as file:
            np.save(file, judged.ndcg)
        self._study.tell(asked, judged.value)
        self.trials.append(self._trial(n, self._done()[-1]))
        return self.trials[-1]

    @property
    def best(self) -> int:
        """The best trial so far, the earliest of equals."""
        return _best(self.trials).number

    def outcome(self, n_wanted: int) -> Tuning:
        """The best against the settings as they are, on the same users."""
        done = self._done()
        default, best = (np.load(self._users_file(done[n].number)) for n in (0, self.best))
        gain = paired_interval(default, best, ALPHA / max(1, len(done) - 1))
        n_wanted = max(n_wanted, len(done))  # an earlier call may have asked for more
        return Tuning(tuple(self.trials), self.best, gain, len(default), n_wanted, self._folder)

    def _done(self) -> list[FrozenTrial]:
        return self._study.get_trials(states=(TrialState.COMPLETE,), deepcopy=False)

    def _trial(self, n: int, found: FrozenTrial) -> Trial:
        told = found.user_attrs
        value = float(found.value if found.value is not None else np.nan)
        return Trial(n, told["group"], self._settings(found.params), value, told["chosen"], told["seconds"])

    def _settings(self, params: dict[str, Any]) -> Settings:
        """As they are used: what was turned is rounded, what the config says is taken as it is."""
        said = {dial.name: value_of(self._config, dial.name) for dial in self._dials}
        return {
            d.name: said[d.name] if params[d.name] == said[d.name] else d.rounded(params[d.name]) for d in self._dials
        }

    def _users_file(self, number: int) -> Path:
        return self._folder / f"users-{number:04}.npy"


def _range(dial: Dial) -> optuna.distributions.BaseDistribution:
    if dial.is_whole:
        return optuna.distributions.IntDistribution(int(dial.low), int(dial.high), log=dial.is_log)
    return optuna.distributions.FloatDistribution(dial.low, dial.high, log=dial.is_log)


def _folder(dataset: Dataset, config: Config, dials: tuple[Dial, ...]) -> Path:
    """Where a search on these data, settings and dials is kept, beside the cache of vectors."""
    asked = f"{code_revision()} {dataset.sha256} {config.fingerprint()} {[asdict(dial) for dial in dials]}"
    folder = config.beside_cache("tune") / hashlib.sha256(asked.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a search for one process; the system lets go when it dies.

    Raises:
        AlreadyRunningError: another process holds it.
    """
    with (folder / ".lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle.fileno(), 100, 0).decode(errors="replace").strip() or "pid unknown"
            raise AlreadyRunningError(f"{folder}: another search holds it ({holder}); wait or stop it") from None
        handle.truncate(0)
        handle.write(f"pid {os.getpid()}")
        handle.flush()
        yield


@contextmanager
def _logged(
    registry: Registry, config: Config, dataset: Dataset, folder: Path, reporter: Reporter
) -> Iterator[Callable[[Trial], None]]:
    """A parent run in MLflow; yields what logs a trial as a run below it. A registry that is down costs one line."""
    tags = {"data_until": dataset.as_of.isoformat(), "data_sha256": dataset.sha256, "recsys.tune": folder.name}
    name = f"tune {dataset.as_of:%Y-%m-%d}"
    parents: list[TrackedRun] = []

    def log(trial: Trial) -> None:
        try:
            for parent in parents:
                _log_trial(registry, parent, trial, tags)
        except RegistryDownError as error:
            parents.clear()
            reporter.say(f"trials from number {trial.number} on are not in MLflow, they are in {folder}: {error}")

    with suppress(RegistryDownError), ExitStack() as stack:
        try:
            parents.append(stack.enter_context(registry.run(name, config.model_dump(mode="json"), tags)))
        except RegistryDownError as error:
            reporter.say(f"the trials are not in MLflow, they are in {folder}: {error}")
        yield log


def _log_trial(registry: Registry, parent: TrackedRun, trial: Trial, tags: dict[str, str]) -> None:
    numbers = {"ndcg_10": trial.ndcg_10, "seconds": trial.seconds}
    with registry.run(f"trial {trial.number}", trial.settings, tags | {"group": trial.group}, parent) as run:
        run.log_metrics(numbers)
    parent.log_metrics(numbers, trial.number)


def _best(trials: Sequence[Trial]) -> Trial:
    return max(trials, key=lambda trial: trial.ndcg_10)  # of equals the first


def _line(trial: Trial, trials: Sequence[Trial], n_trials: int) -> str:
    best = _best(trials)
    turned = {k: v for k, v in trial.settings.items() if v != trials[0].settings[k]}
    what = ", ".join(f"{k} {v:g}" for k, v in turned.items()) or "settings as they are"
    return (
        f"trial {trial.number} ({trial.group}), {len(trials)} of {n_trials} done: {what}: NDCG@10 {trial.ndcg_10:.4f} ({trial.chosen}), "
        f"best {best.ndcg_10:.4f}, {trial.seconds:.0f} s"
    )
