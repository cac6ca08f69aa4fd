import json
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.bundle import load_arrays, save_arrays
from recsys.errors import ModelError
from recsys.text_terms import TextTerms
from recsys.text_tower import TextTower

TEXTS = ["green tea", "", "bike chain saddle", "green tea", "canvas " * 500]


@pytest.fixture
def tower(tiny_encoder: Path) -> TextTower:
    """Over 32 pooled numbers, no words, and a head that does something."""
    return disturbed(TextTower.from_encoder(str(tiny_encoder), max_tokens=16))


@pytest.fixture
def reader(tiny_encoder: Path) -> TextTower:
    """The same with two words that it knows, "green" and "tea", and their pair."""
    tower = TextTower.from_encoder(str(tiny_encoder), max_tokens=16)
    tower.terms = TextTerms.fit(["green tea", "green tea pot", "bike chain", "oil paint", "a", "b", "c"], seed=0)
    tower.new_head(tower.inputs(TEXTS, tower.pooled(TEXTS)), seed=0)
    return disturbed(tower)


def disturbed(tower: TextTower) -> TextTower:
    with torch.no_grad():
        for weight in tower.head.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return tower


def test_vectors_have_unit_length_but_for_an_empty_text_which_is_like_none(tower: TextTower) -> None:
    vectors = tower.encode(TEXTS)
    assert vectors.shape == (5, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 1, 1, 1], rtol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[3])


@pytest.mark.parametrize("which", ["tower", "reader"])
def test_save_then_load_gives_the_same_vectors_and_hash(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tower: TextTower = request.getfixturevalue(which)
    tower.save(tmp_path)
    again = TextTower.load(tmp_path)
    np.testing.assert_array_equal(again.encode(TEXTS), tower.encode(TEXTS))
    assert again.encoder_sha256() == tower.encoder_sha256()


def test_an_untrained_head_adds_the_likeness_of_encoder_and_words(reader: TextTower) -> None:
    texts = ["green tea", "tea pot green"]
    pooled = reader.pooled(texts)
    reader.new_head(reader.inputs(texts, pooled), seed=0)  # 32 directions hold all of two texts
    one, other = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    words = reader.terms.vectors(texts)
    vectors = reader.encode(texts)
    np.testing.assert_allclose(vectors[0] @ vectors[1], (one @ other + words[0] @ words[1]) / 2, rtol=1e-4)


def test_a_model_of_an_earlier_revision_is_named(tower: TextTower, tmp_path: Path) -> None:
    tower.save(tmp_path)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no head\.safetensors; an earlier revision made this model, train again"):
        TextTower.load(tmp_path)


def test_a_head_of_another_size_and_terms_that_do_not_fit_are_refused(
    tower: TextTower, reader: TextTower, tmp_path: Path
) -> None:
    tower.save(tmp_path / "plain")
    reader.save(tmp_path / "words")
    shutil.copy(tmp_path / "plain" / "head.safetensors", tmp_path / "words")
    with pytest.raises(ModelError, match="the head takes 32 inputs, the encoder gives 32 and the words"):
        TextTower.load(tmp_path / "words")
    (tmp_path / "words" / "terms.json").write_text("[]")
    with pytest.raises(
        ModelError, match=r"0 terms, but idf of \(\d,\) and directions of \(\d, \d\); the folder is damaged"
    ):
        TextTower.load(tmp_path / "words")


def test_the_hash_of_pooled_vectors_changes_with_the_encoder_and_not_with_the_head(tower: TextTower) -> None:
    before = tower.encoder_sha256()
    with torch.no_grad():
        tower.head.outer[0, 0] += 1
    assert tower.encoder_sha256() == before
    with torch.no_grad():
        next(tower.encoder.parameters())[0, 0] += 1
    assert tower.encoder_sha256() != before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_sentence_transformers_opens_the_saved_tower(tower: TextTower, reader: TextTower, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    tower.save(tmp_path)
    texts = [text for text in TEXTS if text]  # theirs gives an empty one the vector of its marks
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    reader.save(tmp_path / "words")
    unread = ["bike", "canvas " * 500]  # no word that the reader knows
    theirs_unread = SentenceTransformer(str(tmp_path / "words"), device="cpu").encode(unread)
    assert (np.asarray(theirs_unread) * reader.encode(unread)).sum(1).min() > 0.999
    # ours runs in bfloat16 where the processor has it, which keeps about three digits
    assert (np.asarray(theirs) * tower.encode(texts)).sum(1).min() > 0.999


@pytest.mark.parametrize("tokens_in_one_pass", [0, 1000])
def test_gradient_caching_gives_the_gradient_of_the_plain_way(
    tower: TextTower, tokens_in_one_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.text_tower._TOKENS_IN_ONE_PASS", tokens_in_one_pass)
    parameters = tower.trainable(frozen_layers=0)
    tokens = tower.tokenize(["green tea", "bike chain saddle", "oil paint canvas brush"])

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        return (vectors[0] @ vectors[1]) + (vectors[1] @ vectors[2]) ** 2

    cached = tower.backward(tokens, loss_of)
    ours = [p.grad.clone() for p in [*parameters, *tower.head.parameters()] if p.grad is not None]
    for p in [*parameters, *tower.head.parameters()]:
        p.grad = None
    with tower.autocast():
        pooled = torch.cat([tower._pool([t], tower.encoder) for t in tokens]).float()
    plain = loss_of(tower.head(pooled))
    plain.backward()  # type: ignore[no-untyped-call]
    theirs = [p.grad for p in [*parameters, *tower.head.parameters()] if p.grad is not None]
    assert abs(cached - float(plain.detach())) < 0.02
    assert len(ours) == len(theirs) > 10
    norm = sum(float(b.norm()) for b in theirs)
    assert sum(float((a - b).norm()) for a, b in zip(ours, theirs, strict=True)) < 0.05 * norm


def test_an_encoder_whose_weights_lack_a_part_is_not_drawn_at_random(tiny_encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "e")
    weights = load_arrays(tmp_path / "e" / "model.safetensors")
    del weights["embeddings.word_embeddings.weight"]
    save_arrays(tmp_path / "e" / "model.safetensors", **weights)
    with pytest.raises(ModelError, match=r"weights lack 1, such as 'embeddings\.word_embeddings\.weight'"):
        TextTower.from_encoder(str(tmp_path / "e"))


def test_a_tokenizer_that_knows_more_than_its_encoder_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "e")
    content = json.loads((tmp_path / "e" / "tokenizer.json").read_text())
    content["model"]["vocab"]["red"] = 10**5
    (tmp_path / "e" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="its tokenizer knows a token 100,000"):
        TextTower.from_encoder(str(tmp_path / "e"))


def test_an_encoder_that_is_nowhere_is_named() -> None:
    with pytest.raises(ModelError, match="no-such-encoder"):
        TextTower.from_encoder("no-such-encoder")


@pytest.mark.slow
def test_the_packaged_encoder_knows_that_a_cat_is_closer_to_a_kitten_than_to_a_truck() -> None:
    cat, kitten, truck = TextTower.from_encoder("all-MiniLM-L6-v2").encode(["cat", "kitten", "truck"])
    assert cat @ kitten > cat @ truck + 0.2


@pytest.mark.slow
def test_a_step_in_bfloat16_has_the_gradient_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a small cat", "a kitten", "a truck on a muddy road", "heavy lorry with a trailer and a crane"] * 2
    gradients = []
    for autocast in (partial(torch.autocast, "cpu", dtype=torch.bfloat16), nullcontext):
        tower = TextTower.from_encoder("all-MiniLM-L6-v2")
        monkeypatch.setattr(tower, "autocast", autocast)
        trained = tower.trainable(frozen_layers=2)
        tower.backward(tower.tokenize(texts), lambda vectors: -(vectors[::2] * vectors[1::2]).sum())
        gradients.append(torch.cat([p.grad.double().ravel() for p in trained if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99


def test_a_mended_tokenizer_is_another_encoder_and_a_call_of_it_is_not(tiny_encoder: Path, tmp_path: Path) -> None:
    """Vectors in the cache are those of its hash: with other tokens they would be another text's."""
    tower = TextTower.from_encoder(str(tiny_encoder), 16)
    before = tower.encoder_sha256()
    tower.tokenize(["red tea", "oil"])
    assert tower.encoder_sha256() == before
    shutil.copytree(tiny_encoder, tmp_path / "cased")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "cased" / name
        path.write_text(
            path.read_text()
            .replace('"lowercase": true', '"lowercase": false')
            .replace('"do_lower_case": true', '"do_lower_case": false')
        )
    cased = TextTower.from_encoder(str(tmp_path / "cased"), 16)
    assert cased.tokenize(["Red Tea"]) != tower.tokenize(["Red Tea"])
    assert cased.encoder_sha256() != before
