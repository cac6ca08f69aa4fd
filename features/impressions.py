"""What was shown to whom, and what came of it: the optional log of impressions, cleaned."""

import numpy as np
import pandas as pd

from features.clean import (
    EARLIEST,
    LATEST,
    clean_flags,
    clean_ids,
    clean_numbers,
    clean_texts,
    ids_like,
    is_bad_id,
    settled_ids,
    utc_times,
)
from features.quarantine import PLACES, Checked, Refused, place_of, with_places
from features.read import read_table
from recsys.config import DataConfig
from recsys.ids import IdMap
from recsys.schema import IMPRESSIONS, require_columns

_IDS = ("impression_id", "user_id", "item_id")
_KEY = ["timestamp", "impression_id", "position", "user_id", "item_id"]  # rows that share it are one item shown once


def load_impressions(
    config: DataConfig, users: pd.Series, items: pd.Series, as_of: pd.Timestamp | None = None
) -> pd.DataFrame | None:
    """Reads and checks the impressions before `as_of`; None where the config names no such table.

    Args:
        users, items: clean ids, whose types the impressions take; an item must be one of these.

    Returns:
        One row per item shown, by time, impression and position, repeated rows left out: `position` int64 from 1, `clicked` bool,
        `propensity` float64 where there is such a column. A propensity that is missing or no probability
        stays as it is: the off-policy estimates refuse it with the reason.

    Raises:
        DataError: a file is missing or broken, a column is missing, times carry no zone, or more than
            `max_bad_share` of the rows are bad.
    """
    if config.impressions is None:
        return None
    checked = checked_impressions(config.impressions, config, as_of, items)
    checked.refuse_too_many(config.max_bad_share)
    kept = checked.kept
    return kept.assign(user_id=ids_like(kept["user_id"], users), item_id=ids_like(kept["item_id"], items))


def checked_impressions(place: str, config: DataConfig, as_of: pd.Timestamp | None, items: pd.Series) -> Checked:
    """The table at a place with its refused rows, however many; see `load_impressions`."""
    return clean_impressions(read_table(place, IMPRESSIONS, config), config, as_of, items)


def clean_impressions(
    impressions: pd.DataFrame, config: DataConfig, as_of: pd.Timestamp | None = None, items: pd.Series | None = None
) -> Checked:
    """Checks a frame in the contract's columns; see `load_impressions`. The input is not changed."""
    place = place_of(impressions, "impressions")
    require_columns(IMPRESSIONS, map(str, impressions.columns), place)
    raw = with_places(impressions)
    refused = Refused("impressions", raw)
    clean = raw.assign(timestamp=utc_times(raw["timestamp"], config.timezone, place))
    for column in _IDS:
        clean[column] = clean_ids(raw[column], place)
        refused.add(column, is_bad_id(clean[column]), "null, blank or overlong id")
    if items is not None:
        is_unknown = IdMap.from_values(items).positions(clean["item_id"]) < 0
        refused.add("item_id", is_unknown, "item is not in the items table")
    times = clean["timestamp"]
    refused.add("timestamp", times.isna().to_numpy(), "unreadable time")
    refused.add("timestamp", ((times < EARLIEST) | (times >= LATEST)).to_numpy(), "time out of range")
    clean["position"] = clean_numbers(raw["position"])
    is_place = (clean["position"] >= 1) & (clean["position"] % 1 == 0) & np.isfinite(clean["position"])
    refused.add("position", ~is_place.to_numpy(), "position is no whole number from 1")
    clean["clicked"], is_no_flag = clean_flags(raw["clicked"])
    # elsewhere an empty flag means yes; here nobody clicked by saying nothing
    refused.add("clicked", is_no_flag | raw["clicked"].isna().to_numpy(), "neither true nor false")
    if "propensity" in raw:
        clean["propensity"] = clean_numbers(raw["propensity"])
    if "policy" in raw:
        clean["policy"] = clean_texts(raw["policy"])
    is_later = np.zeros(len(raw), dtype=bool) if as_of is None else (times >= as_of).to_numpy() & ~refused.mask
    kept = clean[~refused.mask & ~is_later].drop(columns=PLACES).astype({"position": "int64"})
    kept = kept.assign(**{column: settled_ids(kept[column]) for column in _IDS})
    kept = kept.sort_values([*_KEY, "clicked"], kind="stable")
    is_repeat = kept.duplicated(_KEY, keep="last").to_numpy()  # a click stays, as of events a label does
    kept = kept[~is_repeat].reset_index(drop=True)
    return Checked("impressions", kept, refused.rows(), len(raw), int(is_repeat.sum()), int(is_later.sum()))
