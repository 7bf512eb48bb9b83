"""The learner: fresh means fresh, features are what the head reads, and gradients need no backward pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from dilm.config.schema import LearnerConfig, OptimizerConfig, SourceConfig
from dilm.core.errors import ConfigError
from dilm.matching.gradients import head_gradients, label_means, parameter_gradient, text_gradients
from dilm.models.learner import Learner, _last_linear, build_learner, forward_all, pool, segment_ids, text_loss
from dilm.training.engine import TorchEngine
from tests.unit.architectures import FAMILIES, learner_of

CPU = torch.device("cpu")
TEXTS = [("a good film",), ("bad",), ("a plot that goes on and on",), ("fine",)]
LABELS = np.array([1, 0, 0, 1])


def built(cache: Path, pooling: str = "model", kind: str = "tiny-bert", embedding: str = "cls") -> Learner:
    config = LearnerConfig("tiny", SourceConfig(built=kind), pooling=pooling, embedding=embedding, max_length=32)
    return build_learner(config, 2, cache, CPU)


@pytest.mark.parametrize(
    ("pooling", "kind"), [("model", "tiny-bert"), ("mean", "tiny-bert"), ("cls", "tiny-bert"), ("model", "tiny-gpt2")]
)
def test_closed_form_gradient_is_the_models_own(tiny_cache: Path, pooling: str, kind: str) -> None:
    learner = built(tiny_cache, pooling, kind).fresh("test").double().eval()
    tokens = learner.tokenize(TEXTS).lists()
    parameters = list(learner.head.parameters())
    for ids, label in zip(tokens, LABELS, strict=True):
        row = torch.tensor([ids])
        if learner.classifier is not None:
            logits = learner.classifier(input_ids=row, attention_mask=torch.ones_like(row)).logits
        else:
            logits = learner(row, torch.ones_like(row))
        expected = parameter_gradient(F.cross_entropy(logits, torch.tensor([label])), parameters)
        with torch.no_grad():
            features = learner.features(row, torch.ones_like(row))
            closed = head_gradients(
                features, learner.head(features), torch.tensor([label]), learner.head.bias is not None
            )
        assert torch.allclose(closed[0], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("pooling", "kind"), [("model", "tiny-bert"), ("mean", "tiny-bert"), ("model", "tiny-gpt2")])
def test_fresh_restores_every_weight_and_draws_the_head_from_its_names(
    tiny_cache: Path, pooling: str, kind: str
) -> None:
    learner = built(tiny_cache, pooling, kind).fresh("a", 1)
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    engine = TorchEngine(learner, OptimizerConfig(lr=1e-2, warmup=0.0), 3)
    for _ in range(3):
        engine.step(lambda: text_loss(learner, learner.tokenize(TEXTS), LABELS, "fp32"))
    changed = [name for name, tensor in learner.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) > len(before) / 2
    learner.fresh("a", 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.state_dict().items())
    learner.fresh("a", 2)
    assert not torch.equal(learner.head.weight, before["head.weight"])


def test_logits_are_those_of_the_architecture(tiny_cache: Path) -> None:
    for kind in ("tiny-bert", "tiny-gpt2"):
        learner = built(tiny_cache, "model", kind).fresh("x").eval()
        logits = forward_all(learner, learner.tokenize(TEXTS), "forward", "fp32")
        for ids, row in zip(learner.tokenize(TEXTS).lists(), logits, strict=True):
            assert isinstance(learner.classifier, torch.nn.Module)
            expected = learner.classifier(input_ids=torch.tensor([ids])).logits[0]
            assert torch.allclose(row, expected, atol=1e-5)


def test_forward_all_keeps_the_order_and_the_mode(tiny_cache: Path) -> None:
    learner = built(tiny_cache, "mean").fresh("x").train()
    tokens = learner.tokenize(TEXTS)
    together = forward_all(learner, tokens, "embed", "fp32")
    assert learner.training
    for position, ids in enumerate(tokens):
        assert torch.allclose(forward_all(learner, [ids], "embed", "fp32")[0], together[position], atol=1e-5)


def test_pool_ignores_padding() -> None:
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pool(hidden, mask, "mean").tolist() == [[1.0, 2.0], [8.0, 9.0]]
    assert pool(hidden, mask, "last").tolist() == [[2.0, 3.0], [10.0, 11.0]]
    assert pool(hidden, mask, "cls").tolist() == [[0.0, 1.0], [6.0, 7.0]]


def test_text_gradients_rows_and_their_means(tiny_cache: Path) -> None:
    learner = built(tiny_cache, "mean").fresh("x")
    rows = text_gradients(learner, learner.tokenize(TEXTS), LABELS, "fp32")
    assert rows.shape == (4, sum(p.numel() for p in learner.head.parameters()))
    assert torch.allclose(label_means(rows, LABELS, 2)[1], (rows[0] + rows[3]) / 2)


def test_text_loss_is_the_mean_over_texts_however_they_are_batched(
    tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = built(tiny_cache, "mean").fresh("x").eval()
    tokens = learner.tokenize(TEXTS).lists()
    logits = torch.cat([learner(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)) for ids in tokens])
    expected = F.cross_entropy(logits, torch.as_tensor(LABELS)).detach()
    for budget in (1, 16, 10_000):
        monkeypatch.setattr("dilm.models.learner.CPU_TOKENS", budget)
        assert torch.allclose(text_loss(learner, tokens, LABELS, "fp32").detach(), expected, atol=1e-6)


def test_pairs_are_tokenised_together_and_cut(tiny_cache: Path) -> None:
    learner = built(tiny_cache)
    (pair,) = learner.tokenize([("first", "second")])
    assert learner.tokenizer.sep_token_id in pair[1:-1]
    (long,) = learner.tokenize([("word " * 200,)])
    assert len(long) == 32


def test_a_model_without_a_linear_head_is_refused(tiny_cache: Path) -> None:
    learner = built(tiny_cache)
    with pytest.raises(ConfigError, match=r"learner 'x': no linear layer with 7 outputs.*pooling=mean"):
        _last_linear(learner.encoder, 7, "x")
    assert isinstance(learner.classifier, type(AutoModelForSequenceClassification.from_config(learner.encoder.config)))


@pytest.mark.parametrize("family", FAMILIES)
def test_any_familys_batch_gives_the_logits_of_its_texts_alone(tmp_path: Path, family: str) -> None:
    """Whatever side it pads on, and whatever segments it wants to be told."""
    learner = learner_of(family, tmp_path).fresh("x").eval()
    tokens = learner.tokenize(TEXTS)
    together = learner(*learner.pad(tokens))
    for row, ids in enumerate(tokens):
        assert isinstance(learner.classifier, torch.nn.Module)
        assert torch.allclose(
            together[row], learner.classifier(**learner._inputs(*learner.pad([ids]))).logits[0], atol=1e-5
        )
    for how in ("cls", "last", "mean"):
        learner.config.embedding = how
        embedded = learner.embed(*learner.pad(tokens))
        assert all(
            torch.allclose(embedded[row], learner.embed(*learner.pad([ids]))[0], atol=1e-5)
            for row, ids in enumerate(tokens)
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_draws_every_layer_of_a_head_anew_by_name(tmp_path: Path, family: str) -> None:
    learner = learner_of(family, tmp_path)
    encoded = {id(parameter) for parameter in learner.encoder.parameters()}
    matrices = {
        name: parameter
        for name, parameter in learner.named_parameters()
        if id(parameter) not in encoded and parameter.dim() == 2
    }
    assert len(matrices) >= 2
    first = {name: value.detach().clone() for name, value in learner.fresh("a").named_parameters() if name in matrices}
    again = learner_of(family, tmp_path).fresh("a")  # as another process would
    other = learner_of(family, tmp_path).fresh("b")
    for name, value in first.items():
        assert torch.equal(again.get_parameter(name), value)
        assert not torch.equal(other.get_parameter(name), value)


def test_segments_are_those_of_the_tokenizer(tiny_cache: Path) -> None:
    learner = built(tiny_cache)
    pairs = [("first text", "second"), ("a", "b c d")]
    encoded = learner.tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
    found = learner._inputs(*learner.pad(learner.tokenize(pairs)))["token_type_ids"]
    real = encoded["attention_mask"].bool()
    assert torch.equal(found[real], encoded["token_type_ids"][real])
    assert found.max() == 1


def test_xlnets_segments_end_with_that_of_its_cls() -> None:
    sep, cls = 4, 3
    ids = torch.tensor([[7, 8, sep, 9, sep, cls]])  # A <sep> B <sep> <cls>
    assert segment_ids(ids, sep, cls).tolist() == [[0, 0, 0, 1, 1, 2]]
    assert segment_ids(torch.tensor([[7, sep, cls]]), sep, cls).tolist() == [[0, 0, 2]]
