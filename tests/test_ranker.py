import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from features.pairs import NAMES as NAMES_OF_PAIRS
from recsys.config import RankerConfig, parse_config
from recsys.errors import ModelError
from recsys.ranker import LinearFusion, Ranker, first_trees, fit_trees, list_scores, refuse_future
from training.ranker import FOLDS, Tried, _fit_fold, cross_validate, for_strangers, gains, ndcg_of_pairs

NAMES = ("good", "noise")
N_USERS, N_PER_USER = 200, 30


def pairs(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users with 30 candidates each; the higher `good`, the likelier taken."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N_USERS * N_PER_USER, 2)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=len(x)) > 2).astype(float)
    return x, y, np.arange(0, len(x) + 1, N_PER_USER)


def mean_ndcg(y: np.ndarray, indptr: np.ndarray, scores: np.ndarray) -> float:
    n_relevant = np.add.reduceat(y > 0, indptr[:-1])
    return float(np.nanmean(ndcg_of_pairs(y, indptr, scores, n_relevant)))


def test_fusion_weighs_the_signal_and_not_the_noise() -> None:
    fusion = LinearFusion.fit(*pairs(0), columns=(0, 1))
    assert fusion.weights[0] > 10 * abs(fusion.weights[1])


def test_fusion_of_a_column_that_is_always_unknown_is_the_fusion_of_the_others() -> None:
    x, y, indptr = pairs(0)
    x[:, 1] = np.nan
    both, alone = (LinearFusion.fit(x, y, indptr, columns) for columns in ((0, 1), (0,)))
    np.testing.assert_allclose(both.score(x), alone.score(x), rtol=1e-4)


def test_fusion_takes_nan_for_the_mean() -> None:
    fusion = LinearFusion((0,), (2.0,), (1.0,), (1.0,))
    assert fusion.score(np.array([[np.nan], [1.0]])).tolist() == [0, 0]


def test_trees_find_the_signal_and_labels_shuffled_within_users_give_none() -> None:
    x, y, indptr = pairs(1)
    nothing = LinearFusion((0,), (0.0,), (0.0,), (1.0,))
    trees, _ = fit_trees(pairs(0), (x, y, indptr), NAMES, nothing, RankerConfig(trees=30), seed=0)
    ranker = Ranker(NAMES, nothing, trees, "trees", {})
    rng = np.random.default_rng(0)
    shuffled = np.concatenate([rng.permutation(part) for part in np.split(y, indptr[1:-1])])
    assert mean_ndcg(y, indptr, ranker.score(x)) > 0.6
    chance = mean_ndcg(shuffled, indptr, rng.normal(size=len(y)))
    assert abs(mean_ndcg(shuffled, indptr, ranker.score(x)) - chance) < 0.06


def test_scores_do_not_depend_on_what_other_threads_score() -> None:
    x, y, indptr = pairs(0)
    fusion = LinearFusion.fit(x, y, indptr, columns=(0,))
    trees, _ = fit_trees((x, y, indptr), None, NAMES, fusion, RankerConfig(trees=200), seed=0)
    ranker = Ranker(NAMES, fusion, trees, "trees", {})
    alone = ranker.score(x, bounds=indptr)
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(lambda _: ranker.score(x, bounds=indptr), range(24)):
            np.testing.assert_array_equal(scores, alone)


def test_trees_start_from_the_fusion() -> None:
    x, y, indptr = pairs(0)
    good, wrong = (LinearFusion((0,), (weight,), (0.0,), (1.0,)) for weight in (2.0, -2.0))
    config = RankerConfig(trees=1, learning_rate=0.05)
    trees, _ = fit_trees((x, y, indptr), pairs(1), NAMES, good, config, seed=0)
    assert mean_ndcg(y, indptr, Ranker(NAMES, good, trees, "trees", {}).score(x)) > 0.6
    trees, _ = fit_trees((x, y, indptr), pairs(1), NAMES, wrong, config, seed=0)
    assert mean_ndcg(y, indptr, Ranker(NAMES, wrong, trees, "trees", {}).score(x)) < 0.1  # one tree cannot undo it


def test_lists_show_early_trees_some_pairs_and_late_ones_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.ranker.REFINED", 20)
    monkeypatch.setattr("recsys.ranker.FINALISTS", 8)
    x, y, indptr = pairs(0)
    fusion = LinearFusion.fit(x, y, indptr, columns=(0,))
    trees, _ = fit_trees((x, y, indptr), None, NAMES, fusion, RankerConfig(trees=6), seed=0)
    ranker = Ranker(NAMES, fusion, trees, "trees", {})
    bounds = np.array([0, 0, 30, 33, 63])  # nothing, more than enough, fewer than finalists
    scores = ranker.score(x[:63], bounds=bounds)
    early = ranker.booster.predict(x[:63], num_iteration=2)  # a quarter of six, rounded up
    exact = ranker.score(x[:63])
    assert np.allclose(scores[30:33], exact[30:33])
    for user in (slice(0, 30), slice(33, 63)):
        by_fusion = np.argsort(-fusion.score(x[user]), kind="stable")
        after_early = (fusion.score(x[user]) + early[user])[by_fusion[:20]]
        finalists = by_fusion[:20][np.argsort(-after_early, kind="stable")]
        assert np.allclose(scores[user][finalists[:8]], exact[user][finalists[:8]])
        assert scores[user][finalists[:8]].min() >= scores[user][finalists[8:]].max()
        assert scores[user][finalists[8:]].min() >= scores[user][by_fusion[20:]].max()
        assert (np.diff(scores[user][by_fusion[20:]]) <= 0).all()


@pytest.mark.parametrize("chosen", ["trees", "fusion"])
def test_contributions_add_up_to_the_scores(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.ranker.REFINED", 20)
    monkeypatch.setattr("recsys.ranker.FINALISTS", 10)
    x, y, indptr = pairs(0)
    x[::7, 0] = np.nan
    fusion = LinearFusion((0,), (0.5,), (0.1,), (2.0,))
    trees, _ = fit_trees((x, y, indptr), None, NAMES, fusion, RankerConfig(trees=8), seed=0)
    ranker = Ranker(NAMES, fusion, trees, chosen, {})
    added = ranker.contributions(x, indptr)
    np.testing.assert_allclose(added.sum(axis=1), ranker.score(x, bounds=indptr), atol=1e-9)
    assert np.abs(added[:, 0]).mean() > 5 * np.abs(added[:, 1]).mean()  # what the labels come from
    if chosen == "fusion":
        assert added[1].tolist() == pytest.approx([0.5 * (x[1, 0] - 0.1) / 2, 0, 0])
        assert added[0].tolist() == [0, 0, 0]  # nothing is known


def test_one_tree_is_an_early_one() -> None:
    x, y, indptr = pairs(0)
    fusion = LinearFusion.fit(x, y, indptr, columns=(0,))
    trees, _ = fit_trees((x, y, indptr), None, NAMES, fusion, RankerConfig(trees=1), seed=0)
    ranker = Ranker(NAMES, fusion, trees, "trees", {})
    assert np.allclose(ranker.score(x, bounds=indptr), ranker.score(x))


def of_two_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of `NAMES` alone, which do not say what is cold."""
    monkeypatch.setattr("training.ranker.pairs.NAMES", NAMES)
    monkeypatch.setattr("training.ranker.in_cold_order", lambda scores, *_: scores)


def test_out_of_fold_scores_know_nothing_of_their_users_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    of_two_features(monkeypatch)
    x, y, indptr = pairs(0)
    fold = np.arange(N_USERS) % FOLDS
    n_relevant = np.add.reduceat(y > 0, indptr[:-1])
    # one tree: how many there are is what the other folds decide, whose trees learned from these labels
    data = {"events": "e", "items": "i", "event_weights": {"buy": 1.0}}
    config = parse_config({"data": data, "ranker": {"trees": 1}})
    before = cross_validate((x, y, indptr), fold, n_relevant, config, (0, 1))
    mine = np.repeat(fold == 1, N_PER_USER)
    turned = np.where(mine, 1 - y, y)
    after = cross_validate((x, turned, indptr), fold, n_relevant, config, (0, 1))
    for kind in ("trees", "fusion"):
        np.testing.assert_array_equal(after.scores[kind][mine], before.scores[kind][mine])
        assert not np.allclose(after.scores[kind][~mine], before.scores[kind][~mine])


def test_a_fold_is_judged_by_as_many_trees_as_the_others_stopped_at(monkeypatch: pytest.MonkeyPatch) -> None:
    of_two_features(monkeypatch)
    x, y, indptr = pairs(0)
    fold = np.arange(N_USERS) % FOLDS
    data = {"events": "e", "items": "i", "event_weights": {"buy": 1.0}}
    config = parse_config({"data": data, "ranker": {"trees": 40}})
    found = [_fit_fold((x, y, indptr), fold == f, config, (0, 1)) for f in range(FOLDS)]
    best = [n for _, _, n in found]
    tried = cross_validate((x, y, indptr), fold, np.add.reduceat(y > 0, indptr[:-1]), config, (0, 1))
    mine = np.repeat(fold == 1, N_PER_USER)
    bounds = np.arange((fold == 1).sum() + 1) * N_PER_USER
    trees = first_trees(found[1][1], round((best[0] + best[2]) / 2))
    expected = Ranker(NAMES, found[1][0], trees, "trees", {}).score(x[mine], "trees", bounds)
    np.testing.assert_array_equal(tried.scores["trees"][mine], expected)
    assert tried.n_trees == round(sum(best) / 3)
    assert first_trees(found[1][1], 10_000) == first_trees(found[1][1], 40)  # no more than there are


def test_trees_and_fusion_are_judged_in_the_cold_order_that_ships() -> None:
    """Of a user's four items two sold and two are cold; the ranker puts forward the cold one that borrowed less."""
    n_users = 60
    x = np.zeros((4 * n_users, len(NAMES_OF_PAIRS)), dtype=np.float32)
    columns = {name: NAMES_OF_PAIRS.index(name) for name in ("count_all", "ease_z", "text_max", "user_events")}
    for name, values in {"count_all": [1, 1, 0, 0], "ease_z": [0, 0, 1, 2], "text_max": [2, 0, 1, -1]}.items():
        x[:, columns[name]] = np.tile(values, n_users)
    x[:, columns["user_events"]] = 1
    y, indptr = np.tile([1.0, 0, 0, 0], n_users), np.arange(0, len(x) + 1, 4)
    config = parse_config({"data": {"events": "e", "items": "i", "event_weights": {"buy": 1.0}}})
    fold, n_relevant = np.arange(n_users) % FOLDS, np.ones(n_users, dtype=np.int64)
    tried = cross_validate((x, y, indptr), fold, n_relevant, config, (columns["text_max"],))
    for kind in ("trees", "fusion"):
        order = np.argsort(-tried.scores[kind].reshape(n_users, 4), axis=1)
        np.testing.assert_array_equal(order, np.tile([0, 3, 1, 2], (n_users, 1)))


@pytest.mark.parametrize(
    ("trees", "ships"), [([0.6, 0.6, 0.6, 0.6], "trees"), ([0.9, 0.9, 0.3, 0.3], "fusion"), ([0.5] * 4, "fusion")]
)
def test_trees_ship_where_they_gain_more_than_a_standard_error(trees: list[float], ships: str) -> None:
    ndcg = {"fusion": np.full(4, 0.5), "trees": np.array(trees)}
    # the second gains .1 on the mean, its standard error is .6 / sqrt(3) / 2 = .17
    assert Tried(ndcg, {}, 1).chosen == ships


def test_save_then_load_scores_the_same(tmp_path: Path) -> None:
    x, y, indptr = pairs(0)
    fusion = LinearFusion.fit(x, y, indptr, (0, 1))
    trees, _ = fit_trees((x, y, indptr), pairs(1), NAMES, fusion, RankerConfig(trees=10), seed=0)
    ranker = Ranker(NAMES, fusion, trees, "trees", {"trees": 0.5})
    ranker.save(tmp_path)
    again = Ranker.load(tmp_path)
    for by in ("trees", "fusion"):
        np.testing.assert_array_equal(again.score(x, by), ranker.score(x, by))


def test_what_strangers_get_is_saved(tmp_path: Path) -> None:
    fusion = LinearFusion((0,), (1.0,), (0.0,), (1.0,))
    Ranker(NAMES, fusion, None, "fusion", {}, None, "recent").save(tmp_path)
    assert Ranker.load(tmp_path).strangers == "recent"


def test_a_planted_future_feature_is_refused_by_name() -> None:
    x, y, _ = pairs(0)
    x[:, 1] = y + 0.001 * x[:, 1]
    with pytest.raises(ModelError, match="noise"):
        refuse_future(x, y, NAMES, limit=0.995)
    refuse_future(x, y, NAMES, limit=1.0)  # a shop where everybody buys the same again may say so
    refuse_future(pairs(0)[0], y, NAMES, limit=0.995)


def test_other_columns_than_trained_on_are_refused() -> None:
    ranker = Ranker(NAMES, LinearFusion((0,), (1.0,), (0.0,), (1.0,)), None, "fusion", {})
    with pytest.raises(ModelError, match="3 features"):
        ranker.score(np.zeros((1, 3)))


STRANGER_NAMES = ("good", "user_events", "recent_rank", "popular_rank", "all_time_rank")


def test_strangers_get_the_list_in_its_order_and_others_their_own() -> None:
    nan = np.nan
    features = np.array(
        [[9, 0, 1, 0, nan], [8, 0, nan, 1, 0], [7, 0, 0, nan, 1], [1, 2, 0, 0, 0], [5, 2, nan, nan, nan]], np.float32
    )
    fusion = LinearFusion((0,), (1.0,), (0.0,), (1.0,))
    plain, listed = (Ranker(STRANGER_NAMES, fusion, None, "fusion", {}, None, s) for s in (None, "recent"))
    assert np.argsort(-listed.score(features)[:3]).tolist() == [2, 0, 1]
    assert listed.score(features)[3:].tolist() == plain.score(features)[3:].tolist() == [1, 5]
    assert listed.score(features, by="fusion").tolist() == plain.score(features).tolist()  # the comparison stays honest
    assert np.isfinite(listed.score(features)).all()


def strangers_group(n_users: int, taken: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users with ten candidates; "recent" lists them 0 to 9, "popular" the other way round; each took one of them."""
    features = np.zeros((n_users * 10, len(NAMES_OF_PAIRS)), dtype=np.float32)
    place = np.tile(np.arange(10), n_users)
    for name, values in (("recent", place), ("popular", 9 - place), ("all_time", np.nan)):
        features[:, NAMES_OF_PAIRS.index(f"{name}_rank")] = values
    return features, (place == taken).astype(float), np.arange(0, n_users * 10 + 1, 10)


def test_strangers_choose_their_list_and_all_users_where_they_are_few() -> None:
    others = strangers_group(40, taken=0)  # who choose "recent", which has it first
    mixed = strangers_group(40, taken=9)[1].copy()
    mixed[300:] = others[1][300:]
    group = (others[0], mixed, others[2])
    is_stranger = np.arange(40) < 30
    found, ndcg = for_strangers(group, np.ones(40, int), is_stranger)
    assert found == "popular"
    assert ndcg["strangers popular"] == 1.0
    assert ndcg["strangers recent"] == pytest.approx(1 / np.log2(11))  # taken at its tenth place
    mixed[:] = others[1]
    assert for_strangers(group, np.ones(40, int), is_stranger)[0] == "recent"  # always better, so by any error
    mixed[: 14 * 10] = strangers_group(14, taken=9)[1]
    assert for_strangers(group, np.ones(40, int), is_stranger)[0] == "popular"  # 16 to 14 is luck
    mixed[:] = others[1]
    mixed[300:] = strangers_group(10, taken=9)[1]
    found, ndcg = for_strangers(group, np.ones(40, int), np.arange(40) >= 30)
    assert found == "recent"  # ten strangers, who would have said "popular", do not decide
    assert ndcg["strangers recent"] == pytest.approx((30 + 10 / np.log2(11)) / 40)
    nobody = np.zeros(0, dtype=bool)
    assert for_strangers((group[0][:0], mixed[:0], np.zeros(1, int)), nobody, nobody) == ("popular", {})


def test_of_a_strangers_score_no_feature_says_anything() -> None:
    names = ("user_events", "recent_rank", "all_time_rank")
    x = np.array([[0, 3, 1], [0, np.nan, 2], [5, 1, 1]], dtype=np.float32)
    ranker = Ranker(names, LinearFusion((1,), (2.0,), (0.0,), (1.0,)), None, "fusion", {}, strangers="recent")
    bounds = np.array([0, 2, 3])
    added = ranker.contributions(x, bounds)
    assert added.tolist() == [[0, 0, 0, -3], [0, 0, 0, -10_002], [0, 2, 0, 0]]
    assert added.sum(axis=1).tolist() == ranker.score(x, bounds=bounds).tolist()


def test_what_a_list_lacks_comes_in_the_order_of_all_time() -> None:
    nan = np.nan
    features = np.array([[nan, nan], [0, nan], [nan, 1], [1, 5], [nan, 0]], np.float32)
    scores = list_scores(features, ("recent_rank", "all_time_rank"), "recent")
    assert np.argsort(-scores).tolist() == [1, 3, 4, 2, 0]


@pytest.mark.parametrize("weight", [1.0, 0.1, 0.3, 0.7, 19.99])
def test_rounded_sums_of_weights_are_the_labels_of_their_counts(weight: float) -> None:
    n = 2 ** np.arange(1, 9) - 1
    summed = [np.full(times, weight, np.float32).cumsum(dtype=np.float32)[-1] for times in (*n, *(n + 1))]
    labels = np.arange(1, 9)
    np.testing.assert_array_equal(gains(np.array(summed, np.float32)), [*labels, *(labels + 1)])
    assert gains(np.zeros(2, np.float32)).tolist() == [0, 0]


def test_few_labels_that_a_feature_sorts_by_chance_are_no_future() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = (np.arange(600) == rng.integers(600)).astype(float)
        refuse_future(rng.normal(size=(600, len(NAMES))), labels, NAMES, limit=0.995)


def test_strangers_judge_no_trees_as_they_are_not_ranked_by_them() -> None:
    """Trees that win with strangers alone would rank the regulars, who are better off without."""
    is_stranger = np.arange(100) < 60
    rng = np.random.default_rng(0)
    fusion = rng.random(100)
    tried = Tried({"fusion": fusion, "trees": fusion + np.where(is_stranger, 0.3, -0.1)}, {}, 5)
    assert (tried.chosen, tried.among(~is_stranger).chosen) == ("trees", "fusion")
    assert len(tried.among(~is_stranger).ndcg["fusion"]) == 40
    assert tried.among(np.zeros(100, bool)) is tried  # nobody else is there to ask


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fusion": None}, "the ranker is damaged"),
        ({"fusion": {"columns": [2], "weights": [1.0], "means": [0.0], "scales": [1.0]}}, "not those of 2 features"),
        ({"fusion": {"columns": [0], "weights": [1.0, 2.0], "means": [0.0], "scales": [1.0]}}, "expected 1 weights"),
        ({"fusion": {"columns": [0], "weights": ["x"], "means": [0.0], "scales": [1.0]}}, "expected 1 weights"),
        ({"fusion": {"columns": [0], "weights": [1.0], "means": [0.0], "scales": [0.0]}}, "not above 0"),
        ({"chosen": "trees"}, "chosen is 'trees'"),
        ({"strangers": "x"}, "strangers is 'x'"),
        ({"names": 1}, "the ranker is damaged"),
    ],
)
def test_a_ranker_that_no_training_writes_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    Ranker(NAMES, LinearFusion((0,), (1.0,), (0.0,), (1.0,)), None, "fusion", {}).save(tmp_path)
    content = json.loads((tmp_path / "ranker.json").read_text())
    (tmp_path / "ranker.json").write_text(json.dumps(content | change))
    with pytest.raises(ModelError, match=said):
        Ranker.load(tmp_path)
