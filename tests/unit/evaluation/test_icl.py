"""In-context learning: scores are those of each whole prompt, and what doesn't fit is left out where it harms least."""

import contextlib
import io
import math
import re
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pairs import TASK
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from dilm import evaluate as evaluate_command
from dilm.artifacts.rows import read_rows, read_table
from dilm.config.schema import Config, LlmConfig, SourceConfig
from dilm.core.errors import ConfigError
from dilm.core.hashing import content_key
from dilm.data.corpus import load_split
from dilm.data.templates import label_words, prompt_text
from dilm.data.text_table import TextTable, table
from dilm.distributed.context import Context
from dilm.evaluation.cells import protocol_science
from dilm.evaluation.icl import CONTENT_FREE, Reader, calibrated, demonstration_order, predictor
from dilm.hub.pretrained import model_folder
from dilm.models.llm import Llm
from dilm.stages import collect, generate

Compose = Callable[..., Config]

CPU = torch.device("cpu")
WORDS = ["superb", "is", "so so"]  # one is a token of the tiny tokenizer, the others are several
QUESTIONS = [("a good film",), ("bad",), ("the plot is dull and the cast is truly great " * 3,), ("fine",), ("",)]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
# Wide weights: with the usual ones the logits hardly depend on anything, and a wrong position would pass.
WIDE = {"vocab_size": 512, "initializer_range": 0.3}
KINDS = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **WIDE),
    "llama": LlamaConfig(**SHAPE, **WIDE, intermediate_size=64, num_key_value_heads=2),
    "opt": OPTConfig(**SHAPE, vocab_size=512, init_std=0.3, ffn_dim=64, word_embed_proj_dim=32),
    "qwen2": Qwen2Config(**SHAPE, **WIDE, intermediate_size=64, num_key_value_heads=2),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> dict[str, Path]:
    """A small model of each architecture, with random weights; Qwen's tokenizer has no bos, as is its way."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder("tiny", SourceConfig(built="tiny-gpt2"), tiny_cache))
    root = tmp_path_factory.mktemp("llms")
    for kind, config in KINDS.items():
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config).save_pretrained(root / kind)
        if kind == "qwen2":
            tokenizer.bos_token = None
        tokenizer.save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def read(tiny: Compose, folders: dict[str, Path], tiny_cache: Path) -> Callable[..., Reader]:
    def reader(kind: str = "gpt2", *overrides: str) -> Reader:
        model = ["llm.source.built=null", f"llm.source.path={folders[kind]}", f"llm.name={kind}"]
        words = ["task.labels=[bad,good,neither]", f"task.words=[{','.join(WORDS)}]"]
        return Reader(Context(tiny("evaluator=icl", *model, *words, *overrides)))

    return reader


@pytest.fixture
def dataset(tiny: Compose, tiny_cache: Path) -> TextTable:
    rows = load_split(tiny().task, "train", tiny_cache)
    return rows.take(np.concatenate([np.flatnonzero(rows.labels == label)[:3] for label in (1, 0)]))


def whole_prompt_scores(reader: Reader, prompt: list[int]) -> Tensor:
    """Scores of the words after one prompt, each from a forward pass of its own over all tokens: scores_C."""
    scores = []
    for word in reader.words:
        with torch.no_grad():
            logits = reader.llm.model(input_ids=torch.tensor([[*prompt, *word]])).logits[0].double()
        log_p = logits.log_softmax(-1)
        scores.append(sum(log_p[len(prompt) + place - 1, token] for place, token in enumerate(word)))
    return torch.stack(scores)


def oracle(reader: Reader, demonstrations: list[list[int]], question: list[int], limit: int) -> Tensor:
    """The same for a question after as many of the last demonstrations as fit into `limit` tokens."""
    longest = max(len(word) for word in reader.words)
    while len(reader.llm.bos) + sum(map(len, demonstrations)) + len(question) + longest > limit:
        demonstrations = demonstrations[1:]
    return whole_prompt_scores(reader, [*reader.llm.bos, *chain(*demonstrations), *question])


@pytest.mark.parametrize(("limit", "groups"), [(1024, 1), (137, 2), (50, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_each_whole_prompt(
    read: Callable[..., Reader],
    dataset: TextTable,
    kind: str,
    limit: int,
    groups: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dilm.models.llm.CPU_TOKENS", 450)  # several batches
    reader = read(kind, f"icl.max_length={limit}")
    assert sorted(min(len(word), 2) for word in reader.words) == [1, 2, 2]
    assert bool(reader.llm.bos) == (kind != "qwen2")
    demonstrations, questions = reader.demonstrations(dataset), reader.questions(QUESTIONS)
    kept = reader.kept(demonstrations, questions)
    scores = reader.scores(demonstrations, questions, kept)
    assert len(set(kept)) >= groups
    expected = torch.stack([oracle(reader, demonstrations, question, min(limit, 256)) for question in questions])
    assert (scores - expected).abs().max() <= 1e-4
    assert scores.diff(dim=1).std() > 0.1  # they depend on the questions at all


def test_a_prompt_without_demonstrations(read: Callable[..., Reader]) -> None:
    for kind in ("gpt2", "qwen2"):
        reader = read(kind, "icl.shots=0")
        questions = reader.questions(QUESTIONS)
        scores = reader.scores([], questions, reader.kept([], questions))
        expected = torch.stack([whole_prompt_scores(reader, [*reader.llm.bos, *ids]) for ids in questions])
        assert (scores - expected).abs().max() <= 1e-4


def test_bf16_stays_near(read: Callable[..., Reader], dataset: TextTable) -> None:
    exact, rough = read("llama"), read("llama", "precision=bf16")
    demonstrations, questions = exact.demonstrations(dataset), exact.questions(QUESTIONS)
    kept = exact.kept(demonstrations, questions)
    difference = exact.scores(demonstrations, questions, kept) - rough.scores(demonstrations, questions, kept)
    assert 0 < difference.abs().max() < 0.5


def test_normalised_and_calibrated_scores_follow_their_formulas(
    read: Callable[..., Reader], dataset: TextTable
) -> None:
    assert torch.allclose(
        calibrated(torch.tensor([[-1.0, -2.0]]), torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])),
        torch.tensor([[-1 - math.log((3 / 4 + 1 / 2) / 2), -2 - math.log((1 / 4 + 1 / 2) / 2)]]),
    )
    reader = read("gpt2", "icl.normalise=true", "icl.calibrate=contextual", "icl.max_length=130")
    demonstrations, questions = reader.demonstrations(dataset), reader.questions(QUESTIONS)
    kept = reader.kept(demonstrations, questions)
    scores = reader.scores(demonstrations, questions, kept)
    lengths = torch.tensor([len(word) for word in reader.words])
    for question, n, found in zip(questions, kept, scores, strict=True):
        shown = [*reader.llm.bos, *chain(*demonstrations[len(demonstrations) - n :])]
        free = [
            whole_prompt_scores(reader, [*shown, *reader.llm.tokenizer(f"sentence: {text}\nlabel:")["input_ids"]])
            / lengths
            for text in CONTENT_FREE
        ]
        prior = sum(row.exp() / row.exp().sum() for row in free) / len(free)
        expected = whole_prompt_scores(reader, [*shown, *question]) / lengths - prior.log()
        assert (found - expected).abs().max() <= 1e-4


def test_pieces_are_joined_as_ids(read: Callable[..., Reader], dataset: TextTable) -> None:
    reader = read()
    tokenizer = reader.llm.tokenizer
    (demonstration, *_), (question, *_) = reader.demonstrations(dataset), reader.questions(dataset.texts)
    text = f"sentence: {dataset.texts[0][0]}\nlabel:"
    assert question == tokenizer(text)["input_ids"]
    word = reader.words[int(dataset.labels[0])]
    assert demonstration == [*question, *word, *reader.end]
    assert tokenizer.decode(demonstration) == f"{text} {WORDS[int(dataset.labels[0])]}\n\n"
    (hostile,) = reader.questions([("<|endoftext|> \n\n label:",)])
    assert tokenizer.eos_token_id not in hostile
    assert hostile[-len(tokenizer("label:")["input_ids"]) :] == tokenizer("label:")["input_ids"]


def test_a_word_has_the_ids_that_it_has_after_the_cue(read: Callable[..., Reader]) -> None:
    """Of a tokenizer that begins every text with a blank of its own; and of one that joins the cue and the word."""
    reader = read()
    for join in (False, True):
        tokenizer = Tokenizer(models.BPE())
        if not join:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            tokenizer.decoder = decoders.Metaspace()
        lines = ["label: is", "label: superb"] * 20
        tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=200, show_progress=False))
        reader.llm.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        found = reader.llm.tokenize_after("label:", " is")
        cue, both, alone = (reader.llm.tokenizer(text)["input_ids"] for text in ("label:", "label: is", " is"))
        assert (both[: len(cue)] != cue) == join
        assert found == (alone if join else both[len(cue) :])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.none() | st.integers(0, 6), st.integers(0, 99))
def test_order_is_balanced_and_seeded(labels: list[int], shots: int | None, seed: int) -> None:
    labels_N = np.array(labels)
    order = demonstration_order(labels_N, shots, seed)
    assert order.tolist() == demonstration_order(labels_N, shots, seed).tolist()
    assert len(set(order.tolist())) == len(order)
    wanted = {label: min(labels.count(label), len(labels) if shots is None else shots) for label in set(labels)}
    assert {label: int((labels_N[order] == label).sum()) for label in wanted} == wanted
    start = 0
    for number in range(max(wanted.values())):
        due = sorted(label for label, n in wanted.items() if n > number)
        assert sorted(labels_N[order[start : start + len(due)]].tolist()) == due
        start += len(due)


def test_orders_differ_by_seed_and_every_label_may_be_first_or_last() -> None:
    labels = np.repeat([0, 1, 2], 5)
    orders = [demonstration_order(labels, None, seed) for seed in range(40)]
    assert len({tuple(order) for order in orders}) == 40
    for end in (0, -1):
        assert {int(labels[order[end]]) for order in orders} == {0, 1, 2}


@given(st.lists(st.integers(1, 40), max_size=12), st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_as_many_demonstrations_as_fit_are_kept(sizes: list[int], lengths: list[int]) -> None:
    reader = object.__new__(Reader)
    reader.room, reader.free = 70, []
    kept = reader.kept([[0] * size for size in sizes], [[0] * length for length in lengths])
    for n, length in zip(kept, lengths, strict=True):
        assert sum(sizes[len(sizes) - n :]) + length <= reader.room
        assert n == len(sizes) or sum(sizes[len(sizes) - n - 1 :]) + length > reader.room


def test_what_does_not_fit_is_said_once(tiny: Compose, tiny_cache: Path, dataset: TextTable) -> None:
    dev = table(["sentence"], [("short",), ("some words of a film " * 4,), ("many words " * 60,)], [0, 1, 0])
    config = tiny("evaluator=icl", "icl.max_length=100")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        predict = predictor(Context(config), dev)
        assert all(len(predict(dataset, (name,))) == len(dev) for name in "ab")
    cut, left_out = [line for line in said.getvalue().splitlines() if line.startswith("icl: ")]
    assert cut == "icl: 1 of 3 questions are longer than 100 tokens alone; their ends are cut"
    assert re.fullmatch(
        r"icl: 3 of 3 questions have no room for all 6 demonstrations in 100 tokens; "
        r"the first [1-5] to 6 are left out of their prompts",
        left_out,
    )


@pytest.fixture(scope="module")
def cutter(folders: dict[str, Path]) -> Reader:
    """What of a reader of pairs tokenises and cuts."""
    reader = object.__new__(Reader)
    reader.llm = Llm(LlmConfig("gpt2", SourceConfig(path=str(folders["gpt2"]))), "fp32", folders["gpt2"], CPU)
    reader.config, reader.room, reader.limit = Config(task=TASK), 60, 64
    return reader


@given(texts=st.tuples(*[st.text(st.characters(codec="utf-8"), max_size=300)] * 2))
def test_a_question_is_cut_at_the_end_of_its_fields(cutter: Reader, texts: tuple[str, str]) -> None:
    (whole,) = cutter.llm.tokenizer([prompt_text(TASK.fields, texts)], split_special_tokens=True)["input_ids"]
    (ids,) = cutter.questions([texts])
    assert len(ids) <= cutter.room
    if len(whole) <= cutter.room:
        assert ids == whole
        return
    found = re.fullmatch(r"a: (.*)\nb: (.*)\nlabel:", cutter.llm.tokenizer.decode(ids), flags=re.DOTALL)
    assert found is not None
    assert all(text.startswith(part) for text, part in zip(texts, found.groups(), strict=True))


def test_long_questions_keep_most_of_their_room(cutter: Reader) -> None:
    (ids,) = cutter.questions([("the film " * 200, "short")])
    assert cutter.room - 4 <= len(ids) <= cutter.room
    assert cutter.llm.tokenizer.decode(ids).endswith("\nb: short\nlabel:")


def test_a_question_without_text_must_fit(tiny: Compose, tiny_cache: Path) -> None:
    reader = Reader(Context(tiny("evaluator=icl", "icl.max_length=12")))
    with pytest.raises(ConfigError, match=r"icl\.max_length leaves \d+ tokens for a question, .* has \d+; raise it"):
        reader.questions([("some words",)])


def test_four_bits_need_a_gpu_and_their_packages(
    tiny: Compose, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("evaluator=icl", "llm.four_bit=true").llm
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"^llm\.four_bit is true, but .* a GPU; set llm\.four_bit=false\.$"):
        Llm(config, "bf16", tiny_cache, CPU)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes, not installed here; run pip install 'dilm\[bits.*'"):
        Llm(config, "bf16", tiny_cache, torch.device("cuda"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["llm.name=''"], "evaluator=icl needs a language model to read the prompts; choose one, such as llm=smollm2."),
        (["icl.shots=5"], "icl.shots is 5, but the data sets have only dpc=4 texts a class"),
        (["icl.shots=-1"], "icl.shots is -1; it must not be negative"),
        (["icl.calibrate=contextul"], "icl.calibrate 'contextul' is unknown. Did you mean 'contextual'?"),
        (["icl.max_length=0"], "icl.max_length is 0; it must be at least 1"),
        (["task.words=[good]"], "task.words is ['good']; it must be a word for each of the 2 labels"),
        (["task.words=[good,good]"], "task.words is ['good', 'good']; it must be a word for each of the 2 labels"),
        (["task.words=[good,'']"], "task.words is ['good', '']; it must be a word for each of the 2 labels"),
    ],
)
def test_impossible_values_are_refused_by_name(tiny: Compose, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny("evaluator=icl", *overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_labels_are_called_by_their_words(tiny: Compose) -> None:
    assert label_words(["not_duplicate", "duplicate"], []) == ["not duplicate", "duplicate"]
    assert label_words(["a", "b"], ["bad", "good"]) == ["bad", "good"]


def test_the_protocol_is_what_the_prompt_and_the_model_are(tiny: Compose) -> None:
    base = tiny("evaluator=icl")
    others = """icl.shots=2 icl.normalise=true icl.calibrate=contextual icl.max_length=64 llm.four_bit=true llm=smollm2
        task.words=[bad,good] precision=bf16 seed=1""".split()
    protocols = [content_key(protocol_science(tiny("evaluator=icl", other), "dev")) for other in others]
    assert len({content_key(protocol_science(base, "dev")), *protocols}) == 1 + len(others)
    for other in ("learner=minilm", "evaluate.steps=3", "threads=2"):
        assert protocol_science(tiny("evaluator=icl", other), "dev") == protocol_science(base, "dev")


def test_datasets_are_evaluated_in_context_and_found_again(
    tiny: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["evaluator=icl", "method=random", "icl.shots=2"]
    generate.run(tiny("method=random"))
    evaluate_command.run(tiny(*keys))
    assert "tiny random dpc 4, tiny (icl): 4 cells evaluated, mean accuracy" in capsys.readouterr().out
    rows = read_rows(tmp_path / "runs")
    assert {row.status for row in rows} == {"done"}
    assert {(row.cell.evaluator, row.cell.model, row.cell.steps) for row in rows} == {("icl", "tiny", 0)}
    evaluate_command.run(tiny(*keys))
    assert "0 cells evaluated, 4 found" in capsys.readouterr().out
    evaluate_command.run(tiny(*keys, "force=true"))
    again = read_rows(tmp_path / "runs")
    assert [(row.cell.key, row.value) for row in again] == [(row.cell.key, row.value) for row in rows]
    (found,) = collect.make_tables(read_table(tmp_path / "runs").to_pandas())
    assert found.title == "tiny, tiny (in context), accuracy"
