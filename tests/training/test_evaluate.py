"""The evaluation of a trained shop."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.candidates import Candidates
from features.dataset import Dataset
from features.pairs import PairTable
from recsys.config import load_config
from recsys.progress import Reporter
from recsys.types import IntArray
from training.evaluate import N_EXPLAINED, Evaluation
from training.moments import cut
from training.pipeline import train

pytestmark = pytest.mark.slow


def test_reasons_are_those_of_the_listed_pairs_and_end_after_the_first_places(
    shop_folder: Path, shop: tuple[pd.DataFrame, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reasons that name the pair they were asked about."""

    def named(_: pa.Array, candidates: Candidates, table: PairTable, rows: IntArray) -> dict[str, pa.Array]:
        assert len(table.user_row) == len(candidates.item_pos)
        return {"source": pa.array(candidates.item_pos[rows]), "reason": pa.array(candidates.user_row[rows])}

    monkeypatch.setattr("training.evaluate.reasons", named)

    dataset = Dataset.from_frames(*shop)
    config = load_config(
        shop_folder / "recsys.toml", ("text.epochs=0", "text.head_steps=5", "serving.chunk_users=1000")
    )
    evaluation = train(dataset, config, Reporter().stage).evaluation
    lists = evaluation.lists
    is_first = lists["rank"] <= N_EXPLAINED
    assert 0 < is_first.sum() < len(lists)
    np.testing.assert_array_equal(lists["source"][is_first], lists["item_pos"][is_first])
    row_of = {user: row for row, user in enumerate(lists["user_pos"].unique())}
    np.testing.assert_array_equal(lists["reason"][is_first], lists["user_pos"][is_first].map(row_of))
    assert lists.loc[~is_first, ["source", "reason"]].isna().all(axis=None)
    assert 0 < evaluation.cpu_ms_per_user < 1_000
    start = pd.Timestamp(cut(dataset, config).starts[1], unit="us", tz="UTC")
    later, before = (
        set(zip(some["user_id"], some["item_id"], strict=True))
        for some in (shop[0][shop[0]["timestamp"] >= start], shop[0][shop[0]["timestamp"] < start])
    )
    assert evaluation.labels == {"taken": len(later), "seen": len(later & before), "gone": 0}
    assert 0 < evaluation.labels["seen"] < evaluation.labels["taken"]


@pytest.mark.parametrize("n_slots", [5, 50])
def test_so_few_cold_items_that_any_order_finds_them_all_have_no_recall(
    shop_folder: Path, shop: tuple[pd.DataFrame, pd.DataFrame], monkeypatch: pytest.MonkeyPatch, n_slots: int
) -> None:
    """Of eight items nothing is known before the window of the report."""
    monkeypatch.setattr("training.evaluate.N_SLOTS", n_slots)
    config = load_config(shop_folder / "recsys.toml", ("text.epochs=0", "text.head_steps=5"))
    events, items = shop
    start = pd.Timestamp(cut(Dataset.from_frames(*shop), config).starts[1], unit="us", tz="UTC")
    is_young = events["item_id"].isin(items["item_id"][:8])
    dataset = Dataset.from_frames(events[~is_young | (events["timestamp"] >= start + pd.Timedelta("1D"))], items)
    evaluation = train(dataset, config, Reporter().stage).evaluation
    assert evaluation.n_cold_users > 0
    recalls = evaluation.per_user["cold_recall_50"].dropna()
    assert len(recalls) == (0 if n_slots == 50 else evaluation.n_cold_users * evaluation.per_user["source"].nunique())
    assert recalls.between(0, 1).all()


def test_segments_come_with_intervals() -> None:
    rows = [("als", "0", 0.0), ("als", "0", 1.0), ("als", "20+", 0.5), ("ranker", "0", 1.0), ("ranker", "0", 1.0)]
    rows += [("ease", "20+", 0.0)] * 6
    per_user = pd.DataFrame(rows, columns=["source", "segment", "ndcg_10"])
    evaluation = Evaluation(per_user, {}, pd.DataFrame(), 0, 1.0)
    means, margins = evaluation.segments(), evaluation.segment_margins()
    assert margins.columns.tolist() == means.columns.tolist() == ["0", "20+"]
    assert means.loc[["users", "als"]].to_numpy().tolist() == [[2, 1], [0.5, 0.5]]
    half = 6.3531  # t of one degree of freedom is 12.7062, the error 0.5
    expected = [[half, np.nan], [np.nan, np.nan], [np.nan, 0]]  # two that are the same may have been lucky, six may not
    np.testing.assert_allclose(margins.loc[["als", "ranker", "ease"]], expected, atol=1e-4)
