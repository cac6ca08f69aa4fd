"""The text tower: a BERT encoder that turns item texts into unit vectors.

    texts -> tokens -> BERT -> mean over tokens -> unit length -+
                                                                +-> head -> unit length
    texts -> words -> leading directions -> unit length --------+

The head starts as the identity: an untrained tower, which knows no words yet, is the plain pretrained encoder. With
words its vectors are as long as the encoder's still; it starts from the directions that hold most of both.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys.encoder import find_encoder, identity_of, layers_of, load_encoder
from recsys.errors import ModelError
from recsys.fused_linear import with_fused_linears
from recsys.machine import has_bf16, keep_memory
from recsys.text_head import TextHead
from recsys.text_terms import MAX_CHARACTERS, NO_WORDS, TextTerms
from recsys.types import FloatArray, IntArray, Progress
from recsys.vectors import unit_rows

_DENSE = ("3_Dense", "4_Dense")  # folders of the head as two layers, for sentence-transformers
_ROWS_PROJECTED = 8192
_ROWS_WORTH_A_COPY = 256
_TOKENS_PER_BATCH = 4096  # keeps one micro-batch's activations near 200 MB at MiniLM's width
_TOKENS_PER_ENCODING = 2048  # without gradient; a sixth faster than twice as many: activations stay in the cache
_TOKENS_IN_ONE_PASS = 16_384  # of a training step whose activations are kept: below a GB at MiniLM's width


class TextTower:
    """BERT, mean pooling, words, head; see the module's picture.

    Args:
        encoder, tokenizer: of transformers.
        head: over pooled vectors, and words beside them.
        max_tokens: longer texts are cut.
        terms: of the catalogue.

    Source: Reimers and Gurevych, Sentence-BERT, EMNLP 2019 (encoder and pooling); Gao et al., Scaling deep
        contrastive learning batch size, RepL4NLP 2021 (gradient caching).
        Differs: dropout is off, so that both passes of gradient caching see the same network.
    """

    def __init__(
        self, encoder: Any, tokenizer: Any, head: TextHead, max_tokens: int, terms: TextTerms = NO_WORDS
    ) -> None:
        keep_memory()  # each batch takes the same blocks as the one before
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = encoder.to(self.device).eval()
        self.tokenizer = tokenizer
        self.head = head.to(self.device)
        self.max_tokens = min(max_tokens, int(encoder.config.max_position_embeddings))
        self.terms = terms

    @classmethod
    def from_encoder(cls, encoder: str, max_tokens: int = 64) -> "TextTower":
        """An untrained tower on a pretrained encoder.

        Args:
            encoder: "all-MiniLM-L6-v2" (installed as a package), a folder, or a hub name "org/model".

        Raises:
            ModelError: nothing is found there, or the packaged weights are not the published ones.
        """
        place, local_only = find_encoder(encoder)
        model, tokenizer = load_encoder(place, local_only)
        return cls(model, tokenizer, TextHead(int(model.config.hidden_size)), max_tokens)

    @classmethod
    def load(cls, folder: Path) -> "TextTower":
        """A tower saved by `save`."""
        if not (folder / "head.safetensors").is_file():
            raise ModelError(f"{folder}: no head.safetensors; an earlier revision made this model, train again")
        model, tokenizer = load_encoder(str(folder), local_only=True)
        settings = json.loads((folder / "sentence_bert_config.json").read_text())
        try:
            head, terms = TextHead.of(load_file(folder / "head.safetensors")), TextTerms.load(folder)
            if not settings["max_seq_length"] > 0:
                raise ValueError(f"max_seq_length is {settings['max_seq_length']}")
        except (KeyError, ValueError) as error:
            raise ModelError(f"{folder}: {error}; the folder is damaged, train again") from error
        if head.n_inputs != model.config.hidden_size + terms.dim:
            raise ModelError(
                f"{folder}: the head takes {head.n_inputs} inputs, the encoder gives {model.config.hidden_size} and the words "
                f"{terms.dim}; the folder mixes two models, train again"
            )
        return cls(model, tokenizer, head, settings["max_seq_length"], terms)

    def save(self, folder: Path) -> None:
        """Writes safetensors, tokenizer and JSON in the layout that `SentenceTransformer(folder)` opens.

        It knows no words: what it makes of a text is what the tower makes of one without a known word.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in self.head.state_dict().items()}, folder / "head.safetensors"
        )
        self.terms.save(folder)
        self.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        _write_json(folder / "sentence_bert_config.json", {"max_seq_length": self.max_tokens, "do_lower_case": False})
        _write_json(
            folder / "1_Pooling" / "config.json",
            {"word_embedding_dimension": self.hidden_size, "pooling_mode_mean_tokens": True},
        )
        activations = ("torch.nn.modules.activation.GELU", "torch.nn.modules.linear.Identity")
        for name, weight, activation in zip(
            _DENSE, self.head.as_two_layers(self.hidden_size), activations, strict=True
        ):
            shape = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": False}
            _write_json(folder / name / "config.json", shape | {"activation_function": activation})
            save_file({"linear.weight": weight}, folder / name / "model.safetensors")
        paths = ["", "1_Pooling", "2_Normalize", *_DENSE, "5_Normalize"]
        entries = [
            {
                "idx": i,
                "name": str(i),
                "path": path,
                "type": f"sentence_transformers.models.{path[2:] or 'Transformer'}",
            }
            for i, path in enumerate(paths)
        ]
        for path in paths:
            (folder / path).mkdir(exist_ok=True)
        _write_json(folder / "modules.json", entries)

    def with_terms(self, terms: TextTerms) -> "TextTower":
        """A tower over the same encoder that reads other words; a head it is given stays its own."""
        other = copy.copy(self)
        other.terms = terms
        return other

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.head.projection.shape[0])

    @property
    def hidden_size(self) -> int:
        """Length of a pooled vector."""
        return int(self.encoder.config.hidden_size)

    def encoder_sha256(self) -> str:
        """Hash of everything that decides a pooled vector: encoder weights, tokenizer, cut."""
        digest = hashlib.sha256(f"pooled {self.max_tokens} {identity_of(self.tokenizer)}".encode())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids per text, each with the encoder's first and last mark, at most `max_tokens` long."""
        if not texts:
            return []
        # Nobody's sentence needs more than ~20 characters a token: cutting first bounds the time of a 10 MB text.
        cut = [text[: 20 * self.max_tokens] for text in texts]
        encoded = self.tokenizer(cut, truncation=True, max_length=self.max_tokens, padding=False)
        return list(encoded["input_ids"])

    def pieces(self, texts: Sequence[str]) -> list[str]:
        """Texts with the numbers of their first word pieces in the place of words, (n,), for `term_vectors`."""
        most = MAX_CHARACTERS // 7  # six digits and a space
        return [" ".join(map(str, tokens[1:-1][:most])) for tokens in self.tokenize(texts)]

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """Unit vectors of texts, (n, dim) float32, of an empty one zeros; each distinct text is encoded once."""
        return self.project(self.inputs(texts, self.pooled(texts, progress)))

    def inputs(self, texts: Sequence[str], pooled: FloatArray) -> FloatArray:
        """What the head is given of texts: unit pooled vectors, and their words beside them, (n, inputs) float32.

        Zeros for an empty text: items that say nothing are like none, not like each other.
        """
        says = np.array([bool(text) for text in texts])
        return np.concatenate([unit_rows(pooled) * says[:, None], self.terms.vectors(texts)], axis=1, dtype=np.float32)

    def new_head(self, inputs: FloatArray, seed: int) -> None:
        """An untrained head for such inputs, (n, inputs); its vectors are as long as the encoder's."""
        self.head = TextHead.untrained(inputs, self.hidden_size, seed).to(self.device)

    def pooled(self, texts: Sequence[str], progress: Progress | None = None) -> FloatArray:
        """Mean token vectors before the head, (n, hidden_size) float32."""
        distinct = list(dict.fromkeys(texts))
        out = self.encode_tokens(self.tokenize(distinct), progress)
        row_of = {text: row for row, text in enumerate(distinct)}
        return out[[row_of[text] for text in texts]] if texts else out

    def encode_tokens(self, tokens: list[list[int]], progress: Progress | None = None) -> FloatArray:
        """Pooled vectors of tokenized texts, (n, hidden_size) float32."""
        out = np.zeros((len(tokens), self.hidden_size), dtype=np.float32)
        done = 0
        encoder = self.encoder
        if has_bf16(self.device) and len(tokens) > _ROWS_WORTH_A_COPY:
            # weights cast once, not by every product of every batch
            encoder = copy.deepcopy(encoder).to(torch.bfloat16)
            if self.device.type == "cpu":
                encoder = with_fused_linears(encoder)
        with torch.inference_mode(), self.autocast() if encoder is self.encoder else nullcontext():
            for rows in _micro_batches([len(t) for t in tokens], _TOKENS_PER_ENCODING):
                out[rows] = self._pool([tokens[i] for i in rows], encoder).float().cpu().numpy()
                done += len(rows)
                if progress:
                    progress(done, len(tokens))
        return out

    def project(self, inputs: FloatArray) -> FloatArray:
        """Unit vectors from the head's inputs, (n, dim) float32; see `inputs`."""
        out = np.empty((len(inputs), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(inputs), _ROWS_PROJECTED):
                rows = torch.from_numpy(inputs[start : start + _ROWS_PROJECTED]).to(self.device)
                out[start : start + len(rows)] = self.head(rows).cpu().numpy()
        return out

    def trainable(self, frozen_layers: int) -> list[nn.Parameter]:
        """Encoder parameters that are trained: those above the lowest `frozen_layers`, at least one layer, no embeddings."""
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(False)
        layers = layers_of(self.encoder)
        chosen = [p for layer in layers[min(frozen_layers, len(layers) - 1) :] for p in layer.parameters()]
        for parameter in chosen:
            parameter.requires_grad_(True)
        return chosen

    def backward(self, tokens: list[list[int]], loss_of: Callable[[Tensor], Tensor]) -> float:
        """Adds the gradient of a loss over many items' vectors, in memory for a few of them.

        Vectors are made without gradient, the loss is differentiated down to them, then each micro-batch is
        encoded again with gradient and receives its share (gradient caching). A small step keeps its activations
        instead, and encodes once.

        Args:
            tokens: one list of token ids per item.
            loss_of: from unit vectors (n_items, dim) to a scalar.

        Returns:
            The loss.
        """
        batches = list(_micro_batches([len(t) for t in tokens], _TOKENS_PER_BATCH))
        if sum(len(t) for t in tokens) <= _TOKENS_IN_ONE_PASS:
            with self.autocast():
                parts = [self._pool([tokens[i] for i in rows], self.encoder).float() for rows in batches]
            place = torch.from_numpy(np.argsort(np.concatenate(batches)))
            loss = loss_of(self.head(torch.cat(parts)[place]))
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())
        pooled = torch.empty(len(tokens), self.hidden_size, device=self.device)
        with torch.no_grad(), self.autocast():
            for rows in batches:
                pooled[rows] = self._pool([tokens[i] for i in rows], self.encoder).float()
        pooled.requires_grad_(True)
        loss = loss_of(self.head(pooled))
        loss.backward()  # type: ignore[no-untyped-call]
        assert pooled.grad is not None
        for rows in batches:
            with self.autocast():
                again = self._pool([tokens[i] for i in rows], self.encoder)
            again.float().backward(pooled.grad[rows])  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        """A copy of what training changes, by name; `load_state` puts it back."""
        trained = {f"encoder.{n}": p.detach().clone() for n, p in self.encoder.named_parameters() if p.requires_grad}
        return trained | {f"head.{n}": p.detach().clone() for n, p in self.head.named_parameters()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Puts back a copy made by `state`."""
        parts = {"encoder": self.encoder, "head": self.head}
        named = {f"{part}.{n}": p for part, module in parts.items() for n, p in module.named_parameters()}
        with torch.no_grad():
            for name, value in state.items():
                named[name].copy_(value)

    def _pool(self, tokens: list[list[int]], encoder: Any) -> Tensor:
        """Mean token vectors of texts of similar length, (n, hidden_size)."""
        lengths = torch.tensor([len(t) for t in tokens])
        longest = int(lengths.max())
        filler = int(self.tokenizer.pad_token_id or 0)
        ids = torch.tensor([t + [filler] * (longest - len(t)) for t in tokens])
        mask = (torch.arange(longest) < lengths[:, None]).long().to(self.device)
        hidden = encoder(input_ids=ids.to(self.device), attention_mask=mask).last_hidden_state
        kept = mask.unsqueeze(-1).to(hidden.dtype)  # (n, longest, 1)
        return torch.as_tensor((hidden * kept).sum(1) / kept.sum(1).clamp(min=1))

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in bfloat16 where the machine is faster at them."""
        if has_bf16(self.device):
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def _micro_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[IntArray]:
    """Rows grouped by similar length, at most `max_tokens` padded tokens a group."""
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, max_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
