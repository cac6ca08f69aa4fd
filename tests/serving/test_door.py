from pathlib import Path

import pandas as pd

from recsys.config import parse_config
from recsys.progress import Reporter
from serving.door import read_tables

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
