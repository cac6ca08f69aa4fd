from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.text import VectorCache, item_texts
from recsys.errors import ConfigError
from recsys.types import Progress


def test_a_second_night_encodes_only_what_changed(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def encode(texts: Sequence[str], _: Progress | None) -> np.ndarray:
        asked.append(list(texts))
        return np.array([[len(t), 1] for t in texts], dtype=np.float32)

    first = VectorCache(tmp_path, "m" * 40).vectors(["a", "bbb"], encode)
    second = VectorCache(tmp_path, "m" * 40).vectors(["cc", "bbb"], encode)
    assert asked == [["a", "bbb"], ["cc"]]
    assert first.tolist() == [[1, 1], [3, 1]]
    assert second.tolist() == [[2, 1], [3, 1]]


def test_a_damaged_cache_file_is_filled_again(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path, "m" * 40)

    def encode(texts: Sequence[str], _: Progress | None) -> np.ndarray:
        return np.ones((len(texts), 2), dtype=np.float32)

    cache.vectors(["a", "b"], encode)
    content = bytearray(cache.path.read_bytes())
    content[-1] ^= 1
    cache.path.write_bytes(content)
    assert cache.vectors(["a", "b"], encode).tolist() == [[1, 1], [1, 1]]


def test_fields_that_no_column_has_are_an_error_and_not_a_shop_without_words() -> None:
    with pytest.raises(ConfigError, match=r"text.fields: none of name, text is a column of the items table"):
        item_texts(pd.DataFrame({"item_id": [1], "title": ["Tea"]}), ["name", "text"])
    assert item_texts(pd.DataFrame({"item_id": [1], "title": ["Tea"]}), []) == [""]


def test_texts_are_made_without_the_html_of_descriptions() -> None:
    pages = ["<p class='x'>Best <b>tea</b>,<br/>leaf &amp; bud</p>", "<p></p>", "5 < b > 4 &amp; more"]
    catalogue = pd.DataFrame({"title": ["Tea", "Oil", "Screw"], "description": pages})
    assert item_texts(catalogue, ["title", "description"]) == [
        "Tea. Best tea , leaf & bud",
        "Oil",
        "Screw. 5 < b > 4 &amp; more",
    ]


def test_any_column_may_be_a_field_whatever_it_holds() -> None:
    catalogue = pd.DataFrame({"title": ["Tea", "Oil", "Salt"]})
    for author, texts in (
        (pd.Categorical(["Ann", "Bob", None]), ["Tea. Ann", "Oil. Bob", "Salt"]),
        (pd.Series(["a\ud800", "b\x00c", None], dtype=object), ["Tea. a", "Oil. bc", "Salt"]),
    ):
        assert item_texts(catalogue.assign(author=author), ["title", "author"]) == texts
