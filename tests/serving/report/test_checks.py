from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recsys.config import ReportConfig
from serving.report.checks import half_splits
from serving.report.compare import compare
from serving.report.decision import Check
from serving.report.world import Arm

START, END = pd.Timestamp("2024-03-01", tz="UTC"), pd.Timestamp("2024-03-08", tz="UTC")
N, K, N_ITEMS = 200, 10, 40


def arm(name: str = "A", users: int = N, length: int = K) -> Arm:
    ranked = (np.arange(users)[:, None] + np.arange(length)) % N_ITEMS
    table = pd.DataFrame({"user_id": np.arange(users).repeat(length), "item_id": ranked.ravel()})
    return Arm(name, table.assign(rank=np.tile(np.arange(1, length + 1), users)))


def checks(a: Arm, b: Arm, **changes: Any) -> dict[str, Check]:
    events = pd.DataFrame({"user_id": np.arange(N), "item_id": np.arange(N) * 7 % N_ITEMS, "timestamp": START})
    items = changes.pop("items", pd.DataFrame({"item_id": np.arange(N_ITEMS), "title": "x"}))
    config = changes.pop("config", ReportConfig())
    report = compare(a, b, events, items, config, test_start=START, test_end=END, now=END, **changes)
    assert (report.verdict == "INVALID") == any(check.status == "fail" for check in report.checks)
    return {check.name: check for check in report.checks}


def test_sound_arms_pass_everything_that_can_be_checked() -> None:
    found = checks(arm("A"), arm("B"))
    assert {check.status for check in found.values()} == {"pass", "unknown"}
    assert {name.replace("'B'", "'A'") for name, check in found.items() if check.status == "unknown"} == {
        "'A' was trained on nothing from the test window",
        "'A' recommends nothing before it existed",
        "'A': p-values of random half-splits are uniform",
        "Users met the arms online in the ratio meant",
    }


def test_users_missing_in_one_arm_are_invalid_beyond_a_handful() -> None:
    name = "Both arms are judged on the same users"
    assert checks(arm("A"), arm("B", users=N - 2))[name].status == "pass"
    found = checks(arm("A"), arm("B", users=N - 3))[name]
    assert found.status == "fail"
    assert "3 have a list in one arm alone" in found.detail
    assert checks(arm("A"), arm("B", users=N // 2), config=ReportConfig(max_missing_users=1))[name].status == "pass"


def test_short_lists_are_invalid_beyond_a_handful() -> None:
    b = arm("B")
    is_last = b.table["rank"] == K
    few, many = (Arm("B", b.table[~(is_last & (b.table["user_id"] < n))]) for n in (2, 3))
    assert checks(arm("A"), few)["'B' has no short lists"].status == "pass"
    found = checks(arm("A"), many)["'B' has no short lists"]
    assert (found.status, found.detail.split(",")[0]) == ("fail", "3 of 200 lists hold fewer than 10 items")


def test_lists_that_rules_keep_short_are_not_short() -> None:
    b = arm("B")
    cut = Arm("B", b.table[b.table["rank"] < K], longest=K - 1)
    assert checks(arm("A"), cut)["'B' has no short lists"].status == "pass"
    found = checks(arm("A"), replace(cut, longest=K))["'B' has no short lists"]
    assert (found.status, found.detail.split("; ")[1]) == (
        "fail",
        "train or score again, as rules keep them short, or compare with -k 9",
    )
    past = pd.DataFrame({"user_id": np.arange(N), "item_id": np.arange(N) * 7 % N_ITEMS, "timestamp": "2023-01-01"})
    repeated = checks(arm("A"), replace(cut, longest=K), history=past)[
        "'B' has no short lists"
    ]  # each took one already
    assert repeated.status == "pass"


def test_so_many_items_count_as_the_arm_that_was_asked_for_fewer_holds() -> None:
    events = pd.DataFrame({"user_id": np.arange(N), "item_id": np.arange(N) * 7 % N_ITEMS, "timestamp": START})
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS), "title": "x"})
    short = arm("B", length=3)
    for b, k, status in (
        (short, K, "fail"),
        (replace(short, asked=3), 3, "pass"),
        (replace(arm("B"), asked=20), K, "pass"),
    ):
        for arms in ((arm("A"), b), (b, arm("A"))):
            report = compare(*arms, events, items, ReportConfig(), test_start=START, test_end=END, now=END)
            found = next(check for check in report.checks if check.name == "'B' has no short lists")
            assert (report.header.k, report.relevance[0].metric, found.status) == (k, f"NDCG@{k}", status)
            assert found.detail.endswith("popular items, or compare with -k 3") == (status == "fail")
            told = "'B' was asked for lists of 3: so many items count, not 10."
            assert (told in report.limits) == (k == 3)


def test_lists_of_all_that_is_left_to_list_are_not_short() -> None:
    """Half of 14 items are taken before, 7 are left; where seen items may be listed again, 10 are needed."""
    items = pd.DataFrame({"item_id": np.arange(14), "title": "x"})
    tables = [
        pd.DataFrame(
            {"user_id": np.repeat(np.arange(N), 7), "item_id": np.tile(order, N), "rank": np.tile(range(1, 8), N)}
        )
        for order in (np.arange(7, 14), np.arange(13, 6, -1))
    ]
    events = pd.DataFrame({"user_id": np.arange(N), "item_id": 7, "timestamp": START})
    past = pd.DataFrame({"user_id": np.repeat(np.arange(N), 7), "item_id": np.tile(np.arange(7), N)})
    again = pd.concat([past, events[["user_id", "item_id"]].tail(1)])
    of_others = past.assign(item_id=past["item_id"] + 100)  # what nobody offers leaves as much to list as before
    for history, status in ((past, "pass"), (again, "fail"), (None, "fail"), (of_others, "fail")):
        a, b = map(Arm, "AB", tables)
        report = compare(a, b, events, items, ReportConfig(), test_start=START, test_end=END, now=END, history=history)
        assert [check.status for check in report.checks if "no short lists" in check.name] == [status] * 2


def test_an_arm_whose_ranks_do_not_settle_its_order_differs_from_itself() -> None:
    tied = arm().table.assign(rank=lambda table: table["rank"].clip(lower=2))  # of ten users one of the two hits
    name = "'{}' against itself differs by exactly 0"
    found = checks(arm("A"), Arm("B", tied))
    assert (found[name.format("A")].status, found[name.format("B")].status) == ("pass", "fail")
    assert "rows with equal ranks make the list ambiguous" in found[name.format("B")].detail


def test_users_who_nearly_all_score_alike_do_not_make_an_arm_invalid() -> None:
    """Their halves differ in a handful of users: such p-values come in steps, whatever the arm is."""
    found = checks(arm("A"), Arm("B", arm().table.assign(item_id=_first_hits(missed=3))))
    check = found["'B': p-values of random half-splits are uniform"]
    assert (check.status, check.detail.split(",")[0]) == ("unknown", "3 users score above 0 and unlike most")


def _first_hits(missed: int) -> np.ndarray:
    """Lists that begin with their user's label, but for some users', who have it nowhere."""
    label = np.arange(N) * 7 % N_ITEMS
    ranked = (label[:, None] + np.arange(K)) % N_ITEMS
    ranked[:missed] = (label[:missed, None] + 1 + np.arange(K)) % N_ITEMS
    return ranked.ravel()


@pytest.mark.parametrize(
    "info, status, told",
    [
        ({}, "unknown", "does not say"),
        (
            {"trained_until": "2024-03-01", "latest_training_event": "2024-02-29T23:59:59Z"},
            "pass",
            "last training event",
        ),
        ({"latest_training_event": "2024-03-01T00:00:00Z"}, "fail", "it has seen labels"),
        ({"trained_until": "2024-03-01", "latest_training_event": "2024-03-01T00:00:01Z"}, "fail", "first test event"),
        ({"trained_until": "2024-03-02", "latest_training_event": "2024-02-01"}, "fail", "trained until 2024-03-02"),
    ],
)
def test_the_latest_training_event_lies_before_the_first_test_event(
    info: dict[str, str], status: str, told: str
) -> None:
    b = arm("B")
    found = checks(arm("A"), Arm("B", b.table, "", info))["'B' was trained on nothing from the test window"]
    assert found.status == status
    assert told in found.detail


def test_what_sold_before_the_window_existed_whatever_the_catalogue_says() -> None:
    """All items were imported anew within the window; the last one alone has no event before it."""
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS), "title": "x", "created_at": START + pd.Timedelta(days=1)})
    past = pd.DataFrame({"user_id": 0, "item_id": np.arange(N_ITEMS), "timestamp": START - pd.Timedelta(days=1)})
    name = "'A' recommends nothing before it existed"
    assert checks(arm("A"), arm("B"), items=items, history=past)[name].status == "pass"
    n_listed = int((arm().table["item_id"] == N_ITEMS - 1).sum())
    for unsold in (past[:-1], past.assign(weight=(past["item_id"] < N_ITEMS - 1).astype(float))):
        found = checks(arm("A"), arm("B"), items=items, history=unsold)[name]
        assert (found.status, found.detail.split(" rows")[0]) == ("fail", str(n_listed))
    assert checks(arm("A"), arm("B"), items=items)[name].status == "fail"


def test_an_event_at_the_start_of_the_window_is_none_of_the_history() -> None:
    past = pd.DataFrame({"user_id": 0, "item_id": [0, 1], "timestamp": [START - pd.Timedelta("1us"), START]})
    found = checks(arm("A"), arm("B"), history=past)["Labels lie in the test window, the history before it"]
    assert found.status == "fail"
    assert "0 labels outside the window, 1 events of the history" in found.detail


def policies(n_a: int, n_b: int) -> pd.DataFrame:
    users = np.arange(n_a + n_b)
    rows = pd.DataFrame({"user_id": users, "item_id": 0, "policy": np.where(users < n_a, "A", "B")})
    return rows.assign(impression_id=users, position=1, clicked=False, timestamp=START)


@pytest.mark.parametrize("n_a, n_b, status", [(500, 510, "pass"), (500, 650, "fail"), (500, 0, "unknown")])
def test_the_ratio_of_users_online_must_be_the_one_meant(n_a: int, n_b: int, status: str) -> None:
    found = checks(arm("A"), arm("B"), impressions=policies(n_a, n_b))["Users met the arms online in the ratio meant"]
    assert found.status == status


def test_users_who_met_both_arms_are_left_out_of_the_ratio_and_many_of_them_leave_it_unknown() -> None:
    name = "Users met the arms online in the ratio meant"
    sound, skewed = policies(500, 510), policies(500, 650)
    few, both = (sound[:n].assign(policy="B") for n in (10, 500))
    found = checks(arm("A"), arm("B"), impressions=pd.concat([sound, few]))[name]
    assert (found.status, found.detail[:36]) == ("pass", "490 users met A alone, 510 B, 50% we")
    for log in (sound, skewed):
        found = checks(arm("A"), arm("B"), impressions=pd.concat([log, both]))[name]
        assert found.status == "unknown"
        assert f"500 of {len(log):,} users met both arms" in found.detail
    assert checks(arm("A"), arm("B"), impressions=pd.concat([skewed, few]))[name].status == "fail"


def test_p_values_of_half_splits_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(60)
    is_first = np.random.default_rng(5).random((3, 60), dtype=np.float32) < 0.5
    expected = [stats.ttest_ind(values[half], values[~half], equal_var=False).pvalue for half in is_first]
    np.testing.assert_allclose(half_splits(values, 3, np.random.default_rng(5)), expected)


def test_half_splits_of_a_ranking_metric_are_uniform() -> None:
    rng = np.random.default_rng(1)
    values = np.where(rng.random(2_000) < 0.15, rng.random(2_000), 0.0)
    p = half_splits(values, 500, rng)
    assert stats.kstest(p, "uniform").pvalue > 1e-4


def test_half_splits_see_a_test_that_does_not_hold_its_level() -> None:
    """One user's value outweighs all others: t is then never significant, so p-values are far from uniform."""
    values = np.zeros(400)
    values[:150] = 1e-9
    values[0] = 1.0
    p = half_splits(values, 500, np.random.default_rng(2))
    assert stats.kstest(p, "uniform").pvalue < 1e-6
