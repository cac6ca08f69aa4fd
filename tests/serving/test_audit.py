from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import AuditConfig
from recsys.errors import AuditError
from serving.audit import AuditContext, audit


def table(**columns: object) -> pa.Table:
    """Ten users, two items each."""
    user = np.repeat(np.arange(10), 2)
    base = {
        "user_id": user,
        "item_id": (user + np.tile([0, 1], 10)) % 12,
        "rank": np.tile([1, 2], 10),
        "score": np.tile([2.0, 1.0], 10),
        "source": ["text"] * 20,
    }
    return pa.table(base | columns)


CONTEXT = AuditContext(10, 2, pa.array(range(12)), None, 1.0, 1.0, AuditConfig())


def failed(found: pa.Table, context: AuditContext = CONTEXT) -> list[str]:
    return [gate.name for gate in audit(found, context).failed]


def test_sound_lists_pass() -> None:
    assert failed(table()) == []


@pytest.mark.parametrize(
    ("columns", "gate"),
    [
        ({"score": np.tile([2.0, np.nan], 10)}, "scores not finite"),
        ({"score": np.tile([1.0, 2.0], 10)}, "scores out of order"),
        ({"score": np.ones(20)}, "spread of scores"),
        ({"item_id": np.repeat(np.arange(10), 2)}, "item twice in a list"),
        ({"item_id": np.arange(20)}, "items that may not be shown"),
        ({"source": ["popular"] * 20}, "users served a popularity list, share"),
    ],
)
def test_a_broken_list_fails_the_gate_made_for_it(columns: dict[str, object], gate: str) -> None:
    assert gate in failed(table(**columns))


def test_missing_users_short_lists_and_old_data_are_refused_with_number_and_remedy() -> None:
    context = replace(CONTEXT, eligible_users=20, k=3, data_age_hours=100.0)
    result = audit(table(), context)
    with pytest.raises(
        AuditError, match=r"(?s)users covered: 0.5, limit >= 0.995; .*short lists.*newest event, hours: 100"
    ):
        result.raise_if_refused()


def test_a_changed_row_count_and_no_overlap_are_refused() -> None:
    last = table(item_id=(np.arange(20) + 5) % 12).slice(0, 10)
    assert failed(table(), replace(CONTEXT, last_release=last)) == [
        "rows against last release",
        "overlap with last release",
    ]


def test_an_ageing_model_warns_before_it_fails() -> None:
    assert [g.name for g in audit(table(), replace(CONTEXT, model_age_days=20.0)).warnings] == ["model age, days"]
    assert failed(table(), replace(CONTEXT, model_age_days=31.0)) == ["model age, days"]
