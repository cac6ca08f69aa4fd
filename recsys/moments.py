"""Moments that people name, in UTC."""

from datetime import date, datetime

import numpy as np
import pandas as pd

from recsys.errors import ConfigError, shown


def moment_of(given: object, name: str) -> pd.Timestamp:
    """A date or moment, UTC where it names no zone; text in ISO 8601, since pandas would guess what 01.11.2026 means.

    Args:
        given: text, or a date or moment of Python, numpy or pandas; a number does not say its unit.
        name: what it is for, in errors.

    Raises:
        ConfigError: it is none, or of before 1990 or after 2099.

    >>> moment_of("2026-11-01", "as_of"), moment_of(datetime(2026, 11, 1, 5), "as_of")
    (Timestamp('2026-11-01 00:00:00+0000', tz='UTC'), Timestamp('2026-11-01 05:00:00+0000', tz='UTC'))
    """
    try:
        value = datetime.fromisoformat(given.strip()) if isinstance(given, str) else given
        if not isinstance(value, date | np.datetime64):
            raise ValueError("no moment")
        stamp = pd.Timestamp(value)
        if pd.isna(stamp) or not 1990 <= stamp.year < 2100:
            raise ValueError("no moment that data are of")
        return stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{name}: {shown(given)} is no date or moment; write 2017-12-31 or 2017-12-31T05:00:00Z"
        ) from None
