"""How likely texts are: without padding's influence, in chunks, over tokens."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pairs import rows
from torch.nn import functional as F

from dilm.data.text_table import table
from dilm.models.generator import Generator
from dilm.models.likelihood import text_nll
from dilm.training.language_model import held_out_scores


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_nll_is_that_of_the_model_and_independent_of_batch_mates(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = rows(generator, ("b", "c"), ("a much longer sentence", "with another one"), ("good", "film"))
    for budget in (1, 20, 10_000):
        monkeypatch.setattr("dilm.models.likelihood.CPU_TOKENS", budget)
        together = text_nll(generator, sequences, "fp32")
        for sequence, value in zip(sequences, together, strict=True):
            logits = generator.model(torch.tensor([sequence])).logits[0, :-1]
            assert float(value) == pytest.approx(float(F.cross_entropy(logits, torch.tensor(sequence[1:]))), abs=1e-5)


def test_nll_can_be_differentiated_in_chunks(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = rows(generator, ("good", "film"), ("a much longer sentence", "with another one"))
    weight = generator.model.get_input_embeddings().weight
    gradients = []
    for budget, chunk in ((10_000, 10_000), (1, 3)):
        monkeypatch.setattr("dilm.models.likelihood.CPU_TOKENS", budget)
        monkeypatch.setattr("dilm.models.likelihood.TOKENS_PER_CHUNK", chunk)
        with torch.enable_grad():
            gradients.append(torch.autograd.grad(text_nll(generator, sequences, "fp32").sum(), weight)[0])
    assert torch.allclose(*gradients, atol=1e-5)
    assert gradients[0].abs().max() > 1e-3


def test_padded_average_depends_on_batch_mates_as_in_the_authors_code(generator: Generator) -> None:
    short, long = rows(generator, ("b", "c"), ("a much longer sentence", "with another one"))
    alone = text_nll(generator, [short], "fp32", average="padded")
    together = text_nll(generator, [short, long], "fp32", average="padded")
    assert float(together[0]) == pytest.approx(float(alone[0]) * (len(short) - 1) / (len(long) - 1), rel=1e-4)


def test_held_out_scores_are_over_tokens_and_over_texts(generator: Generator) -> None:
    texts = [("good", "film"), ("a much longer sentence", "with another one"), ("b", "c"), ("x y", "z")]
    sequences = generator.encode(table(["a", "b"], texts, [0, 1, 1, 0]))
    nll, accuracy = held_out_scores(generator, sequences, "fp32")
    sums = [float(text_nll(generator, [sequence], "fp32")[0]) * (len(sequence) - 1) for sequence in sequences]
    assert nll == pytest.approx(sum(sums) / sum(len(sequence) - 1 for sequence in sequences), abs=1e-5)
    assert accuracy == 0.5  # untrained, both <bos_y> are alike, and ties go to the first

    weight = generator.model.get_input_embeddings().weight
    kept = weight.detach().clone()
    weight[generator.control.bos[1]] += torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0))
    expected = np.mean(
        [
            min((0, 1), key=lambda y: float(text_nll(generator, [[generator.control.bos[y], *rest]], "fp32")[0]))
            == label
            for (_, *rest), label in zip(sequences, [0, 1, 1, 0], strict=True)
        ]
    )
    assert held_out_scores(generator, sequences, "fp32")[1] == pytest.approx(expected)
    weight.copy_(kept)
