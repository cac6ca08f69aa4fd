import numpy as np
import pandas as pd
import pytest

from features.clean import clean_flags, clean_ids, clean_texts, has_control, ids_like, is_bad_id, settled_ids, utc_times
from recsys.errors import ConfigError, DataError


def times(values: object, zone: str | None = None) -> list[str]:
    return [str(t) for t in utc_times(pd.Series(values, name="timestamp"), zone, "events.csv")]


def test_ids_beyond_two_to_the_53_stay_themselves_beside_a_gap() -> None:
    ids = clean_ids(pd.Series([2**53 + 1, None], dtype="Int64", name="user_id"), "f")
    assert is_bad_id(ids).tolist() == [False, True]
    assert settled_ids(ids[:1]).tolist() == [2**53 + 1]


def test_hashes_of_64_bits_without_sign_stay_themselves() -> None:
    ids = settled_ids(clean_ids(pd.Series([2**64 - 1], dtype="uint64", name="user_id"), "f"))
    assert ids.tolist() == [2**64 - 1]


def test_floating_ids_are_refused_with_file_column_and_value() -> None:
    with pytest.raises(DataError, match=r"f\.parquet: user_id .*'1\.5'"):
        clean_ids(pd.Series([np.nan, 1.5], name="user_id"), "f.parquet")


def test_integers_that_a_gap_made_floating_are_refused_as_text_too() -> None:
    with pytest.raises(DataError, match=r"f\.csv: user_id .*'100059\.0'.*integers or text"):
        clean_ids(pd.Series(["100059.0", None, "7.0"], dtype="str", name="user_id"), "f.csv")


@pytest.mark.parametrize("value", [b"\x00\xff", {"id": 1}, ["a"], np.array([1]), True])
def test_ids_that_are_no_text_are_refused_with_their_type(value: object) -> None:
    given = pd.Series([None, value], dtype=object, name="user_id")
    with pytest.raises(DataError, match=rf"f: user_id holds values of type {type(value).__name__}, .*integers or text"):
        clean_ids(given, "f")


def test_flags_are_no_ids() -> None:
    with pytest.raises(DataError, match="user_id holds values of type bool"):
        clean_ids(pd.Series([True, None], dtype="boolean", name="user_id"), "f")


def test_a_few_ids_that_look_like_floating_numbers_are_text() -> None:
    given = pd.Series(["1.0", "2.5", "v3.0", "x"], dtype="str", name="item_id")
    assert clean_ids(given, "f.csv").tolist() == given.tolist()


def test_blank_overlong_null_and_broken_ids_are_bad() -> None:
    ids = clean_ids(pd.Series(["a/b\n", " ", "x" * 513, None, "\ud800"], dtype=object, name="user_id"), "f")
    assert is_bad_id(ids).tolist() == [False, True, True, True, True]


def test_control_characters_in_ids_are_seen_and_numbers_have_none() -> None:
    assert has_control(pd.Series(["a\nb", "a b", "a\x7f", None], dtype="str")).tolist() == [True, False, True, False]
    assert has_control(pd.Series([10, 13])).tolist() == [False, False]


def test_zones_in_the_text_are_honoured_and_unreadable_ones_are_nat() -> None:
    given = ["2024-01-01T10:00:00Z", "2024-01-01 10:00:00+02:00", "2024-01-01 10:00:00 UTC", "soon", None]
    assert times(given) == [
        "2024-01-01 10:00:00+00:00", "2024-01-01 08:00:00+00:00", "2024-01-01 10:00:00+00:00", "NaT", "NaT"
    ]  # fmt: skip


def test_text_without_a_zone_needs_one_even_beside_text_with_one() -> None:
    given = ["2024-07-01T10:00:00Z", "2024-07-01 10:00"]
    with pytest.raises(DataError, match=r"events\.csv: timestamp .*'2024-07-01 10:00'.*data\.timezone"):
        times(given)
    assert times(given, "Europe/Madrid")[1] == "2024-07-01 08:00:00+00:00"


@pytest.mark.parametrize("zone", ["+1:00", "+1", "+01", "+01:00"])
def test_a_zone_of_one_digit_is_not_applied_twice(zone: str) -> None:
    assert times([f"2024-07-01T10:00:00{zone}"], "Asia/Tokyo") == ["2024-07-01 09:00:00+00:00"]


def test_words_that_mean_the_moment_of_reading_are_no_times() -> None:
    assert times(["now", " today", "2024-07-01T10:00:00Z"]) == ["NaT", "NaT", "2024-07-01 10:00:00+00:00"]


def test_a_time_far_off_is_no_unreadable_one_beside_nanoseconds() -> None:
    given = ["9999-01-01T00:00:00Z", "2024-07-01T10:00:00.123456789Z"]
    assert times(given) == ["2200-01-01 00:00:00+00:00", "2024-07-01 10:00:00.123456+00:00"]


def test_a_column_without_any_time_needs_no_zone() -> None:
    assert times(pd.to_datetime(["", ""])) == times([None, None]) == ["NaT", "NaT"]


def test_clock_changes_take_the_first_pass_and_the_moment_of_the_change() -> None:
    given = pd.to_datetime(["2024-10-27 02:30", "2024-03-31 02:30"])
    assert times(given, "Europe/Madrid") == ["2024-10-27 00:30:00+00:00", "2024-03-31 01:00:00+00:00"]


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@pytest.mark.parametrize("zone", [None, "Europe/Madrid"])
def test_absurd_times_stay_out_of_range_without_a_crash(unit: str, zone: str | None) -> None:
    values = pd.Series(np.array([-(10**14), 10**15, 10**17], dtype=f"datetime64[{unit}]"), name="timestamp")
    got = utc_times(values if zone else values.dt.tz_localize("UTC"), zone, "f")
    assert (got.dt.year < 1990).tolist()[0]
    assert got.dt.year.iloc[2] >= 2100


@pytest.mark.parametrize("values", [[1704067200, 1704067201], ["1704067200", "1704067201"], [1.7e9, None]])
def test_numbers_do_not_say_their_unit(values: list[object]) -> None:
    with pytest.raises(DataError, match=r"170.*unit"):
        times(values)


def test_an_unknown_zone_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="'Europe/Madird'"):
        times(["2024-01-01"], "Europe/Madird")


def test_texts_are_nfc_without_nul_surrogates_and_control_characters() -> None:
    given = pd.Series(["e\u0301", "a\x00b", "\ud800x", "a\nb", "שלום 🎈", None, "x" * 10_000_000], dtype=object)
    assert clean_texts(given).tolist() == ["é", "ab", "x", "a b", "שלום 🎈", "", "x" * 20_000]


def test_flags_are_read_from_words_and_numbers() -> None:
    flags, is_bad = clean_flags(pd.Series(["True", "false", 0, 1.0, None, "", "perhaps"], dtype=object))
    assert flags.tolist() == [True, False, False, True, True, True, True]
    assert is_bad.tolist() == [False] * 6 + [True]


def test_ids_of_a_csv_meet_integers_digit_by_digit() -> None:
    big = 2**53 + 1  # a float would take it for its neighbour
    known = pd.Series([-1, 7, big])
    asked = pd.Series(["7", "07", "x", "-1", str(big), str(2**63)], index=[3, 3, 1, 0, 9, 8])
    found = ids_like(asked, known)
    assert found.tolist() == [7, big + 1, big + 1, -1, big, big + 1]
    assert not {big + 1} & set(known)
    assert found.index.tolist() == asked.index.tolist()
    assert ids_like(pd.Series([7, 8]), known).tolist() == [7, 8]
    assert ids_like(pd.Series([7, 8]), pd.Series(["7"], dtype="str")).tolist() == ["7", "8"]
    full = ids_like(pd.Series(["x", str(2**63)]), pd.Series([5, 2**64 - 1], dtype="uint64"))
    assert full.tolist() == [4, 2**63]
