"""What training asks of its data, and what it may go on with."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.dataset import Dataset
from features.snapshot import Snapshot
from recsys.config import parse_config
from recsys.errors import DataError
from recsys.progress import Reporter
from training.moments import Moment, cut
from training.pipeline import _cut_off, fit_text, fit_towers, refuse_silence

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
            refuse_silence(Moment.of(dataset, windows := cut(dataset, config), 2), windows, config)
    config = parse_config(settings(exclude_seen=False))
    refuse_silence(Moment.of(same_again, windows := cut(same_again, config), 2), windows, config)


def test_texts_of_items_to_come_change_nothing_earlier(tmp_path: Path) -> None:
    """Thirty items are made within the report's window: what they are called must not reach what is judged there."""
    rng = np.random.default_rng(0)
    created = pd.Series([START] * 40 + [START + pd.Timedelta("19D")] * 30)
    rows = [
        {
            "user_id": user,
            "item_id": item,
            "event_type": "buy",
            "timestamp": START + pd.Timedelta(days=day, minutes=user),
        }
        for day in range(20)
        for user, item in enumerate(rng.integers(0, 40, 8))
    ]
    words = rng.choice(["tea", "cup", "pot", "bike", "bell", "lamp"], (70, 3))
    settled = {**settings(), "text": {"epochs": 0.0, "head_steps": 20, "cache": str(tmp_path)}}
    config = parse_config({**settled, "cf": {"learn_recency": False}})

    def towers(later: str) -> list[Snapshot]:
        titles = [" ".join(some) if item < 40 else later for item, some in enumerate(words)]
        catalogue = pd.DataFrame({"item_id": range(70), "title": titles, "created_at": created})
        dataset = Dataset.from_frames(pd.DataFrame(rows), catalogue, as_of=START + pd.Timedelta("20D"))
        windows, stage = cut(dataset, config), Reporter().stage
        moments = [Moment.of(dataset, windows, window) for window in (1, 2)]
        space = fit_text(dataset, moments[0], windows, config, stage)
        return [fit_towers(moment, space.at(moment.exists, config.seed), config, stage) for moment in moments]

    for one, other in zip(towers("tea pot"), towers("a red bike"), strict=True):
        np.testing.assert_array_equal(one.text_vectors, other.text_vectors)
        np.testing.assert_array_equal(one.cf.item_factors, other.cf.item_factors)
        np.testing.assert_array_equal(one.cf.ease.toarray(), other.cf.ease.toarray())
        assert not one.is_eligible[40:].any()


def test_a_fine_tuning_goes_on_with_its_own_checkpoint_only() -> None:
    dataset = shop([*range(20)])
    kinds = [settings(), settings(seed=1), settings(weight=2), settings(days=3.0)]
    names = [_cut_off(dataset, cut(dataset, config), config) for config in map(parse_config, kinds)]
    assert len(set(names)) == len(names)
    assert names[0] == _cut_off(dataset, cut(dataset, parse_config(settings())), parse_config(settings()))
    assert np.all([name.isalnum() for name in names])
