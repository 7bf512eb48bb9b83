"""Both routes to the learner's gradients against each text's own, and the whole chain down to the generator."""

from pathlib import Path

import numpy as np
import pytest
import torch
from losses import DISTANCES, Distance
from torch import Tensor, nn
from torch.nn import functional as F

from dilm.config.schema import GeneratorConfig, LearnerConfig, SourceConfig, TaskConfig
from dilm.core.errors import ConfigError
from dilm.distributed.world import ALONE
from dilm.hub.pretrained import model_folder
from dilm.matching.gradients import (
    AutogradGradients,
    HeadGradients,
    gradients_of,
    matched_parameters,
    parameter_gradient,
)
from dilm.matching.loss import generation_weights, match_gradients
from dilm.models.generator import Generator, build_generator
from dilm.models.learner import Learner, build_learner, text_losses
from dilm.models.likelihood import text_nll
from tests.unit.architectures import FAMILIES, learner_of

CPU = torch.device("cpu")
TEXTS = [("a good film",), ("bad",), ("a plot that goes on and on and on",), ("fine",), ("the end is dull",)]
LABELS = np.array([1, 0, 0, 1, 2])
KINDS = ("tiny", *FAMILIES)


def built(kind: str, folder: Path, cache: Path) -> Learner:
    """A learner in fp64: a linear head on BERT's pooler (tiny), or another family's head of several layers."""
    if kind == "tiny":
        config = LearnerConfig("tiny", SourceConfig(built="tiny-bert"), pooling="model", max_length=40)
        learner = build_learner(config, 3, cache, CPU)
    else:
        learner = learner_of(kind, folder / kind)
    learner.fresh("gradients")
    return learner.double().eval()


def rows_of(learner: Learner, parameters: list[nn.Parameter]) -> Tensor:
    """Each text's own gradient, one text at a time: rows_BP."""
    tokens = learner.tokenize(TEXTS)
    losses = [text_losses(learner, [ids], LABELS[[row]], "fp32").sum() for row, ids in enumerate(tokens)]
    return torch.stack([parameter_gradient(loss, parameters) for loss in losses])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["classifier", "last_layers:1", "last_layers:2", "all"])
def test_sums_and_products_are_those_of_the_texts_own_gradients(
    tmp_path: Path, tiny_cache: Path, kind: str, which: str
) -> None:
    learner = built(kind, tmp_path, tiny_cache)
    parameters = matched_parameters(learner, which)
    assert (parameters is None) == (kind == "tiny" and which == "classifier")
    found = gradients_of(learner, learner.tokenize(TEXTS), LABELS, parameters, "fp32")
    rows_BP = rows_of(learner, list(learner.head.parameters()) if parameters is None else parameters)
    assert isinstance(found, HeadGradients if parameters is None else AutogradGradients)

    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(5, dtype=torch.float64, generator=generator)
    directions = torch.randn(3, rows_BP.shape[1], dtype=torch.float64, generator=generator)
    expected = torch.stack([(weights[label == LABELS, None] * rows_BP[label == LABELS]).sum(0) for label in range(3)])
    assert torch.allclose(found.sums(weights), expected, rtol=0, atol=1e-8)
    products = (rows_BP * directions[LABELS]).sum(1)
    assert torch.allclose(found.products(directions), products, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_heads_parameters_are_all_that_is_not_the_encoder(tmp_path: Path, tiny_cache: Path, kind: str) -> None:
    learner = built(kind, tmp_path, tiny_cache)
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    head = matched_parameters(learner, "classifier")
    if kind == "roberta":
        assert head is not None
        assert {names[id(parameter)] for parameter in head} == {
            f"classifier.classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")
        }
    everything = matched_parameters(learner, "all")
    last = matched_parameters(learner, "last_layers:1")
    assert everything is not None and last is not None
    assert len(everything) == len(list(learner.parameters()))
    assert {id(parameter) for parameter in head or learner.head.parameters()} < {id(parameter) for parameter in last}
    assert {id(parameter) for parameter in last} < {id(parameter) for parameter in everything}
    with pytest.raises(ConfigError, match=r"last_layers:3.*has only 2 layers"):
        matched_parameters(learner, "last_layers:3")


def writer(cache: Path) -> tuple[Generator, list[list[int]]]:
    """A generator in fp64 and two labels' texts as it would write them."""
    task = TaskConfig(name="tiny", fields=["sentence"], labels=["negative", "positive", "other"], max_length=40)
    config = GeneratorConfig("tiny", SourceConfig(built="tiny-gpt2"))
    generator = build_generator(model_folder("tiny", config.source, cache), config, task, CPU)
    generator.model.double().eval()
    words = generator.tokenizer([text for (text,) in TEXTS], add_special_tokens=False)["input_ids"]
    control = generator.control
    return generator, [
        [*control.prompt(int(label)), *ids, control.eos] for ids, label in zip(words, LABELS, strict=True)
    ]


def real_gradient(rows_BP: Tensor) -> Tensor:
    """Something to match: a fixed direction for each label, of the size of the texts' own."""
    noise = torch.randn(3, rows_BP.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return rows_BP.mean(0) + noise * rows_BP.std()


def matching_loss_of(
    generator: Generator, sequences: list[list[int]], rows_BP: Tensor, real_CP: Tensor, distance: Distance
) -> Tensor:
    """The loss by its definition, with autograd's graph down to the generator's weights."""
    nll_B = text_nll(generator, sequences, "fp32")
    losses = []
    for label in range(3):
        rows = np.flatnonzero(label == LABELS)
        synthetic_P = generation_weights(nll_B[rows]) @ rows_BP[rows]
        losses.append(distance(real_CP[label], synthetic_P))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("name", sorted(DISTANCES))
@pytest.mark.parametrize("kind", KINDS)
def test_the_generators_gradient_is_that_of_the_definition(
    tmp_path: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """Slopes times nll, back-propagated, against the loss's definition differentiated as a whole, and differences."""
    monkeypatch.setattr("dilm.matching.loss.gradient_distance", DISTANCES[name])
    learner = built(kind, tmp_path, tiny_cache)
    parameters = matched_parameters(learner, "classifier") or list(learner.head.parameters())
    gradients = AutogradGradients(learner, learner.tokenize(TEXTS), LABELS, parameters, "fp32")
    rows_BP = rows_of(learner, parameters)
    real_CP = real_gradient(rows_BP)
    generator, sequences = writer(tiny_cache)
    weights = [weight for weight in generator.model.parameters() if weight.requires_grad]

    nll_B = text_nll(generator, sequences, "fp32")
    matched = match_gradients(real_CP, nll_B, LABELS, np.arange(5), gradients, 1.0, ALONE)
    ours = parameter_gradient((matched.slopes_B * nll_B).sum(), weights)

    def whole() -> Tensor:
        return matching_loss_of(generator, sequences, rows_BP, real_CP, DISTANCES[name])

    expected = parameter_gradient(whole(), weights)
    assert expected.norm() > 1e-6
    assert torch.allclose(ours, expected, rtol=0, atol=1e-8)
    assert float(matched.losses_C.mean() - whole().detach()) == pytest.approx(0, abs=1e-8)
    _check_by_differences(generator, weights, ours, whole)


def _check_by_differences(generator: Generator, weights: list[Tensor], gradient: Tensor, loss: "object") -> None:
    """Central differences along the gradient itself and along a random direction."""
    random = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for direction in (F.normalize(gradient, dim=0), F.normalize(random, dim=0)):
        values = []
        for step in (1e-4, -2e-4):  # forth, and back past the start
            shifts = (step * direction).split([weight.numel() for weight in weights])
            with torch.no_grad():
                for weight, shift in zip(weights, shifts, strict=True):
                    weight += shift.view_as(weight)
                values.append(float(loss()))  # type: ignore[operator]
        with torch.no_grad():
            for weight, shift in zip(weights, (1e-4 * direction).split([w.numel() for w in weights]), strict=True):
                weight += shift.view_as(weight)
        assert (values[0] - values[1]) / 2e-4 == pytest.approx(float(gradient @ direction), abs=1e-5)
