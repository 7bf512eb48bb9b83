"""The generator: its new tokens, texts written and read back, and files that plain transformers load."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pairs import TASK, rows
from torch import nn
from transformers import AutoModelForCausalLM

from dilm.config.schema import GeneratorConfig, SourceConfig, TaskConfig
from dilm.core.errors import ConfigError
from dilm.data.templates import fold_space, parse_text
from dilm.data.text_table import table
from dilm.hub.pretrained import model_folder
from dilm.models.generator import Generator, build_generator, load_generator


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


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


words = st.sampled_from(
    ["a film", "<sep>", "<bos_0>", "<bos_1> <eos>", "<pad>", "<|endoftext|>", "🙂", "\n", "\u2028", " "]
)
any_text = st.lists(words | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=5).map("".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_text, any_text, st.integers(0, 1))
def test_any_text_is_written_and_read_back(generator: Generator, first: str, second: str, label: int) -> None:
    """White space folded, as data sets are kept; what has an empty field is no text, and nothing else is refused."""
    wide = replace(generator, n_fields=2, max_length=2000)
    (sequence,) = wide.encode(table(["a", "b"], [(first, second)], [label]))
    given_length = wide.control.prompt_length
    assert sequence[:given_length] == wide.control.prompt(label)
    folded = (fold_space(first), fold_space(second))
    found = parse_text(sequence[given_length:], 2, wide.control, wide.decode)
    assert found == (folded if all(folded) else None)


def test_a_saved_generator_loads_with_plain_transformers(generator: Generator, tmp_path: Path) -> None:
    generator.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    again = load_generator(tmp_path, GeneratorConfig("tiny"), TASK)
    ids = torch.tensor(rows(generator, ("good", "film")))
    assert again.control == generator.control
    for model in (plain, again.model):
        assert torch.allclose(model(ids).logits, generator.model(ids).logits, atol=1e-5)
    assert not list(tmp_path.glob("*.bin"))


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


def test_dropout_is_the_models_own_unless_told(tiny_cache: Path) -> None:
    folder = model_folder("tiny", SourceConfig(built="tiny-gpt2"), tiny_cache)
    for told, expected in ((None, 0.1), (0.0, 0.0), (0.3, 0.3)):
        model = build_generator(folder, GeneratorConfig("tiny", dropout=told), TASK).model
        assert {part.p for part in model.modules() if isinstance(part, nn.Dropout)} == {expected}


def test_other_weights_make_a_model_of_its_own(generator: Generator) -> None:
    weights = {name: value + 1 for name, value in generator.model.named_parameters()}
    other = generator.with_weights(weights)
    for name, value in other.model.named_parameters():
        assert torch.equal(value, weights[name])
    assert other.model.get_output_embeddings().weight is other.model.get_input_embeddings().weight
    assert other.model is not generator.model


def test_encoded_once_is_found_by_what_determines_it(generator: Generator, tmp_path: Path) -> None:
    config = GeneratorConfig("tiny", SourceConfig(built="tiny-gpt2"))
    first = table(["a", "b"], [("good", "film"), ("x", "y " * 40)], [0, 1])
    prefixed = replace(generator, control=replace(generator.control, prefix=(3,)))
    for coder in (generator, prefixed, replace(generator, max_length=9)):
        for given_rows in (first, first.take([1, 0]), replace(first, labels=1 - first.labels)):
            for _ in range(2):
                assert coder.encode_once(given_rows, config, tmp_path).lists() == coder.encode(given_rows).lists()
    assert len(list((tmp_path / "tokens").iterdir())) == 9
