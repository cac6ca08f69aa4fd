import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.attention import short_text_attention
from recsys.text_tower import TextTower


@pytest.mark.parametrize("length", [1, 7, 32])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_are_mixed_by_the_softmax_of_the_scaled_products(
    length: int, masked: bool, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, length, 4, 8, dtype=dtype).transpose(1, 2) for _ in range(3))
    mask = None
    if masked:  # the second text ends after its first token
        mask = torch.zeros(3, 1, length, length, dtype=dtype)
        mask[1, :, :, 1:] = torch.finfo(dtype).min
    mixed, weights = short_text_attention(torch.nn.Identity(), q, k, v, mask, scaling=0.5, dropout=0.0)
    scores = 0.5 * torch.einsum("nhid,nhjd->nhij", q.double(), k.double())
    wanted = torch.einsum("nhij,nhjd->nihd", torch.softmax(scores if mask is None else scores + mask, -1), v.double())
    assert weights is None
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.double(), wanted, rtol=0, atol=tolerance)


@pytest.fixture(params=["bert", "distilbert", "xlm-roberta"])
def encoder_folder(request: pytest.FixtureRequest, tiny_encoder: Path, tmp_path: Path) -> Path:
    """Untrained encoders of three families, with the tokenizer of the shop's words."""
    if request.param == "bert":
        return tiny_encoder
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
        "xlm-roberta": {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        },
    }  # fmt: skip
    common = {"vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 0}
    config = AutoConfig.for_model(request.param, **common, **sizes[request.param])
    shutil.copytree(tiny_encoder, tmp_path, dirs_exist_ok=True)
    AutoModel.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    return tmp_path


def test_an_encoder_gives_the_vectors_and_gradients_of_eager_attention(encoder_folder: Path) -> None:
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
    mask = (ids > 0).long()
    hidden, gradients = [], []
    for implementation in (None, "eager"):
        tower = TextTower.from_encoder(str(encoder_folder), 16)
        assert tower.encoder.config._attn_implementation == "short_text"
        if implementation:
            tower.encoder.set_attn_implementation(implementation)
        trained = tower.trainable(frozen_layers=1)
        out = tower.encoder(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        out.square().sum().backward()
        hidden.append(out.detach())
        gradients.append([parameter.grad for parameter in trained])
    assert all(gradient is not None for gradient in gradients[0])
    torch.testing.assert_close(*hidden, rtol=0, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_a_saved_encoder_does_not_ask_others_for_our_attention(tiny_encoder: Path, tmp_path: Path) -> None:
    TextTower.from_encoder(str(tiny_encoder), 16).save(tmp_path)
    assert "short_text" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
