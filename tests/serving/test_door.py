from pathlib import Path

import pandas as pd
import pytest

from recsys.config import parse_config
from recsys.errors import DataError
from recsys.progress import Reporter
from serving.door import examined, read_tables

AS_OF = pd.Timestamp("2024-02-01", tz="UTC")


def test_refused_rows_are_kept_until_the_export_is_mended(tmp_path: Path) -> None:
    events = pd.DataFrame({"user_id": "u", "item_id": ["a", "zzz"], "event_type": "buy", "timestamp": AS_OF})
    events["timestamp"] -= pd.Timedelta(days=1)
    pd.DataFrame({"item_id": ["a"], "title": ["Tea"]}).to_parquet(tmp_path / "items.parquet")
    data = {"events": f"{tmp_path}/events.parquet", "items": f"{tmp_path}/items.parquet", "event_weights": {"buy": 1.0}}
    config = parse_config({"data": data | {"max_bad_share": 0.5}, "serving": {"output": str(tmp_path / "out")}})
    for table, n_files in ((events, 1), (events[:1], 0), (events[:1], 0)):
        table.to_parquet(tmp_path / "events.parquet")
        read_tables(config, AS_OF, Reporter())
        assert len(list(tmp_path.glob("out/quarantine/*.parquet"))) == n_files


def test_a_rule_that_counts_what_no_item_has_shows_when_tables_are_validated(tmp_path: Path) -> None:
    pd.DataFrame({"user_id": ["u"], "item_id": ["i"], "event_type": ["buy"], "timestamp": ["2024-01-01"]}).to_csv(
        tmp_path / "events.csv", index=False
    )
    (tmp_path / "items.csv").write_text("item_id,title\ni,Tea\n")
    data = {"events": str(tmp_path / "events.csv"), "items": str(tmp_path / "items.csv"), "timezone": "UTC"}
    raw = {"data": data | {"event_weights": {"buy": 1}}, "serving": {"output": str(tmp_path / "out")}}
    as_of = pd.Timestamp("2024-01-02", tz="UTC")
    assert examined(parse_config(raw), as_of, Reporter()).n_items == 1
    with pytest.raises(DataError, match=r"no item has a brand, which rules\.max_per_brand counts"):
        examined(parse_config(raw | {"rules": {"max_per_brand": 1}}), as_of, Reporter())
