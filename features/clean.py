"""Columns to clean columns: ids, times, texts, numbers, flags. What cannot be read becomes null."""

import sys
import unicodedata

import numpy as np
import pandas as pd

from recsys.errors import ConfigError, DataError, shown
from recsys.types import BoolArray

EARLIEST, LATEST = pd.Timestamp("1990-01-01", tz="UTC"), pd.Timestamp("2100-01-01", tz="UTC")
MAX_TEXT = 20_000  # characters; far beyond any encoder's cut, it bounds the work on a hostile description of 10 MB
MAX_ID = 512  # characters
MOST = 0.9  # share of a column's values that tells what the export did to all of them
_CONTROL = {c: " " for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) == "Cc"} | {0: ""}
_CONTROLS = r"[\x00-\x1f\x7f-\x9f]"
_HAS_ZONE = r"[T ]\d.*[Z+-]"
_OF_THE_CLOCK = ("now", "today")  # pandas reads them as the moment at which it does
_FLAGS = {"true": True, "t": True, "yes": True, "y": True, "1": True, "1.0": True} | {
    "false": False, "f": False, "no": False, "n": False, "0": False, "0.0": False,
}  # fmt: skip
_NO_ID = (bool, np.bool_, bytes, dict, list, tuple, np.ndarray)
_NOTHING = ("", "nan", "<na>", "na", "n/a", "null", "none", "\\n")


def clean_ids(values: pd.Series, place: str) -> pd.Series:
    """Integers stay integers (Int64 or UInt64), everything else becomes text; never via float.

    Raises:
        DataError: the column holds floating-point numbers, be it as text, or what is no id: bytes, flags, lists, structs.
    """
    if pd.api.types.is_float_dtype(values.dtype) and values.notna().any():
        raise DataError(
            f"{place}: {values.name} holds floating-point numbers, such as {_first(values)}, which lose digits; "
            "export ids as integers or text"
        )
    is_plain = not (values.dtype == object or pd.api.types.is_bool_dtype(values.dtype))
    wrong = None if is_plain else next((value for value in values if isinstance(value, _NO_ID)), None)
    if wrong is not None:
        raise DataError(
            f"{place}: {values.name} holds values of type {type(wrong).__name__}, such as {shown(wrong)}; "
            "export ids as integers or text"
        )
    if pd.api.types.is_integer_dtype(values.dtype):
        return values.astype("UInt64" if str(values.dtype).lower() == "uint64" else "Int64")
    texts = _texts(values)
    most = MOST * texts.count()
    if texts.str.endswith(".0").sum() > most and texts.str.fullmatch(r"\d+\.0").sum() > most:
        raise DataError(
            f"{place}: {values.name} holds whole numbers written as floating-point ones, such as {_first(texts)}, which "
            "lose digits; export ids as integers or text"
        )
    return texts


def _texts(values: pd.Series) -> pd.Series:
    if values.dtype == object:
        values = values.map(_encodable, na_action="ignore")
    return values.astype("str")


def is_bad_id(ids: pd.Series) -> BoolArray:
    """Where a clean id is null, blank or longer than 512 characters, (n,)."""
    bad = ids.isna()
    if not pd.api.types.is_integer_dtype(ids.dtype):
        bad |= (ids.str.strip() == "") | (ids.str.len() > MAX_ID)
    return bad.to_numpy(dtype=bool)


def has_control(ids: pd.Series) -> BoolArray:
    """Where a clean id holds a control character, such as a newline: a broken export, and a trap for logs, (n,)."""
    if pd.api.types.is_integer_dtype(ids.dtype):
        return np.zeros(len(ids), dtype=bool)
    return ids.str.contains(_CONTROLS, regex=True).fillna(False).to_numpy(dtype=bool)


def is_blank(texts: pd.Series) -> BoolArray:
    """Where a text of few kinds, such as an event type, is null or blank, (n,)."""
    blank = [text for text in texts.dropna().unique() if not text.strip()]
    return (texts.isna() | texts.isin(blank)).to_numpy(dtype=bool)


def settled_ids(ids: pd.Series) -> pd.Series:
    """Without gaps left, nullable integers become plain ones."""
    if not pd.api.types.is_integer_dtype(ids.dtype):
        return ids
    return ids.astype("uint64" if str(ids.dtype).lower() == "uint64" else "int64")


def ids_like(ids: pd.Series, known: pd.Series) -> pd.Series:
    """Clean ids in the type of others: one table may have come as CSV, where every id is text.

    >>> ids_like(pd.Series(["7", "x", "07"]), pd.Series([7, -1])).tolist()
    [7, 8, 8]
    """
    if not pd.api.types.is_integer_dtype(known.dtype):
        return ids.astype("str")
    if pd.api.types.is_integer_dtype(ids.dtype):
        return ids
    limits = np.iinfo(str(known.dtype).lower())
    top = int(known.max()) if len(known) else 0
    nobody = top + 1 if top < limits.max else int(known.min()) - 1  # an id that is no number names nobody known
    is_number = ids.str.fullmatch(r"0|-?[1-9][0-9]{0,19}").fillna(False).to_numpy(dtype=bool)
    numbers = [int(text) for text in ids[is_number]]  # never through float
    found = np.full(len(ids), nobody, dtype=limits.dtype)
    found[is_number] = [number if limits.min <= number <= limits.max else nobody for number in numbers]
    return pd.Series(found, index=ids.index, name=ids.name)


def utc_times(values: pd.Series, timezone: str | None, place: str) -> pd.Series:
    """Times as datetime64[us, UTC]; unreadable ones are NaT, absurd ones are pulled to 1900 or 2200.

    Args:
        values: timestamps or ISO 8601 texts.
        timezone: zone of the times that carry none. An hour that a clock change repeats is read as its
            first pass; one that it skips, as the moment of the change.
        place: file, for the message.

    Raises:
        DataError: the column holds numbers, or times without a zone while `timezone` is None.
    """
    if pd.api.types.is_numeric_dtype(values.dtype) and values.notna().any():
        raise _no_unit(values, place)
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return _with_zone(values, values, timezone, place)
    texts = _texts(values).str.strip().str.replace(r" ?UTC$", "Z", regex=True)
    if texts.str.fullmatch(r"\d{9,}").mean() > 0.5:
        raise _no_unit(values, place)
    texts = texts.mask(texts.isin(_OF_THE_CLOCK))
    times = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    if times.dt.unit == "ns":  # which end in 2262: one text as fine as that would make later ones beside it unreadable
        texts = texts.str.replace(r"(\.\d{6})\d+", r"\1", regex=True)
        times = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    is_naive = times.notna() & ~texts.str.contains(_HAS_ZONE).fillna(False).astype(bool)
    if is_naive.any():
        times = _sane(times)
        times[is_naive] = _with_zone(times[is_naive].dt.tz_localize(None), values[is_naive], timezone, place)
    return _with_zone(times, values, timezone, place)


def _with_zone(times: pd.Series, given: pd.Series, timezone: str | None, place: str) -> pd.Series:
    # zones are only defined for sane years, and casts overflow beyond them
    times = _sane(times)
    if times.dt.tz is not None:
        return times.dt.tz_convert("UTC").astype("datetime64[us, UTC]")
    if timezone is None and times.notna().any():
        raise DataError(
            f"{place}: {given.name} carries no time zone, such as {_first(given)}; "
            'set data.timezone, for example "Europe/Madrid" or "UTC"'
        )
    try:
        zoned = times.dt.tz_localize(
            timezone or "UTC", ambiguous=np.ones(len(times), bool), nonexistent="shift_forward"
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f'data.timezone: {shown(timezone)} is no time zone; write one like "Europe/Madrid"'
        ) from error
    return zoned.dt.tz_convert("UTC").astype("datetime64[us, UTC]")


def _sane(times: pd.Series) -> pd.Series:
    zone = "UTC" if times.dt.tz is not None else None
    first, last = pd.Timestamp("1900-01-01", tz=zone), pd.Timestamp("2200-01-01", tz=zone)
    return times.mask(times < first, first).mask(times > last, last)


def _no_unit(values: pd.Series, place: str) -> DataError:
    return DataError(
        f"{place}: {values.name} holds numbers, such as {_first(values)}, and a number does not say its unit; "
        "export times as timestamps or ISO text"
    )


def clean_texts(values: pd.Series) -> pd.Series:
    """Text in NFC, without NUL and lone surrogates, other control characters as blanks, cut at 20,000
    characters; null becomes empty.
    """
    texts = values.astype(object).where(values.notna(), "")
    return pd.Series([_clean(str(t)) for t in texts], index=values.index, dtype="str", name=values.name)


def clean_numbers(values: pd.Series) -> pd.Series:
    """Numbers as float64; NaN where there is none, or an infinite one.

    >>> clean_numbers(pd.Series(["1.5", "inf", "one"])).tolist()
    [1.5, nan, nan]
    """
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    return numbers.where(np.isfinite(numbers))


def is_no_number(values: pd.Series, numbers: pd.Series) -> BoolArray:
    """Where something is written that was read as no number, (n,); what exports write for nothing is none.

    >>> texts = pd.Series(["1.5", "14,95 €", "", "NULL", None])
    >>> is_no_number(texts, clean_numbers(texts)).tolist()
    [False, True, False, False, False]
    """
    is_bad = (numbers.isna() & values.notna()).to_numpy(dtype=bool, copy=True)
    if is_bad.any():
        is_bad[is_bad] = ~values[is_bad].astype("str").str.strip().str.lower().isin(_NOTHING).to_numpy(dtype=bool)
    return is_bad


def clean_flags(values: pd.Series) -> tuple[pd.Series, BoolArray]:
    """Flags as bool, true where empty; and where the value was no flag, (n,).

    >>> clean_flags(pd.Series(["yes", "0", None, "perhaps"]))[0].tolist()
    [True, False, True, True]
    """
    flags = values.astype("str").str.strip().str.lower().map(_FLAGS)
    is_bad = (flags.isna() & values.notna() & (values.astype("str").str.strip() != "")).to_numpy(dtype=bool)
    return flags.astype("boolean").fillna(True).astype(bool), is_bad


def _clean(text: str) -> str:
    text = text[:MAX_TEXT]
    if text.isascii() and text.isprintable():
        return text
    text = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode("utf-8"))
    return text.translate(_CONTROL)[:MAX_TEXT]


def _encodable(value: object) -> str | None:
    """A lone surrogate is no text: no file could hold it."""
    text = str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return text


def _first(values: pd.Series) -> str:
    return shown(values.dropna().iloc[0])
