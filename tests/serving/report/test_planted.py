"""The report on the synthetic shop, whose tastes are known: what is planted is found as often as was announced."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.shop import Shop
from features.candidates import top_k
from recsys.config import ReportConfig
from recsys.types import FloatArray, IntArray
from serving.report.compare import compare
from serving.report.stability import on_lists
from serving.report.statistics import Effect, users_needed
from serving.report.world import Arm

START, END = pd.Timestamp("2025-01-01", tz="UTC"), pd.Timestamp("2025-01-31", tz="UTC")
K, LABELS, POOL = 10, 4, 4_000
CLEAR, VAGUE = 1.0, 1.15  # noise in what an arm knows of the tastes
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Customers:
    """Everybody in the shop: the true chance of each item to be taken next, (n_users, n_items)."""

    chance: FloatArray

    def drawn(self, n: int, rng: np.random.Generator) -> tuple[IntArray, pd.DataFrame]:
        """Some of them, and what they go on to take by the planted model."""
        users = rng.choice(len(self.chance), n, replace=False)
        upto = self.chance[users].cumsum(1)
        taken = np.stack([(rng.random((n, 1)) * upto[:, -1:] > upto).sum(1) for _ in range(LABELS)], axis=1)
        events = pd.DataFrame({"user_id": users.repeat(LABELS), "item_id": taken.ravel(), "timestamp": START})
        return users, events.drop_duplicates()

    def arm(self, name: str, users: IntArray, noise: float, rng: np.random.Generator) -> Arm:
        """Lists by the true tastes, blurred anew."""
        blurred = noise * rng.gumbel(size=(len(users), self.chance.shape[1])) + np.log(self.chance[users] + 1e-9)
        ranked = top_k(blurred, K)
        table = pd.DataFrame({"user_id": users.repeat(K), "item_id": ranked.ravel()})
        return Arm(name, table.assign(rank=np.tile(np.arange(1, K + 1), len(users))))

    @property
    def items(self) -> pd.DataFrame:
        return pd.DataFrame({"item_id": np.arange(self.chance.shape[1]), "title": "x"})

    def compared(self, n: int, noise: tuple[float, float], seed: int) -> Effect:
        """The primary metric of two arms on some of them."""
        rng = np.random.default_rng(seed)
        users, events = self.drawn(n, rng)
        arms = self.arm("A", users, noise[0], rng), self.arm("B", users, noise[1], rng)
        return on_lists("seed", "x", arms, events, self.items, (START, END), K, ReportConfig()).effect


@pytest.fixture(scope="module")
def customers() -> Customers:
    shop = Shop(n_users=POOL, n_items=400, n_events=POOL)
    tastes = shop.tastes(0)
    return Customers(np.stack([shop.probabilities(tastes, user) for user in range(POOL)]))


def within(count: int, n: int, share: float) -> bool:
    """Whether a count is one that chance gives in all but one of 5,000 runs."""
    return bool(stats.binom.ppf(1e-4, n, share) <= count <= stats.binom.ppf(1 - 1e-4, n, share))


def test_a_planted_lift_is_found_with_the_power_announced_and_its_interval_covers_it(customers: Customers) -> None:
    noise = VAGUE, CLEAR
    truths = [customers.compared(POOL, noise, seed).diff for seed in range(20)]
    truth = float(np.mean(truths))
    assert truth > 0.01
    pilot = customers.compared(800, noise, 100)
    needed = int(users_needed(pilot, truth))
    assert 100 < needed < POOL / 4  # so that who is drawn is nearly independent
    n_runs = 300
    effects = [customers.compared(needed, noise, seed) for seed in range(1_000, 1_000 + n_runs)]
    found = sum(effect.low > 0 for effect in effects)
    # truth and spread are known to some percent themselves, which moves the power by some percent
    assert stats.binom.ppf(1e-4, n_runs, 0.75) <= found <= stats.binom.ppf(1 - 1e-4, n_runs, 0.85), found
    covered = sum(effect.low <= truth <= effect.high for effect in effects)
    assert within(covered, n_runs, 0.95), covered
    detectable = float(np.mean([effect.detectable for effect in effects]))
    assert detectable == pytest.approx(truth, rel=0.1)  # with as many users as it takes, it is just what is detectable


def test_equal_arms_are_told_apart_at_the_level_and_no_more(customers: Customers) -> None:
    n_runs = 400
    effects = [customers.compared(300, (CLEAR, CLEAR), seed) for seed in range(n_runs)]
    rejected = sum(effect.p < 0.05 for effect in effects)
    assert within(rejected, n_runs, 0.05), rejected


def test_the_whole_rule_hardly_ever_promotes_an_equal(customers: Customers) -> None:
    """An interval above 0 comes by chance in 2.5% of comparisons; all other conditions make it rarer."""
    n_runs, verdicts = 60, []
    for seed in range(n_runs):
        rng = np.random.default_rng(seed)
        users, events = customers.drawn(300, rng)
        a, b = (customers.arm(name, users, CLEAR, rng) for name in "AB")
        report = compare(a, b, events, customers.items, ReportConfig(), test_start=START, test_end=END, now=END)
        verdicts.append(report.verdict)
    assert verdicts.count("PROMOTE") <= stats.binom.ppf(1 - 1e-4, n_runs, 0.025)
    assert verdicts.count("INVALID") == 0
