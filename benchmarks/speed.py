"""Speed and memory against peers and against itself: python -m benchmarks.speed [--quick] [--rows scoring,encoding].

Each pair runs alternately in one process on `--threads` threads, five times, and the medians are compared. Prints
each row and writes benchmarks/speed.json. Data come from benchmarks/shop.py. The row "training" needs `datasets` and
`accelerate` beside sentence-transformers, the row "index" needs `faiss-cpu`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from benchmarks.shop import Shop
from features.candidates import gather, top_k
from features.chunks import MAX_CELLS
from features.dataset import Dataset
from features.ingest import load_tables
from features.text import item_texts
from recsys.cf_tower import CFTower
from recsys.config import load_config
from recsys.encoder import PACKAGED_ENCODER, packaged_folder
from recsys.losses import sampled_softmax
from recsys.machine import has_bf16
from recsys.nearest import DIRECTIONS, DenseSearch
from recsys.text_tower import TextTower
from recsys.types import FloatArray, IntArray
from recsys.vectors import leading_directions, unit_rows
from serving.releases import write_part
from serving.score import Scorer, Stamp
from training.moments import Moment, cut
from training.ranker import fit_ranker

AS_OF = pd.Timestamp("2025-01-01", tz="UTC")
REPEATS = 5
BATCH = 64  # pairs, so twice as many texts a step
FROZEN_LAYERS = 2
LISTED = 100  # items of a source
Row = dict[str, Any]


def alternated(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> Row:
    """Median seconds of both after one warm-up each, measured in turn, and theirs over ours.

    Processor time too: with one thread it is the same, but for the turns that other programs of the machine took.
    """
    seconds: dict[str, list[float]] = {"ours_s": [], "peer_s": [], "ours_cpu_s": [], "peer_cpu_s": []}
    for turn in range(repeats + 1):
        for name, work in (("ours", ours), ("peer", theirs)):
            began, cpu = time.perf_counter(), time.process_time()
            work()
            if turn:
                seconds[f"{name}_s"].append(time.perf_counter() - began)
                seconds[f"{name}_cpu_s"].append(time.process_time() - cpu)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {**medians, "repeats": repeats, "times_as_fast": medians["peer_s"] / medians["ours_s"]}


def training(size: Row) -> Row:
    """Fine-tuning steps on the same texts, batch and layers, against the sentence-transformers trainer's defaults."""
    import datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    # long enough that every text fills the 64 tokens
    texts = [" ".join([t] * 20) for t in item_texts(Shop(10, 2_000, 10).items().to_pandas(), ["title"])]
    texts = texts[: 2 * BATCH * size["steps"]]
    pairs = datasets.Dataset.from_dict({"anchor": texts[::2], "positive": texts[1::2]})
    peer = SentenceTransformer(str(packaged_folder()), device="cpu")
    peer.max_seq_length = 64
    for layer in (peer[0].auto_model.embeddings, *peer[0].auto_model.encoder.layer[:FROZEN_LAYERS]):
        layer.requires_grad_(False)
    arguments = SentenceTransformerTrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=BATCH, num_train_epochs=1, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(peer, arguments, train_dataset=pairs, loss=MultipleNegativesRankingLoss(peer))
    tower = TextTower.from_encoder(PACKAGED_ENCODER, 64)
    optimizer = torch.optim.AdamW([*tower.trainable(FROZEN_LAYERS), *tower.head.parameters()], lr=1e-5, fused=True)
    n = BATCH
    target, nothing = torch.arange(n), torch.zeros(n, n, dtype=torch.bool)

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        return sampled_softmax(
            vectors[::2] @ vectors[1::2].T, target, nothing, torch.zeros(n), torch.ones(n), temperature=0.05
        )

    def ours() -> None:
        tokens = tower.tokenize(texts)
        for start in range(0, len(tokens), 2 * n):
            optimizer.zero_grad()
            tower.backward(tokens[start : start + 2 * n], loss_of)
            optimizer.step()

    return {**alternated(ours, trainer.train, size["repeats"]), "texts": len(texts), "bf16": has_bf16(tower.device)}


def encoding(size: Row) -> Row:
    """A catalogue of texts of mixed length, against `SentenceTransformer.encode` as it comes."""
    from sentence_transformers import SentenceTransformer

    tables = [pd.read_parquet(path) for path in size.get("catalogues", [])]
    tables = tables or [Shop(10, size["texts"], 10).items().to_pandas()]
    fields = ["title", "brand", "category", "description"]
    texts = [text for items in tables for text in item_texts(items, [name for name in fields if name in items]) if text]
    peer = SentenceTransformer(str(packaged_folder()), device="cpu")
    peer.max_seq_length = 64
    tower = TextTower.from_encoder(PACKAGED_ENCODER, 64)
    row = alternated(lambda: tower.encode(texts), lambda: peer.encode(texts, show_progress_bar=False), size["repeats"])
    cosine = (tower.encode(texts) * unit_rows(peer.encode(texts, show_progress_bar=False))).sum(axis=1)
    return {**row, "texts": len(texts), "bf16": has_bf16(tower.device), "least_cosine": float(cosine.min())}


def scoring(size: Row) -> Row:
    """Candidates, features, trees, rules, reasons and Parquet, against implicit's bare recommend(N=100)."""
    from implicit.cpu.als import AlternatingLeastSquares

    with tempfile.TemporaryDirectory() as folder:
        scorer = shop_scorer(Path(folder), size)
        histories, users = scorer.snapshot.histories, np.arange(size["users"])
        als = AlternatingLeastSquares(factors=scorer.snapshot.cf.item_factors.shape[1], num_threads=size["threads"])
        als.item_factors = scorer.snapshot.cf.item_factors
        confidence = histories.confidence(45.0)
        als.user_factors = scorer.snapshot.cf.fold_in(confidence)

        def ours() -> None:
            for number, start in enumerate(range(0, len(users), 50_000)):
                write_part(Path(folder), number, scorer.score(users[start : start + 50_000], 20))

        def peer() -> None:
            with threadpool_limits(1, "blas"):  # as implicit's own warning asks
                als.recommend(users, confidence, N=100)

        row = alternated(ours, peer, size["repeats"])
        some = histories.of_users(users[:: max(1, len(users) // 1000)])
        n_candidates = np.diff(gather(scorer.snapshot, some).indptr)[some.n_events > 0]
        return {
            **row, "users": len(users), "items": size["items"], "peers_time": row["ours_s"] / row["peer_s"],
            "cpu_peers_time": row["ours_cpu_s"] / row["peer_cpu_s"],
            "candidates": {"mean": float(n_candidates.mean()), "least": int(n_candidates.min())},
            "trees": scorer.ranker.booster.num_trees(),
        }  # fmt: skip


def memory(size: Row) -> Row:
    """Whole nights without training over ten times as many users each: peak memory, seconds, and how both grow.

    A model learned from `learners` users scores shops of the same items, `recsys score` in a process of its own: tables
    of 50 events a user are read and checked, users scored, lists audited and published.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "learned"
        Shop(size["learners"], size["items"], size["learners"] * 50).write(home)
        # short texts: the first encoding of the catalogue is no part of this
        texts = ["--set", 'text.fields=["title", "brand"]']
        places = f"mlflow.tracking_uri=sqlite:///{home}/mlflow.db", f"text.cache={home}/cache/texts"
        shared = [*texts, *(word for place in places for word in ("--set", place))]
        cheap = ["--set", "text.epochs=0", "--set", "ranker.max_users=2000", "--set", "report.max_users=1000", *shared]
        _recsys("train", home, "2025-01-01", cheap)
        grown = []
        for users in (size["users"] // 100, size["users"] // 10, size["users"]):
            shop = Path(folder) / str(users)
            began = time.perf_counter()
            Shop(users, size["items"], users * 50).write(shop)
            made = time.perf_counter() - began
            grown.append({"users": users, "made_s": made, **_recsys("score", shop, "2025-01-01", shared)})
            print("memory", json.dumps(grown[-1]), flush=True)
            shutil.rmtree(shop)
    ratio = grown[-1]["peak_mib"] / grown[-2]["peak_mib"]
    return {"items": size["items"], "learners": size["learners"], "grown": grown, "times_the_memory": ratio}


def plot_growth(grown: list[Row], items: int, path: Path) -> None:
    """Processor time on logarithmic axes and peak memory from zero, by number of users."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    users = [row["users"] for row in grown]
    for axes, name, label in ((time_axes, "cpu_s", "processor time, s"), (memory_axes, "peak_mib", "peak memory, MiB")):
        values = [row[name] for row in grown]
        axes.plot(users, values, marker="o", color="#2b6cb0")
        for x, y in zip(users, values, strict=True):
            axes.annotate(f"{y:,.0f}", (x, y), textcoords="offset points", xytext=(0, 7), ha="center")
        axes.set(xscale="log", xlabel="users, 50 events each", ylabel=label)
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    time_axes.set(yscale="log", ylim=(min(row["cpu_s"] for row in grown) / 2, max(row["cpu_s"] for row in grown) * 3))
    memory_axes.set_ylim(0, 1.4 * max(row["peak_mib"] for row in grown))
    figure.suptitle(f"recsys score, {items:,} items: read, check, score, audit, publish")
    figure.savefig(path, dpi=120)


def _recsys(command: str, shop: Path, as_of: str, settings: list[str]) -> Row:
    """Runs a command on a shop; its seconds, peak memory and the seconds of its stages."""
    words = [command, "-c", str(shop / "recsys.toml"), "--as-of", as_of, "--json", *settings]
    began = time.perf_counter()
    with (shop / "said").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", "from recsys.cli import main; main()", *words],
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode:
            raise SystemExit(f"recsys {command} ended with {process.returncode}: {said.read()[-2000:]}")
    (run,) = sorted((shop / "out" / "runs").glob("*.json"))[-1:]
    record = json.loads(run.read_text())
    return {
        "seconds": time.perf_counter() - began, "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mib": record["peak_memory_mib"], "stages": record["stages"],
    }  # fmt: skip


def index(size: Row) -> Row:
    """The first 100 items of users by text: exact products as scoring does them, against faiss at the same recall.

    Recall is the share of the exact float32 first 100. Of the inverted file the fewest probes that reach ours are taken.
    """
    import faiss

    faiss.omp_set_num_threads(size["threads"])
    shop = Shop(10, size["items"], 10)
    config = load_config(Path(__file__).parent / "configs" / "movies.toml")
    vectors = word_vectors(item_texts(shop.items().to_pandas(), config.text.fields))
    rng = np.random.default_rng(0)
    queries = unit_rows(
        np.stack([vectors[rng.integers(0, size["items"], 10)].mean(axis=0) for _ in range(size["queries"])])
    )
    wanted = top_k(queries @ vectors.T, LISTED)
    search = DenseSearch.over(vectors, leading_directions(vectors, DIRECTIONS))
    chunk = max(1, MAX_CELLS // size["items"])

    def ours() -> IntArray:
        parts = np.array_split(queries, max(1, len(queries) // chunk))
        return np.concatenate([top_k(search.scores(part), LISTED, search.floor) for part in parts])

    def recall(found: IntArray) -> float:
        return float(np.mean([len(np.intersect1d(a, b)) / LISTED for a, b in zip(found, wanted, strict=True)]))

    reached = recall(ours())
    inverted = faiss.index_factory(
        vectors.shape[1], f"IVF{int(4 * size['items'] ** 0.5)},Flat", faiss.METRIC_INNER_PRODUCT
    )
    began = time.perf_counter()
    inverted.train(vectors)
    inverted.add(vectors)
    built = time.perf_counter() - began
    for probes in (2**n for n in range(20)):
        inverted.nprobe = probes
        if recall(inverted.search(queries, LISTED)[1]) >= reached or probes >= inverted.nlist:
            break
    row = alternated(ours, lambda: inverted.search(queries, LISTED), size["repeats"])
    sizes = {name: size[name] for name in ("items", "queries")}
    return {
        **row, **sizes, "recall": reached, "peer_recall": recall(inverted.search(queries, LISTED)[1]),
        "probes": probes, "lists": inverted.nlist, "built_s": built,
    }  # fmt: skip


def nights(size: Row) -> Row:
    """A first night, and a second after 1% of the items changed and 5% of the users acted."""
    with tempfile.TemporaryDirectory() as folder:
        shop = Shop(size["users"], size["items"], size["users"] * 50)
        shop.write(Path(folder))
        first = _recsys("nightly", Path(folder), "2025-01-01", [])
        shop.write_day_after(Path(folder), changed=0.01, active=0.05)
        second = _recsys("nightly", Path(folder), "2025-01-02", [])
    sizes = {name: size[name] for name in ("users", "items")}
    return {**sizes, "first": first, "second": second, "share": second["seconds"] / first["seconds"]}


def shop_scorer(folder: Path, size: Row) -> Scorer:
    """A scorer of a shop with fitted CF tower and ranker; summed random word vectors stand in for BERT's."""
    Shop(size["users"], size["items"], size["users"] * 50).write(folder)
    config = load_config(folder / "recsys.toml", ["ranker.max_users=2000", *size.get("settings", [])])
    dataset = Dataset.from_tables(load_tables(config.data, AS_OF), AS_OF)
    vectors = word_vectors(item_texts(dataset.catalogue, config.text.fields))
    windows = cut(dataset, config)
    late, tonight = (Moment.of(dataset, windows, window) for window in (2, 3))
    cf = CFTower.fit(late.histories.confidence(config.cf.half_life_days), [vectors], config.cf, config.seed)
    ranker = fit_ranker(late.snapshot(vectors, cf, config), late.targets, config, np.random.default_rng(0))
    now = tonight.snapshot(vectors, cf, config)
    return Scorer.of(dataset, now, ranker, Stamp("speed", "1", "2025-01-01"))


def word_vectors(texts: list[str]) -> FloatArray:
    """Unit sums of one random vector per word, (n_texts, 384): as large as BERT's, made in seconds."""
    rng = np.random.default_rng(0)
    known: dict[str, FloatArray] = {}
    rows = np.zeros((len(texts), 384), dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            row += known.setdefault(word, rng.normal(size=384).astype(np.float32))
    return unit_rows(rows)


SHORTER_LISTS = ["candidates.per_source=56", "candidates.popular=40"]  # so that every user of 100,000 has 200
ROWS: dict[str, tuple[Callable[[Row], Row], Row, Row]] = {
    "training": (training, {"steps": 15}, {"steps": 2}),
    "encoding": (encoding, {"texts": 20_000}, {"texts": 1_000}),
    "scoring": (
        scoring,
        {"users": 100_000, "items": 20_000, "settings": SHORTER_LISTS},
        {"users": 4_000, "items": 20_000, "settings": SHORTER_LISTS},
    ),
    "scoring_defaults": (scoring, {"users": 100_000, "items": 20_000}, {"users": 4_000, "items": 20_000}),
    "memory": (
        memory,
        {"users": 1_000_000, "items": 20_000, "learners": 20_000},
        {"users": 100_000, "items": 2_000, "learners": 2_000},
    ),
    "index": (index, {"items": 200_000, "queries": 500}, {"items": 20_000, "queries": 500}),
    "nights": (nights, {"users": 10_000, "items": 20_000}, {"users": 2_000, "items": 1_000}),
}


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help="which rows, by comma")
    parser.add_argument("--quick", action="store_true", help="small sizes: minutes instead of hours")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--users", type=int, help="instead of the row's own number")
    parser.add_argument("--items", type=int, help="instead of the row's own number")
    parser.add_argument(
        "--catalogues", nargs="+", help="tables of items whose texts are encoded, instead of the shop's"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # our scoring takes what cores it may
    given = {name: getattr(args, name) for name in ("users", "items", "catalogues") if getattr(args, name)}
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.rows.split(","):
        work, full, quick = ROWS[name]
        size = (quick if args.quick else full) | given | {"threads": args.threads, "repeats": args.repeats}
        with threadpool_limits(args.threads):
            results[name] = {**work(size), "threads": args.threads, "quick": args.quick}
        if name == "memory" and not args.quick:
            plot_growth(results[name]["grown"], size["items"], Path(__file__).parent.parent / "docs" / "growth.png")
        print(name, json.dumps(results[name]), flush=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
