import numpy as np
import pytest

from recsys.errors import DataError
from recsys.split import DAY_US, split_by_column, split_by_time


def test_ten_events_at_a_fifth_each_split_six_two_two() -> None:
    windows = split_by_time(np.arange(10), end=10, share=0.2)
    assert windows.window.tolist() == [0] * 6 + [1] * 2 + [2] * 2
    assert windows.starts == (6, 8)


def test_events_of_one_moment_stay_together() -> None:
    time = np.array([0, 1, 2, 3, 4, 5, 6, 6, 8, 9])
    window = split_by_time(time, end=10, share=0.2).window
    assert len(set(window[time == 6].tolist())) == 1


def test_days_count_back_from_the_last_event() -> None:
    windows = split_by_time(np.arange(10) * DAY_US, end=100 * DAY_US, days=2)
    assert windows.window.tolist() == [0] * 6 + [1] * 2 + [2] * 2


def test_an_empty_window_names_itself_and_the_remedy() -> None:
    with pytest.raises(DataError, match="ranker's labels.*window_share"):
        split_by_column(np.array([0, 2], dtype=np.int8), np.array([1, 2]))
