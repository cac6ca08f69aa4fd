"""Lists that run short, ids of every width, and the same job for notebooks."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

from features.dataset import Dataset
from features.events import EVENT
from features.histories import Histories
from features.pairs import NAMES
from features.snapshot import ItemFacts, Snapshot
from recsys.calibration import Calibration, Logistic
from recsys.cf_tower import CFTower
from recsys.config import CFConfig, DataConfig, RulesConfig, parse_config
from recsys.errors import ConfigError, DataError, ModelError
from recsys.ids import IdMap
from recsys.ranker import LinearFusion, Ranker
from recsys.split import DAY_US
from serving.batch import read_ids
from serving.recommender import Recommender
from serving.score import Scorer, Stamp, users_to_score
from serving.soundness import _other_settings, check_apart, check_parts
from training.evaluate import rank_all
from training.model import Model

N_ITEMS = 8


def scorer(exclude_seen: bool, popular: int = 2) -> Scorer:
    """User 0 took all of eight items, user 1 the first four, user 2 none; later items sold more often."""
    pairs = (
        [(0, i) for i in range(N_ITEMS)]
        + [(1, i) for i in range(4)]
        + [(3 + u, i) for i in range(N_ITEMS) for u in range(i)]
    )
    user, item = np.array(pairs).T
    order = np.lexsort((item, user))
    when = np.arange(1, len(pairs) + 1) * 1_000_000
    histories = Histories.build(
        user[order], item[order], when, np.ones(len(pairs), np.float32), n_users=12, n_items=N_ITEMS, as_of=10**12
    )
    settings = {
        "data": {"events": "e", "items": "i", "event_weights": {"buy": 1}},
        "rules": {"exclude_seen": exclude_seen}, "cf": {"factors": 2},
        "candidates": {"per_source": 1, "popular": popular, "new": 1},
    }  # fmt: skip
    config = parse_config(settings)
    vectors = np.eye(N_ITEMS, dtype=np.float32)
    cf = CFTower.fit(histories.confidence(30.0), [vectors], config.cf, 0)
    catalogue = pd.DataFrame({"item_id": range(N_ITEMS), "title": "x"})
    facts = ItemFacts.build(histories, catalogue)
    snapshot = Snapshot(histories, vectors, cf, facts, facts.exists, config)
    ranker = Ranker(NAMES, LinearFusion((0,), (1.0,), (0.0,), (1.0,)), None, "fusion", {})
    ids = IdMap.from_values(pd.Series(np.arange(12)))
    items = IdMap.from_values(pd.Series(np.arange(N_ITEMS, dtype=np.uint64) + np.uint64(2**63)))
    return Scorer(snapshot, ranker, ids, items, catalogue["title"], Stamp("r", "1", "2024-01-01"))


def test_wanted_users_are_known_by_their_very_id() -> None:
    events = pd.DataFrame(
        {
            "user_id": [-1, 7, 7],
            "item_id": ["a", "a", "b"],
            "event_type": "buy",
            "timestamp": pd.Timestamp("2024-01-01", tz="UTC"),
        }
    )
    data = Dataset.from_frames(events, pd.DataFrame({"item_id": ["a", "b"], "title": ["Tea", "Oil"]}))
    assert users_to_score(data, pd.Series(["7", "x", "07"], name="user_id")).tolist() == [1]  # as text of a CSV
    assert users_to_score(data, pd.Series([7, 8], name="user_id")).tolist() == [1]
    with pytest.raises(DataError, match="none of 2 ids has events"):
        users_to_score(data, pd.Series(["x", "07"], name="user_id"))  # "x" is not user -1


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_list_runs_short_only_where_nothing_is_left(exclude_seen: bool) -> None:
    made = scorer(exclude_seen)
    table = made.score(np.arange(3), k=6).to_pandas()
    listed = table.groupby("user_id")["item_id"].agg(lambda ids: sorted(int(i) - 2**63 for i in ids))
    if exclude_seen:
        assert 0 not in listed.index  # took everything
        assert listed[1] == [4, 5, 6, 7]
    else:
        assert len(listed[0]) == len(listed[1]) == 6
    assert listed[2] == [2, 3, 4, 5, 6, 7]  # a stranger: what sold most
    assert (table.groupby("user_id")["rank"].diff().dropna() == 1).all()
    assert table.groupby("user_id")["score"].is_monotonic_decreasing.all()


def test_lists_are_filled_with_what_was_not_acted_on_by_the_labels_that_count() -> None:
    made = scorer(exclude_seen=True)
    histories = made.snapshot.histories.loaded()
    bought = replace(
        made, snapshot=replace(made.snapshot, histories=replace(histories, marks_seen=histories.item_pos < 3))
    )
    listed = bought.score(np.arange(2), k=N_ITEMS).to_pandas().groupby("user_id")["item_id"].agg(set)
    assert [{int(item) - 2**63 for item in listed[user]} for user in (0, 1)] == [{3, 4, 5, 6, 7}] * 2


def test_a_capped_list_takes_the_next_best_and_fills_up_with_what_sold_of_other_kinds() -> None:
    """Items 0 to 7 fall into categories 0, 1, 2, 0, 1, 2, 0, 1; later ones sold more often."""
    made = scorer(exclude_seen=False)
    facts = replace(made.snapshot.facts, category=np.arange(N_ITEMS) % 3)
    rules = made.snapshot.config.rules.model_copy(update={"max_per_category": 1})
    config = made.snapshot.config.model_copy(update={"rules": rules})
    capped = replace(made, snapshot=replace(made.snapshot, facts=facts, config=config))
    free, table = (some.score(np.arange(3), k=5).to_pandas() for some in (made, capped))
    for frame in (free, table):
        frame["item_pos"] = [int(item) - 2**63 for item in frame["item_id"]]
    for user, mine in table.groupby("user_id"):
        assert sorted(mine["item_pos"] % 3) == [0, 1, 2]
        assert mine["rank"].tolist() == [1, 2, 3]
        assert mine["score"].is_monotonic_decreasing
        theirs = free[free["user_id"] == user]
        assert mine["item_pos"].iloc[0] == theirs["item_pos"].iloc[0]
    of_a_stranger = table[table["user_id"] == 2]["item_pos"].tolist()
    assert of_a_stranger == [6, 7, 5]  # two candidates, and what sold most of the third category
    everybody = made.snapshot.histories.of_users(np.arange(3))
    every, few = (rank_all(x.snapshot, x.snapshot.text_vectors, x.ranker, everybody)[0] for x in (made, capped))
    assert every["popular"][0, :4].tolist() == [7, 6, 5, 3]
    assert few["popular"][0, :4].tolist() == [7, 6, 5, -1]
    for source, items in few.items():  # no source of an evaluation may list what the ranker may not
        for mine, theirs in zip(items, every[source], strict=True):
            assert len(mine[mine >= 0]) == len({*(mine[mine >= 0] % 3)})
            assert mine[0] == theirs[0]
    assert made.score(np.arange(3), k=3).num_rows == 9


@pytest.mark.parametrize(("share", "n_events"), [(None, 4), (1.0, 4), (0.5, 2)])
def test_p_reads_counts_as_those_of_as_long_a_past_as_it_was_fitted_on(share: float | None, n_events: int) -> None:
    by_events, even = Logistic(0.0, (0.0, 1.0)), Logistic(0.0, (0.0, 0.0))
    some = scorer(exclude_seen=True, popular=N_ITEMS)
    calibration = Calibration(by_events, even, share and share * (10**12 - 10**6) / DAY_US)
    some = replace(some, ranker=replace(some.ranker, calibration=calibration))
    p = some.score(np.array([1]), 4)["p"].to_numpy()
    np.testing.assert_allclose(p, 0.5 * (1 - 1 / (2 + n_events)), rtol=1e-6)  # odds of 1 + events, halved


def test_ids_of_64_bits_without_sign_stay_whole() -> None:
    table = scorer(True).score(np.arange(3), k=2)
    assert table.schema.field("item_id").type == pa.uint64()
    assert table["item_id"].to_pylist()[0] >= 2**63


def test_one_number_an_item_cannot_but_lie_on_a_line() -> None:
    check_apart("factors", np.arange(1, 6, dtype=np.float32)[:, None], "here")
    with pytest.raises(ModelError, match="all the same"):
        check_apart("factors", np.ones((5, 2), dtype=np.float32), "here")
    with pytest.raises(ModelError, match="all the same"):
        check_apart("factors", np.zeros((5, 2), dtype=np.float32), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"ease": sp.csr_matrix((2, 2**31 - 1))},
        {"similarity": sp.csr_matrix((2, 3))},
        {"is_warm": np.ones((2, 1), bool)},
        {"item_factors": np.ones((2, 0), np.float32)},
        {"item_factors": np.ones(2, np.float32)},
    ],
)
def test_parts_of_another_shape_are_refused_whatever_their_length(change: dict[str, Any]) -> None:
    square = sp.csr_matrix(np.zeros((2, 2), np.float32))
    tower = CFTower(CFConfig(), np.ones((2, 3), np.float32), square, square, np.ones(2, bool))
    model = Mock(cf=replace(tower, **change), items=IdMap(pd.Index(["a", "b"])))
    with pytest.raises(ModelError, match="here: CF factors are of shape"):
        check_parts(model, "here")


def fitted(titles: list[str], n_sold: int, text: dict[str, object], n_new: int) -> Recommender:
    """On 60 users and items with integer ids, of which the first so many sell."""
    rng = np.random.default_rng(0)
    n = 900
    events = pd.DataFrame({
        "user_id": rng.integers(0, 60, n), "item_id": rng.integers(0, n_sold, n), "event_type": "buy",
        "timestamp": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.sort(rng.uniform(0, 90, n)), "D"),
    })  # fmt: skip
    model = Recommender(parse_config({
        "data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}, "rules": {"exclude_seen": False},
        "text": text, "cf": {"factors": 4}, "ranker": {"trees": 5},
        "candidates": {"per_source": 3, "popular": 3, "new": n_new},
    }))  # fmt: skip
    return model.fit(Dataset.from_frames(events, pd.DataFrame({"item_id": range(len(titles)), "title": titles})))


@pytest.fixture(scope="module")
def numbered() -> Recommender:
    """Of thirty items that all sell."""
    titles = [f"thing {i % 7} of {i % 5}" for i in range(30)]
    return fitted(titles, n_sold=30, text={"epochs": 0, "head_steps": 5}, n_new=1)


@pytest.mark.slow
def test_lists_may_be_of_some_items_only(numbered: Recommender) -> None:
    free, few = numbered.recommend([7, 12], 30), numbered.recommend([7, 12], 4, items=range(5, 12))
    assert few.groupby("user_id")["rank"].max().tolist() == [4, 4]
    assert set(few["item_id"]) <= set(range(5, 12))
    for user, mine in few.groupby("user_id"):  # in the order of the whole list, but for popular items that fill up
        theirs = free[(free["user_id"] == user) & free["item_id"].isin(mine["item_id"])]
        assert len(theirs) == 4
    alone = numbered.recommend(7, 4, items="5")
    assert alone["item_id"].tolist() == [5]
    assert free["p"].notna().any()
    assert alone["p"].isna().all()  # it would be that of the one thing to take: .4 where the whole list says .00002
    assert numbered.recommend([7], 4, items=[]).empty
    with pytest.raises(DataError, match="item '99' is not in the items table"):
        numbered.recommend([7], 4, items=[5, 99])


@pytest.mark.slow
def test_ids_may_come_as_text_and_strangers_under_any_name(numbered: Recommender) -> None:
    by_number, by_text = numbered.recommend([7, 12], 4), numbered.recommend(["12", "7"], 4)
    assert by_number["item_id"].tolist() == by_text["item_id"].tolist()
    mixed = numbered.recommend(["7", "nobody"], 4)
    assert mixed["item_id"].tolist()[:4] == by_number["item_id"].tolist()[:4]
    assert mixed["user_id"].unique().tolist() == ["7", "nobody"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int64", "uint64", "int32", "UInt64", "int64[pyarrow]"])
def test_whole_numbers_of_any_width_are_the_same_ids(numbered: Recommender, kind: str) -> None:
    asked = numbered.recommend(pd.Series([7, 12, 1000], dtype=kind), 4)
    assert asked["user_id"].dtype == np.int64
    pd.testing.assert_frame_equal(asked, numbered.recommend([7, 12, 1000], 4))
    beyond = numbered.recommend(np.array([7, 2**63 + 1, 2**63 + 2], dtype="uint64"), 2)
    assert beyond["user_id"].tolist() == ["7"] * 2 + [str(2**63 + 1)] * 2 + [str(2**63 + 2)] * 2


@pytest.mark.slow
def test_an_item_that_a_reason_points_to_keeps_its_number(numbered: Recommender) -> None:
    listed = numbered.recommend(range(60), 8)
    assert str(listed["reason_item_id"].dtype) == "Int64"
    assert listed["reason_item_id"].notna().any()


@pytest.mark.slow
def test_whatever_a_list_holds_can_be_explained(numbered: Recommender) -> None:
    whole = numbered.recommend(7, 10**9)
    assert sorted(whole["item_id"]) == list(range(30))
    assert "popular" in whole["source"].tolist()  # what fills a list up is no candidate
    for item in whole["item_id"]:
        row = numbered.explain(7, item)
        pd.testing.assert_frame_equal(row, whole[whole["item_id"] == item].reset_index(drop=True))


@pytest.mark.parametrize("kind", ["category", "object", "int64[pyarrow]"])
def test_whole_numbers_stay_whole_in_any_column(kind: str) -> None:
    ids = pd.Series([2**60 + 1, 2**60 + 2])
    events = pd.DataFrame(
        {"user_id": ids, "item_id": ids, "event_type": 1, "timestamp": pd.Timestamp("2024-01-01", tz="UTC")}
    )
    items = pd.DataFrame({"item_id": ids, "title": ["a", "b"]})
    events[0] = pd.Series([["x"], ["y"]], dtype=pd.ArrowDtype(pa.list_(pa.string())))  # a column more, of whatever name
    made = Dataset.from_frames(
        events.astype({"user_id": kind, "item_id": kind}),
        items.astype({"item_id": kind}),
        event_weights={1: 2.0},  # type: ignore[dict-item]
    )
    assert made.items.ids.tolist() == ids.tolist()
    assert made.users.ids.dtype == np.int64


def test_a_split_that_settings_name_is_asked_for() -> None:
    events = pd.DataFrame({
        "user_id": ["u"] * 3, "item_id": ["a", "b", "a"], "event_type": "buy", "part": ["train", "valid", "test"],
        "timestamp": pd.date_range("2024-01-01", periods=3, tz="UTC"),
    })  # fmt: skip
    items = pd.DataFrame({"item_id": ["a", "b"], "title": ["a", "b"]})
    data = {"events": "e", "items": "i", "event_weights": {"buy": 1}, "split_column": "part"}
    with pytest.raises(ConfigError, match=r"the data set has no split; give from_frames\(..., split_column='part'\)"):
        Recommender(parse_config({"data": data})).fit(Dataset.from_frames(events, items))
    split = Dataset.from_frames(events, items, split_column="part").split
    assert split is not None
    assert split.tolist() == [0, 1, 2]


@pytest.mark.slow
def test_one_id_alone_is_one_id(numbered: Recommender) -> None:
    assert numbered.recommend("12", 4)["user_id"].tolist() == [12] * 4
    pd.testing.assert_frame_equal(numbered.recommend(12, 4), numbered.recommend([12], 4))
    assert numbered.similar("13", 2)["item_id"].tolist() == [13] * 2
    assert numbered.similar([], 2).columns.tolist() == ["item_id", "similar_item_id", "score"]
    assert numbered.recommend(np.array(12), 4)["user_id"].tolist() == [12] * 4
    with pytest.raises(
        DataError, match=r"user ids: a frame is no list of ids; give its column, such as frame\['user_id'\]"
    ):
        numbered.recommend(pd.DataFrame({"user_id": [7]}), 4)
    assert (
        numbered.similar(np.int64(13), 2)["similar_item_id"].tolist()
        == numbered.similar([13], 2)["similar_item_id"].tolist()
    )
    assert numbered.recommend([], 4).empty
    listed = numbered.recommend(7, 1)["item_id"].iloc[0]
    assert numbered.explain("7", str(listed))["item_id"].tolist() == [listed]


@pytest.mark.slow
def test_numbers_and_texts_in_one_question_meet_as_texts(numbered: Recommender) -> None:
    table = numbered.recommend([7, "nobody"], 4)
    assert table["user_id"].unique().tolist() == ["7", "nobody"]
    assert table["item_id"].tolist()[:4] == numbered.recommend(7, 4)["item_id"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, 7.0, True])
def test_an_id_that_is_none_is_named_with_its_place(numbered: Recommender, missing: object) -> None:
    for ask, what in ((numbered.recommend, "user"), (numbered.similar, "item")):
        with pytest.raises(DataError, match=f"{what} ids: .*{missing}.* at place 1 is neither text nor an integer"):
            ask([7, missing])
    for of_one in (numbered.explain, numbered.contributions):
        for user, item, what in ((missing, 3, "user"), (7, missing, "item")):
            with pytest.raises(DataError, match=f"{what} ids: .*{missing}.* at place 0 is neither text nor an integer"):
                of_one(user, item)


@pytest.mark.slow
def test_one_item_of_one_user_is_explained_and_an_unknown_one_told_what_ids_look_like(numbered: Recommender) -> None:
    for of_one in (numbered.explain, numbered.contributions):
        for pair in ((7, (3, 4)), (7, [3]), ([7, 12], 3)):
            with pytest.raises(DataError, match="at place 0 is neither text nor an integer"):
                of_one(*pair)
        with pytest.raises(DataError, match="item 'x' is not in the items table; ids there look like '0', '1', '2'"):
            of_one(7, "x")
    for unknown in (numbered.similar, lambda items: numbered.recommend(7, items=items)):
        with pytest.raises(DataError, match="item 'x' is not in the items table; ids there look like '0', '1', '2'"):
            unknown([3, "x"])


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, -1, 2.5])
def test_a_list_of_less_than_one_is_refused(numbered: Recommender, k: int) -> None:
    for ask in (numbered.recommend, numbered.similar):
        with pytest.raises(ConfigError, match=f"k: '{k}' is no length of a list; ask for 1 item or more"):
            ask([7], k)


@pytest.mark.slow
def test_an_item_is_not_like_itself(numbered: Recommender) -> None:
    found = numbered.similar([3], k=100)
    assert len(found) == 29
    assert 3 not in found["similar_item_id"].tolist()


@pytest.mark.slow
def test_a_model_of_another_shop_is_refused(numbered: Recommender) -> None:
    _, dataset, _ = numbered._fitted()
    assert numbered.model.snapshot(dataset, numbered.config).histories.n_items == 30
    other = Dataset.from_frames(
        pd.DataFrame({"user_id": [1], "item_id": ["x"], "event_type": "buy", "timestamp": dataset.as_of}),
        pd.DataFrame({"item_id": ["x"], "title": "x"}),
    )
    with pytest.raises(ModelError, match="of another shop"):
        numbered.model.snapshot(other, numbered.config)


@pytest.mark.slow
def test_what_keeps_an_item_out_of_all_lists_is_told(numbered: Recommender) -> None:
    _, dataset, snapshot = numbered._fitted()
    user, item = dataset.users.ids[0], dataset.items.ids[snapshot.histories.of_users(np.array([0])).item_pos[0]]
    is_eligible = snapshot.is_eligible.copy()
    for rules, told in (({"exclude_seen": True}, "they acted on it before"), ({}, "it may not be recommended")):
        config = snapshot.config.model_copy(update={"rules": snapshot.config.rules.model_copy(update=rules)})
        other = Recommender(numbered.config)
        other._model, other._dataset = numbered.model, dataset
        other._snapshot = replace(snapshot, config=config, is_eligible=is_eligible)
        with pytest.raises(DataError, match=f"item '{item}' is in no list of user '{user}', however long: {told}"):
            other.explain(user, item)
        is_eligible[dataset.items.positions([item])] = False
    assert numbered.explain(user, item)["item_id"].tolist() == [item]


@pytest.mark.slow
def test_contributions_of_features_add_up_to_the_score_in_the_list(numbered: Recommender) -> None:
    user = numbered._fitted()[1].users.ids[3]
    listed = numbered.recommend([user], k=30)
    some = listed[listed["p"].notna()].iloc[::7]
    assert len(some) > 2
    for row in some.itertuples():
        parts = numbered.contributions(user, row.item_id)
        assert parts["contribution"].sum() == pytest.approx(row.score, rel=1e-6)
        assert parts["contribution"].abs().is_monotonic_decreasing
        assert parts["feature"].is_unique
        assert set(parts["feature"]) <= {*NAMES, "(mean candidate)"}
    best = numbered.recommend(["nobody"], k=1)
    parts = numbered.contributions("nobody", best["item_id"][0])
    assert parts["contribution"].sum() == pytest.approx(best["score"][0], rel=1e-6)
    with pytest.raises(DataError, match=r"item '29' is no candidate of user 'nobody'; explain\(user, item\) says why"):
        numbered.contributions("nobody", 29)


def test_what_is_a_label_of_the_data_set_hides_nothing() -> None:
    events = pd.DataFrame(
        {"user_id": [1, 1], "item_id": [1, 2], "event_type": ["buy", "hide"], "timestamp": "2024-01-01T00:00Z"}
    )
    items = pd.DataFrame({"item_id": [1, 2], "title": "tea"})
    shop = Dataset.from_frames(events, items, event_weights={"buy": 1, "hide": 1})
    data = {"events": "frame", "items": "frame", "event_weights": {"buy": 1}}
    hiding = Recommender(parse_config({"data": data, "rules": {"hidden_by": ["hide"]}}))
    with pytest.raises(
        ConfigError, match=r"rules\.hidden_by: 'hide' is a label of the data set, so it speaks for an item"
    ):
        hiding.fit(shop)


@pytest.mark.slow
def test_what_a_user_hid_is_in_none_of_their_lists_and_in_those_of_others(numbered: Recommender) -> None:
    _, dataset, _ = numbered._fitted()
    n_items, users = len(dataset.items), dataset.users.ids[:2]
    before = numbered.recommend(users, k=n_items)
    best = before["item_id"][0]
    hide = np.zeros(1, EVENT)
    hide["item"], hide["type"] = dataset.items.positions([best]), len(dataset.types)
    hide["timestamp"] = dataset.as_of.value // 1000 - 1
    shop = dataset.with_events(np.concatenate([dataset.events(), hide]))
    shop = replace(shop, types=(*dataset.types, "hide")).under(RulesConfig(hidden_by=("hide",)))
    other = Recommender(numbered.config)
    other._model, other._dataset = numbered.model, shop
    other._snapshot = numbered.model.snapshot(shop, numbered.config)
    lists = other.recommend(users, k=n_items)
    is_hidden = (before["user_id"] == users[0]) & (before["item_id"] == best)
    assert is_hidden.sum() == 1
    assert set(zip(lists["user_id"], lists["item_id"], strict=True)) == set(
        zip(before["user_id"][~is_hidden], before["item_id"][~is_hidden], strict=True)
    )
    with pytest.raises(DataError, match=r"however long: they hid it \(rules.hidden_by\)"):
        other.explain(users[0], best)
    with pytest.raises(ConfigError, match=r"rules\.hidden_by: no event of the data set is of type 'hid'"):
        Recommender(numbered.config.model_copy(update={"rules": RulesConfig(hidden_by=("hid",))})).fit(shop)


@pytest.mark.slow
def test_items_without_text_are_like_none() -> None:
    titles = ["" if i % 3 == 0 else f"thing {i % 7} of {i % 5}" for i in range(30)]  # nobody takes the last three
    model = fitted(titles, n_sold=27, text={"epochs": 1, "head_steps": 5}, n_new=2)
    assert model.similar([3], k=100).empty
    assert model.similar([4], k=100)["similar_item_id"].map(lambda item: item % 3 > 0).all()
    listed = model.recommend(range(60), k=30)
    by_text = listed[listed["source"].isin(["text", "both", "new"])]
    assert len(by_text) > 10
    assert (by_text["item_id"] % 3 > 0).all()
    pointed = listed["reason_item_id"].dropna().astype(int)
    assert len(pointed) > 10
    assert (pointed % 3 > 0).all()
    assert listed["item_id"].isin([28, 29]).any()
    assert 27 not in listed["item_id"].to_numpy()  # nothing at all is known of it
    with pytest.raises(
        DataError,
        match=r"item '27' is in no list of user '7', however long: it never sold and is like nothing they took$",
    ):
        model.explain(7, 27)


@pytest.mark.slow
def test_a_shop_of_sessions_trains_a_model_that_opens(tmp_path: Path) -> None:
    session = np.repeat(np.arange(400), 3)  # nobody in the ranker's window was there before
    events = pd.DataFrame({
        "user_id": session, "item_id": np.random.default_rng(0).integers(0, 30, 1200), "event_type": "buy",
        "timestamp": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(session * 360 + np.tile([0, 1, 2], 400), "min"),
    })  # fmt: skip
    items = pd.DataFrame({"item_id": range(30), "title": [f"thing {i % 7} of {i % 5}" for i in range(30)]})
    settings = {
        "data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}, "cf": {"factors": 4}, "ranker": {"trees": 5},
        "text": {"epochs": 0, "head_steps": 5},
    }  # fmt: skip
    model = Recommender(parse_config(settings)).fit(Dataset.from_frames(events, items))
    model.model.save(tmp_path)
    assert Model.load(tmp_path).ranker.calibration is None
    assert model.recommend([3], 4)["p"].isna().all()
    told = json.loads((tmp_path / "ranker.json").read_text())
    told["names"][:2] = told["names"][1::-1]  # as many features in another order would be scored in silence
    (tmp_path / "ranker.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=r"the ranker is damaged: .*feature_names is"):  # its trees say otherwise
        Model.load(tmp_path)
    for path in tmp_path.glob("*.txt"):  # as if it had been trained so
        lines = path.read_text().splitlines(keepends=True)
        at = next(i for i, line in enumerate(lines) if line.startswith("feature_names="))
        lines[at] = f"feature_names={' '.join(told['names'])}\n"
        path.write_text("".join(lines))
    with pytest.raises(ModelError, match="other features than are computed today; train again"):
        Model.load(tmp_path)


def test_users_are_read_by_ones_own_name_of_the_column(tmp_path: Path) -> None:
    data = DataConfig(events="e", items="i", event_weights={"buy": 1}, columns={"user_id": "customer"})
    for name in ("user_id", "customer"):
        (tmp_path / "some.csv").write_text(f"{name}\nu1\n")
        assert read_ids(str(tmp_path / "some.csv"), "users", data).tolist() == ["u1"]
    (tmp_path / "some.csv").write_text("kunde\nu1\n")
    with pytest.raises(DataError, match="no column user_id or customer; found 'kunde'"):
        read_ids(str(tmp_path / "some.csv"), "users", data)
    (tmp_path / "some.csv").write_text("customer\n")
    with pytest.raises(DataError, match="it has no rows"):
        read_ids(str(tmp_path / "some.csv"), "users", data)


def test_items_are_read_likewise(tmp_path: Path) -> None:
    data = DataConfig(events="e", items="i", event_weights={"buy": 1}, columns={"items": {"item_id": "sku"}})
    (tmp_path / "few.csv").write_text("sku\ni1\n")
    assert read_ids(str(tmp_path / "few.csv"), "items", data).tolist() == ["i1"]
    (tmp_path / "few.csv").write_text("article\ni1\n")
    with pytest.raises(DataError, match="no column item_id or sku; found 'article'"):
        read_ids(str(tmp_path / "few.csv"), "items", data)


@pytest.mark.parametrize("columns", [{"user_id": "customer"}, {"events": {"user_id": "customer"}}])
def test_a_file_of_users_may_be_any_that_a_table_may_be(tmp_path: Path, columns: Any) -> None:
    data = DataConfig(events="e", items="i", event_weights={"buy": 1}, columns=columns)
    for name in ("some.csv.gz", "SOME.CSV", "some [1].csv"):
        rows = b"customer,note\n007,x\n,\n"
        (tmp_path / name).write_bytes(gzip.compress(rows) if name.endswith(".gz") else rows)
        assert read_ids(str(tmp_path / name), "users", data).dropna().tolist() == ["007"]
    users = pd.DataFrame({"customer": pd.array([2**53 + 1, None], dtype="Int64")})
    users.to_parquet(tmp_path / "some.parquet")
    read = read_ids(str(tmp_path / "some.parquet"), "users", data)
    assert read.dropna().tolist() == [2**53 + 1]
    assert IdMap.from_values(pd.Series([7, 2**53 + 1])).positions(read).tolist() == [1, -1]


def test_a_file_of_users_with_a_name_twice_or_that_is_not_there_is_refused(tmp_path: Path) -> None:
    data = DataConfig(events="e", items="i", event_weights={"buy": 1})
    (tmp_path / "twice.csv").write_text("user_id,user_id\nu1,u2\n")
    with pytest.raises(DataError, match="has column 'user_id' more than once"):
        read_ids(str(tmp_path / "twice.csv"), "users", data)
    with pytest.raises(DataError, match="no such file; give Parquet or CSV"):
        read_ids(str(tmp_path / "gone.csv"), "users", data)


def test_a_label_that_the_data_set_lacks_marks_nothing_as_seen_and_is_refused() -> None:
    events = pd.DataFrame(
        {"user_id": ["a"], "item_id": ["t"], "event_type": ["purchase"], "timestamp": ["2024-01-01T00:00Z"]}
    )
    data = Dataset.from_frames(events, pd.DataFrame({"item_id": ["t"], "title": ["Tea"]}))
    settings = {"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}, "rules": {"seen_by": ["buy"]}}
    with pytest.raises(ConfigError, match="no event of the data set is of type 'buy'; name one of 'purchase'"):
        Recommender(parse_config(settings)).fit(data)


def test_frames_are_no_data_set() -> None:
    with pytest.raises(ConfigError, match=r"not DataFrame; make one with Dataset.from_frames"):
        Recommender().fit(pd.DataFrame())  # type: ignore[arg-type]


@pytest.mark.parametrize("none", ["shop/recsys.toml", {"text": {"epochs": 0}}])
def test_what_is_no_config_is_refused_before_a_fit(none: object) -> None:
    with pytest.raises(ConfigError, match=rf"not {type(none).__name__}; Recommender.from_config\(path\) reads"):
        Recommender(none)  # type: ignore[arg-type]
    assert repr(Recommender()) == "Recommender(not fitted)"


def test_items_like_one_are_such_as_may_be_recommended() -> None:
    made = scorer(exclude_seen=False)
    vectors = np.eye(N_ITEMS, dtype=np.float32)[np.zeros(N_ITEMS, int)] + 0.01 * np.eye(N_ITEMS, dtype=np.float32)
    may = np.arange(N_ITEMS) % 2 == 0
    model = Recommender()
    model._model, model._dataset = Mock(), Mock(items=IdMap.from_values(pd.Series(range(N_ITEMS))))
    model._snapshot = replace(made.snapshot, text_vectors=vectors, is_eligible=may)
    assert sorted(model.similar([3], k=9)["similar_item_id"]) == [0, 2, 4, 6]  # 3 itself may be asked for


def test_settings_that_change_what_features_mean_are_named() -> None:
    base = {"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}}
    learned = parse_config(base)
    assert _other_settings(learned, parse_config(base | {"cf": {"factors": 3}})) == []
    asked = {"data": base["data"] | {"event_weights": {"buy": 1, "click": 0.1}}, "rules": {"exclude_seen": False}}
    assert _other_settings(learned, parse_config(asked)) == ["data.event_weights", "rules.exclude_seen"]
