"""Fine-tunes the text tower on what users went on to take: the head alone on cached vectors (seconds), then encoder and
head together (minutes). Each text of a batch is encoded once a step.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from features.histories import Histories
from recsys.config import TextConfig
from recsys.losses import sampled_softmax
from recsys.text_tower import TextTower
from recsys.types import FloatArray, IntArray, Progress
from recsys.whole import replacing
from training.sampler import Batch, BatchSampler

HEAD_ITEMS = 1024
VALIDATION_SHARE = 0.1
CHECK_ITEMS = 512  # of the held-out batch: several users' later events are among them
CHECKS = 4  # of the encoder on its way

OnMetrics = Callable[[dict[str, float], int], None]


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
