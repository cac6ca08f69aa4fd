"""Fine-tunes the text tower on what users went on to take.

Each step draws users and looks at some moments in a row of each: every event there is a query, what came before it
its history, and all texts that these users took the choice. Each text is encoded once a step. Two phases: the head alone
on cached vectors (seconds), then encoder and head together (minutes).
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

from features.histories import Histories, ranges, strength
from recsys.config import TextConfig
from recsys.losses import sampled_softmax
from recsys.text_tower import TextTower
from recsys.types import BoolArray, FloatArray, IntArray, Progress
from recsys.whole import replacing

MOMENTS = 8  # of one user in a row that a step looks at
EVENTS_PER_USER = 32  # of these, at most: a wholesaler must not fill a batch alone
MAX_QUERIES = 1024
MAX_EVENTS = 4096  # a step looks at, where few texts are in very many of them
UNIFORM_SHARE = 0.25  # of a batch's texts drawn from the whole catalogue: hard evidence about unsold items
HEAD_ITEMS = 1024
VALIDATION_SHARE = 0.1
CHECK_ITEMS = 512  # of the held-out batch: several users' later events are among them
CHECKS = 4  # of the encoder on its way

OnMetrics = Callable[[dict[str, float], int], None]


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
        self.n_targets = np.bincount(histories.user_pos, self.is_target, histories.n_users).astype(np.int64)
        self.user_draws = np.flatnonzero((self.n_targets > 0) & (histories.n_moments > 1))
        self.n_steps = int(histories.n_moments.max(initial=0)) + 1
        # ascending, as events are; positions are 32 bits wide, and their product with moments is not
        self.moment_key = histories.user_pos.astype(np.int64) * self.n_steps - histories.step
        most = np.maximum(histories.n_moments / MOMENTS, histories.n_events / EVENTS_PER_USER)
        share = 1 / np.maximum(most, 1)
        draws = np.isin(np.arange(histories.n_users), self.user_draws)
        drawn = np.bincount(histories.item_pos, (share * draws)[histories.user_pos], minlength=histories.n_items)
        self.rate: FloatArray = drawn / max(1, len(self.user_draws))

    def draw(self, n_texts: int, rng: np.random.Generator) -> Batch | None:
        """A batch of `n_texts` texts, or of all where there are fewer; None when nobody has a pair in it."""
        n_texts = min(n_texts, len(self.texts))
        texts, rows, n_users = self._drawn(n_texts, rng)
        column = np.full(self.h.n_items, -1, dtype=np.int64)
        column[texts] = np.arange(len(texts))
        target = self._targets(rows, rng)
        if not len(target):
            return None
        history = self._history(rows, target, column, len(texts))
        # what the drawn users left free was filled from the rest of the catalogue
        n_chosen = len(np.unique(self.h.item_pos[rows]))
        uniform = (n_texts - n_chosen) / max(1, len(self.texts) - n_chosen)
        inclusion = 1 - (1 - np.minimum(self.rate[texts], 1 - 1e-9)) ** n_users * (1 - min(uniform, 1 - 1e-9))
        log_inclusion = np.log(np.maximum(inclusion, 1e-9)) if len(texts) < len(self.texts) else np.zeros(len(texts))
        target_rows = rows[target]
        masked = self._taken(self.h.user_pos[target_rows], column, len(texts))
        target_column = column[self.h.item_pos[target_rows]]
        masked[np.arange(len(target)), target_column] = False
        weight = self.h.weight[target_rows]
        return Batch(texts, history, target_column, masked, log_inclusion.astype(np.float32), weight)

    def _drawn(self, n_texts: int, rng: np.random.Generator) -> tuple[IntArray, IntArray, int]:
        """Texts of drawn users up to a share of the batch, the rest uniform; these users' rows, ascending; their number."""
        users = rng.permutation(self.user_draws)
        is_all = n_texts == len(self.texts)
        wanted = n_texts if is_all else int(n_texts * (1 - UNIFORM_SHARE))
        rows: IntArray = np.zeros(0, dtype=np.int64)
        asked, more = 0, max(8, wanted // EVENTS_PER_USER)
        while asked < len(users):
            rows = np.concatenate([rows, self._stretches(users[asked : asked + more], rng)])[:MAX_EVENTS]
            asked, more = asked + more, 2 * more
            first = np.sort(np.unique(self.h.item_pos[rows], return_index=True)[1])
            if len(first) > wanted:
                rows = rows[: first[wanted]]
            if len(first) > wanted or len(rows) == MAX_EVENTS:
                break
        n_users = len(np.unique(self.h.user_pos[rows]))
        if is_all:
            return self.texts, np.sort(rows), n_users
        chosen = np.unique(self.h.item_pos[rows])
        rest = rng.choice(self.texts, n_texts, replace=False)
        rest = rest[~np.isin(rest, chosen)][: n_texts - len(chosen)]
        return np.sort(np.concatenate([chosen, rest])), np.sort(rows), n_users

    def _stretches(self, users: IntArray, rng: np.random.Generator) -> IntArray:
        """Rows of some events of each user within `MOMENTS` moments in a row, one of which may be a target."""
        back = (rng.random(len(users)) * self.n_targets[users]).astype(np.int64)  # targets are a user's newest events
        target = self.h.indptr[users + 1] - 1 - back
        newest = self.h.step[target] - rng.integers(0, MOMENTS, len(users))
        newest = np.clip(newest, 0, np.maximum(self.h.n_moments[users] - MOMENTS, 0))
        key = users * self.n_steps - newest
        start = np.searchsorted(self.moment_key, key - (MOMENTS - 1))
        start = np.maximum(start, self.h.indptr[users])  # who has fewer moments
        counts = np.searchsorted(self.moment_key, key, side="right") - start
        rows = ranges(start, counts)
        order = np.lexsort((rng.random(len(rows)), np.repeat(np.arange(len(users)), counts)))
        return rows[order[ranges(np.zeros_like(counts), counts) < EVENTS_PER_USER]]

    def _targets(self, rows: IntArray, rng: np.random.Generator) -> IntArray:
        """Which of the rows are queries: those that may be and have an older one of the same user beside them."""
        first, counts = _runs(self.h.user_pos[rows])  # rows are old to new, so a user's first is the oldest
        oldest = np.repeat(self.h.step[rows[first]], counts)
        eligible = np.flatnonzero(self.is_target[rows] & (self.h.step[rows] < oldest))
        return np.sort(rng.permutation(eligible)[:MAX_QUERIES])

    def _history(self, rows: IntArray, target: IntArray, column: IntArray, n_texts: int) -> sp.csr_matrix:
        """Decayed history of each query among the rows of its user, (n_queries, n_texts)."""
        step, col = self.h.step[rows], column[self.h.item_pos[rows]]
        first, counts = _runs(self.h.user_pos[rows])
        run = np.repeat(np.arange(len(first)), counts)[target]
        size = target - first[run]  # older rows of the same user
        query = np.repeat(np.arange(len(target)), size)
        row = ranges(first[run], size)
        before = (step[row] > step[target][query]) & (col[row] != col[target][query])
        query, row = query[before], row[before]
        newest = np.zeros(len(target), dtype=np.int64)
        newest[query] = step[row]  # rows are old to new, so the newest is written last
        weight = np.power(self.decay, step[row] - newest[query]) * strength(self.h.weight[rows[row]])
        weight /= np.bincount(query, weight, len(target))[query]
        indptr = np.searchsorted(query, np.arange(len(target) + 1))
        return sp.csr_matrix((weight.astype(np.float32), col[row], indptr), shape=(len(target), n_texts))

    def _taken(self, user: IntArray, column: IntArray, n_texts: int) -> BoolArray:
        """What the user of each query ever took, (n_queries, n_texts)."""
        users, of_query = np.unique(user, return_inverse=True)
        some = self.h.of_users(users)
        col = column[some.item_pos]
        taken = np.zeros((len(users), n_texts), dtype=bool)
        taken[some.user_pos[col >= 0], col[col >= 0]] = True
        return taken[of_query]


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
    log: OnMetrics | None = None,
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
    tower.new_head(inputs[sampler.texts], int(rng.integers(2**31)))
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
    log: OnMetrics | None,
) -> None:
    """Trains encoder and head with gradient caching; early stop on the held-out batch."""
    n_steps = int(np.ceil(config.epochs * len(sampler.texts) / config.batch_items))  # texts to come ask for none
    tokens = tower.tokenize(texts)
    check = held_out.draw(CHECK_ITEMS, np.random.default_rng(2))
    encoder = tower.trainable(config.frozen_layers)
    groups = [
        {"params": encoder, "lr": config.learning_rate},
        {"params": list(tower.head.parameters()), "lr": config.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    best = _Best(tower)
    step, spent = _resume(checkpoint, tower, optimizer, best)
    every = max(1, n_steps // CHECKS)
    seed = int(rng.integers(2**31))
    began = time.monotonic() - spent
    while step < n_steps and time.monotonic() - began < 60 * config.max_minutes:
        if step % every == 0:
            best.offer(_validate(tower, tokens, check, config, log, step), step)
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
    best.offer(_validate(tower, tokens, check, config, log, step), step)
    if log:  # fewer steps than wanted where max_minutes ended it; the best is 0 where the encoder stays as it came
        log({"text_steps": step, "text_steps_wanted": n_steps, "text_best_step": best.step}, step)
    best.restore()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)


def _warm_then_cosine(step: int, n_steps: int) -> float:
    """Share of the learning rate: up within a tenth of the steps, then down to 0."""
    warmup = max(1, n_steps // 10)
    return float(min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * step / n_steps)))


class _Best:
    """Keeps the tower's state with the lowest loss offered, and after how many steps that was."""

    def __init__(self, tower: TextTower) -> None:
        self.tower, self.loss, self.step, self.state = tower, float("inf"), 0, tower.state()

    def offer(self, loss: float, step: int) -> None:
        if loss < self.loss:
            self.loss, self.step, self.state = loss, step, self.tower.state()

    def restore(self) -> None:
        if self.loss < float("inf"):
            self.tower.load_state(self.state)


def _validate(
    tower: TextTower, tokens: list[list[int]], check: Batch | None, config: TextConfig, log: OnMetrics | None, step: int
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
    tensors["best_step"] = torch.tensor(best.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        save_file({name: value.contiguous() for name, value in tensors.items()}, unfinished)


def _resume(path: Path | None, tower: TextTower, optimizer: torch.optim.Optimizer, best: _Best) -> tuple[int, float]:
    """Continues from a checkpoint; the step to go on with and the seconds spent so far, 0 where there is none."""
    if path is None or not path.exists():
        return 0, 0.0
    tensors = load_file(path)
    tower.load_state(_part(tensors, "tower."))
    best.loss, best.step = float(tensors["best_loss"]), int(tensors.get("best_step", tensors["step"]))
    best.state = _part(tensors, "best.")
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(tensors["step"]), float(tensors["spent"])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
