"""`docs/reliability.md` says what the tests say."""

from tests.faults.matrix import ROWS, carriers, page, page_without_results
from tests.faults.nursery import ROOT


def test_every_row_has_a_test() -> None:
    assert list(ROWS) == list(range(1, 35))
    assert [number for number, tests in carriers().items() if not tests] == []


def test_the_table_claims_what_the_tests_carry() -> None:
    written = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert page_without_results(written) == page_without_results(page({})), "write it again: make faults"


def test_no_row_is_written_down_as_failed_or_not_run() -> None:
    rows = [r for r in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines() if r[:3] != "| #"]
    results = [row.rsplit("|", 2)[1] for row in rows if row.startswith("| ")]
    assert len(results) == 34
    assert [result for result in results if "failed" in result or "not run" in result] == []
