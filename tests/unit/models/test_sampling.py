"""Sampling from the nucleus, and texts that seeds determine."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs import TASK, rows
from torch.nn import functional as F

from dilm.config.schema import GeneratorConfig, SourceConfig
from dilm.hub.pretrained import model_folder
from dilm.models.generator import Generator, build_generator
from dilm.models.likelihood import text_nll
from dilm.models.sampling import Sampler, nucleus_draw, text_uniforms


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_nucleus_draw_follows_the_truncated_distribution() -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.02, 0.3, 0.23])
    n = 20_000
    uniforms = torch.rand(n, 8, generator=torch.Generator().manual_seed(0))
    drawn = nucleus_draw(probabilities.log().expand(n, -1), uniforms, top_p=0.9)
    counts = Counter(drawn.tolist())
    assert set(counts) == {1, 3, 4}  # 0.4 + 0.3 + 0.23 is the first sum of at least 0.9
    for token, probability in ((1, 0.4), (3, 0.3), (4, 0.23)):
        assert counts[token] / n == pytest.approx(probability / 0.93, abs=0.015)


def test_top_p_one_samples_everything_and_top_p_near_zero_is_greedy() -> None:
    logits = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(4000, 8, generator=torch.Generator().manual_seed(1))
    assert (nucleus_draw(logits, uniforms, 1e-9) == logits.argmax(-1)).float().mean() > 0.5
    assert set(nucleus_draw(logits[:1].expand(4000, -1), uniforms, 1.0).tolist()) == set(range(6))


def test_uniforms_of_a_text_depend_on_seed_and_index_alone() -> None:
    assert torch.equal(text_uniforms(3, range(4), 5)[2], text_uniforms(3, [2], 5)[0])
    assert not torch.equal(text_uniforms(3, [2], 5), text_uniforms(4, [2], 5))


def test_texts_do_not_depend_on_the_batch_they_were_written_in(generator: Generator) -> None:
    sampler = Sampler(generator, "fp32")
    alone, few, many = (sampler.sample(1, range(128), ("test",), 0.95, batch).tokens for batch in (1, 7, 64))
    for others in (few, many):
        assert sum(first == second for first, second in zip(alone, others, strict=True)) >= 0.99 * len(alone)
    assert sampler.sample(1, [100, 3], ("test",), 0.95, 2).tokens == [alone[100], alone[3]]
    assert len({len(tokens) for tokens in alone}) > 1


def test_written_nll_is_the_sequences(generator: Generator) -> None:
    samples = Sampler(generator, "fp32").sample(0, range(20), ("nll",), 0.95, 20)
    for tokens, value in zip(samples.tokens, samples.nll, strict=True):
        sequence = [generator.control.bos[0], *tokens]
        expected = text_nll(generator, [sequence], "fp32")[0]
        assert float(value) == pytest.approx(float(expected), abs=1e-4)
        assert len(sequence) <= generator.max_length


def test_sampler_keeps_its_weights_while_the_generator_trains(generator: Generator) -> None:
    sampler = Sampler(generator, "fp32")
    before = sampler.sample(0, range(5), ("copy",), 0.95, 5).tokens
    embedding = generator.model.get_input_embeddings().weight
    kept = embedding.detach().clone()
    with torch.no_grad():
        embedding.add_(1.0)
    assert sampler.sample(0, range(5), ("copy",), 0.95, 5).tokens == before
    with torch.no_grad():
        embedding.copy_(kept)
    assert np.isfinite(Sampler(generator, "bf16").sample(0, range(5), ("copy",), 0.95, 5).nll).all()


def test_a_prefix_stands_before_every_text_and_counts_nowhere(generator: Generator, tiny_cache: Path) -> None:
    folder = model_folder("tiny", SourceConfig(built="tiny-gpt2"), tiny_cache)
    prefixed = build_generator(folder, GeneratorConfig("tiny", prefix=True), TASK)
    prefixed.model.eval()
    first = prefixed.tokenizer.bos_token_id
    assert [prefixed.control.prompt(label) for label in (0, 1)] == [[first, bos] for bos in prefixed.control.bos]
    (sequence,) = rows(prefixed, ("good", "film"))
    assert sequence[:2] == prefixed.control.prompt(0)
    logits = prefixed.model(torch.tensor([sequence])).logits[0, 1:-1]
    expected = F.cross_entropy(logits, torch.tensor(sequence[2:]))
    assert float(text_nll(prefixed, [sequence], "fp32")[0]) == pytest.approx(float(expected), abs=1e-5)
    samples = Sampler(prefixed, "fp32").sample(0, range(20), ("prefix",), 0.95, 20)
    for tokens, value in zip(samples.tokens, samples.nll, strict=True):
        whole = [*prefixed.control.prompt(0), *tokens]
        assert len(whole) <= prefixed.max_length
        assert float(value) == pytest.approx(float(text_nll(prefixed, [whole], "fp32")[0]), abs=1e-4)
