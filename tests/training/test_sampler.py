"""Batches of the text tower: what counts as history, target and mask, counted by hand or by a slow loop."""

from dataclasses import replace

import numpy as np
import pytest

from features.histories import Histories
from recsys.split import DAY_US
from training import sampler as sampling
from training.sampler import Batch, BatchSampler


def histories(n_users: int = 40, n_items: int = 60, n_events: int = 900) -> Histories:
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, n_users, n_events), rng.integers(0, n_items, n_events)
    day = rng.integers(1, 30, n_events)
    weight = rng.choice([1.0, 6.0], n_events).astype(np.float32)
    return Histories.build(user, item, day * DAY_US, weight, n_users=n_users, n_items=n_items, as_of=31 * DAY_US)


def one_user(item: list[int], day: list[int]) -> Histories:
    n = len(item)
    return Histories.build(
        np.zeros(n, int), np.array(item), np.array(day) * DAY_US, np.ones(n, np.float32),
        n_users=1, n_items=max(item) + 1, as_of=99 * DAY_US,
    )  # fmt: skip


def rows_of(batch: Batch) -> dict[int, list[float]]:
    """Weights of the history by target, where no two queries share one."""
    history = batch.history.toarray().astype(float).round(6).tolist()
    found = dict(zip(batch.texts[batch.target].tolist(), history, strict=True))
    assert len(found) == len(batch.target)
    return found


def test_a_history_weighs_what_scoring_weighs() -> None:
    h = replace(one_user([0, 1, 2], [1, 2, 3]), weight=np.array([1, 7, 1], np.float32))
    batch = BatchSampler(h, decay=0.5).draw(3, np.random.default_rng(0))
    assert batch is not None
    before = h.before(3 * DAY_US).decayed(0.5).toarray()[0]  # 1/2 of item 0, all of item 1, which counts log2(8)
    np.testing.assert_allclose(rows_of(batch)[2], before / before.sum(), atol=1e-6)
    np.testing.assert_allclose(before, [0.5, 3, 0])


def test_texts_that_fill_a_batch_up_are_said_to_be_as_likely_as_they_are() -> None:
    item, user, day = np.array([0, 1] * 30), np.repeat(np.arange(30), 2), np.array([1, 2] * 30)
    h = Histories.build(user, item, day * DAY_US, np.ones(60, np.float32), n_users=30, n_items=100, as_of=99 * DAY_US)
    batch = BatchSampler(h, 0.7).draw(50, np.random.default_rng(0))
    assert batch is not None
    assert batch.texts[:2].tolist() == [0, 1]
    np.testing.assert_allclose(np.exp(batch.log_inclusion[2:]), 48 / 98, atol=1e-6)  # 48 of the 98 that nobody took


def test_one_user_with_three_moments_by_hand() -> None:
    batch = BatchSampler(one_user([0, 1, 2, 3], [1, 2, 2, 3]), decay=0.5).draw(4, np.random.default_rng(0))
    assert batch is not None
    assert rows_of(batch) == {  # item 0 has nothing before it; items 1 and 2 were taken in one moment
        1: [1, 0, 0, 0],
        2: [1, 0, 0, 0],
        3: [0.2, 0.4, 0.4, 0],
    }
    assert batch.masked.tolist() == [[t != row for t in range(4)] for row in (1, 2, 3)]


def test_all_events_of_everybody_are_what_a_slow_loop_makes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MOMENTS", "EVENTS_PER_USER", "MAX_QUERIES", "MAX_EVENTS"):
        monkeypatch.setattr(sampling, limit, 10_000)
    h = histories()
    batch = BatchSampler(h, decay=0.7).draw(60, np.random.default_rng(1))
    assert batch is not None
    expected = []
    for row in range(len(h.item_pos)):
        mine = np.flatnonzero(h.user_pos == h.user_pos[row])
        if h.step[row] == h.step[mine].max():
            continue
        weights, masked = np.zeros(60), np.zeros(60, dtype=bool)
        before = mine[(h.step[mine] > h.step[row]) & (h.item_pos[mine] != h.item_pos[row])]
        decayed = 0.7 ** (h.step[before] - h.step[before].min(initial=99))
        np.add.at(weights, h.item_pos[before], decayed * np.log2(1 + h.weight[before]))
        masked[h.item_pos[mine]] = True
        masked[h.item_pos[row]] = False
        expected.append((h.item_pos[row], h.weight[row], weights / max(weights.sum(), 1e-12), masked))
    assert batch.target.tolist() == [target for target, *_ in expected]
    np.testing.assert_array_equal(batch.weight, [weight for _, weight, *_ in expected])
    np.testing.assert_allclose(batch.history.toarray(), [row for *_, row, _ in expected], atol=1e-6)
    np.testing.assert_array_equal(batch.masked, [row for *_, row in expected])


def test_a_step_looks_at_a_few_moments_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MOMENTS", 2)
    sampler, seen = BatchSampler(one_user([0, 1, 2, 3, 4], [1, 2, 3, 4, 5]), decay=0.5), set()
    for seed in range(60):
        batch = sampler.draw(5, np.random.default_rng(seed))
        assert batch is not None
        ((target, history),) = rows_of(batch).items()
        assert history == np.eye(5)[target - 1].tolist()  # what came just before, and nothing else
        seen.add(target)
    assert seen == {1, 2, 3, 4}


def test_who_came_once_teaches_nothing_and_is_not_drawn() -> None:
    h = Histories.build(
        np.array([0, 1, 1, 2, 2]), np.arange(5), np.array([1, 1, 1, 1, 2]) * DAY_US, np.ones(5, np.float32),
        n_users=3, n_items=5, as_of=99 * DAY_US,
    )  # fmt: skip
    sampler = BatchSampler(h, 0.5)
    assert sampler.user_draws.tolist() == [2]  # user 1 has one basket
    assert sampler.rate.tolist() == [0, 0, 0, 1, 1]
    batch = sampler.draw(5, np.random.default_rng(0))
    assert batch is not None
    assert rows_of(batch) == {4: [0, 0, 0, 1, 0]}


def test_many_users_beside_one_of_very_many_moments_are_all_drawn() -> None:
    """Positions are 32 bits wide; users times moments are not."""
    n_users, n_moments = 30_000, 100_000
    user = np.concatenate([np.zeros(n_moments), np.repeat(np.arange(1, n_users), 2)]).astype(np.int32)
    moment = np.concatenate([np.arange(n_moments), np.tile([0, 1], n_users - 1)])
    item = (np.arange(len(user)) % 50).astype(np.int32)
    known = Histories.build(
        user, item, moment, np.ones(len(user), np.float32), n_users=n_users, n_items=50, as_of=n_moments
    )  # fmt: skip
    sampler = BatchSampler(known, 0.6)
    assert (np.diff(sampler.moment_key) >= 0).all()
    rows = sampler._stretches(np.array([29_999, 15_000, 1]), np.random.default_rng(0))
    assert sorted(known.user_pos[rows]) == [1, 1, 15_000, 15_000, 29_999, 29_999]


def test_a_giant_does_not_fill_a_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "EVENTS_PER_USER", 10)
    n_others = 30
    user = np.concatenate([np.zeros(2000, int), np.repeat(np.arange(1, n_others + 1), 4)])
    item = np.concatenate([np.arange(2000) % 400, np.arange(4 * n_others) % 400])
    day = np.concatenate([np.arange(2000) // 500, np.tile(np.arange(4), n_others)])
    h = Histories.build(
        user, item, day * DAY_US, np.ones(len(user), np.float32), n_users=n_others + 1, n_items=400, as_of=99 * DAY_US
    )
    _, rows, n_users = BatchSampler(h, 0.7)._drawn(160, np.random.default_rng(0))
    assert (h.user_pos[rows] == 0).sum() == 10
    assert n_users >= n_others


def test_a_text_is_drawn_about_as_often_as_the_batch_says() -> None:
    rng = np.random.default_rng(0)
    user, day = rng.integers(0, 200, 3000), rng.integers(1, 30, 3000)
    item = (200 * rng.random(3000) ** 3).astype(int)  # the first sell hundreds of times as often as the last
    h = Histories.build(
        user, item, day * DAY_US, np.ones(3000, np.float32), n_users=200, n_items=200, as_of=31 * DAY_US
    )
    sampler, drawn, said = BatchSampler(h, 0.7), np.zeros(200), np.zeros(200)
    for seed in range(400):
        batch = sampler.draw(60, np.random.default_rng(seed))
        assert batch is not None
        drawn[batch.texts] += 1
        said[batch.texts] += np.exp(batch.log_inclusion)
    assert np.ptp(drawn / 400) > 0.5
    np.testing.assert_allclose(said / drawn, drawn / 400, atol=0.15)
    assert np.corrcoef(said / drawn, drawn)[0, 1] > 0.95


def test_no_target_is_earlier_than_allowed() -> None:
    h = histories()
    late = 20 * DAY_US
    sampler = BatchSampler(h, decay=0.7, targets_after=late)
    for seed in range(20):
        batch = sampler.draw(60, np.random.default_rng(seed))
        assert batch is not None
        allowed = set(h.item_pos[h.timestamp >= late])
        assert set(batch.texts[batch.target]) <= allowed


def test_every_later_event_of_a_user_is_a_target_about_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_QUERIES", 1)
    sampler, counts = BatchSampler(one_user([0, 1, 2, 3, 4], [1, 2, 3, 4, 5]), decay=0.5), np.zeros(5)
    for seed in range(400):
        batch = sampler.draw(5, np.random.default_rng(seed))
        assert batch is not None
        counts[batch.target[0]] += 1
    assert counts[0] == 0
    assert (np.abs(counts[1:] - 100) < 35).all()  # four standard deviations


def test_a_text_of_later_is_in_no_batch() -> None:
    h = histories()
    existing = np.unique(h.item_pos)[:50]
    earlier = Histories.build(
        h.user_pos, np.minimum(h.item_pos, existing[-1]), h.timestamp, h.weight, n_users=40, n_items=60, as_of=h.as_of
    )
    sampler = BatchSampler(earlier, 0.7, existing)
    drawn = [sampler.draw(n, np.random.default_rng(n)) for n in (20, 40, 50, 60)]
    assert all(batch is not None and np.isin(batch.texts, existing).all() for batch in drawn)
    assert drawn[-1] is not None
    assert len(drawn[-1].texts) == 50
    assert not drawn[-1].log_inclusion.any()
    for n in (20, 60):  # where all exist, naming them changes nothing
        one, other = BatchSampler(h, 0.7), BatchSampler(h, 0.7, np.arange(60))
        np.testing.assert_array_equal(
            one._drawn(n, np.random.default_rng(0))[0], other._drawn(n, np.random.default_rng(0))[0]
        )


def test_users_who_come_later_do_not_change_how_often_a_text_is_drawn() -> None:
    h = histories()
    later = Histories.build(
        h.user_pos, h.item_pos, h.timestamp, h.weight, n_users=10 * h.n_users, n_items=h.n_items, as_of=31 * DAY_US
    )
    np.testing.assert_allclose(BatchSampler(later, 0.7).rate, BatchSampler(h, 0.7).rate)
    first_only = BatchSampler(h, 0.7, targets_after=29 * DAY_US)
    assert first_only.rate.sum() < h.n_items
    assert len(first_only.user_draws) < h.n_users
    taken = np.isin(h.user_pos, first_only.user_draws)
    assert not first_only.rate[np.setdiff1d(np.arange(h.n_items), h.item_pos[taken])].any()
