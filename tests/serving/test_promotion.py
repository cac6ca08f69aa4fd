"""The gate, with reports of planted arms; the registry is real."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from recsys.bundle import save_arrays, seal
from recsys.cli import cli
from recsys.config import Config, MlflowConfig, ReportConfig, ServingConfig, TextConfig, parse_config
from recsys.errors import ConfigError, DataError, DeadlineError, ModelError
from recsys.progress import Reporter
from recsys.registry import Registry
from serving import promotion
from serving.models import copies_of
from serving.nightly import _unjudged
from serving.promotion import promote, promoted_or_not, take_back
from serving.report.compare import compare
from serving.report.counterfactual import Counterfactual
from serving.report.document import Report
from serving.report.world import Arm
from serving.runs import Run

DAY = pd.Timestamp("2024-03-01", tz="UTC")
N_USERS, K = 300, 10


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def config(uri: str, tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    """A model of its own with versions 1, the champion, and 2."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    config = parse_config({"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}}).model_copy(
        update={
            "mlflow": MlflowConfig(tracking_uri=uri, experiment="gate", model_name=name),
            "serving": ServingConfig(output=str(tmp_path / "out")),
            "text": TextConfig(cache=str(tmp_path / ".recsys" / "vectors")),
        }
    )
    registry = Registry(config.mlflow)
    for value in (1.0, 2.0):
        folder = tmp_path / f"bundle{value}"
        folder.mkdir()
        save_arrays(folder / "weights.safetensors", scale=np.array([value]))
        seal(folder, {})
        with registry.run("train", {}, {}) as run:
            registry.register(run, folder, {})
    return config


def judged(verdict: str) -> Report:
    """A report of planted arms with the verdict."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 40, N_USERS)
    events = pd.DataFrame({"user_id": np.arange(N_USERS), "item_id": labels})
    items = pd.DataFrame({"item_id": np.arange(40), "title": "x"})

    def arm(name: str, skill: float, seed: int) -> Arm:
        score = np.random.default_rng(seed).random((N_USERS, 40))
        score[np.arange(N_USERS), labels] += skill
        ranked = np.argsort(-score, axis=1)[:, :K]
        table = pd.DataFrame({"user_id": np.repeat(np.arange(N_USERS), K), "item_id": ranked.ravel()})
        return Arm(name, table.assign(rank=np.tile(np.arange(1, K + 1), N_USERS)))

    weak, strong = arm("A", 0.1, 1), arm("B", 0.6, 2)
    twice = Arm("B", pd.concat([strong.table, strong.table[:1]]))
    arms = {"PROMOTE": (weak, strong), "REJECT": (strong, weak), "HOLD": (weak, weak), "INVALID": (weak, twice)}
    report = compare(*arms[verdict], events, items, ReportConfig(), test_start=DAY, test_end=DAY, now=DAY)
    assert report.verdict == verdict
    return report


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Report:
    """Makes the comparison end in the verdict that the test asks for."""
    report = judged(request.param)

    def fixed(config: Config, a: str, b: str, *_: object, **__: object) -> tuple[Report, Path]:
        assert (a, b) == ("1", "2")
        report.write(tmp_path / "report")
        return report, tmp_path / "report"

    monkeypatch.setattr(promotion, "compare_arms", fixed)
    return report


@pytest.mark.parametrize("told", ["PROMOTE"], indirect=True)
def test_a_version_with_the_verdict_promote_becomes_champion(config: Config, told: Report) -> None:
    outcome = promote(config, "challenger", Reporter())
    assert (outcome.is_champion, outcome.exit_code) == (True, 0)
    champion = Registry(config.mlflow).resolve("champion")
    assert (champion.version, champion.tags["report_verdict"], champion.tags["report_against"]) == ("2", "PROMOTE", "1")


@pytest.mark.parametrize("told", ["HOLD", "REJECT", "INVALID"], indirect=True)
def test_every_other_verdict_keeps_a_version_out_and_says_so(config: Config, told: Report) -> None:
    outcome = promote(config, "2", Reporter())
    assert (outcome.is_champion, outcome.exit_code) == (False, told.exit_code)
    assert told.verdict in outcome.sentence
    registry = Registry(config.mlflow)
    assert registry.resolve("champion").version == "1"
    assert registry.resolve("2").tags["report_verdict"] == told.verdict


@pytest.mark.parametrize("told", ["REJECT"], indirect=True)
def test_a_person_overrules_and_the_reason_is_kept(config: Config, told: Report) -> None:
    outcome = promote(config, "2", Reporter(), why="the old one sells what is forbidden")
    assert (outcome.is_champion, outcome.exit_code) == (True, 0)
    tags = Registry(config.mlflow).resolve("champion").tags
    assert tags["promoted_because"] == "the old one sells what is forbidden"
    assert tags["report_verdict"] == "REJECT"


@pytest.mark.parametrize("told", ["HOLD"], indirect=True)
def test_the_report_is_stored_with_the_run_of_the_version(config: Config, told: Report) -> None:
    promote(config, "2", Reporter())
    with Registry(config.mlflow).calls() as client:
        run_id = client.get_model_version(config.mlflow.model_name, "2").run_id
        names = {Path(file.path).name for file in client.list_artifacts(run_id, "compare/against-1")}
    assert names == {"report.html", "report.json", "report.md", "per_user.parquet"}


def test_a_version_that_no_training_made_cannot_be_compared(config: Config, tmp_path: Path) -> None:
    config = config.model_copy(update={"text": config.text.model_copy(update={"cache": str(tmp_path / "cache")})})
    with pytest.raises(ModelError, match=r"version 2 does not say until when"):
        promote(config, "2", Reporter())


def test_the_champion_itself_needs_no_report(config: Config) -> None:
    outcome = promote(config, "champion", Reporter())
    assert (outcome.is_champion, outcome.report, outcome.exit_code) == (True, None, 0)


def test_a_comparison_that_fails_promotes_nothing_but_a_person_may(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> tuple[Report, Path]:
        raise DataError("events: gone")

    monkeypatch.setattr(promotion, "compare_arms", broken)
    with pytest.raises(DataError, match="gone"):
        promote(config, "2", Reporter())
    assert "events: gone" in promoted_or_not(config, "2", Reporter())[0]
    assert Registry(config.mlflow).resolve("champion").version == "1"
    assert promote(config, "2", Reporter(), why="events are lost").is_champion


@pytest.mark.parametrize("words", [["--force"], ["--why", "x"]])
def test_force_and_why_go_together(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "recsys.toml").write_text('[data]\nevents = "e"\nitems = "i"\nevent_weights = { buy = 1 }\n')
    done = CliRunner().invoke(cli, ["promote", "2", "-c", str(tmp_path / "recsys.toml"), *words])
    assert isinstance(done.exception, ConfigError)
    assert "--why" in str(done.exception)


@pytest.mark.parametrize(
    ("told", "settings", "until", "outcome"),
    [
        ("HOLD", "a", "2024-02-08", "champion is now version 2 (HOLD, promoted because 'these are the settings of version 1"),
        ("HOLD", "b", "2024-02-08", "version 2 stays out: HOLD"),
        ("HOLD", "a", "2024-02-01", "version 2 stays out: HOLD"),
        ("HOLD", None, "2024-02-08", "version 2 stays out: HOLD"),
        ("REJECT", "a", "2024-02-08", "version 2 stays out: REJECT"),
        ("INVALID", "a", "2024-02-08", "version 2 stays out: INVALID"),
    ],
    indirect=["told"],
)  # fmt: skip
def test_a_night_lets_a_refresh_pass_unless_it_does_harm(
    config: Config, told: Report, settings: str | None, until: str, outcome: str
) -> None:
    registry = Registry(config.mlflow)
    registry.tag("1", {"recipe_sha256": "a", "data_until": "2024-02-01T00:00:00+00:00"})
    registry.tag("2", {"data_until": f"{until}T00:00:00+00:00"} | ({"recipe_sha256": settings} if settings else {}))
    by_hand = promote(config, "2", Reporter())
    assert not by_hand.is_champion
    sentence, is_judged = promoted_or_not(config, "2", Reporter())
    assert is_judged
    assert outcome in sentence
    assert registry.resolve("champion").version == ("2" if "champion is now" in outcome else "1")


@pytest.mark.parametrize("told", ["HOLD"], indirect=True)
def test_a_refresh_that_logged_impressions_speak_against_stays_out(
    config: Config, told: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(config.mlflow)
    for version, day in (("1", "01"), ("2", "08")):
        registry.tag(version, {"recipe_sha256": "a", "data_until": f"2024-02-{day}T00:00:00+00:00"})
    monkeypatch.setattr(Counterfactual, "is_veto", True)
    sentence, _ = promoted_or_not(config, "2", Reporter())
    assert "version 2 stays out: HOLD" in sentence
    assert registry.resolve("champion").version == "1"


def test_a_night_promotes_no_version_that_was_taken_back(config: Config) -> None:
    run = Run(config, "nightly", DAY, Reporter())
    assert _unjudged(run) == "2"
    registry = Registry(config.mlflow)
    registry.promote("2")
    assert take_back(config).version == take_back(config).version == "1"
    assert _unjudged(run) is None
    registry.promote("2")
    assert registry.resolve("champion").tags.get("taken_back") is None


def test_what_breaks_a_comparison_leaves_the_night_alone_and_what_ends_the_night_does_not(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(error: Exception) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(promotion, "compare_arms", fail)

    broken(OSError(28, "No space left on device"))
    sentence, is_judged = promoted_or_not(config, "2", Reporter())
    assert not is_judged
    assert "version 2 could not be judged: OSError" in sentence
    broken(DeadlineError("the deadline passed"))
    with pytest.raises(DeadlineError):
        promoted_or_not(config, "2", Reporter())


@pytest.mark.parametrize("told", ["PROMOTE"], indirect=True)
def test_a_champion_that_came_meanwhile_is_not_overrun(
    config: Config, told: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registry = Registry(config.mlflow)
    report = promotion.compare_arms  # type: ignore[attr-defined]

    def slow(*words: object, **settings: object) -> object:
        folder = tmp_path / "third"
        folder.mkdir()
        save_arrays(folder / "weights.safetensors", scale=np.array([3.0]))
        seal(folder, {})
        with registry.run("train", {}, {}) as run:
            registry.promote(registry.register(run, folder, {}))
        return report(*words, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(promotion, "compare_arms", slow)
    assert "version 3 became champion meanwhile" in promote(config, "2", Reporter()).sentence
    assert registry.resolve("champion").version == "3"


def test_a_champion_whose_name_was_deleted_is_named_again_by_a_person(config: Config) -> None:
    registry = Registry(config.mlflow)
    with registry.calls() as client:
        client.delete_registered_model_alias(config.mlflow.model_name, "champion")
    with pytest.raises(ModelError, match="recsys promote VERSION --force --why"):
        promote(config, "1", Reporter())
    assert promote(config, "1", Reporter(), why="its name was deleted").is_champion
    assert registry.resolve("champion").version == "1"


@pytest.mark.parametrize("told", ["PROMOTE"], indirect=True)
def test_a_night_that_dies_before_it_crowns_leaves_the_version_to_be_judged(
    config: Config, told: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "promote", die)
        with pytest.raises(KeyboardInterrupt):
            promote(config, "2", Reporter())
    assert "report_verdict" not in Registry(config.mlflow).resolve("2").tags
    assert promote(config, "2", Reporter()).is_champion


@pytest.mark.parametrize("told", ["PROMOTE"], indirect=True)
def test_what_moves_the_champion_notes_it_for_a_night_without_a_registry(config: Config, told: Report) -> None:
    def last_verified() -> str:
        gone = config.mlflow.model_copy(update={"tracking_uri": "http://127.0.0.1:9", "timeout_s": 3})
        fetched = copies_of(Registry(gone), config).fetch("champion")
        assert fetched.stale
        return fetched.version.version

    copies_of(Registry(config.mlflow), config).fetch("champion")
    assert last_verified() == "1"
    promote(config, "2", Reporter())
    assert last_verified() == "2"
    assert take_back(config).version == "1"
    assert last_verified() == "1"
