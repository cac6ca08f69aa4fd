"""Reasons for the lists of an evaluation, so that the A/B report can show them: training itself knows none."""

import pandas as pd

from features.candidates import Candidates
from features.dataset import Dataset
from features.pairs import PairTable
from features.snapshot import Snapshot
from recsys.types import IntArray
from serving.reasons import quoted, reasons
from training.evaluate import Explain


def explainer(dataset: Dataset) -> Explain:
    """What says, for items of a data set, why they are listed: the sentences that a release would carry."""
    quotes = quoted(dataset.catalogue["title"].fillna("").astype(str))

    def explain(snapshot: Snapshot, candidates: Candidates, table: PairTable, rows: IntArray) -> pd.DataFrame:
        why = reasons(quotes, candidates, table, rows)
        return pd.DataFrame({name: why[name].to_pandas() for name in ("source", "reason")})

    return explain
