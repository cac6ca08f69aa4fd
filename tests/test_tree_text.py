"""A text of trees that LightGBM would die of, or walk for ever, is refused before it reads it."""

import re

import lightgbm as lgb
import numpy as np
import pytest

from recsys.tree_text import checked_trees

NAMES = ("good", "noise")


@pytest.fixture(scope="module")
def text() -> str:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    x[::7, 0] = np.nan
    labels = (x[:, 1] > 0.5).astype(int)
    params = {"objective": "lambdarank", "num_leaves": 7, "min_data_in_leaf": 5, "verbosity": -1, "num_threads": 1}
    data = lgb.Dataset(x, label=labels, group=[20] * 20, feature_name=list(NAMES))
    return str(lgb.train(params, data, 3).model_to_string())


def test_what_is_left_of_a_sound_text_predicts_the_same(text: str) -> None:
    x = np.random.default_rng(1).normal(size=(50, 2))
    checked = checked_trees(text, NAMES)
    assert checked.endswith("end of trees\n")
    np.testing.assert_array_equal(lgb.Booster(model_str=checked).predict(x), lgb.Booster(model_str=text).predict(x))


def test_a_tree_without_a_split_is_sound(text: str) -> None:
    x, y = np.zeros((100, 2)), np.tile([0, 1], 50)
    data = lgb.Dataset(x, label=y, group=[10] * 10, feature_name=list(NAMES))
    stump = lgb.train({"objective": "lambdarank", "verbosity": -1, "num_threads": 1}, data, 2)
    assert lgb.Booster(model_str=checked_trees(stump.model_to_string(), NAMES)).num_trees() == stump.num_trees()


@pytest.mark.parametrize(
    ("found", "instead", "said"),
    [
        (r"split_feature=\d", "split_feature=2", "a feature that is not there"),
        (r"split_feature=\d", "split_feature=-1", "a feature that is not there"),
        (r"left_child=-?\d+", "left_child=0", "each leaf and each other split once"),
        (r"left_child=-?\d+", "left_child=99", "each leaf and each other split once"),
        (r"num_leaves=7", "num_leaves=8", "numbers of leaf_value, expected 8"),
        (r"num_cat=0", "num_cat=3", "splits by numbers"),
        (r"leaf_value=", "leaf_value=inf ", "numbers of leaf_value, expected"),
        (r"leaf_value=\S+", "leaf_value=inf", "not finite"),
        (r"decision_type=\d", "decision_type=1", "a kind that is unknown"),
        (r"threshold=\S+", "threshold=0x1", "expected numbers"),
        (r"shrinkage=\S+", "shrinkage=1 1", "2 numbers of shrinkage"),
        (r"is_linear=0", "is_linear=1", "leaves of one value"),
        (r"num_tree_per_iteration=1", "num_tree_per_iteration=0", "num_tree_per_iteration is '0', expected '1'"),
        (r"num_class=1", "num_class=9", "num_class is '9'"),
        (r"max_feature_idx=1", "max_feature_idx=9", "max_feature_idx is '9'"),
        (r"objective=lambdarank", "objective=multiclass num_class:9", "objective is"),
        (r"tree_sizes=\S+", "tree_sizes=1", "does not begin where tree_sizes says"),
        (r"tree_sizes=.*", "tree_sizes=-1", "does not begin where tree_sizes says"),
        (r"tree_sizes=.*", "tree_sizes=", "do not end where tree_sizes says"),
        (r"num_leaves=7\n", "num_leaves=7\nnum_leaves=7\n", "there twice"),
        (r"^tree\n", "junk\n", "no text of LightGBM's trees"),
        (r"end of trees", "Tree=3", "do not end"),
    ],
)
def test_a_text_that_leads_elsewhere_is_refused(text: str, found: str, instead: str, said: str) -> None:
    changed = re.sub(found, instead, text, count=1)
    assert changed != text
    if (
        "tree_sizes" not in found and "end of trees" in changed
    ):  # as long as it says, so that only the change is left to find
        trees = re.split(r"(?=Tree=\d+\n)", changed.partition("end of trees")[0])[1:]
        changed = re.sub(r"tree_sizes=.*", "tree_sizes=" + " ".join(map(str, map(len, trees))), changed, count=1)
    with pytest.raises(ValueError, match=said):
        checked_trees(changed, NAMES)


def test_a_split_that_leads_back_is_refused(text: str) -> None:
    """Every split and leaf is there once, yet two splits lead to each other: LightGBM would go round for ever."""
    head, _, _ = text.partition("\nTree=0\n")
    tree = (
        "Tree=0\nnum_leaves=4\nnum_cat=0\nsplit_feature=0 0 0\nsplit_gain=1 1 1\nthreshold=0 0 0\ndecision_type=2 2 2\n"
        "left_child=-1 2 1\nright_child=-2 -3 -4\nleaf_value=0 0 0 0\nleaf_weight=1 1 1 1\nleaf_count=1 1 1 1\n"
        "internal_value=0 0 0\ninternal_weight=0 0 0\ninternal_count=3 3 3\nis_linear=0\nshrinkage=1\n\n\n"
    )
    head = re.sub(r"tree_sizes=.*", f"tree_sizes={len(tree)}", head)
    with pytest.raises(ValueError, match="leads back to an earlier one"):
        checked_trees(f"{head}\n{tree}end of trees\n", NAMES)
