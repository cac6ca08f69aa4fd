"""What training asks of its data, and what it may go on with."""

import numpy as np
import pandas as pd
import pytest

from features.dataset import Dataset
from recsys.config import parse_config
from recsys.errors import DataError
from training.pipeline import _cut_off, cut, refuse_silence

START = pd.Timestamp("2024-01-01", tz="UTC")


def shop(items_of_day: list[int], **items: pd.Timestamp) -> Dataset:
    """Three users who take the same item on each day."""
    rows = [
        {
            "user_id": user,
            "item_id": item,
            "event_type": "buy",
            "timestamp": START + pd.Timedelta(days=day, minutes=user),
        }
        for day, item in enumerate(items_of_day)
        for user in range(3)
    ]
    catalogue = pd.DataFrame({"item_id": range(40), "title": "a thing"}).assign(**items)
    return Dataset.from_frames(pd.DataFrame(rows), catalogue)


def settings(
    seed: int = 0, exclude_seen: bool = True, weight: float = 1, days: float | None = None
) -> dict[str, object]:
    data = {"events": "e", "items": "i", "event_weights": {"buy": weight}, "window_days": days}
    return {"data": data, "rules": {"exclude_seen": exclude_seen}, "seed": seed}


def test_a_report_that_nothing_could_judge_is_refused_before_time_is_spent() -> None:
    same_again = shop([*range(18), 0, 1])
    for dataset in (same_again, shop([*range(20)], created_at=START + pd.Timedelta("18D"))):
        config = parse_config(settings())
        with pytest.raises(DataError, match=r"nobody took an item that was new to them"):
            refuse_silence(dataset, cut(dataset, config), config)
    config = parse_config(settings(exclude_seen=False))
    refuse_silence(same_again, cut(same_again, config), config)


def test_a_fine_tuning_goes_on_with_its_own_checkpoint_only() -> None:
    dataset = shop([*range(20)])
    kinds = [settings(), settings(seed=1), settings(weight=2), settings(days=3.0)]
    names = [_cut_off(dataset, cut(dataset, config), config) for config in map(parse_config, kinds)]
    assert len(set(names)) == len(names)
    assert names[0] == _cut_off(dataset, cut(dataset, parse_config(settings())), parse_config(settings()))
    assert np.all([name.isalnum() for name in names])
