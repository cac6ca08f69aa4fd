"""The gate before a promotion: the offline A/B report decides, a person may overrule it and must say why."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from recsys.config import Config
from recsys.errors import DeadlineError, RecsysError, StoppedError, shown
from recsys.progress import Reporter
from recsys.registry import CHAMPION, ModelVersion, Registry
from serving.comparison import compare_arms
from serving.models import copies_of
from serving.publish import ReleaseStore
from serving.report.document import Report


@dataclass(frozen=True)
class Promotion:
    """What became of a candidate.

    Args:
        version: the candidate.
        is_champion: whether it is champion now.
        report, folder: the comparison with the champion; None where it was champion already, or where the
            comparison failed and a person overruled.
        sentence: the outcome, for a person.
    """

    version: str
    is_champion: bool
    report: Report | None
    folder: Path | None
    sentence: str

    @property
    def exit_code(self) -> int:
        """0 where it is champion now, else that of the verdict."""
        return 0 if self.is_champion or self.report is None else self.report.exit_code


def promote(
    config: Config, wanted: str, reporter: Reporter, *, why: str | None = None, refresh: bool = False, command: str = ""
) -> Promotion:
    """Moves `champion` to a version if the report against the present one says PROMOTE, or if a person says why.

    The report is stored with the run that made the version, its verdict as the tag `report_verdict`. Other seeds
    and windows are trained only where nothing else keeps the version from promotion.

    Args:
        wanted: a version or alias.
        why: overrules every verdict; stored as the tag `promoted_because`.
        refresh: HOLD is enough for the champion's own settings on newer data: they will hardly ever be better by a
            margin, and a champion that nobody replaces grows too old to serve.
        command: for the page: how to make the report again.

    Raises:
        RecsysError: the comparison cannot be made, and nobody overrules.
    """
    registry = Registry(config.mlflow)
    chosen = registry.resolve(wanted)
    if why is not None and _champion(registry) is None:  # the name was deleted, or went with its version
        return _crown(config, registry, chosen, None, None, None, why)
    champion = registry.resolve(CHAMPION)
    if chosen.version == champion.version:
        return Promotion(chosen.version, True, None, None, f"version {chosen.version} is champion already")
    try:
        report, folder = compare_arms(
            config, champion.version, chosen.version, pd.Timestamp.now(tz="UTC"), reporter,
            command=command, rerun="needed" if why is None else "never",
        )  # fmt: skip
    except RecsysError as error:
        if why is None:
            raise
        reporter.say(f"no report: {error}")
        return _crown(config, registry, chosen, champion.version, None, None, why)
    registry.attach(chosen.version, folder, f"compare/against-{champion.version}", {})
    judged = {"report_verdict": report.verdict, "report_against": champion.version}
    is_sound = report.verdict == "HOLD" and not report.counterfactual.is_veto
    if refresh and why is None and is_sound and _is_refresh(chosen, champion):
        why = f"these are the settings of version {champion.version} on newer data"
    if report.verdict == "PROMOTE" or why is not None:
        promotion = _crown(config, registry, chosen, champion.version, report, folder, why)
        if promotion.is_champion:
            registry.tag(chosen.version, judged)  # last: what is tagged as judged no other night will look at
        return promotion
    registry.tag(chosen.version, judged)
    sentence = f"version {chosen.version} stays out: {report.verdict}: {report.reason} (overrule with --force --why)"
    return Promotion(chosen.version, False, report, folder, sentence)


def promoted_or_not(config: Config, version: str, reporter: Reporter) -> tuple[str, bool]:
    """`promote` for the night: the outcome in a sentence, and whether there was one.

    A comparison that fails leaves the champion, not the night.
    """
    try:
        return promote(config, version, reporter, refresh=True, command=f"recsys promote {version}").sentence, True
    except (StoppedError, DeadlineError):
        raise
    except Exception as error:  # noqa: BLE001 - the lists are out, whatever breaks here
        return f"version {version} could not be judged: {type(error).__name__}: {shown(error, 300)}", False


def _is_refresh(chosen: ModelVersion, champion: ModelVersion) -> bool:
    """Whether a version has the champion's settings and newer data."""
    settings = {version.tags.get("recipe_sha256") for version in (chosen, champion)}
    if len(settings) > 1 or None in settings:
        return False
    return pd.Timestamp(champion.tags["data_until"]) < pd.Timestamp(chosen.tags["data_until"])


def take_back(config: Config) -> ModelVersion:
    """Swaps `champion` and `previous`; returns the champion now."""
    registry = Registry(config.mlflow)
    with _moving(config, registry):
        champion = registry.rollback()
    _note(config, registry)
    return champion


def _crown(
    config: Config,
    registry: Registry,
    chosen: ModelVersion,
    against: str | None,
    report: Report | None,
    folder: Path | None,
    why: str | None,
) -> Promotion:
    if why is not None:
        registry.tag(chosen.version, {"promoted_because": why})
    with _moving(config, registry):
        now = _champion(registry)
        if now == against:
            registry.promote(chosen.version)
    if now != against:
        sentence = f"version {chosen.version} stays out: version {now} became champion meanwhile; compare with that one"
        return Promotion(chosen.version, False, report, folder, sentence)
    _note(config, registry)
    because = "" if why is None else f", promoted because {shown(why, 200)}"
    return Promotion(
        chosen.version, True, report, folder, f"champion is now version {chosen.version} ({_verdict(report)}{because})"
    )


def _champion(registry: Registry) -> str | None:
    return next((version.version for version in registry.versions() if CHAMPION in version.aliases), None)


def _verdict(report: Report | None) -> str:
    return report.verdict if report else "no report"


@contextmanager
def _moving(config: Config, registry: Registry) -> Iterator[None]:
    """Aliases move one at a time on this machine, and nothing is noted here of what they were."""
    store = ReleaseStore(Path(config.serving.output))
    store.output.mkdir(parents=True, exist_ok=True)
    with store.moving():
        copies_of(registry, config).forget()
        yield


def _note(config: Config, registry: Registry) -> None:
    """Keeps a copy of the new champion here, for a night on which the registry is down; the next night would, too."""
    with suppress(RecsysError):
        copies_of(registry, config).fetch(CHAMPION)
