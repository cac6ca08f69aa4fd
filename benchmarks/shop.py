"""A synthetic shop of any size, with planted tastes that its texts carry.

    python benchmarks/shop.py OUT --users 10000 --items 2000 --events 500000 --seed 0

The planted model. An item belongs to one theme and one style (a cell, such as tea and vintage); its text is made of
their words. A user has a first theme, a second theme and a favourite style. Each event draws

    theme   the first with 0.5, the second with 0.25, else any
    style   the favourite with 0.5, else any
    item    of that cell, the one of rank r with probability ~ 1 / (r + 2)

and is a purchase with 0.3 in the first theme and 0.1 elsewhere, else a click. The newest 3% of the items are not sold
yet. So `Shop.probabilities` is the true distribution of a user's next event: no model can rank better.

Impressions: a list shows one item of each of 8 distinct themes in random order, any style, rank as above; the propensity
of (item, position) is exactly 1/themes x 1/styles x P(rank). A click needs that the position is looked at (0.9 for each
place further down) and that the item appeals (0.05, and up to 0.5 more by the user's tastes).

Users are drawn in chunks, each from its own seed, and streamed to Parquet: memory does not grow with their number.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.types import FloatArray, IntArray

CHUNK_USERS = 20_000
DAY_US = 86_400_000_000
DAYS = 180
END_US = pd.Timestamp("2025-01-01", tz="UTC").value // 1000
SHARE_NEW = 0.03
FIRST, SECOND, FAVOURITE = 0.5, 0.25, 0.5
LIST = 8
SHARE_SHOWN = 0.05  # of the users, one logged list each

THEMES = {
    "tea": "green black herbal leaf pot infusion cup matcha",
    "coffee": "espresso beans roast grinder filter mug crema arabica",
    "painting": "brush canvas easel acrylic oil palette pigment gesso",
    "cycling": "wheel chain saddle pedal helmet gear brake tyre",
    "gardening": "seed spade hose flower soil compost trowel pruner",
    "fishing": "rod reel bait hook lure net trout float",
    "camping": "tent stove lantern sleeping bag hammock compass tarp",
    "baking": "flour yeast oven dough whisk pastry tin vanilla",
    "sewing": "thread needle fabric bobbin zipper pattern button hem",
    "astronomy": "telescope star lens planet tripod nebula eyepiece moon",
    "chess": "board king pawn clock knight opening endgame rook",
    "guitar": "string pick fret amplifier capo chord strap tuner",
    "swimming": "goggles pool towel fins snorkel cap lane swimsuit",
    "yoga": "mat block pose stretch bolster breath wheel cushion",
    "photography": "camera shutter flash tripod film aperture memory zoom",
    "dogs": "leash collar kibble bone crate harness puppy bowl",
    "cats": "litter scratching post whisker toy catnip kitten perch",
    "plumbing": "pipe valve wrench faucet gasket drain sealant elbow",
    "woodwork": "chisel saw plane clamp oak sandpaper dowel lathe",
    "electronics": "resistor solder circuit sensor battery cable relay diode",
    "winter": "ski snow boots gloves sled scarf thermal wax",
    "stationery": "notebook pen ink ruler envelope stapler marker eraser",
    "kitchen": "knife pan ladle skillet spatula colander apron cutting",
    "toys": "puzzle blocks doll train robot kite marbles yo-yo",
}
STYLES = {
    "vintage": "antique retro classic heirloom",
    "modern": "minimal sleek smart new",
    "rugged": "tough outdoor heavy-duty durable",
    "luxury": "premium fine elegant gold",
    "budget": "cheap basic simple economy",
    "travel": "compact portable light folding",
    "kids": "junior colourful playful safe",
    "eco": "organic recycled bamboo natural",
}
FILLER = "with for the and a great set of quality made in every day use home gift best size comes box"
N_STYLES, N_THEMES = len(STYLES), len(THEMES)
N_CELLS = N_STYLES * N_THEMES

EVENTS = pa.schema(
    [
        ("user_id", pa.int64()),
        ("item_id", pa.int64()),
        ("event_type", pa.string()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
    ]
)


@dataclass(frozen=True)
class Tastes:
    """What was planted in some users, one entry each: first theme, second theme, favourite style."""

    first: IntArray
    second: IntArray
    style: IntArray


@dataclass(frozen=True)
class Shop:
    """A shop of given size. Item position i has cell i % N_CELLS and rank i // N_CELLS in it.

    Args:
        n_users, n_items: sizes; at least one item a cell.
        n_events: about as many events are made; every user has at least one.
        seed: of everything.
    """

    n_users: int
    n_items: int
    n_events: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_ranks < 1:
            raise ValueError(f"{self.n_items} items do not fill {N_CELLS} cells; ask for {2 * N_CELLS} or more")

    @property
    def n_ranks(self) -> int:
        """Items on sale in each cell."""
        return int(self.n_items * (1 - SHARE_NEW)) // N_CELLS

    @cached_property
    def rank_share(self) -> FloatArray:
        """Probability of each rank within its cell, (n_ranks,)."""
        mass = 1 / (np.arange(self.n_ranks) + 2)
        return mass / mass.sum()

    @cached_property
    def item_ids(self) -> IntArray:
        """Outside id of each item position, shuffled so that ids say nothing of popularity, (n_items,)."""
        return 1_000 + np.random.default_rng([self.seed, 1]).permutation(self.n_items)

    def chunks(self) -> Iterator[tuple[int, IntArray]]:
        """Number and users (0..n_users-1) of each chunk."""
        for number, start in enumerate(range(0, self.n_users, CHUNK_USERS)):
            yield number, np.arange(start, min(start + CHUNK_USERS, self.n_users))

    def tastes(self, number: int) -> Tastes:
        """Tastes of a chunk's users."""
        rng = np.random.default_rng([self.seed, 2, number])
        first = rng.integers(N_THEMES, size=CHUNK_USERS)
        second = (first + rng.integers(1, N_THEMES, size=CHUNK_USERS)) % N_THEMES
        return Tastes(first, second, rng.integers(N_STYLES, size=CHUNK_USERS))

    def probabilities(self, tastes: Tastes, row: int) -> FloatArray:
        """The true distribution of a user's next event over item positions, (n_items,)."""
        theme = np.full(N_THEMES, (1 - FIRST - SECOND) / N_THEMES)
        theme[tastes.first[row]] += FIRST
        theme[tastes.second[row]] += SECOND
        style = np.full(N_STYLES, (1 - FAVOURITE) / N_STYLES)
        style[tastes.style[row]] += FAVOURITE
        sold = np.outer(self.rank_share, np.outer(theme, style).ravel()).ravel()
        return np.concatenate([sold, np.zeros(self.n_items - len(sold))])

    def events(self, number: int, users: IntArray) -> pa.Table:
        """All events of a chunk's users, about half of whom came during the first 120 days."""
        rng = np.random.default_rng([self.seed, 3, number])
        mean = self.n_events / self.n_users
        counts = 1 + rng.poisson(max(0.0, mean - 1) * rng.gamma(0.7, 1 / 0.7, len(users)))
        came = np.maximum(0.0, rng.uniform(-120, 120, len(users)))
        row = np.repeat(np.arange(len(users)), counts)
        day = came[row] + rng.random(len(row)) * (DAYS - came[row])
        return self.drawn(self.tastes(number), users, row, day, rng)

    def day_after(self, number: int, users: IntArray, share: float) -> pa.Table:
        """Events of a share of a chunk's users on the day after the others, three each."""
        rng = np.random.default_rng([self.seed, 4, number])
        row = np.repeat(np.flatnonzero(rng.random(len(users)) < share), 3)
        return self.drawn(self.tastes(number), users, row, DAYS + rng.random(len(row)), rng)

    def drawn(
        self, tastes: Tastes, users: IntArray, row: IntArray, day: FloatArray, rng: np.random.Generator
    ) -> pa.Table:
        """One event for each entry of `row` (users of the chunk) and `day`, by the planted model."""
        n = len(row)
        chance = rng.random(n)
        theme = np.where(chance < FIRST, tastes.first[row], tastes.second[row])
        theme = np.where(chance < FIRST + SECOND, theme, rng.integers(N_THEMES, size=n))
        style = np.where(rng.random(n) < FAVOURITE, tastes.style[row], rng.integers(N_STYLES, size=n))
        item = self.ranks(n, rng) * N_CELLS + theme * N_STYLES + style
        bought = rng.random(n) < np.where(theme == tastes.first[row], 0.3, 0.1)
        kind = pa.DictionaryArray.from_arrays(pa.array(bought.astype(np.int8)), ["click", "purchase"])
        time = END_US - DAYS * DAY_US + (day * DAY_US).astype(np.int64)
        columns = [pa.array(users[row]), pa.array(self.item_ids[item]), kind.cast(pa.string()), _times(time)]
        return pa.table(columns, schema=EVENTS)

    def ranks(self, n: int, rng: np.random.Generator) -> IntArray:
        """Ranks within cells, (n,)."""
        at = np.searchsorted(np.cumsum(self.rank_share), rng.random(n), side="right")
        return np.minimum(at, self.n_ranks - 1)

    def impressions(self, number: int, users: IntArray) -> pa.Table:
        """One logged list for a share of a chunk's users, in the last 30 days."""
        rng = np.random.default_rng([self.seed, 5, number])
        row = np.flatnonzero(rng.random(len(users)) < SHARE_SHOWN)
        theme = rng.random((len(row), N_THEMES)).argsort(1)[:, :LIST]
        style, rank = rng.integers(N_STYLES, size=theme.shape), self.ranks(theme.size, rng).reshape(theme.shape)
        tastes = self.tastes(number)
        appeal = 0.3 * (theme == tastes.first[row, None]) + 0.15 * (theme == tastes.second[row, None])
        appeal += 0.05 + 0.2 * (style == tastes.style[row, None]) * (appeal > 0)
        clicked = rng.random(theme.shape) < appeal * 0.9 ** np.arange(LIST)
        time = END_US - (rng.random(len(row)) * 30 * DAY_US).astype(np.int64)
        columns = {
            "impression_id": np.repeat(users[row], LIST),
            "user_id": np.repeat(users[row], LIST),
            "item_id": self.item_ids[rank * N_CELLS + theme * N_STYLES + style].ravel(),
            "position": np.tile(np.arange(1, LIST + 1), len(row)),
            "clicked": clicked.ravel(),
            "timestamp": _times(np.repeat(time, LIST)),
            "propensity": (self.rank_share[rank] / N_CELLS).ravel(),
            "policy": pa.array(["themes"] * theme.size, pa.string()),
        }
        return pa.table(columns)

    def items(self) -> pa.Table:
        """The catalogue: texts that carry theme and style, of mixed length."""
        rng = np.random.default_rng([self.seed, 6])
        names, styles = list(THEMES), list(STYLES)
        vocabulary = [
            [t, s, *THEMES[t].split(), *THEMES[t].split(), *STYLES[s].split(), *FILLER.split()]
            for t in names
            for s in styles
        ]
        lengths = np.clip(rng.lognormal(2.6, 0.8, self.n_items), 3, 150).astype(int)
        titles, descriptions = [], []
        for item in range(self.n_items):
            words = vocabulary[item % N_CELLS]
            picks = (rng.random(lengths[item] + 2) * len(words)).astype(int)
            drawn = [words[p] for p in picks]
            titles.append(f"{words[1]} {words[2 + picks[0] % 8]} {words[2 + picks[1] % 8]} {words[0]}")
            descriptions.append(" ".join(drawn[2:]))
        cell, is_new = np.arange(self.n_items) % N_CELLS, np.arange(self.n_items) >= self.n_ranks * N_CELLS
        age = np.where(is_new, rng.uniform(0, 7, self.n_items), rng.uniform(DAYS, 4 * DAYS, self.n_items))
        columns = {
            "item_id": self.item_ids,
            "title": titles,
            "description": descriptions,
            "category": [names[c // N_STYLES] for c in cell],
            "brand": [
                f"{styles[c % N_STYLES]} {b}" for c, b in zip(cell, rng.integers(9, size=len(cell)), strict=True)
            ],
            "price": np.round(rng.lognormal(3, 0.7, self.n_items), 2),
            "created_at": _times(END_US - (age * DAY_US).astype(np.int64)),
        }
        return pa.table(columns)

    def users(self, number: int, users: IntArray) -> pa.Table:
        """Users with an attribute that says nothing of their tastes."""
        towns = np.random.default_rng([self.seed, 7, number]).integers(5, size=len(users))
        return pa.table({"user_id": users, "town": pa.array([f"town {t}" for t in towns], pa.string())})

    def write(self, out: Path) -> None:
        """Writes the tables and a recsys.toml; a day added later is one more file in `events/`."""
        (out / "events").mkdir(parents=True, exist_ok=True)
        pq.write_table(self.items(), out / "items.parquet")
        self._stream(out / "events" / "part-0.parquet", "events")
        self._stream(out / "users.parquet", "users")
        self._stream(out / "impressions.parquet", "impressions")
        (out / "recsys.toml").write_text(CONFIG)

    def write_day_after(self, out: Path, changed: float, active: float) -> None:
        """Adds a day: a share of users act again, and a share of the texts is rewritten."""
        tables = [self.day_after(number, users, active) for number, users in self.chunks()]
        pq.write_table(pa.concat_tables(tables), out / "events" / "part-1.parquet")
        items = pq.read_table(out / "items.parquet").to_pandas()
        rows = np.random.default_rng([self.seed, 8]).permutation(len(items))[: int(changed * len(items))]
        items.loc[rows, "title"] = "improved " + items.loc[rows, "title"]
        items.to_parquet(out / "items.parquet", index=False)

    def _stream(self, path: Path, table: str) -> None:
        chunks = (getattr(self, table)(number, users) for number, users in self.chunks())
        first = next(chunks)
        with pq.ParquetWriter(path, first.schema) as writer:
            writer.write_table(first)
            for chunk in chunks:
                writer.write_table(chunk)


CONFIG = """\
[data]
events = "events"
items = "items.parquet"
users = "users.parquet"
impressions = "impressions.parquet"
event_weights = { click = 1, purchase = 6 }
"""


def _times(microseconds: IntArray) -> pa.Array:
    return pa.array(microseconds, pa.timestamp("us", tz="UTC"))


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in (("users", 10_000), ("items", 2_000), ("events", 500_000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    Shop(args.users, args.items, args.events, args.seed).write(args.out)
    print(f"wrote {args.out}: recsys nightly -c {args.out / 'recsys.toml'} --as-of 2025-01-01")


if __name__ == "__main__":
    main()
