"""Long random sequences of what nights, people and faults do to releases, against a plain account of what must be true."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving.publish import ReleaseStore
from tests.faults.matrix import fault
from tests.faults.nursery import Nursery, die_before_step
from tests.faults.small import KEEP, damage, do


@dataclass
class Account:
    """Where links must lead, and which releases there are: name -> whether it is whole, in the order in which they were made."""

    current: str | None = None
    previous: str | None = None
    pin: str | None = None
    releases: dict[str, bool] = field(default_factory=dict)

    def night(self, name: str, asked: bool) -> None:
        self.releases.setdefault(name, True)
        is_past = self.current is not None and name[:10] < self.current[:10]
        if self.pin or name == self.current or (is_past and not asked):
            return
        if self.current and self.releases[self.current]:
            self.previous = self.current
        self.current = name

    def rollback(self) -> None:
        if not self.pin and self.previous and self.releases[self.previous]:
            self.current, self.previous, self.pin = self.previous, self.current, self.previous

    def undo(self) -> None:
        if self.pin and self.previous and self.releases[self.previous]:
            self.current, self.previous, self.pin = self.previous, self.current, None

    def unpin(self) -> None:
        if self.pin:
            self.previous, self.pin = None, None

    def retention(self) -> None:
        by_date = sorted(
            self.releases, key=lambda name: name[:10]
        )  # stable: of one date the order in which they were made
        stay = {*by_date[-KEEP:], self.current, self.previous}
        self.releases = {name: is_whole for name, is_whole in self.releases.items() if name in stay}


def links(output: Path) -> tuple[str | None, ...]:
    store = ReleaseStore(output)
    pin = store.pin.read_text() if store.is_pinned else None
    return *(one.name if one else None for one in (store.current(), store.previous())), pin


def run_sequence(output: Path, publishers: Nursery, rng: random.Random, n_steps: int) -> None:
    account = Account()
    for number in range(n_steps):
        what = rng.choice(["night"] * 4 + ["rollback", "undo", "unpin", "retention", "damage"])
        date, asked = f"2024-01-{min(28, 4 + number // 2 + rng.randrange(-3, 2)):02d}", rng.random() < 0.3
        name = f"{date}.r{number}"
        if what == "damage":
            if account.releases:
                name = rng.choice(list(account.releases))
                if account.releases[name]:
                    damage(output / "releases" / name / "part-00000.parquet")
                account.releases[name] = False
            continue
        before = (account.current, account.previous, account.pin)
        if rng.random() < 0.3:
            told = f"\nfrom tests.faults.small import *\ndo(Path({str(output)!r}), {what!r}, {name!r}, {asked})\n"
            publishers.run(first=die_before_step(rng.randrange(1, 35), output) + told)
            now = links(output)
            assert now[0] in (before[0], before[1], name), f"after the death of a {what}"
            assert now[0] is None or ReleaseStore(output).is_whole(output / "current") or not account.releases[now[0]]
        do(output, what, name, asked)  # again, where it died
        account.night(name, asked) if what == "night" else getattr(account, what)()
        told = f"{what} {name} as step {number} on {before}"
        assert links(output) == (account.current, account.previous, account.pin), told
        store = ReleaseStore(output)
        assert {one.name: store.is_whole(one) for one in store.all()} == account.releases, told


@fault(1)
@fault(11)
@fault(12)
@pytest.mark.parametrize("seed", range(3))
def test_random_sequences_leave_links_where_they_must_lead(tmp_path: Path, publishers: Nursery, seed: int) -> None:
    run_sequence(tmp_path / "out", publishers, random.Random(seed), 50)


@fault(1)
@fault(11)
@fault(12)
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_30_random_sequences_leave_links_where_they_must_lead(tmp_path: Path, publishers: Nursery) -> None:
    for seed in range(30):
        run_sequence(tmp_path / f"out{seed}", publishers, random.Random(1000 + seed), 60)
