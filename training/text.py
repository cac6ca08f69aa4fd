"""Fine-tunes the text tower on what users went on to take.

Each step picks a set of texts, then uses every user's history within that set: one encoding of a text
serves all users who know it. Two phases: the head alone on cached vectors (seconds), then encoder
and head together (minutes).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.histories import Histories
from recsys.config import TextConfig
from recsys.losses import sampled_softmax
from recsys.text_tower import Progress, TextTower
from recsys.types import BoolArray, FloatArray, IntArray

EVENTS_PER_USER = 16  # drawn from one user into a batch, so that a wholesaler does not fill it alone
EVENTS_PER_STEP = 500_000  # looked through for queries; of more, those of randomly drawn users
MOST_OF_A_USER = 10_000  # of these, so that a giant does not fill a step alone
MAX_QUERIES = 1024
UNIFORM_SHARE = 0.25  # of a batch's texts drawn from the whole catalogue: hard evidence about unsold items
HEAD_ITEMS = 1024
VALIDATION_SHARE = 0.1

Log = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class Batch:
    """One step's texts and queries.

    texts: (n,) text positions; history: (n_queries, n) float32 row weights that sum to 1, or a row without any;
    target: (n_queries,) column; masked: (n_queries, n) other positives of the user;
    log_inclusion: (n,); weight: (n_queries,) label weight.
    """

    texts: IntArray
    history: sp.csr_matrix
    target: IntArray
    masked: BoolArray
    log_inclusion: FloatArray
    weight: FloatArray


class BatchSampler:
    """Draws batches from histories whose item positions are text positions.

    Args:
        histories: events before the moment of training.
        decay: weight of a history item per step back.
        texts: ascending positions of those that exist at the moment, (n,) (all by default): what comes later is no
            evidence.
        targets_after: int64 us; only events at or after it may be targets (all by default).
    """

    def __init__(
        self, histories: Histories, decay: float, texts: IntArray | None = None, targets_after: int | None = None
    ) -> None:
        self.h = histories
        self.texts = np.arange(histories.n_items) if texts is None else texts
        self.decay = decay
        self.is_target = np.ones(len(histories.item_pos), dtype=bool)
        if targets_after is not None:
            self.is_target = histories.timestamp >= targets_after
        share = np.minimum(1.0, EVENTS_PER_USER / np.maximum(histories.n_events, 1))
        self.user_draws = np.flatnonzero(
            np.bincount(histories.user_pos, self.is_target, minlength=histories.n_users) > 0
        )
        draws = np.isin(np.arange(histories.n_users), self.user_draws)
        drawn = np.bincount(histories.item_pos, (share * draws)[histories.user_pos], minlength=histories.n_items)
        self.rate: FloatArray = drawn / max(1, len(self.user_draws))

    def draw(self, n_texts: int, rng: np.random.Generator) -> Batch | None:
        """A batch of `n_texts` texts, or of all where there are fewer; None when nobody has a pair in it."""
        texts, users, n_users_drawn = self._texts(min(n_texts, len(self.texts)), rng)
        column = np.full(self.h.n_items, -1, dtype=np.int64)
        column[texts] = np.arange(len(texts))
        rows = self._events_of(users)
        is_inside = column[self.h.item_pos[rows]] >= 0
        inside = np.flatnonzero(is_inside) if isinstance(rows, slice) else rows[is_inside]
        user, step, col = self.h.user_pos[inside], self.h.step[inside], column[self.h.item_pos[inside]]
        target = self._targets(user, step, self.is_target[inside], rng)
        if not len(target):
            return None
        history, masked = self._rows(user, step, col, target, len(texts))
        uniform = UNIFORM_SHARE * n_texts / len(self.texts)
        inclusion = 1 - (1 - np.minimum(self.rate[texts], 1 - 1e-9)) ** n_users_drawn * (1 - min(uniform, 1 - 1e-9))
        log_inclusion = np.log(np.maximum(inclusion, 1e-9)) if len(texts) < len(self.texts) else np.zeros(len(texts))
        weight = self.h.weight[inside][target]
        return Batch(texts, history, col[target], masked, log_inclusion.astype(np.float32), weight)

    def _texts(self, n_texts: int, rng: np.random.Generator) -> tuple[IntArray, IntArray, int]:
        """Texts of drawn users up to a share of the batch, the rest uniform; all users, those drawn first; their number."""
        users = rng.permutation(self.user_draws)
        if n_texts >= len(self.texts):
            return self.texts, users, len(users)
        wanted = int(n_texts * (1 - UNIFORM_SHARE))
        chosen: IntArray = np.zeros(0, dtype=np.int64)
        used, block = 0, max(8, wanted // EVENTS_PER_USER)
        while len(chosen) < wanted and used < len(users):
            some = users[used : used + block]
            counts = self.h.n_events[some]
            picks = rng.random((len(some), EVENTS_PER_USER))
            rows = self.h.indptr[some][:, None] + (picks * counts[:, None]).astype(np.int64)
            chosen = np.concatenate([chosen, self.h.item_pos[rows].ravel()])
            chosen = chosen[np.sort(np.unique(chosen, return_index=True)[1])]
            used += block
        chosen = chosen[:wanted]
        rest = rng.choice(self.texts, n_texts, replace=False)
        rest = rest[~np.isin(rest, chosen)][: n_texts - len(chosen)]
        return np.sort(np.concatenate([chosen, rest])), users, min(used, len(users))

    def _events_of(self, users: IntArray) -> IntArray | slice:
        """Rows of all events, or of the first users' newest where there are very many."""
        if len(self.h.item_pos) <= EVENTS_PER_STEP:
            return slice(None)
        counts = np.minimum(self.h.n_events[users], MOST_OF_A_USER)
        n = int(np.searchsorted(np.cumsum(counts), EVENTS_PER_STEP)) + 1
        rows = self.h.rows_of(np.sort(users[:n]))
        return rows[self.h.indptr[self.h.user_pos[rows] + 1] - rows <= MOST_OF_A_USER]

    def _targets(self, user: IntArray, step: IntArray, allowed: BoolArray, rng: np.random.Generator) -> IntArray:
        """One event per user that has an earlier one inside the batch, (n_queries,) rows."""
        first, counts = _runs(user)  # rows are old to new, so a user's first is the oldest
        eligible = np.flatnonzero(allowed & (step < np.repeat(step[first], counts)))
        first, counts = _runs(user[eligible])
        rows = eligible[first + (rng.random(len(first)) * counts).astype(np.int64)]
        return np.sort(rng.permutation(rows)[:MAX_QUERIES])

    def _rows(
        self, user: IntArray, step: IntArray, col: IntArray, target: IntArray, n_texts: int
    ) -> tuple[sp.csr_matrix, BoolArray]:
        """Decayed history before each target, and the mask of the user's other positives."""
        query_of = np.full(self.h.n_users, -1, dtype=np.int64)
        query_of[user[target]] = np.arange(len(target))
        query = query_of[user]
        mine = query >= 0
        query, steps, cols = query[mine], step[mine], col[mine]
        target_step, target_col = step[target], col[target]
        masked = np.zeros((len(target), n_texts), dtype=bool)
        masked[query, cols] = True
        masked[np.arange(len(target)), target_col] = False
        before = (steps > target_step[query]) & (cols != target_col[query])
        query, steps, cols = query[before], steps[before], cols[before]
        newest = np.zeros(len(target), dtype=np.int64)
        newest[query] = steps  # rows are old to new, so the newest is written last
        weight = np.power(self.decay, steps - newest[query])
        weight /= np.bincount(query, weight, len(target))[query]
        indptr = np.searchsorted(query, np.arange(len(target) + 1))
        history = sp.csr_matrix((weight.astype(np.float32), cols, indptr), shape=(len(target), n_texts))
        return history, masked


def _runs(values: IntArray) -> tuple[IntArray, IntArray]:
    """Where each run of equal values starts, and its length."""
    first = np.flatnonzero(np.diff(values, prepend=-1))
    return first, np.diff(np.append(first, len(values)))


def fit_encoder(
    tower: TextTower,
    texts: list[str],
    pooled: FloatArray,
    histories: Histories,
    config: TextConfig,
    rng: np.random.Generator,
    *,
    existing: IntArray | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    log: Log | None = None,
) -> None:
    """Fine-tunes encoder and head in place; early stop on the newest tenth of the events.

    Args:
        tower: the untrained tower.
        texts: the distinct texts, (n_texts,).
        pooled: the tower's pooled vectors of them, (n_texts, width).
        histories: events whose item positions are rows of `texts`.
        existing: positions of the texts that exist when the histories end, ascending; all by default.
        checkpoint: file to continue from when a run was cut off; removed at the end.
        log: called with metrics and a step.
    """
    if config.epochs == 0 or len(histories.timestamp) == 0:
        return
    cut = int(np.quantile(histories.timestamp, 1 - VALIDATION_SHARE, method="lower"))
    past = histories.before(cut)
    sampler = BatchSampler(past if len(past.timestamp) else histories, config.history_decay, existing)
    held_out = BatchSampler(histories, config.history_decay, existing, targets_after=cut)
    fit_head(tower, pooled, sampler, config, rng)
    _fit_encoder(tower, texts, sampler, held_out, config, rng, checkpoint, progress, log)


def fit_head(
    tower: TextTower, inputs: FloatArray, sampler: BatchSampler, config: TextConfig, rng: np.random.Generator
) -> None:
    """A new head, trained on given inputs, (n_texts, inputs); seconds, not minutes.

    Source: Kumar et al., Fine-tuning can distort pretrained features, ICLR 2022 (head first, then encoder).
    """
    tower.new_head(inputs, int(rng.integers(2**31)))
    vectors = torch.from_numpy(inputs).to(tower.device)
    optimizer = torch.optim.AdamW(tower.head.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.head_steps)
    for _ in range(config.head_steps):
        batch = sampler.draw(HEAD_ITEMS, rng)
        if batch is None:
            continue
        optimizer.zero_grad()
        with tower.autocast():
            loss = batch_loss(tower.head(vectors[batch.texts]), batch, config.temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def batch_loss(vectors: Tensor, batch: Batch, temperature: float) -> Tensor:
    """Loss of a batch from its texts' unit vectors, (n, dim) -> scalar."""
    device = vectors.device
    items, bounds, shares = (
        torch.from_numpy(values).to(device)
        for values in (batch.history.indices, batch.history.indptr, batch.history.data)
    )
    # a history is a few of the batch's texts: summing those takes a fraction of a product with all
    users = torch.nn.functional.embedding_bag(
        items, vectors.float(), bounds, mode="sum", per_sample_weights=shares, include_last_offset=True
    )
    queries = torch.nn.functional.normalize(users, dim=1)
    return sampled_softmax(
        queries @ vectors.T,
        torch.from_numpy(batch.target).to(device),
        torch.from_numpy(batch.masked).to(device),
        torch.from_numpy(batch.log_inclusion).to(device),
        torch.from_numpy(batch.weight).to(device),
        temperature,
    )


def _fit_encoder(
    tower: TextTower,
    texts: list[str],
    sampler: BatchSampler,
    held_out: BatchSampler,
    config: TextConfig,
    rng: np.random.Generator,
    checkpoint: Path | None,
    progress: Progress | None,
    log: Log | None,
) -> None:
    """Trains encoder and head with gradient caching; early stop on the held-out batch."""
    n_steps = int(np.ceil(config.epochs * len(texts) / config.batch_items))
    tokens = tower.tokenize(texts)
    check = held_out.draw(config.batch_items, np.random.default_rng(2))
    encoder = tower.trainable(config.frozen_layers)
    groups = [
        {"params": encoder, "lr": config.learning_rate},
        {"params": list(tower.head.parameters()), "lr": config.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    best = _Best(tower)
    step, spent = _resume(checkpoint, tower, optimizer, best)
    every = max(1, n_steps // 8)
    seed = int(rng.integers(2**31))
    began = time.monotonic() - spent
    while step < n_steps and time.monotonic() - began < 60 * config.max_minutes:
        if step % every == 0:
            best.offer(_validate(tower, tokens, check, config, log, step))
            _save_checkpoint(checkpoint, tower, optimizer, best, step, time.monotonic() - began)
        # seeded by step, so that a resumed run draws what an uninterrupted one would have drawn
        batch = sampler.draw(config.batch_items, np.random.default_rng([seed, step]))
        if batch is not None:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _warm_then_cosine(step, n_steps)
            optimizer.zero_grad()
            loss = tower.backward(
                [tokens[i] for i in batch.texts], partial(batch_loss, batch=batch, temperature=config.temperature)
            )
            optimizer.step()
            if log:
                log({"text_train_loss": loss}, step)
        step += 1
        if progress:
            progress(step, n_steps)
    best.offer(_validate(tower, tokens, check, config, log, step))
    if log:
        log({"text_steps": step, "text_steps_wanted": n_steps}, step)  # fewer where max_minutes ended it
    best.restore()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)


def _warm_then_cosine(step: int, n_steps: int) -> float:
    """Share of the learning rate: up within a tenth of the steps, then down to 0."""
    warmup = max(1, n_steps // 10)
    return float(min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * step / n_steps)))


class _Best:
    """Keeps the tower's state with the lowest loss offered."""

    def __init__(self, tower: TextTower) -> None:
        self.tower, self.loss, self.state = tower, float("inf"), tower.state()

    def offer(self, loss: float) -> None:
        if loss < self.loss:
            self.loss, self.state = loss, self.tower.state()

    def restore(self) -> None:
        if self.loss < float("inf"):
            self.tower.load_state(self.state)


def _validate(
    tower: TextTower, tokens: list[list[int]], check: Batch | None, config: TextConfig, log: Log | None, step: int
) -> float:
    if check is None:
        return float("inf")
    vectors = torch.from_numpy(tower.encode_tokens([tokens[i] for i in check.texts]))
    loss = float(batch_loss(tower.head(vectors.to(tower.device)).detach(), check, config.temperature))
    if log:
        log({"text_validation_loss": loss}, step)
    return loss


def _save_checkpoint(
    path: Path | None, tower: TextTower, optimizer: torch.optim.Optimizer, best: _Best, step: int, spent: float
) -> None:
    if path is None:
        return
    tensors = {f"tower.{name}": value for name, value in tower.state().items()}
    tensors |= {f"best.{name}": value for name, value in best.state.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors |= {"step": torch.tensor(step), "spent": torch.tensor(spent), "best_loss": torch.tensor(best.loss)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
    temporary.replace(path)


def _resume(path: Path | None, tower: TextTower, optimizer: torch.optim.Optimizer, best: _Best) -> tuple[int, float]:
    """Continues from a checkpoint; the step to go on with and the seconds spent so far, 0 where there is none."""
    if path is None or not path.exists():
        return 0, 0.0
    tensors = load_file(path)
    tower.load_state(_part(tensors, "tower."))
    best.loss, best.state = float(tensors["best_loss"]), _part(tensors, "best.")
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(tensors["step"]), float(tensors["spent"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
