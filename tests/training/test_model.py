"""A model over the tables of a moment."""

from pathlib import Path

import numpy as np
import pandas as pd

from features.dataset import Dataset
from features.histories import Histories
from features.snapshot import Snapshot
from recsys.cf_tower import CFTower
from recsys.config import parse_config
from recsys.ranker import LinearFusion, Ranker
from recsys.text_terms import TextTerms
from recsys.text_tower import TextTower
from training.model import Model

START = pd.Timestamp("2024-01-01", tz="UTC")


def test_items_to_come_say_nothing_to_a_model_as_it_was(tiny_encoder: Path, tmp_path: Path) -> None:
    """Items 0-3 sell, 4 and 5 are new, 6-8 come on the tenth day: on the ninth their words must not weigh those of 4 and 5."""
    day = pd.Timedelta("1D")
    events = pd.DataFrame({"user_id": np.repeat(range(4), 2), "item_id": [0, 1, 1, 2, 2, 3, 3, 0]})
    events = events.assign(event_type="buy", timestamp=START + day)
    sold = ["green tea", "black tea", "bike chain", "bike wheel", "green bike", "black tea pot"]
    settings = {
        "data": {"events": "e", "items": "i", "event_weights": {"buy": 1.0}},
        "text": {"encoder": str(tiny_encoder), "max_tokens": 16, "cache": str(tmp_path)},
        "cf": {"factors": 2},
    }

    def as_of_the_ninth(later: str) -> Snapshot:
        titles = [*sold, *[later] * 3]
        created = [START] * 6 + [START + 9 * day] * 3
        items = pd.DataFrame({"item_id": range(9), "title": titles, "created_at": created})
        dataset = Dataset.from_frames(events, items, as_of=START + 10 * day).before(START + 8 * day)
        tower = TextTower.from_encoder(str(tiny_encoder), 16)
        tower.terms = TextTerms.fit(sold, 0)
        config = parse_config(settings)
        tower.new_head(tower.inputs(sold, tower.pooled(sold)), 0)
        cf = CFTower.fit(Histories.of(dataset).confidence(45), [np.eye(9, dtype=np.float32)], config.cf, seed=0)
        fusion = LinearFusion((), (), (), ())
        model = Model(config, tower, cf, Ranker((), fusion, None, "fusion", {}), dataset.items)
        return model.snapshot(dataset, config)

    one, other = as_of_the_ninth("green tea"), as_of_the_ninth("bike bike helmet")
    np.testing.assert_array_equal(one.text_vectors, other.text_vectors)
    np.testing.assert_array_equal(one.cf.item_factors, other.cf.item_factors)
    np.testing.assert_array_equal(one.cf.ease.toarray(), other.cf.ease.toarray())
    assert one.is_eligible.tolist() == [True] * 6 + [False] * 3
    assert one.cf.item_factors[4:6].any(axis=1).all()
