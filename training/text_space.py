"""The texts of a catalogue and what the encoder makes of them, once; what of it can be read, at each moment."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features.text import distinct_texts
from recsys.text_terms import TextTerms
from recsys.text_tower import TextTower
from recsys.types import BoolArray, FloatArray, IntArray

WORDS_LENGTH = 0.5  # of the vectors that EASE is pulled towards; shorter ones predict each other less sharply


@dataclass(frozen=True)
class TextSpace:
    """Distinct texts, their pooled vectors before and after fine-tuning, and the tower that reads them.

    texts: (n_texts,); row: text of each item, (n_items,); frozen, tuned: (n_texts, hidden_size).
    """

    tower: TextTower
    texts: list[str]
    row: IntArray
    frozen: FloatArray
    tuned: FloatArray

    def at(self, exists: BoolArray, seed: int) -> "TextSpace":
        """What there was to read at a moment: items to come say nothing, and the words of the rest are learned.

        Args:
            exists: True where the item is there, (n_items,).

        Returns:
            With a tower of its own over the same encoder.
        """
        if exists.all():  # nothing to copy
            texts, row, frozen, tuned = self.texts, self.row, self.frozen, self.tuned
        else:
            texts, row = distinct_texts(
                [self.texts[r] if there else "" for r, there in zip(self.row, exists, strict=True)]
            )
            place = {text: r for r, text in enumerate(self.texts)}
            # whatever vector an empty text is given, it counts for nothing
            rows = np.array([place.get(text, 0) for text in texts], dtype=np.int64)
            frozen, tuned = self.frozen[rows], self.tuned[rows]
        words = [text for text in texts if text]
        terms = TextTerms.fit(words, int(np.random.default_rng([seed, 6]).integers(2**31)))
        return TextSpace(self.tower.with_terms(terms), texts, row, frozen, tuned)

    @cached_property
    def inputs(self) -> FloatArray:
        """What the head learns from, (n_texts, inputs)."""
        return self.tower.inputs(self.texts, self.tuned)

    @property
    def views(self) -> list[FloatArray]:
        """Vectors of the items without the head, (n_items, dim) each: by the encoder and by words, where there are any."""
        n = self.tower.hidden_size
        parts = self.inputs[:, :n], WORDS_LENGTH * self.inputs[:, n:]
        return [part[self.row] for part in parts if part.shape[1]]

    @cached_property
    def readings(self) -> list[list[str]]:
        """Text of each item as it is, and in word pieces, (n_items,) each."""
        return [[texts[row] for row in self.row] for texts in (self.texts, self.tower.pieces(self.texts))]
