import numpy as np
import pytest
import scipy.sparse as sp

from features.histories import Histories
from recsys.config import Config, parse_config
from recsys.split import DAY_US
from training.recency import HALF_LIVES, NEVER, _quality, _slowest_of_the_best, learn_recency

N_USERS, N_ITEMS, DAYS = 300, 40, 400


def config() -> Config:
    return parse_config({"data": {"events": "e", "items": "i", "event_weights": {"buy": 1}}, "cf": {"neighbours": 40}})


def season(fashions: bool) -> tuple[Histories, sp.csr_matrix]:
    """Users take one item every 20 days out of a group of four; with fashions groups dissolve every 40 days.

    What goes together then depends on when it was taken, without them it never changes.
    """
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(N_USERS), DAYS // 20)
    day = np.tile(np.arange(0, DAYS, 20.0), N_USERS) + rng.random(len(user))
    taste = user % 10
    order = np.array([np.random.default_rng(1 + int(d // 40) if fashions else 0).permutation(N_ITEMS) for d in day])
    item = order[np.arange(len(user)), taste * 4 + rng.integers(4, size=len(user))]
    last = day >= DAYS - 20
    targets = sp.csr_matrix((np.ones(last.sum()), (user[last], item[last])), shape=(N_USERS, N_ITEMS))
    time = (day * DAY_US).astype(np.int64)
    histories = Histories.build(
        user, item, time, np.ones(len(user), np.float32), n_users=N_USERS, n_items=N_ITEMS,
        as_of=int((DAYS - 20) * DAY_US),
    )  # fmt: skip
    return histories, targets


def learned(histories: Histories, targets: sp.csr_matrix) -> dict[str, float]:
    settings = config().model_copy(update={"rules": config().rules.model_copy(update={"exclude_seen": False})})
    vectors = np.eye(N_ITEMS, dtype=np.float32)
    everything = np.ones(N_ITEMS, dtype=bool)
    return learn_recency(histories, targets, [vectors], everything, settings, np.random.default_rng(0))


def test_fashions_make_events_age_and_lasting_tastes_do_not() -> None:
    assert learned(*season(fashions=True))["half_life_days"] <= 60
    assert learned(*season(fashions=False))["half_life_days"] == NEVER


def test_where_nobody_can_judge_nothing_is_chosen() -> None:
    histories, targets = season(fashions=False)
    assert learned(histories, sp.csr_matrix(targets.shape)) == {}
    empty = histories.before(0)
    assert learned(empty, targets) == {}


def test_the_slowest_within_one_standard_error_of_the_best_is_taken() -> None:
    noise = np.array([0.1, -0.1] * 50)
    values = {(NEVER, 1.0): np.full(100, 0.5), (180.0, 1.0): 0.505 + noise, (7.0, 0.8): np.full(100, 0.4)}
    assert _slowest_of_the_best(values) == (NEVER, 1.0)
    values[180.0, 1.0] = 0.52 + noise
    assert _slowest_of_the_best(values) == (180.0, 1.0)


@pytest.mark.parametrize(
    ("exclude_seen", "is_there", "expected"), [(True, True, 1), (False, True, 0.5), (True, False, 0)]
)
def test_what_may_not_be_listed_takes_no_slot_from_what_a_judge_took(
    exclude_seen: bool, is_there: bool, expected: float
) -> None:
    """The judge has items 0, 1 and 3, which call for 1, 0 and 2 in this order, and takes item 2 next."""
    past = Histories.build(
        np.zeros(3, int), np.array([0, 1, 3]), np.zeros(3, int), np.ones(3, np.float32), n_users=1, n_items=4, as_of=1
    )
    weights = sp.csr_matrix(np.array([[0, 3, 1, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=np.float32))
    wanted = sp.csr_matrix(np.array([[0, 0, 1, 0]]))
    available = np.array([True, True, is_there, True])
    assert _quality(past, wanted, weights, 1.0, available, exclude_seen).tolist() == [expected]


def test_half_lives_are_tried_from_slow_to_fast() -> None:
    assert list(HALF_LIVES) == sorted(HALF_LIVES, reverse=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_users_does_not_matter_where_all_judge(seed: int) -> None:
    histories, targets = season(fashions=True)
    order = np.random.default_rng(seed).permutation(N_USERS)
    shuffled = histories.of_users(order)
    assert learned(shuffled, targets[order]) == learned(histories, targets)
