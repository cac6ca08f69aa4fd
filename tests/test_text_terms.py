import json
from pathlib import Path

import numpy as np
import pytest

from recsys.text_terms import MAX_CHARACTERS, TextTerms, term_vectors

TEXTS = ["green tea", "green tea pot", "bike chain", "bike bell", "oil paint", "paper", "pen"]


def test_weights_are_log_counts_times_rarity() -> None:
    """Of eight texts two hold 7 and two hold 5; 7 is twice in the first."""
    rows, vectorizer = term_vectors(["7 5 7", "7", "5", "a", "b", "c", "d", "e"])
    assert vectorizer is not None
    assert vectorizer.get_feature_names_out().tolist() == ["5", "7"]
    rarity = np.log(9 / 3) + 1
    expected = np.array([1, 1 + np.log(2)]) * rarity
    np.testing.assert_allclose(rows.toarray()[0], expected / np.linalg.norm(expected), rtol=1e-6)
    assert not rows.toarray()[3:].any()


def test_pairs_of_neighbours_count_and_do_not_cross_texts() -> None:
    rows, vectorizer = term_vectors(["red tea", "red tea", "tea red", "x", "y", "z", "u", "v", "w", "q"])
    assert vectorizer is not None
    assert vectorizer.get_feature_names_out().tolist() == ["red", "red tea", "tea"]
    likeness = (rows @ rows.T).toarray()
    assert likeness[0, 1] == pytest.approx(1)
    assert likeness[0, 2] < 0.9


def test_a_term_of_nearly_every_text_says_nothing() -> None:
    rows = term_vectors(["the tea", "the tea", "the bike", "the bike"])[0]
    assert rows[0] @ rows[1].T > 0.999
    assert (rows[0] @ rows[2].T).toarray() == 0


def test_scripts_without_spaces_are_read_letter_by_letter_in_pairs() -> None:
    rows = term_vectors(["绿茶 100g", "绿茶壶", "自行车", "纸", "笔", "油", "画", "布"])[0]
    likeness = (rows @ rows.T).toarray()
    assert likeness[0, 1] == pytest.approx(1)  # the letters and their pair; nothing else is in two texts
    assert not likeness[0, 2:].any()


@pytest.mark.parametrize("texts", [[], [""], ["tea"], ["tea", "bike"], ["", ""]])
def test_texts_that_share_no_word_have_no_terms(texts: list[str]) -> None:
    rows, vectorizer = term_vectors(texts)
    assert rows.shape == (len(texts), 0)
    assert vectorizer is None
    terms = TextTerms.fit(texts, seed=0)
    assert terms.dim == 0
    assert terms.vectors(["tea", ""]).shape == (2, 0)


def test_vectors_are_those_of_the_fit_and_keep_cosines_where_all_directions_are_kept() -> None:
    terms = TextTerms.fit(TEXTS, seed=0)
    exact = term_vectors(TEXTS)[0]
    vectors = terms.vectors(TEXTS)
    np.testing.assert_allclose(vectors @ vectors.T, (exact @ exact.T).toarray(), atol=1e-5)
    assert not terms.vectors(["", "nothing known"]).any()


@pytest.mark.parametrize("texts", [["green tea 1", "green tea 2"], ["\ud800 tea", "tea b", "c"], ["tea\x00pot"] * 2])
def test_odd_catalogues_have_vectors(texts: list[str]) -> None:
    vectors = TextTerms.fit(texts, seed=0).vectors(texts)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1)


def test_words_keep_their_vowel_signs_and_accents() -> None:
    """Hindi for black shoe and for won the fort share every consonant; full-width digits are digits."""
    rows, vectorizer = term_vectors(
        ["काला जूता", "किला जीता", "काला", "किला", "１００ x", "100 y", "Čaj", "čaj", "İstanbul", "istanbul"]
    )
    assert vectorizer is not None
    assert {"काला", "किला", "100", "čaj"} <= set(vectorizer.get_feature_names_out())
    assert (rows[0] @ rows[1].T).toarray() == 0


def test_what_the_directions_hardly_hold_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.text_terms.DIRECTIONS", 2)
    texts = [*["green tea"] * 9, *["bike chain"] * 9, *[f"x{i // 2} y{i // 2}" for i in range(60)]]
    lengths = np.linalg.norm(TextTerms.fit(texts, seed=0).vectors(texts), axis=1)
    np.testing.assert_allclose(lengths[:18], 1, rtol=1e-5)
    assert lengths[18:].max() < 0.5


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("idf", [np.nan, 1, 1], "idf holds numbers that are NaN"),
        ("directions", [1, 1, 1], "3 terms, but idf of"),
        ("terms", ["a", "a", "b"], "no list of different words"),
        ("terms", 3, "no list of different words"),
    ],
)
def test_files_that_are_not_what_was_saved_are_refused(name: str, value: object, words: str, tmp_path: Path) -> None:
    arrays = {"idf": np.ones(3, np.float32), "directions": np.ones((3, 2), np.float32)}
    if name in arrays:
        arrays[name] = np.array(value, dtype=np.float32)
    TextTerms(("a", "b", "c"), **arrays).save(tmp_path)
    if name == "terms":
        (tmp_path / "terms.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=words):
        TextTerms.load(tmp_path)


def test_order_of_texts_does_not_matter() -> None:
    order = [3, 0, 6, 2, 1, 5, 4]
    one, other = TextTerms.fit(TEXTS, seed=0).vectors(TEXTS), TextTerms.fit([TEXTS[i] for i in order], 0).vectors(TEXTS)
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-5)


def test_directions_that_matter_most_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.text_terms.DIRECTIONS", 2)
    texts = [*["green tea"] * 6, *["bike chain"] * 6, *[f"x{i // 2} y{i // 2}" for i in range(40)]]
    vectors = TextTerms.fit(texts, seed=0).vectors(texts)
    assert vectors.shape[1] == 2
    assert vectors[0] @ vectors[1] > 0.999
    assert abs(vectors[0] @ vectors[6]) < 0.001


def test_long_texts_are_cut() -> None:
    long = "x" * MAX_CHARACTERS
    assert term_vectors([f"{long} tea", f"{long} tea", "a", "b", "c", "d", "e"])[0].shape[1] == 1
