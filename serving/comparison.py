"""`recsys compare`: arms and tables in, the report on disk out; models are trained again where the rule asks for it."""

from pathlib import Path
from typing import Literal

import pandas as pd

from recsys.config import Config
from recsys.copies import Fetched
from recsys.errors import ConfigError
from recsys.progress import Reporter
from recsys.revision import code_revision
from serving.arms import Sides, reruns_folder, sides, with_ids_like, with_rules
from serving.labels import Judges, Window, judges
from serving.remade import recipe, refuse_unlike, train_again
from serving.report import stability
from serving.report.compare import compare
from serving.report.document import Report
from serving.report.stability import Repetition
from serving.report.world import Arm
from training.evaluate import N_SLOTS

K = 10
Rerun = Literal["never", "needed", "always"]


def compare_arms(
    config: Config,
    a: str,
    b: str,
    as_of: pd.Timestamp,
    reporter: Reporter,
    *,
    test_start: pd.Timestamp | None = None,
    output: Path | None = None,
    command: str = "",
    rerun: Rerun = "never",
    k: int = K,
) -> tuple[Report, Path]:
    """Compares B with A and writes the report; returns it and its folder.

    Model versions are compared by lists that no event of the report window has touched; tables on events from
    `test_start` to `as_of`.

    Args:
        a, b: a version or alias each, or a folder or file of recommendations each.
        as_of: for tables: nothing at or after it is read.
        test_start: for tables: labels count from here; by default until when the later arm read data.
        output: folder of the report; by default one under `compare` beside the releases.
        rerun: whether versions are trained again with other seeds and to earlier moments: "needed" does so only
            where nothing else keeps B from promotion.
        k: items of a list that count.

    Raises:
        ConfigError: the arms are of two kinds, or no common window is known; more items count than versions' lists hold; or versions are to be trained again
            whose recipes cut different windows, which is seen before anything is trained.
    """
    if k > N_SLOTS and not (Path(a).exists() or Path(b).exists()):  # before anything is trained again
        raise ConfigError(
            f"-k {k}: the lists that evaluations of versions store hold {N_SLOTS} items; ask for that many or fewer"
        )
    both = sides(config, a, b, as_of, test_start, reporter, _n_windows(config, rerun))
    with reporter.stage("reading tables") as progress:
        tables = judges(config, both.window)
        both = with_rules(with_ids_like(both, tables.labels), tables, config)
        progress(1, 1)
    runs = _runs(config, both, k, reporter) if rerun == "always" else ()
    report = _report(config, both, tables, command, runs, k, reporter)
    if rerun == "needed" and report.awaits_runs:
        report = _report(config, both, tables, command, _runs(config, both, k, reporter), k, reporter)
    folder = output or Path(config.serving.output) / "compare" / f"{_plain(both.arms[0])}-{_plain(both.arms[1])}"
    report.write(folder)
    return report, folder


def _report(
    config: Config, both: Sides, tables: Judges, command: str, runs: tuple[Repetition, ...], k: int, reporter: Reporter
) -> Report:
    window = both.window
    min_seeds, min_windows = (config.report.min_seeds, config.report.min_windows) if both.fetched else (0, 0)
    with reporter.stage("comparing") as progress:
        report = compare(
            *both.arms, tables.labels, tables.items, config.report,
            test_start=window.start, test_end=window.end, now=pd.Timestamp.now(tz="UTC"), k=k,
            users=tables.users, history=tables.history, hidden=tables.hidden, impressions=tables.impressions,
            champion=both.champion, reruns=runs, min_seeds=min_seeds, min_windows=0 if window.by_column else min_windows,
            filters=tables.filters, notes=both.notes, settings_sha256=config.fingerprint(),
            code_revision=code_revision(), command=command, rng_seed=config.seed,
        )  # fmt: skip
        progress(1, 1)
    return report


def _n_windows(config: Config, rerun: Rerun) -> int:
    """On how many windows recipes may be trained again, the one compared among them."""
    is_alone = max(config.report.min_seeds, config.report.min_windows) == 1
    return 0 if rerun == "never" or is_alone else config.report.min_windows


def _runs(config: Config, both: Sides, k: int, reporter: Reporter) -> tuple[Repetition, ...]:
    """Both recipes with the next seeds, then at the windows before; nothing for tables."""
    if both.fetched is None:
        return ()
    until = max(pd.Timestamp(one.version.tags["data_until"]) for one in both.fetched)
    first = recipe(both.fetched[0], config).seed
    runs = []
    for seed in range(first + 1, first + config.report.min_seeds):
        runs.append(_run("seed", f"seed {seed}", config, both.fetched, seed, until, k, reporter)[0])
    end = both.window.start
    for number in range(1, 1 if both.window.by_column else config.report.min_windows):
        run, window = _run("window", f"{number} before", config, both.fetched, first, end, k, reporter)
        runs.append(run)
        end = window.start
    return tuple(runs)


def _run(
    kind: Literal["seed", "window"],
    name: str,
    config: Config,
    fetched: tuple[Fetched, Fetched],
    seed: int,
    as_of: pd.Timestamp,
    k: int,
    reporter: Reporter,
) -> tuple[Repetition, Window]:
    a, b = (train_again(recipe(one, config, seed), as_of, reruns_folder(config), reporter) for one in fetched)
    refuse_unlike(config, fetched, (a.window, b.window))
    window = Window(*a.window, config.data.split_column is not None, a.users.intersection(b.users))
    tables = judges(config, window)
    arms = Arm("A", a.table), Arm("B", b.table)
    run = stability.on_lists(kind, name, arms, tables.labels, tables.items, a.window, k, config.report)
    return run, window


def _plain(arm: Arm) -> str:
    """What a folder may be called after an arm: its name, and its version where that is another one."""
    name = arm.name if arm.version in ("", arm.name) else f"{arm.name}.{arm.version}"
    return "".join(c if c.isalnum() or c in ".-_" else "_" for c in name)[:60]
