import importlib.metadata
import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest

from features.demo import DEMOS, complete_journey, render_config, write_demo
from features.ingest import load_tables
from recsys.config import Config, load_config, parse_config
from recsys.errors import ConfigError

SALES = pd.DataFrame(
    {
        "household_id": [1, 1, 2, 2, 2],
        "product_id": [10, 11, 10, 99, 12],
        "basket_id": [5, 5, 6, 6, 6],
        "quantity": [2, 9000, 1, 1, 0],
        "sales_value": [3.0, 20.0, 2.0, 1.0, 0.0],
        "transaction_timestamp": pd.to_datetime(["2017-01-01 11:53:26"] * 5),
    }
)
PRODUCTS = pd.DataFrame(
    {
        "product_id": [10, 11, 12, 13],
        "department": ["GROCERY", "FUEL", "GROCERY", "GROCERY"],
        "brand": ["Private"] * 4,
        "product_category": ["FLUID MILK PRODUCTS", "COUPON/MISC ITEMS", "BREAD", None],
        "product_type": ["FLUID MILK WHITE ONLY", "GASOLINE-REG UNLEADED", "BREAD:ITALIAN/FRENCH", None],
        "package_size": ["1 GA", None, None, None],
    }
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    SALES.to_parquet(tmp_path / "transactions.parquet")
    PRODUCTS.to_parquet(tmp_path / "products.parquet")
    return tmp_path


def test_fuel_unknown_products_and_empty_lines_are_left_out(source: Path) -> None:
    events, items = complete_journey(source)
    assert events["item_id"].tolist() == [10, 10]
    assert events["price"].tolist() == [1.5, 2.0]
    assert str(events["timestamp"].iloc[0]) == "2017-01-01 11:53:26+00:00"
    assert items["item_id"].tolist() == [10]


def test_titles_are_for_people(source: Path) -> None:
    item = complete_journey(source)[1].iloc[0]
    assert item["title"] == "Fluid milk white only, 1 GA"
    assert item["category"] == "Grocery > Fluid milk products"
    assert item["price"] == 1.75


def test_the_written_demo_passes_the_door(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.demo.demo_folder", lambda: source)
    write_demo("completejourney", tmp_path / "shop")
    config = load_config(tmp_path / "shop" / "recsys.toml")
    assert config.rules.exclude_seen is False
    assert load_tables(config.data).report.event_types == {"purchase": 2}


def test_an_unknown_demo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'groceries'.*completejourney"):
        write_demo("groceries", tmp_path)


def test_without_the_package_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ConfigError, match=r"pip install 'recsys\[demo\]'"):
        write_demo("completejourney", tmp_path)


@pytest.mark.parametrize("values", [None, *DEMOS.values()])
def test_every_commented_default_is_the_default(values: dict[str, object] | None) -> None:
    text = render_config(values)
    uncommented = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    as_written, as_uncommented = tomllib.loads(text), tomllib.loads(uncommented)
    assert parse_config(as_written) == parse_config(as_uncommented)
    assert uncommented != text


def test_every_setting_stands_in_the_file() -> None:
    text = render_config()
    sections = {n: f.annotation for n, f in Config.model_fields.items() if n != "seed"}
    for name, section in sections.items():
        assert f"[{name}]" in text
        assert section is not None
        for key in section.model_fields:
            assert re.search(rf"^(# )?{key}( = | \(not set\))|^(# )?\[{name}\.{key}\]", text, re.MULTILINE), (name, key)


def test_the_columns_that_a_mapping_may_name_stand_above_it() -> None:
    above, _, _ = render_config().partition("# [data.columns]\n")
    assert above.endswith("also propensity, policy\n")
    assert "#   events: user_id, item_id, event_type, timestamp; also weight," in above
    assert "#   users: user_id\n" in above


def test_what_is_filled_in_where_it_stands_belongs_to_its_table() -> None:
    """In TOML a table ends where the next begins: what follows [data.columns] would be one of its columns."""
    text = render_config().replace("# [data.columns]", '[data.columns]\nuser_id = "customer"')
    text = text.replace("# timezone (not set)", 'timezone = "Europe/Madrid"')
    config = parse_config(tomllib.loads(text))
    assert (config.data.timezone, config.data.columns) == ("Europe/Madrid", {"user_id": "customer"})


def test_names_that_are_no_bare_keys_are_quoted() -> None:
    weights = {"add to cart": 2.0, "größer": 1.0}
    text = render_config({"data": {"events": "e", "items": "i", "event_weights": weights}})
    assert tomllib.loads(text)["data"]["event_weights"] == weights
