"""What a user installs: four packages, one program, and clear words on a wrong call."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from features.demo import render_config
from recsys.cli import cli, moment
from recsys.config import Config, load_config, parse_config
from recsys.errors import ConfigError
from serving.batch import _request_sha256

ROOT = Path(__file__).parents[1]
DATA = {"events": "e", "items": "i", "event_weights": {"buy": 1.0}}


@pytest.mark.slow
def test_the_wheel_lists_the_four_packages(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"recsys", "features", "training", "serving"}


def test_all_problems_of_a_config_come_in_one_message() -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"data": DATA | {"max_bad_share": 2}, "text": {"epoch": 1}, "servin": {}})
    for part in ("3 problem(s)", "data.max_bad_share", "did you mean epochs", "did you mean serving"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"avalable": "in_stock"}, "did you mean available"),
        ({"items": {"titel": "name"}}, "did you mean title"),
        ({"item": {"title": "name"}}, "did you mean items"),
    ],
)
def test_a_slip_in_the_names_of_columns_is_told(columns: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config({"data": DATA | {"columns": columns}})


def test_a_setting_below_the_columns_is_told_where_it_belongs() -> None:
    with pytest.raises(
        ConfigError, match=r"timezone, window_days belongs to \[data\]: write it above the line \[data.columns\]"
    ):
        parse_config({"data": DATA | {"columns": {"user_id": "who", "timezone": "UTC", "window_days": 30}}})


def test_columns_of_ones_own_may_be_mapped() -> None:
    own = {"titles": "t", "color": "colour", "users": {"tag": "segment"}}
    parse_config({"data": DATA | {"columns": own}, "text": {"fields": ["title", "titles"]}})


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recsys\.toml"):
        load_config(tmp_path)


def test_a_rendered_config_parses_and_its_commented_values_are_the_defaults(tmp_path: Path) -> None:
    text = render_config()
    (tmp_path / "recsys.toml").write_text(text)
    plain = load_config(tmp_path / "recsys.toml")
    sections = [s.annotation for s in Config.model_fields.values()]
    keys = {key for section in sections for key in getattr(section, "model_fields", {})}
    lines = [
        line[2:] if line.startswith("# ") and line[2:].split(" = ")[0] in keys | {"seed"} else line
        for line in text.splitlines()
    ]
    (tmp_path / "recsys.toml").write_text("\n".join(lines))
    assert load_config(tmp_path / "recsys.toml") == plain


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 2000 + "]" * 2000])
def test_what_is_toml_but_cannot_be_read_is_an_error_of_the_file(tmp_path: Path, value: str) -> None:
    path = tmp_path / "recsys.toml"
    path.write_text(f"seed = {value}")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(path)
    path.write_text('[data]\nevents = "e"\nitems = "i"\nevent_weights = { buy = 1 }')
    with pytest.raises(ConfigError, match="seed: Input should be a valid integer"):
        load_config(path, [f"seed={value}"])


def test_set_overrides_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "recsys.toml").write_text(render_config())
    config = load_config(tmp_path / "recsys.toml", ["text.epochs=3.5", "serving.k=7"])
    assert (config.text.epochs, config.serving.k) == (3.5, 7)
    assert config.data.events == str(tmp_path / "events.parquet")
    with pytest.raises(ConfigError, match="expected table"):
        load_config(tmp_path / "recsys.toml", ["nonsense"])


@pytest.mark.parametrize(
    ("slip", "told"),
    [
        ("serving.k=true", "valid integer; got 'True'"),
        ('serving.k="7"', "valid integer; got '7'"),
        ("text.epochs=true", "valid number; got 'True'"),
        ("data.event_weights={click=true}", "event_weights.click: .*valid number"),
        ("data.event_weights={click=1e7}", "a weight from 0.000001 to 1,000,000"),
        ('rules.exclude_seen="no"', "valid boolean; got 'no'"),
        (
            'rules.seen_by=["purchas"]',
            "rules.seen_by: 'purchas' is no label of data.event_weights; did you mean purchase",
        ),
        ('rules.hidden_by=["purchase"]', "rules.hidden_by: 'purchase' is a label of data.event_weights"),
        ('rules={exclude_seen=false, seen_by=["purchase"]}', "rules.seen_by: exclude_seen = false lists what was seen"),
        ("rules.blocked=[true]", "blocked.0.int: .*valid integer"),
        ('data.events=""', "recsys.toml: data.events: blank; name a place"),
    ],
)
def test_a_value_of_another_type_or_none_is_refused(tmp_path: Path, slip: str, told: str) -> None:
    (tmp_path / "recsys.toml").write_text(render_config())
    with pytest.raises(ConfigError, match=told):
        load_config(tmp_path / "recsys.toml", [slip])


def test_integers_for_numbers_and_lists_are_taken_and_read_back_from_json() -> None:
    settings = {"data": DATA, "text": {"epochs": 2, "fields": ["title"]}, "rules": {"blocked": ["a", 7]}}
    config = parse_config(settings)
    assert (config.text.epochs, config.text.fields, config.rules.blocked) == (2.0, ("title",), ["a", 7])
    blank = config.model_copy(update={"data": config.data.model_copy(update={"events": "", "items": ""})})
    assert parse_config(json.loads(json.dumps(blank.model_dump(mode="json")))) == blank


def test_a_mark_of_the_encoding_and_the_home_folder_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "recsys.toml").write_text(render_config(), encoding="utf-8-sig")
    places = ['data.events="~/e.csv"', 'data.items="~i.csv"', 'mlflow.tracking_uri="sqlite:///~/m.db"']
    config = load_config(tmp_path / "recsys.toml", places)
    assert (config.data.events, config.data.items) == ("/home/me/e.csv", f"{tmp_path}/~i.csv")
    assert config.mlflow.tracking_uri == "sqlite:////home/me/m.db"


def test_where_data_lie_does_not_change_the_fingerprint_and_a_setting_does() -> None:
    a, b = (parse_config({"data": DATA | {"events": place}}) for place in ("here", "there"))
    assert a.fingerprint() == b.fingerprint()
    loose = parse_config({"data": DATA | {"max_bad_share": 0.5}, "serving": {"audit": {"max_gini": 1.0}}})
    assert loose.fingerprint() == a.fingerprint()  # else to get past a bad export would train anew
    assert a.fingerprint() != parse_config({"data": DATA, "cf": {"factors": 3}}).fingerprint()


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 4
    assert "\\b" not in result.output  # what keeps example lines apart is no text


@pytest.mark.parametrize("words", [("show", "7"), ("similar", "7")])
@pytest.mark.parametrize("n", ["0", "-3"])
def test_what_is_counted_begins_at_one(words: tuple[str, str], n: str) -> None:
    result = CliRunner().invoke(cli, [*words, "-n", n])
    assert result.exit_code == 2
    assert "is not in the range x>=1" in result.output


def test_examples_in_the_help_stand_on_lines_of_their_own() -> None:
    lines = CliRunner().invoke(cli, ["--help"]).output.splitlines()
    assert "  recsys nightly -c shop/recsys.toml" in lines


@pytest.mark.slow
def test_the_program_ends_with_the_exit_code_of_the_error_and_no_traceback(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "recsys"
    done = subprocess.run([program, "validate", "-c", str(tmp_path / "no.toml")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no.toml: no such file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", ["recsys", "recsys.cli"])
def test_the_program_runs_as_a_module(module: str, tmp_path: Path) -> None:
    words = [sys.executable, "-W", "error", "-m", module, "status", "-c", str(tmp_path / "no.toml")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "no.toml: no such file" in done.stderr


@pytest.mark.slow
def test_what_is_refused_before_a_run_begins_is_a_line_of_a_json_log_too(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "recsys", "nightly", "-c", str(tmp_path / "no.toml"), "--log", "json"]
    line = json.loads(subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False).stderr)
    assert line["exit_code"] == 2
    assert "no.toml: no such file" in line["error"]


@pytest.mark.slow
def test_a_reader_that_has_gone_is_no_defect() -> None:
    """It ended with 1, which means a defect."""
    program = subprocess.Popen([sys.executable, "-m", "recsys", "schema"], stdout=subprocess.PIPE, cwd=ROOT)
    assert program.stdout is not None
    program.stdout.close()
    assert program.wait() == 141


def test_the_registry_of_a_config_lies_beside_it_from_wherever_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recsys.toml"
    for written, expected in (
        ("", f"sqlite:///{tmp_path}/mlflow.db"),
        ('[mlflow]\ntracking_uri = "sqlite:///own.db"', f"sqlite:///{tmp_path}/own.db"),
        ('[mlflow]\ntracking_uri = "sqlite:////srv/own.db"', "sqlite:////srv/own.db"),
        ('[mlflow]\ntracking_uri = "http://host:5000"', "http://host:5000"),
    ):
        path.write_text(f'[data]\nevents = "e"\nitems = "i"\nevent_weights = {{ buy = 1 }}\n{written}')
        assert load_config(path).mlflow.tracking_uri == expected


@pytest.mark.parametrize(
    "text", ["", "nat", "9999-01-01", "yesterday", "01.11.2026", "11/10/2026", "10-11-2026", "Nov 1 2026", "now"]
)
def test_what_is_no_moment_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is no date or moment; write 2017-12-31"):
        moment(text)


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2026-11-01", 0), ("2026-11-01T05:00:00Z", 5), ("2026-11-01 05:00", 5), ("2026-11-01T05:00+02:00", 3),
        ("20261101T05", 5), (" 2026-11-01 05:00:00.000000+00:00 ", 5),
    ],
)  # fmt: skip
def test_a_moment_is_read_as_iso_8601(text: str, hour: int) -> None:
    assert moment(text) == pd.Timestamp(f"2026-11-01 {hour:02}:00", tz="UTC")


def test_a_recipe_is_what_a_training_depends_on() -> None:
    base = {"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}}
    one = parse_config(base)
    assert parse_config(base | {"serving": {"keep_releases": 20}}).recipe_sha256() == one.recipe_sha256()
    recalled = parse_config(base | {"rules": {"blocked": ["i1", 2]}})
    assert recalled.recipe_sha256() == one.recipe_sha256()
    assert recalled.fingerprint("rules") != one.fingerprint("rules")
    bought = parse_config(base | {"rules": {"seen_by": ["buy"]}})
    assert bought.recipe_sha256() != one.recipe_sha256()  # other targets
    for rules in ({"max_per_brand": 2}, {"hidden_by": ["hide"]}):
        ruled = parse_config(base | {"rules": rules})
        assert ruled.recipe_sha256() == one.recipe_sha256()
        assert ruled.fingerprint("rules") != one.fingerprint("rules")
    assert parse_config(base | {"ranker": {"max_feature_auc": 1.0}}).recipe_sha256() == one.recipe_sha256()
    assert parse_config(base | {"cf": {"factors": 20}}).recipe_sha256() != one.recipe_sha256()
    other = parse_config({"data": {"events": "e", "items": "i", "event_weights": {"buy": 2}}})
    assert other.recipe_sha256() != one.recipe_sha256()
    users = np.arange(3)
    assert _request_sha256(one, 5, users) == _request_sha256(one, 5, users)
    assert _request_sha256(one, 5, users) != _request_sha256(other, 5, users)


@pytest.mark.parametrize("words", [["--why", ""], ["--force"], ["--force", "--why", " "], ["--why", "hotfix"]])
def test_nobody_overrules_the_gate_without_a_reason(tmp_path: Path, words: list[str]) -> None:
    """`--why "$REASON"` with nothing in REASON moved the champion whatever the report said."""
    config = tmp_path / "recsys.toml"
    config.write_text('[data]\nevents = "e"\nitems = "i"\nevent_weights = { buy = 1 }\n')
    result = CliRunner().invoke(cli, ["promote", "3", "-c", str(config), *words])
    assert isinstance(result.exception, ConfigError)
    assert "--force and --why go together" in str(result.exception)
