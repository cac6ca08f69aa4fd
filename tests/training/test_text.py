"""Fine-tuning of the text tower: its loss, its steps, its checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch

from features.histories import Histories
from recsys.config import TextConfig
from recsys.split import DAY_US
from recsys.text_tower import TextTower
from tests.training.test_sampler import histories
from training.sampler import Batch, BatchSampler
from training.text import batch_loss, fit_encoder


def test_the_loss_and_its_gradient_are_those_of_dense_histories() -> None:
    batch = BatchSampler(histories(), decay=0.7).draw(30, np.random.default_rng(1))
    assert isinstance(batch, Batch)
    vectors = torch.nn.functional.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    one, other = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    loss = batch_loss(one, batch, 0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    users = torch.nn.functional.normalize(torch.from_numpy(batch.history.toarray()) @ other, dim=1)
    logits = (users @ other.T / 0.1 - torch.from_numpy(batch.log_inclusion)).masked_fill(
        torch.from_numpy(batch.masked), float("-inf")
    )
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.target), reduction="none")
    weight = torch.from_numpy(batch.weight)
    expected = (losses * weight).sum() / weight.sum()
    expected.backward()  # type: ignore[no-untyped-call]
    assert one.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(one.grad, other.grad)


def test_texts_of_later_ask_for_no_steps(tiny_encoder: Path) -> None:
    """One pass over the 32 texts that are there, 16 a step, is two steps, whatever else the catalogue will hold."""
    tower = TextTower.from_encoder(str(tiny_encoder), 16)
    texts = [f"green tea {number}" for number in range(64)]
    h = histories()
    h = h.renamed(np.arange(h.n_items) % 32, 64)
    logged: dict[str, float] = {}
    config = TextConfig(encoder=str(tiny_encoder), epochs=1, batch_items=16, head_steps=1)
    fit_encoder(
        tower, texts, tower.pooled(texts), h, config, np.random.default_rng(0), existing=np.arange(32),
        log=lambda values, _: logged.update(values),
    )  # fmt: skip
    assert logged["text_steps_wanted"] == 2


class KilledError(Exception):
    """What a test ends a training with."""


@pytest.mark.slow
def test_a_fine_tuning_that_was_cut_off_ends_as_an_uncut_one(tiny_encoder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(200), 15)
    item = user % 4 + 4 * rng.integers(0, 16, len(user))  # each user keeps to one of four kinds
    day = rng.integers(1, 30, len(user)) * DAY_US
    h = Histories.build(user, item, day, np.ones(len(user), np.float32), n_users=200, n_items=64, as_of=31 * DAY_US)
    kinds = ["green tea", "bike chain", "oil paint", "canvas tent"]
    texts = [f"{kinds[number % 4]} {number}" for number in range(64)]
    config = TextConfig(encoder=str(tiny_encoder), epochs=16, batch_items=16, head_steps=5, learning_rate=1e-3)
    logged: list[dict[str, float]] = []

    def tuned(cut_at: int | None) -> TextTower:
        tower = TextTower.from_encoder(str(tiny_encoder), 16)

        def progress(done: int, total: int) -> None:
            if done == cut_at:
                raise KilledError

        fit_encoder(
            tower, texts, tower.pooled(texts), h, config, np.random.default_rng(0), checkpoint=tmp_path / "c.safetensors",
            progress=progress, log=lambda values, step: logged.append(values),
        )  # fmt: skip
        return tower

    uncut = tuned(None).state()
    best = min(values["text_validation_loss"] for values in logged if "text_validation_loss" in values)
    ends = logged[-1]
    with pytest.raises(KilledError):
        tuned(cut_at=45)
    assert (tmp_path / "c.safetensors").exists()
    resumed = tuned(None).state()
    for name, value in uncut.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6, msg=name)
    assert logged[-1] == ends
    assert (ends["text_steps"], ends["text_steps_wanted"]) == (64, 64)
    assert 0 < ends["text_best_step"] <= 64
    assert best < logged[0]["text_validation_loss"]
    assert not (tmp_path / "c.safetensors").exists()
