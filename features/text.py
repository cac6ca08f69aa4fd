"""Items to text, and texts to vectors through the cache."""

import hashlib
import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from features.clean import clean_texts
from recsys.errors import ConfigError, shown
from recsys.text_tower import TextTower
from recsys.types import FloatArray, IntArray, Progress
from recsys.whole import mark_used, replacing

_NAMES = "a|abbr|b|big|blockquote|br|center|dd|div|dl|dt|em|font|h[1-6]|hr|i|img|li|ol|p|small|span|strong|su[bp]|table|tbody|td|th|thead|tr|u|ul"
_TAG = re.compile(rf"</?(?:{_NAMES})(?:\s[^<>]*)?/?>", re.IGNORECASE)


def item_texts(catalogue: pd.DataFrame, fields: Sequence[str]) -> list[str]:
    """One text per item: its non-empty fields in order, joined by ". ", without HTML; absent columns are skipped.
    Without fields all are empty.

    >>> item_texts(pd.DataFrame({"title": ["Tea", ""], "brand": ["Leaf", "Oak"]}), ["title", "brand", "color"])
    ['Tea. Leaf', 'Oak']

    Raises:
        ConfigError: none of the columns is there, so no item would have a text.
    """
    # any column may be a field
    columns = [clean_texts(catalogue[f]).map(without_markup) for f in fields if f in catalogue]
    if not fields:
        return [""] * len(catalogue)
    if not columns:
        raise ConfigError(
            f"text.fields: none of {', '.join(fields)} is a column of the items table, which has "
            f"{', '.join(map(shown, catalogue.columns))}"
        )
    return [". ".join(part for part in row if part) for row in zip(*columns, strict=True)]


def without_markup(text: str) -> str:
    """What a reader sees of a text with HTML tags, which would fill up an encoder's tokens and pass for words; any other as it is.

    >>> without_markup("<p>Größe&nbsp;M &amp; L</p><br/>new"), without_markup(" fits <M &amp; x>5 ")
    ('Größe M & L new', 'fits <M &amp; x>5')
    """
    return " ".join(html.unescape(_TAG.sub(" ", text)).split()) if _TAG.search(text) else text.strip()


def distinct_texts(texts: list[str]) -> tuple[list[str], IntArray]:
    """Each text once, and the row of every item's text, (n_items,)."""
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    return list(row_of), np.array([row_of[text] for text in texts], dtype=np.int64)


def pooled_vectors(tower: TextTower, texts: list[str], cache: str, progress: Progress | None = None) -> FloatArray:
    """Vectors of distinct texts before the head, (n_texts, hidden_size); only those that the cache lacks are encoded.

    Args:
        cache: its folder.
    """
    return VectorCache(Path(cache), tower.encoder_sha256()).vectors(texts, tower.pooled, progress)


class VectorCache:
    """Vectors on disk by hash of text and model: a later night encodes only what changed.

    Args:
        folder: where the files lie, one per model.
        model: name of the model's file; a hash of all that decides a vector.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.path = folder / f"{model[:32]}.safetensors"

    def vectors(
        self,
        texts: Sequence[str],
        encode: Callable[[Sequence[str], Progress | None], FloatArray],
        progress: Progress | None = None,
    ) -> FloatArray:
        """Vectors of distinct texts, (n, dim) float32; only texts never seen before are encoded."""
        keys = _keys(texts)
        known_keys, known = self._read()
        at = np.searchsorted(known_keys, keys)
        at[at == len(known_keys)] = 0
        is_known = known_keys[at] == keys if len(known_keys) else np.zeros(len(keys), dtype=bool)
        missing = [text for text, there in zip(texts, is_known, strict=True) if not there]
        if missing:
            fresh = encode(missing, progress)
            known_keys = np.concatenate([known_keys, keys[~is_known]])
            known = np.concatenate([known, fresh]) if len(known) else fresh
            order = np.argsort(known_keys)
            known_keys, known = known_keys[order], known[order]
            self._write(known_keys, known)
        mark_used(self.path)
        return np.asarray(known[np.searchsorted(known_keys, keys)])

    def _read(self) -> tuple[np.ndarray, FloatArray]:
        empty = np.zeros(0, dtype="S16"), np.zeros((0, 0), dtype=np.float32)
        if not self.path.exists():
            return empty
        try:
            arrays = load_file(self.path)
            keys = np.ascontiguousarray(arrays["keys"]).view("S16").ravel()
            vectors = arrays["vectors"]
            whole = hashlib.sha256(keys.tobytes() + vectors.tobytes()).digest() == arrays["sha256"].tobytes()
        except Exception:  # noqa: BLE001 - whatever is wrong with a cache file, the remedy is to fill it again
            return empty
        return (keys, vectors) if whole else empty

    def _write(self, keys: np.ndarray, vectors: FloatArray) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(keys.tobytes() + vectors.tobytes()).digest()
        arrays = {
            "keys": keys.view(np.uint8).reshape(-1, 16),
            "vectors": np.ascontiguousarray(vectors),
            "sha256": np.frombuffer(digest, dtype=np.uint8),
        }
        with replacing(self.path) as unfinished:
            save_file(arrays, unfinished)


def _keys(texts: Sequence[str]) -> np.ndarray:
    """16 bytes per text; hex digits, since numpy drops trailing zero bytes of an S16."""
    return np.array(
        [hashlib.blake2b(t.encode("utf-8", "replace"), digest_size=8).hexdigest() for t in texts], dtype="S16"
    )
