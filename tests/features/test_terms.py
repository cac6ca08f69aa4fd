import numpy as np

from features.terms import term_vectors

FIRST, LAST = 101, 102


def text(*pieces: int) -> list[int]:
    return [FIRST, *pieces, LAST]


def test_weights_are_log_counts_times_rarity() -> None:
    """Piece 7 is in two of six texts, 8 in two, the pair 7-8 in two; piece 9 in one text likens nothing."""
    rows = term_vectors([text(7, 8, 9), text(7, 8), text(), text(), text(), text()]).toarray()
    assert rows.shape == (6, 3)
    np.testing.assert_allclose(rows[1], np.full(3, 1 / np.sqrt(3)), rtol=1e-6)
    np.testing.assert_allclose(rows[0], rows[1])
    assert not rows[2:].any()
    twice = term_vectors([text(7, 5, 7), text(7), text(5), text(), text(), text(), text(), text()]).toarray()
    more, once = (1 + np.log(2)) * np.log(8 / 2), np.log(8 / 2)
    np.testing.assert_allclose(sorted(twice[0]), [once / np.hypot(more, once), more / np.hypot(more, once)], rtol=1e-6)


def test_a_term_of_nearly_every_text_says_nothing() -> None:
    rows = term_vectors([text(1, n) for n in (2, 2, 3, 3)]).toarray()
    assert rows[0] @ rows[1] > 0.999
    assert rows[0] @ rows[2] == 0


def test_pairs_do_not_cross_texts_and_order_of_texts_does_not_matter() -> None:
    texts = [text(1, 2), text(2, 1), text(1), text(2), text(), text(), text()]
    rows = term_vectors(texts)
    likeness = (rows @ rows.T).toarray()
    order = np.array([3, 0, 2, 1, 6, 5, 4])
    again = term_vectors([texts[i] for i in order])
    np.testing.assert_allclose((again @ again.T).toarray(), likeness[np.ix_(order, order)], rtol=1e-5)


def test_no_text_at_all() -> None:
    assert term_vectors([]).shape == (0, 0)
    assert term_vectors([text()]).shape == (1, 0)
