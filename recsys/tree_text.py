"""The text of LightGBM's trees, checked before LightGBM reads it: of one that is damaged it ends the process, or never ends."""

import re
from collections.abc import Sequence

import numpy as np

from recsys.errors import shown
from recsys.types import FloatArray

_END = "end of trees"
_LEAVES = ("leaf_value", "leaf_weight", "leaf_count")  # a number per leaf, as the next have one per split
_SPLITS = ("split_gain", "threshold", "internal_value", "internal_weight", "internal_count")
_POSITIONS = ("split_feature", "decision_type", "left_child", "right_child")
_TREE = {"num_leaves", "num_cat", "is_linear", "shrinkage", *_LEAVES, *_SPLITS, *_POSITIONS}
_NUMERIC = (0, 2, 4, 6, 8, 10)  # kinds of a split by a number: where what is missing goes, and what counts as missing


def checked_trees(text: str, names: Sequence[str]) -> str:
    """The part of a model text that holds the trees, after checking that LightGBM can walk every one of them.

    Args:
        names: of the features that trees may split by.

    Raises:
        ValueError: it is no text of boosted trees over these features, one number each and without categories; a tree is
            not as long as the text says, or its splits lead elsewhere than to each later split and to each leaf once.
    """
    head, begin, rest = text.partition("\nTree=0\n")
    if not text.isascii() or not head.startswith("tree\n"):
        raise ValueError("it is no text of LightGBM's trees")
    fields = _fields(head.removeprefix("tree\n"))
    expected = {
        "num_class": "1", "num_tree_per_iteration": "1", "label_index": "0", "max_feature_idx": str(len(names) - 1),
        "objective": "lambdarank", "feature_names": " ".join(names),
    }  # fmt: skip
    for name, value in expected.items():
        if fields.get(name) != value:
            raise ValueError(f"{name} is {shown(fields.get(name))}, expected {shown(value)}")
    if fields.keys() - expected.keys() != {"version", "feature_infos", "tree_sizes"}:
        raise ValueError(f"it says of all trees: {shown(', '.join(fields))}")
    if len(fields["feature_infos"].split(" ")) != len(names):
        raise ValueError(f"feature_infos are not of {len(names)} features")
    body, start = f"Tree=0\n{rest}" if begin else "", 0
    for number, size in enumerate(_whole(fields["tree_sizes"])):
        tree, start = body[start : start + max(0, size)], start + size
        if not tree.startswith(f"Tree={number}\n"):
            raise ValueError(f"tree {number} does not begin where tree_sizes says")
        _check_tree(_fields(tree.partition("\n")[2]), number, len(names))
    if not body[start:].startswith(f"{_END}\n"):
        raise ValueError("the trees do not end where tree_sizes says")
    return f"{head}\n{body[:start]}{_END}\n"


def _fields(lines: str) -> dict[str, str]:
    pairs = [line.partition("=") for line in lines.split("\n") if line]
    fields = {name: value for name, _, value in pairs}
    if len(fields) < len(pairs):
        raise ValueError(f"a name is there twice: {shown(', '.join(name for name, _, _ in pairs))}")
    return fields


def _check_tree(fields: dict[str, str], number: int, n_features: int) -> None:
    if missing := _TREE - {"is_linear"} - fields.keys():
        raise ValueError(f"tree {number}: no {', '.join(sorted(missing))}")
    if fields.keys() - _TREE or fields["num_cat"] != "0" or fields.get("is_linear", "0") != "0":
        raise ValueError(
            f"tree {number}: expected splits by numbers and leaves of one value; found {shown(', '.join(fields))}"
        )
    (n_leaves,) = _whole(fields["num_leaves"])
    kept = {name: _numbers(fields[name]) for name in (*_LEAVES, *_SPLITS, "shrinkage")}
    ways = {name: _whole(fields[name]) for name in _POSITIONS}
    lengths = dict.fromkeys(_LEAVES, n_leaves) | dict.fromkeys((*_SPLITS, *_POSITIONS), n_leaves - 1) | {"shrinkage": 1}
    for name, length in lengths.items():
        found = len((kept | ways)[name])
        is_noted = n_leaves > 1 or name not in ("leaf_weight", "leaf_count")  # not said of a leaf without a split
        if found != length and is_noted:
            raise ValueError(f"tree {number}: {found} numbers of {name}, expected {length}")
    # of a split, what is missing may be alone
    if not all(np.isfinite(kept[name]).all() for name in ("leaf_value", "shrinkage")):
        raise ValueError(f"tree {number}: holds values that are not finite")
    if not all(0 <= feature < n_features for feature in ways["split_feature"]):
        raise ValueError(f"tree {number}: splits by a feature that is not there")
    if not set(ways["decision_type"]) <= set(_NUMERIC):
        raise ValueError(f"tree {number}: holds splits of a kind that is unknown")
    children = [*ways["left_child"], *ways["right_child"]]
    if sorted(children) != [*range(-n_leaves, 0), *range(1, n_leaves - 1)] * (n_leaves > 1):
        raise ValueError(f"tree {number}: its splits do not lead to each leaf and each other split once")
    if any(0 <= child <= parent for name in ("left_child", "right_child") for parent, child in enumerate(ways[name])):
        raise ValueError(f"tree {number}: a split leads back to an earlier one")


def _whole(text: str) -> list[int]:
    if not re.fullmatch(r"(-?[0-9]{1,9}( -?[0-9]{1,9})*)?", text):
        raise ValueError(f"expected whole numbers, found {shown(text)}")
    return [int(number) for number in text.split()]


def _numbers(text: str) -> FloatArray:
    if not re.fullmatch(r"[-+.0-9e ]*", text.replace("inf", "")):
        raise ValueError(f"expected numbers, found {shown(text)}")
    return np.array(text.split(), dtype=np.float64)
