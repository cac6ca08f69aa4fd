"""A two-layer BERT, and a small shop whose users have planted tastes that the texts carry."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

TOPICS = {
    "tea": "green black herbal leaf pot",
    "paint": "brush oil canvas easel acrylic",
    "bike": "wheel chain saddle pedal helmet",
    "garden": "seed spade hose flower soil",
}
WORDS = sorted({w for topic, words in TOPICS.items() for w in (topic, *words.split())} | {"for", "new", "set"})
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The notebooks first: minutes each, for which one of two workers would wait at the end."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained two-layer BERT over the shop's words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join(marks + WORDS))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(marks) + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shop() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events and items: 120 users buy from their favourite of four topics, over 100 days."""
    rng = np.random.default_rng(0)
    names = list(TOPICS)
    rows = []
    for pos in range(80):
        topic = names[pos % 4]
        words = rng.choice(TOPICS[topic].split(), 2)
        rows.append(
            {"item_id": f"i{pos:02d}", "title": f"{topic} {' '.join(words)}", "description": "new set", "price": 5.0}
        )
    items = pd.DataFrame(rows)
    events = []
    for user in range(120):
        taste = user % 4
        for day in np.sort(rng.uniform(0, 100, 14)):
            chosen = taste if rng.random() < 0.9 else int(rng.integers(4))
            item = 4 * int(20 * rng.beta(1, 2)) + chosen
            when = pd.Timestamp("2024-01-01", tz="UTC") + pd.Timedelta(days=float(day))
            events.append(
                {"user_id": f"u{user:03d}", "item_id": f"i{item:02d}", "event_type": "purchase", "timestamp": when}
            )
    return pd.DataFrame(events), items


@pytest.fixture(scope="session")
def shop_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, shop: tuple[pd.DataFrame, pd.DataFrame]
) -> Path:
    """The shop on disk with a recsys.toml that a small machine trains in seconds."""
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder, tiny_encoder, *shop)
    return folder


@pytest.fixture(scope="session")
def make_shop(tiny_encoder: Path) -> Callable[[Path, pd.DataFrame, pd.DataFrame], None]:
    """Writes a shop into a folder."""
    return lambda folder, events, items: write_shop(folder, tiny_encoder, events, items)


def write_shop(folder: Path, encoder: Path, events: pd.DataFrame, items: pd.DataFrame) -> None:
    events.to_parquet(folder / "events.parquet")
    items.to_parquet(folder / "items.parquet")
    (folder / "recsys.toml").write_text(f"""
[data]
events = "events.parquet"
items = "items.parquet"
event_weights = {{ purchase = 1 }}
[text]
encoder = "{encoder}"
epochs = 1
batch_items = 32
max_tokens = 16
[cf]
factors = 8
[candidates]
per_source = 20
[ranker]
min_rows_per_leaf = 5
trees = 20
[serving]
k = 5
""")
