"""A shop that was served last night, copied for every test that breaks something of it."""

import shutil
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from tests.conftest import write_shop
from tests.faults.matrix import page
from tests.faults.nursery import Ended, Nursery
from tests.faults.served import assert_served_whole

YESTERDAY, TODAY = "2024-04-11", "2024-04-12"


def dates(table: pa.Table) -> set[str]:
    """The nights that rows are of."""
    return {str(day) for day in table["run_date"].to_pylist()}


@dataclass
class Shop:
    """A folder with recsys.toml, tables, a registry with version 1, and yesterday's release in `out`."""

    folder: Path
    nursery: Nursery
    acknowledged: list[str] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def config(self) -> Path:
        return self.folder / "recsys.toml"

    def words(self, command: str, *words: str) -> list[str]:
        return [command, *words, "-c", str(self.config)]

    def run(self, command: str, *words: str, first: str = "", out: Path | None = None) -> Ended:
        """A command of the program, in a process of its own."""
        return self.nursery.run(*self.words(command, *words), first=first, out=out)

    def tonight(self, *words: str, first: str = "") -> Ended:
        """The next night, without training."""
        return self.run("nightly", "--as-of", TODAY, *words, first=first)

    def served(self) -> pa.Table:
        """What readers get, checked."""
        return assert_served_whole(self.output, self.acknowledged)

    def assert_yesterday_served(self) -> None:
        table = self.served()
        assert dates(table) == {YESTERDAY}

    def assert_today_served(self) -> None:
        table = self.served()
        assert dates(table) == {TODAY}

    def events(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "events.parquet")

    def write_events(self, events: pd.DataFrame) -> None:
        events.to_parquet(self.folder / "events.parquet")

    def items(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "items.parquet")

    def write_items(self, items: pd.DataFrame) -> None:
        items.to_parquet(self.folder / "items.parquet")

    def last_run(self) -> dict[str, object]:
        from serving.runs import last_runs

        return last_runs(self.output)[0]


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def publishers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Runs of what publishes, which needs no model; nothing heavy is imported."""
    nursery = Nursery(tmp_path_factory.mktemp("publishers"), light=True)
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def first_night(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_encoder: Path,
    shop: tuple[pd.DataFrame, pd.DataFrame],
    nursery: Nursery,
) -> Shop:
    """The shop after its first night; not to be changed, only copied."""
    made = Shop(tmp_path_factory.mktemp("first-night"), nursery)
    write_shop(made.folder, tiny_encoder, *shop)
    ended = made.run("nightly", "--as-of", YESTERDAY)
    assert ended.code == 0, ended.err
    made.assert_yesterday_served()
    return made


@pytest.fixture
def yesterday(first_night: Shop, tmp_path: Path) -> Shop:
    """A shop of one's own, served last night."""
    copy = Shop(tmp_path / "shop", first_night.nursery)
    shutil.copytree(first_night.folder, copy.folder, symlinks=True)
    with closing(sqlite3.connect(copy.folder / "mlflow.db")) as database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(first_night.folder), str(copy.folder))
            )
        database.commit()
    copy.acknowledged = [release.name for release in (copy.output / "releases").iterdir()]
    return copy


RESULTS = pytest.StashKey[dict[int, list[pytest.TestReport]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, default=None, help="Write the table of faults and results there.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        results = item.config.stash.setdefault(RESULTS, {})
        for mark in item.iter_markers("fault"):
            results.setdefault(mark.args[0], []).append(report)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    place = session.config.getoption("--reliability", None)
    if place:
        results = session.config.stash.get(RESULTS, {})
        place.write_text(page({number: _told(reports) for number, reports in results.items()}), encoding="utf-8")


def _told(reports: list[pytest.TestReport]) -> str:
    counts = {name: sum(r.outcome == name for r in reports) for name in ("passed", "failed", "skipped")}
    seconds = sum(r.duration for r in reports)
    words = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    return f"{words}, {seconds:.0f} s, {datetime.now(UTC):%Y-%m-%d}"
