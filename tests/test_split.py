import numpy as np
import pytest

from recsys.errors import DataError
from recsys.split import DAY_US, split_by_column, split_by_time


def test_ten_events_at_a_fifth_each_split_six_two_two() -> None:
    windows = split_by_time(np.arange(10), end=10, share=0.2)
    assert windows.window.tolist() == [0] * 6 + [1] * 2 + [2] * 2
    assert windows.starts == (6, 8)
    assert windows.end == 10
    assert windows.window.dtype == np.int8


def test_events_of_one_moment_go_to_the_window_that_the_moment_begins() -> None:
    time = np.array([0, 1, 2, 3, 4, 6, 6, 6, 8, 9])  # the cut at row 6 falls among equals
    windows = split_by_time(time, end=10, share=0.2)
    assert windows.window.tolist() == [0] * 5 + [1] * 3 + [2] * 2
    assert windows.starts == (6, 8)


@pytest.mark.parametrize("seed", range(5))
def test_no_moment_is_in_two_windows_and_windows_are_decided_by_the_starts(seed: int) -> None:
    time = np.sort(np.random.default_rng(seed).integers(0, 40, size=200))
    windows = split_by_time(time, end=40, share=0.2)
    t1, t2 = windows.starts
    assert windows.window.tolist() == [(0 if t < t1 else 1 if t < t2 else 2) for t in time.tolist()]
    assert all(len(set(windows.window[time == t].tolist())) == 1 for t in np.unique(time))


def test_days_count_back_from_just_after_the_last_event_where_as_of_is_later() -> None:
    windows = split_by_time(np.arange(10) * DAY_US, end=100 * DAY_US, days=2)
    assert windows.window.tolist() == [0] * 6 + [1] * 2 + [2] * 2
    assert windows.starts == (5 * DAY_US + 1, 7 * DAY_US + 1)


def test_days_may_be_a_fraction() -> None:
    windows = split_by_time(np.arange(10) * DAY_US // 4, end=9 * DAY_US // 4 + 1, days=0.5)
    assert windows.window.tolist() == [0] * 6 + [1] * 2 + [2] * 2


def test_later_events_before_as_of_never_move_earlier_ones_under_fixed_days() -> None:
    end = 10 * DAY_US
    rng = np.random.default_rng(0)
    time = np.append(np.sort(rng.integers(0, end, size=50)), end - 1)
    more = np.sort(np.append(time, rng.integers(8 * DAY_US, end, size=30)))
    few, many = split_by_time(time, end, days=2), split_by_time(more, end, days=2)
    assert few.starts == many.starts == (6 * DAY_US, 8 * DAY_US)
    np.testing.assert_array_equal(many.window[more < 8 * DAY_US], few.window[time < 8 * DAY_US])


def test_the_column_decides_whatever_the_time_and_starts_are_first_moments() -> None:
    split = np.array([2, 0, 1, 0, 1, 2], dtype=np.int8)
    windows = split_by_column(split, np.array([50, 90, 30, 10, 20, 40]))
    assert windows.window.tolist() == split.tolist()
    assert windows.starts == (20, 40)
    assert windows.end == 91


def test_an_empty_label_names_itself_the_counts_and_the_column() -> None:
    with pytest.raises(
        DataError, match=r"'ranker's labels' holds none of 3 .*learn 2.*labels 0.*report 1.*split_column"
    ):
        split_by_column(np.array([0, 2, 0], dtype=np.int8), np.array([1, 2, 3]))
    with pytest.raises(DataError, match=r"'report' holds none of 3 .*learn 2.*labels 1.*report 0.*split_column"):
        split_by_column(np.array([0, 1, 0], dtype=np.int8), np.array([1, 2, 3]))
    with pytest.raises(DataError, match=r"'towers learn' holds none of 0 .*split_column"):
        split_by_column(np.array([], dtype=np.int8), np.array([], dtype=np.int64))


def test_ties_that_swallow_a_window_name_it_and_the_remedy() -> None:
    with pytest.raises(
        DataError, match=r"'ranker's labels' holds none of 10 .*larger one where many events bear one moment"
    ):
        split_by_time(np.array([0, 1, 2, 3, 4, 5, 7, 7, 7, 7]), end=8, share=0.2)


def test_events_too_few_for_their_share_name_the_window_and_the_remedy() -> None:
    with pytest.raises(DataError, match=r"'ranker's labels' holds none of 4 .*window_share"):
        split_by_time(np.arange(4), end=4, share=0.1)


def test_days_longer_than_the_data_leave_the_towers_nothing() -> None:
    with pytest.raises(DataError, match=r"'towers learn' holds none of 10 .*report 10.*window_days"):
        split_by_time(np.arange(10), end=10, days=1)


def test_no_events_at_all_point_to_the_event_weights() -> None:
    with pytest.raises(DataError, match=r"event_weights"):
        split_by_time(np.array([], dtype=np.int64), end=10)
