"""The generator: likelihood without padding's influence, sampling from the nucleus, and texts that seeds determine."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from dilm.config import GeneratorConfig, SourceConfig, TaskConfig
from dilm.data import table
from dilm.errors import ConfigError
from dilm.generator import (
    Generator,
    Writer,
    build_generator,
    held_out_scores,
    load_generator,
    nucleus_draw,
    text_nll,
    text_uniforms,
)
from dilm.sources import model_folder

TASK = TaskConfig("pairs", fields=["a", "b"], labels=["not_alike", "alike"], max_length=24)


@pytest.fixture(scope="module")
def generator(tiny_cache: Path) -> Generator:
    folder = model_folder("tiny", SourceConfig(built="tiny-gpt2"), tiny_cache)
    built = build_generator(folder, GeneratorConfig("tiny"), TASK)
    built.model.eval()
    return built


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def rows(generator: Generator, *texts: tuple[str, str]) -> list[list[int]]:
    return generator.encode(table(["a", "b"], list(texts), [0] * len(texts)))


def test_new_tokens_start_from_the_models_own(generator: Generator, tiny_cache: Path) -> None:
    source = AutoModelForCausalLM.from_pretrained(model_folder("tiny", SourceConfig(built="tiny-gpt2"), tiny_cache))
    old = source.get_input_embeddings().weight
    new = generator.model.get_input_embeddings().weight
    control, tokenizer = generator.control, generator.tokenizer
    for token in control.bos:
        assert torch.equal(new[token], old[tokenizer.bos_token_id])
    assert torch.equal(new[control.sep], old[tokenizer.eos_token_id])
    assert torch.equal(new[: len(old)], old)
    assert torch.isfinite(new).all()
    assert generator.model.get_output_embeddings().weight is new  # tied weights stay tied


@pytest.mark.parametrize("text", ["a film", "x <sep> y", "<bos_0> <eos>", "naïve 🙂 “quote”", "<pad>"])
def test_any_text_is_written_and_read_back(generator: Generator, text: str) -> None:
    wide = Generator(generator.model, generator.tokenizer, generator.control, 2, max_length=400)
    (sequence,) = rows(wide, (text, "b"))
    assert [wide.decode(part) for part in _split(sequence[1:-1], wide.control.sep)] == [text, "b"]


def _split(ids: list[int], sep: int) -> list[list[int]]:
    place = ids.index(sep)
    return [ids[:place], ids[place + 1 :]]


def test_nll_is_that_of_the_model_and_independent_of_batch_mates(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = rows(generator, ("b", "c"), ("a much longer sentence", "with another one"), ("good", "film"))
    for budget in (1, 20, 10_000):
        monkeypatch.setattr("dilm.generator.CPU_TOKENS", budget)
        together = text_nll(generator, sequences, "fp32")
        for sequence, value in zip(sequences, together, strict=True):
            logits = generator.model(torch.tensor([sequence])).logits[0, :-1]
            assert float(value) == pytest.approx(float(F.cross_entropy(logits, torch.tensor(sequence[1:]))), abs=1e-5)


def test_nll_can_be_differentiated_in_chunks(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = rows(generator, ("good", "film"), ("a much longer sentence", "with another one"))
    weight = generator.model.get_input_embeddings().weight
    gradients = []
    for budget, chunk in ((10_000, 10_000), (1, 3)):
        monkeypatch.setattr("dilm.generator.CPU_TOKENS", budget)
        monkeypatch.setattr("dilm.generator.TOKENS_PER_CHUNK", chunk)
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
    writer = Writer(generator, "fp32")
    together = writer.write(1, range(60), ("test",), 0.95, 64)
    split = [writer.write(1, range(start, start + 7), ("test",), 0.95, 7) for start in range(0, 56, 7)]
    tokens = [tokens for part in split for tokens in part.tokens]
    same = sum(first == second for first, second in zip(together.tokens, tokens, strict=False))
    assert same >= 0.99 * len(tokens)


def test_written_nll_is_the_sequences(generator: Generator) -> None:
    written = Writer(generator, "fp32").write(0, range(20), ("nll",), 0.95, 20)
    for tokens, value in zip(written.tokens, written.nll, strict=True):
        sequence = [generator.control.bos[0], *tokens]
        expected = text_nll(generator, [sequence], "fp32")[0]
        assert float(value) == pytest.approx(float(expected), abs=1e-4)
        assert len(sequence) <= generator.max_length


def test_a_saved_generator_loads_with_plain_transformers(generator: Generator, tmp_path: Path) -> None:
    generator.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    again = load_generator(tmp_path, GeneratorConfig("tiny"), TASK)
    ids = torch.tensor(rows(generator, ("good", "film")))
    assert again.control == generator.control
    for model in (plain, again.model):
        assert torch.allclose(model(ids).logits, generator.model(ids).logits, atol=1e-5)
    assert not list(tmp_path.glob("*.bin"))


def test_writer_keeps_its_weights_while_the_generator_trains(generator: Generator) -> None:
    writer = Writer(generator, "fp32")
    before = writer.write(0, range(5), ("copy",), 0.95, 5).tokens
    embedding = generator.model.get_input_embeddings().weight
    kept = embedding.detach().clone()
    with torch.no_grad():
        embedding.add_(1.0)
    assert writer.write(0, range(5), ("copy",), 0.95, 5).tokens == before
    with torch.no_grad():
        embedding.copy_(kept)
    assert np.isfinite(Writer(generator, "bf16").write(0, range(5), ("copy",), 0.95, 5).nll).all()


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
    written = Writer(prefixed, "fp32").write(0, range(20), ("prefix",), 0.95, 20)
    for tokens, value in zip(written.tokens, written.nll, strict=True):
        whole = [*prefixed.control.prompt(0), *tokens]
        assert len(whole) <= prefixed.max_length
        assert float(value) == pytest.approx(float(text_nll(prefixed, [whole], "fp32")[0]), abs=1e-4)


def test_bos_can_start_from_the_labels_name(tiny_cache: Path) -> None:
    folder = model_folder("tiny", SourceConfig(built="tiny-gpt2"), tiny_cache)
    named = build_generator(folder, GeneratorConfig("tiny", bos_init="label"), TASK)
    weight = named.model.get_input_embeddings().weight
    for bos, words in zip(named.control.bos, (" not alike", " alike"), strict=True):
        ids = named.tokenizer(words, add_special_tokens=False)["input_ids"]
        assert torch.allclose(weight[bos], weight[ids].mean(0))


def test_a_text_longer_than_the_model_is_refused(tiny_cache: Path) -> None:
    folder = model_folder("tiny", SourceConfig(built="tiny-gpt2"), tiny_cache)
    with pytest.raises(ConfigError, match=r"task\.max_length is 5000, but the generator has only 256 positions"):
        build_generator(folder, GeneratorConfig("tiny"), TaskConfig("long", ["a"], ["x", "y"], max_length=5000))
