from pathlib import Path

import pandas as pd
import pytest

from features.impressions import clean_impressions, load_impressions
from recsys.config import DataConfig
from recsys.errors import DataError

DAY = pd.Timestamp("2024-03-01", tz="UTC")


def log(**changes: object) -> pd.DataFrame:
    columns = {
        "impression_id": ["x1", "x1", "x2", "x2"],
        "user_id": [1, 1, 2, 2],
        "item_id": [7, 8, 7, 9],
        "position": [1, 2, 1, 2],
        "clicked": [True, False, False, True],
        "timestamp": [DAY, DAY, DAY + pd.Timedelta(hours=1), DAY + pd.Timedelta(hours=1)],
        "propensity": [0.5, 0.25, 0.5, None],
    }
    return pd.DataFrame(columns | changes)


def config(path: Path | None = None, max_bad_share: float = 0.001) -> DataConfig:
    place = str(path) if path else None
    return DataConfig(
        events="e", items="i", event_weights={"buy": 1}, impressions=place, max_bad_share=max_bad_share, timezone="UTC"
    )


def known() -> tuple[pd.Series, pd.Series]:
    return pd.Series([1, 2]), pd.Series([7, 8, 9])


def test_without_a_table_there_are_none() -> None:
    assert load_impressions(config(), *known()) is None


def test_rows_come_by_time_then_list_then_position(tmp_path: Path) -> None:
    log().sample(frac=1, random_state=1).to_parquet(tmp_path / "log.parquet")
    found = load_impressions(config(tmp_path / "log.parquet"), *known())
    assert found is not None
    assert found["item_id"].tolist() == [7, 8, 7, 9]
    assert found["clicked"].tolist() == [True, False, False, True]
    assert found["propensity"].isna().tolist() == [False, False, False, True]


def test_a_csv_says_the_same_as_parquet(tmp_path: Path) -> None:
    log().to_parquet(tmp_path / "log.parquet")
    log().to_csv(tmp_path / "log.csv", index=False)
    one, two = (load_impressions(config(tmp_path / name), *known()) for name in ("log.parquet", "log.csv"))
    assert one is not None
    assert two is not None
    columns = ["user_id", "item_id", "position", "clicked", "propensity", "timestamp"]
    pd.testing.assert_frame_equal(one[columns], two[columns])


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"user_id": [1, None, 2, 2]}, "null, blank"),
        ({"position": [1, 0, 1, 2]}, "whole number from 1"),
        ({"position": [1, 1.5, 1, 2]}, "whole number from 1"),
        ({"clicked": ["yes", "perhaps", "no", "yes"]}, "neither true nor false"),
        ({"clicked": [True, None, False, True]}, "neither true nor false"),
        ({"timestamp": ["2024-03-01", "1970-01-01", "2024-03-01", "2024-03-01"]}, "time out of range"),
        ({"timestamp": ["2024-03-01", "9999-01-01", "2024-03-01", "2024-03-01"]}, "time out of range"),
        ({"timestamp": ["2024-03-01", "never", "2024-03-01", "2024-03-01"]}, "unreadable time"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason(changes: dict[str, object], reason: str) -> None:
    table = log(**changes)
    table["user_id"] = table["user_id"].astype("Int64")
    checked = clean_impressions(table, config())
    assert len(checked.kept) == 3
    assert reason in checked.quarantine["reason"].iloc[0]
    with pytest.raises(DataError, match=r"1 of 4 impressions rows"):
        checked.refuse_too_many(0.001)


def test_a_repeated_row_counts_once_and_a_click_stays() -> None:
    checked = clean_impressions(pd.concat([log(), log(clicked=[True, True, False, False])]), config())
    assert checked.n_duplicates == 4
    assert checked.kept["clicked"].tolist() == [True, True, False, True]


def test_nothing_at_or_after_as_of_is_kept() -> None:
    assert len(clean_impressions(log(), config(), DAY + pd.Timedelta(hours=1)).kept) == 2


def test_an_item_must_be_in_its_table() -> None:
    checked = clean_impressions(log(), config(), items=pd.Series([7, 8]))
    assert checked.quarantine[["row", "column"]].to_numpy().tolist() == [[3, "item_id"]]
    assert checked.kept["item_id"].tolist() == [7, 8, 7]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="clicked"):
        clean_impressions(log().drop(columns="clicked"), config())
