"""What may be recommended, and what counts as a label, as of a moment."""

from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from features.candidates import gather
from features.histories import Histories
from features.snapshot import ItemFacts, Snapshot
from recsys.cf_tower import CFTower
from recsys.config import parse_config
from recsys.types import BoolArray

MOMENT = pd.Timestamp("2024-03-01", tz="UTC")
CREATED = [MOMENT - pd.Timedelta("1us"), MOMENT, MOMENT + pd.Timedelta("9D"), pd.NaT]


def snapshot(available: BoolArray, exclude_seen: bool = True) -> Snapshot:
    """User 0 took item 3 a day before the moment; user 1 did nothing."""
    taken = np.array([MOMENT.value // 1000 - 86_400_000_000])
    histories = Histories.build(
        np.array([0]), np.array([3]), taken, np.ones(1, np.float32), n_users=2, n_items=4, as_of=MOMENT.value // 1000
    )
    settings = {
        "data": {"events": "e", "items": "i", "event_weights": {"buy": 1}},
        "rules": {"exclude_seen": exclude_seen},
        "cf": {"factors": 2},
    }
    config = parse_config(settings)
    vectors = np.eye(4, 2, dtype=np.float32)
    cf = CFTower.fit(histories.confidence(30.0), [vectors], config.cf, 0)
    catalogue = pd.DataFrame({"item_id": range(4), "title": "x", "created_at": pd.Series(CREATED)})
    facts = ItemFacts.build(histories, catalogue)
    return Snapshot(histories, vectors, cf, facts, available & facts.exists, config)


def test_an_item_is_eligible_once_it_was_created_and_while_it_is_available() -> None:
    assert snapshot(np.ones(4, bool)).is_eligible.tolist() == [True, False, False, True]
    assert snapshot(np.array([False, True, True, True])).is_eligible.tolist() == [False, False, False, True]


def test_a_catalogue_without_times_holds_only_items_that_exist() -> None:
    histories = snapshot(np.ones(4, bool)).histories
    facts = ItemFacts.build(histories, pd.DataFrame({"item_id": range(4), "title": "x"}))
    assert facts.exists.all()


def test_what_is_created_later_is_no_label_and_what_was_taken_only_where_repeats_count() -> None:
    targets = sp.csr_matrix(np.array([[1, 1, 1, 1], [6, 1, 1, 1]], dtype=np.float32))
    assert snapshot(np.ones(4, bool)).countable(targets).toarray().tolist() == [[1, 0, 0, 0], [6, 0, 0, 1]]
    withdrawn = snapshot(np.array([True, True, True, False])).countable(targets)  # no list could have held item 3
    assert withdrawn.toarray().tolist() == [[1, 0, 0, 0], [6, 0, 0, 0]]
    repeats = snapshot(np.ones(4, bool), exclude_seen=False).countable(targets)
    assert repeats.toarray().tolist() == [[1, 0, 0, 1], [6, 0, 0, 1]]
    assert repeats.nnz == 4


def test_what_sold_was_there_whatever_an_import_wrote_later() -> None:
    histories = snapshot(np.ones(4, bool)).histories
    catalogue = pd.DataFrame({"item_id": range(4), "title": "x", "created_at": MOMENT + pd.Timedelta("1D")})
    facts = ItemFacts.build(histories, catalogue)
    assert facts.exists.tolist() == [False, False, False, True]
    assert facts.age_days[3] == 1.0


def test_a_user_whose_items_no_one_else_took_is_near_nothing() -> None:
    known = snapshot(np.ones(4, bool), exclude_seen=False)
    cf = known.cf.with_cold(np.array([3]), [])
    lost = replace(
        known, text_vectors=np.full((4, 2), 0.5, np.float32), cf=replace(cf, is_warm=np.zeros(4, dtype=bool))
    )
    candidates = gather(lost, lost.histories.loaded().of_users(np.arange(2)))
    assert np.isnan(candidates.ranks["cf"]).all()
    assert not np.isnan(candidates.ranks["text"]).all()
