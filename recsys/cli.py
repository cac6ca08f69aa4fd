"""The `recsys` program: parse, call, print. It may call every layer and decides nothing itself."""

import json
import os
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click
import pandas as pd

from recsys.config import Config, json_schema, load_config
from recsys.errors import ConfigError, RecsysError, as_ours, public
from recsys.moments import moment_of
from recsys.progress import Log, Page, Reporter
from recsys.stop import stoppable
from training.dials import GROUPS

if TYPE_CHECKING:
    from serving.publish import ReleaseStore

P = ParamSpec("P")
R = TypeVar("R")


def main() -> None:
    """Entry point: runs a command and ends with its exit code; errors of ours print without a traceback."""
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except RecsysError as error:
        _fail(error)
    except (OSError, MemoryError) as error:
        _fail(as_ours(error))
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("recsys: stopped", err=True)
        sys.exit(130)


def _fail(error: BaseException) -> NoReturn:
    if not getattr(error, "is_told", False):
        Reporter().say(f"recsys: {error}")
    sys.exit(getattr(error, "exit_code", 1))


class Program(click.Group):
    """Commands; a reader that went away ends them with 141, as by SIGPIPE: click's 1 would say that there is a defect."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # what is left in the buffer has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="recsys")
def cli() -> None:
    """Text-aware recommendations: train, score every night, compare.

    \b
    recsys init shop --demo completejourney
    recsys nightly -c shop/recsys.toml
    recsys show 1228 -c shop/recsys.toml
    """


def with_config(command: Callable[..., R]) -> Callable[..., R]:
    """Adds -c and --set, and hands the command a loaded Config."""

    @click.option("-c", "--config", "path", default="recsys.toml", show_default=True, help="The config file.")
    @click.option("--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Overrides a setting.")
    @wraps(command)
    def wrapped(path: str, overrides: tuple[str, ...], **kwargs: Any) -> R:
        try:
            return command(config=load_config(path, overrides), **kwargs)
        except RecsysError as error:
            if kwargs.get("log") == "json" and not error.is_told:  # of before a run began: the config, the lock
                Reporter(log="json").fail(str(error), error.exit_code)
                error.is_told = True
            raise

    return wrapped


as_of_option = click.option(
    "--as-of",
    "as_of",
    default=None,
    metavar="T",
    help="A date or a moment, UTC; nothing after it is read. Default: now.",
)


class Duration(click.ParamType[float]):
    """Seconds from "90m", "3h" or "45s"."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds, above 0."""
        try:
            seconds = pd.Timedelta(value).total_seconds() if isinstance(value, str) else float(value)
        except ValueError:
            seconds = 0.0
        if not seconds > 0 or (isinstance(value, str) and value.strip().isdigit()):
            self.fail(f"{value!r}: write a number and a unit, such as 90m, 3h or 45s", param, ctx)
        return seconds


deadline_option = click.option(
    "--deadline",
    type=Duration(),
    default=None,
    metavar="90m",
    help="Stop after this time with exit code 124; finished work is kept for the next run. Default: none.",
)
log_option = click.option(
    "--log",
    type=click.Choice(["plain", "json"]),
    default="plain",
    show_default=True,
    help="What progress looks like on standard error; json: one object a line with time, run, stage, done, total.",
)
show_users_option = click.option(
    "--show-users",
    type=click.IntRange(min=0),
    default=None,
    help="Print the lists of N users. Default: 3 on a terminal, none in a log, where ids of people do not belong.",
)
n_option = click.option("-n", type=click.IntRange(min=1), default=10, show_default=True, help="Entries to show.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--demo", default=None, metavar="NAME", help="Also write demo data: completejourney.")
def init(folder: Path, demo: str | None) -> None:
    """Makes FOLDER with a commented recsys.toml; with --demo, the data too.

    \b
    recsys init shop
    recsys init shop --demo completejourney
    """
    from features.demo import render_config, write_demo

    if (folder / "recsys.toml").exists():
        click.echo(f"{folder / 'recsys.toml'} is there already; nothing changed")
        return
    folder.mkdir(parents=True, exist_ok=True)
    if demo:
        write_demo(demo, folder)
    else:
        (folder / "recsys.toml").write_text(render_config())
    todo = "write into it where your tables are, which events are labels and what your columns are called; then: "
    path = folder / "recsys.toml"
    click.echo(f"wrote {path}\nnext: {'' if demo else todo}recsys validate -c {shlex.quote(str(path))}")


@cli.command()
@with_config
@as_of_option
@json_option
def validate(config: Config, as_of: str | None, as_json: bool) -> None:
    """Checks the tables and prints the data report; refused rows go to the quarantine folder."""
    from serving.door import examined

    report = examined(config, moment(as_of), Reporter())
    if as_json:
        _print_json(report.to_dict())
    else:
        report.render(Page())


@cli.command()
@with_config
@as_of_option
@deadline_option
@log_option
@json_option
def train(config: Config, as_of: str | None, deadline: float | None, log: Log, as_json: bool) -> None:
    """Fits towers and ranker on events before T, evaluates, registers a version."""
    from serving.runs import Run, recorded

    run = Run(config, "train", moment(as_of), Reporter(log=log))
    with stoppable(deadline), recorded(run, needs_lock=False):
        from serving.door import load_dataset
        from training.job import train_and_register

        dataset, _ = load_dataset(config, run.as_of, run.reporter)
        done = train_and_register(dataset, config, run.reporter)
        run.facts["model_version"] = done.version
    if as_json:
        _print_json({"version": done.version, "seconds": done.trained.seconds})
    else:
        from serving.show import print_evaluation

        print_evaluation(done.trained.evaluation.to_dict(), Page())


@cli.command()
@with_config
@as_of_option
@click.option("--model", default="champion", show_default=True, help="An alias or a version.")
@click.option(
    "--users",
    "users_file",
    default=None,
    help="Parquet or CSV with a user_id column; all users by default. Some users' lists do not become what is served.",
)
@click.option(
    "--items",
    "items_file",
    default=None,
    help="Parquet or CSV with an item_id column: the only items to list, such as a campaign's, without p. Such lists do not become what is served, either.",
)
@click.option(
    "-k", "k", type=click.IntRange(min=1), default=None, help="Recommendations per user; default from the config."
)
@click.option(
    "--move-current",
    is_flag=True,
    help="Let lists of some users or items, or those of a past date or one to come, become what is served.",
)
@deadline_option
@log_option
@json_option
def score(
    config: Config,
    as_of: str | None,
    model: str,
    users_file: str | None,
    items_file: str | None,
    k: int | None,
    move_current: bool,
    deadline: float | None,
    log: Log,
    as_json: bool,
) -> None:
    """Scores all users in batch and publishes a release.

    \b
    recsys score --as-of 2017-12-01 --model 3
    recsys score --users some.csv -k 50
    recsys score --items campaign.csv -k 5
    """
    from serving.runs import Run, recorded

    run = Run(config, "score", moment(as_of), Reporter(log=log), {"move_current": move_current})
    with stoppable(deadline), recorded(run):
        from serving.batch import publish_lists, read_ids
        from serving.door import load_dataset

        run.facts["is_part"] = bool(users_file or items_file)  # until it is known to hold them all
        wanted = read_ids(users_file, "users", config.data) if users_file else None  # first: a slip shows at once
        items = read_ids(items_file, "items", config.data) if items_file else None
        dataset, _ = load_dataset(config, run.as_of, run.reporter)
        released = publish_lists(dataset, run, model=model, wanted=wanted, items=items, k=k, move_current=move_current)
    _print_json(released.to_dict()) if as_json else click.echo(released.sentence())


@cli.command()
@with_config
@as_of_option
@click.option("--train", "when", type=click.Choice(["due", "always", "never"]), default="due", show_default=True)
@click.option("--move-current", is_flag=True, help="Let a backfill of a past date become what is served.")
@click.option(
    "--promote",
    is_flag=True,
    help="Let a new version become champion if the report says PROMOTE, or HOLD where settings are the champion's and data newer.",
)
@show_users_option
@deadline_option
@log_option
@json_option
def nightly(
    config: Config,
    as_of: str | None,
    when: str,
    move_current: bool,
    promote: bool,
    show_users: int | None,
    deadline: float | None,
    log: Log,
    as_json: bool,
) -> None:
    """Validates, trains when due, scores, audits, publishes, reports: the line for cron.

    \b
    0 3 * * *  recsys nightly -c /srv/shop/recsys.toml --promote --deadline 3h
    """
    from serving.runs import Run, recorded

    run = Run(config, "nightly", moment(as_of), Reporter(log=log), {"move_current": move_current})
    with stoppable(deadline), recorded(run):  # before the heavy imports: a run that may not begin says so at once
        from serving.nightly import reported, run_nightly

        outcome = run_nightly(run, when=when, move_current=move_current, promote=promote)
        with reported(outcome.release):
            _print_json(outcome.to_dict()) if as_json else outcome.render(Page(), users_shown(show_users))
            sys.stdout.flush()


@cli.command()
@with_config
@show_users_option
@json_option
def report(config: Config, show_users: int | None, as_json: bool) -> None:
    """The night's report of what is served, made again: evaluation, a few users' lists, where everything lies."""
    from serving.nightly import report_of_served, reported

    outcome = report_of_served(config)
    with reported(outcome.release):
        _print_json(outcome.to_dict()) if as_json else outcome.render(Page(), users_shown(show_users))
        sys.stdout.flush()


@cli.command()
@with_config
@as_of_option
@log_option
@json_option
def evaluate(config: Config, as_of: str | None, log: Log, as_json: bool) -> None:
    """The per-source table on the last window: trains on the windows before it, registers nothing.

    Data and settings that a registered version was trained with are not computed again.
    """
    from serving.models import evaluation_of
    from serving.show import print_evaluation

    stored = evaluation_of(config, moment(as_of), Reporter(log=log))
    _print_json(stored) if as_json else print_evaluation(stored, Page())


@cli.command()
@with_config
@as_of_option
@click.option("--trials", type=click.IntRange(min=1), default=30, show_default=True, help="In all, earlier calls too.")
@click.option("--timeout", type=Duration(), default=None, metavar="2h", help="Begin no trial after this time.")
@click.option(
    "--only", multiple=True, type=click.Choice(GROUPS), help="Turn the dials of this group only; may be repeated."
)
@click.option("--write", "write_to", type=click.Path(path_type=Path), default=None, help="Write the best as TOML.")
@log_option
@json_option
def tune(
    config: Config,
    as_of: str | None,
    trials: int,
    timeout: float | None,
    only: tuple[str, ...],
    write_to: Path | None,
    log: Log,
    as_json: bool,
) -> None:
    """Looks for better settings on the ranker's window, and says what they are worth.

    The same command goes on where it was stopped. The report window is never read, so `recsys evaluate` with the
    settings found stays honest.

    \b
    recsys tune --trials 30 --timeout 2h --write better.toml
    """
    from serving.runs import Run, recorded
    from training.dials import refuse_foreign

    if write_to:
        refuse_foreign(write_to)
    run = Run(config, "tune", moment(as_of), Reporter(log=log))
    with stoppable(), recorded(run, needs_lock=False):
        from serving.door import load_dataset
        from training.tune import tune as search

        dataset, _ = load_dataset(config, run.as_of, run.reporter)
        groups = [group for group in GROUPS if group in (only or GROUPS)]
        found = search(dataset, config, run.reporter, run.registry, n_trials=trials, timeout_s=timeout, groups=groups)
        run.facts |= {"trials": len(found.trials), "ndcg_10": found.trials[found.best].ndcg_10}
        if write_to:
            found.write(write_to)
    if as_json:
        _print_json(found.to_dict())
    else:
        click.echo("\n".join([*found.sentences(), "", *found.toml()]).rstrip())


@cli.command()
@click.argument("a")
@click.argument("b")
@with_config
@as_of_option
@click.option(
    "--test-start", default=None, metavar="T", help="For tables: labels count from T; default: where their data end."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="Folder of the report.")
@click.option("-k", "k", type=click.IntRange(min=1), default=10, show_default=True, help="Items of a list that count.")
@click.option(
    "--rerun",
    is_flag=True,
    help="For versions: train both again with other seeds and to earlier moments, as [report] asks.",
)
@log_option
@json_option
def compare(
    config: Config,
    a: str,
    b: str,
    as_of: str | None,
    test_start: str | None,
    output: Path | None,
    k: int,
    rerun: bool,
    log: Log,
    as_json: bool,
) -> None:
    """The offline A/B report of two model versions (or aliases), or of two recommendation folders or files.

    Ends with 0 PROMOTE, 10 HOLD, 20 REJECT, 30 INVALID.

    \b
    recsys compare champion challenger
    recsys compare out/releases/2017-12-01.ab12 other.parquet --test-start 2017-12-01
    """
    from serving.comparison import compare_arms

    start = moment(test_start, "--test-start") if test_start else None
    report, folder = compare_arms(
        config,
        a,
        b,
        moment(as_of),
        Reporter(log=log),
        test_start=start,
        output=output,
        command=_this_command(),
        rerun="always" if rerun else "never",
        k=k,
    )
    if as_json:
        _print_json(json.loads(report.to_json()))
    else:
        click.echo(f"{report.verdict}: {report.reason}\nreport: {folder / 'report.html'}")
    sys.exit(report.exit_code)


@cli.command()
@click.argument("version")
@with_config
@click.option("--force", is_flag=True, help="Promote whatever the report says; needs --why.")
@click.option("--why", default=None, metavar="TEXT", help="Why the verdict is overruled; stored with the version.")
@log_option
@json_option
def promote(config: Config, version: str, force: bool, why: str | None, log: Log, as_json: bool) -> None:
    """Moves `champion` to VERSION (or an alias) if the report against the champion says PROMOTE.

    The one before becomes `previous`. The report is stored with the version in MLflow. A version that stays out
    ends with 10 HOLD, 20 REJECT or 30 INVALID.
    """
    from serving.promotion import promote as through_the_gate

    if force != (why is not None) or (why is not None and not why.strip()):
        raise ConfigError("--force and --why go together: whoever overrules the report says why, as in --why 'hotfix'")
    outcome = through_the_gate(config, version, Reporter(log=log), why=why, command=_this_command())
    page = str(outcome.folder / "report.html") if outcome.folder else None
    if as_json:
        verdict = outcome.report.verdict if outcome.report else None
        said = {"version": outcome.version, "is_champion": outcome.is_champion, "verdict": verdict, "report": page}
        _print_json(said | {"sentence": outcome.sentence})
    else:
        click.echo(outcome.sentence + (f"\nreport: {page}" if page else ""))
    sys.exit(outcome.exit_code)


@cli.command()
@with_config
@click.option("--model", "model_too", is_flag=True, help="Move `champion` back to `previous` too.")
@click.option("--unpin", is_flag=True, help="Instead: the next night moves `current` again.")
@click.option("--undo", is_flag=True, help="Instead: serve again what the rollback took away.")
@json_option
def rollback(config: Config, model_too: bool, unpin: bool, undo: bool, as_json: bool) -> None:
    """Swaps `current` back to the release before it, and pins it there until --unpin; run twice, it does no more.

    \b
    recsys rollback
    recsys rollback --unpin
    """
    from serving.publish import ReleaseStore

    if model_too + unpin + undo > 1:
        raise ConfigError("--model, --unpin and --undo: give one; a model comes back with: recsys promote VERSION")
    store = ReleaseStore(Path(config.serving.output))
    said: dict[str, object] = {"pinned": not (unpin or undo)}
    if unpin:
        is_done = store.unpin()
        sentence = "no longer pinned; the next night moves current again" if is_done else "nothing is pinned"
    elif undo:
        said["current"] = store.undo().name
        sentence = f"current is {said['current']} again, not pinned"
    else:
        sentence = _rolled_back(store, said, model_too)
    try:
        if model_too:
            from serving.promotion import take_back

            said["champion"] = take_back(config).version
            sentence += f"\nchampion is now version {said['champion']}"
    finally:  # the lists have been swapped, whatever the registry does
        _print_json(said) if as_json else click.echo(sentence)


def _rolled_back(store: "ReleaseStore", said: dict[str, object], model_too: bool) -> str:
    """Moves the lists back, unless they are already; a model goes back also where they cannot."""
    pinned = store.pinned_release()
    try:
        said["current"] = store.rollback().name
    except ConfigError as error:
        if not model_too:
            raise
        said["pinned"] = False
        return f"lists stay: {error}"
    if pinned:
        return f"current is {pinned.name} already, pinned by a rollback; to serve what it took away: recsys rollback --undo"
    return f"current is now {said['current']}, pinned; let nights move it again: recsys rollback --unpin"


@cli.command()
@click.argument("user")
@with_config
@n_option
@json_option
def show(config: Config, user: str, n: int, as_json: bool) -> None:
    """A user's history and the recommendations now served, with titles and reasons."""
    from serving.show import show_user

    show_user(config, user, n, Page(), as_json)


@cli.command()
@click.argument("item")
@with_config
@n_option
@json_option
def similar(config: Config, item: str, n: int, as_json: bool) -> None:
    """Items like ITEM, by the champion's text tower and by behaviour."""
    from serving.show import show_similar

    show_similar(config, item, n, Page(), as_json)


@cli.command()
@with_config
@json_option
def status(config: Config, as_json: bool) -> None:
    """What is served, how old it is, how the last run ended, and what to do next."""
    from serving.status import show_status

    path = click.get_current_context().params["path"]
    show_status(config, Page(), as_json, path if path != "recsys.toml" else "")


@cli.command()
@with_config
@click.option("--delete", is_flag=True, help="Delete; without it, only say what would go.")
@json_option
def gc(config: Config, delete: bool, as_json: bool) -> None:
    """Retention: old releases, caches nobody uses, old records, leftovers of broken runs.

    Never current, previous, pinned, or the newest release of a model version that an alias names; no copy of a model
    that serves or made a kept release; nothing that MLflow keeps.
    """
    from serving.publish import ReleaseStore
    from serving.retention import aliased_in, leftovers, remove_leftovers

    aliased = aliased_in(config)
    if aliased is None:
        stays = "the newest release of every model version stays, and every copy of a model"
        click.echo(f"the registry does not answer: {stays}", err=True)
    store, keep = ReleaseStore(Path(config.serving.output)), config.serving.keep_releases
    gone = (remove_leftovers if delete else leftovers)(store, keep, aliased, Path(config.text.cache))
    if as_json:
        found = [{"path": str(one.path), "bytes": one.n_bytes, "why": one.why} for one in gone]
        _print_json({"deleted" if delete else "would_delete": [one["path"] for one in found], "leftovers": found})
        return
    verb = "deleted" if delete else "would delete (run with --delete)"
    lines = [f"{verb}: {one.path}: {one.n_bytes:,} bytes, {one.why}" for one in gone]
    click.echo("\n".join(lines) or "nothing to delete")


@cli.command()
@click.option(
    "-c",
    "--config",
    "path",
    default=None,
    help="The config file, to check its paths too; recsys.toml where there is one.",
)
@json_option
def doctor(path: str | None, as_json: bool) -> None:
    """Is this machine fit: processor, memory, disk, encoder, libraries."""
    from serving.doctor import examine

    path = path or ("recsys.toml" if Path("recsys.toml").exists() else None)
    findings = examine(load_config(path) if path else None)
    if as_json:
        _print_json([vars(f) for f in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'BAD '} {finding.name}: {finding.text}")
    sys.exit(0 if all(f.ok for f in findings) else 5)


@cli.command(name="schema")
def schema_command() -> None:
    """Prints the JSON Schema of recsys.toml, for editors."""
    _print_json(json_schema())


def moment(text: str | None, option: str = "--as-of") -> pd.Timestamp:
    """The as-of of a run, now by default; see `moment_of`."""
    return pd.Timestamp.now(tz="UTC") if text is None else moment_of(text, option)


def users_shown(asked: int | None) -> int:
    """How many users' lists to print."""
    return asked if asked is not None else 3 * sys.stdout.isatty()


def _this_command() -> str:
    return public(shlex.join(["recsys", *sys.argv[1:]]))


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


if __name__ == "__main__":  # python -m recsys.cli, which would do nothing and call it a success
    main()
