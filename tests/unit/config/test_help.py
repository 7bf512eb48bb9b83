"""What `--help` says: every key of a command with its meaning, examples that work, nothing that is not."""

import re
from dataclasses import fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from dilm.config.compose import checked, composed
from dilm.config.help import WHAT, WHERE, WIDTH, Command, help_text, page
from dilm.config.keys import leaves
from dilm.config.schema import Config
from dilm.core.io import CONF_FOLDER

NAMES = ("train", "generate", "evaluate", "collect", "prefetch", "audit", "export")
COMMANDS: dict[str, Command] = {name: resolve_name(f"dilm.{name}:COMMAND") for name in NAMES}
TOOL = Command("similarity", "A file in tools/.", reads=("match", "generate"))


def text_of(command: Command) -> str:
    return help_text(command, composed([], launcher="basic", command=command.name))


@pytest.mark.parametrize("command", [*COMMANDS.values(), TOOL], ids=lambda command: command.name)
def test_it_fits_a_terminal_and_names_every_key_once(command: Command) -> None:
    text = text_of(command)
    keys = re.findall(r"^  ([a-z_.]+)=\S", text, re.M)
    assert len(keys) == len(set(keys))
    for name in (*command.reads, *WHAT, *WHERE):
        assert any(key.split(".")[0] == name for key in keys), name
    told = text.partition("Groups")[2]
    assert max(map(len, told.splitlines())) <= WIDTH + 10


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_accepted(name: str) -> None:
    """But for the site and the folders, which are the reader's own."""
    assert COMMANDS[name].name == name
    assert len(COMMANDS[name].examples) == 3
    for keys, meaning in COMMANDS[name].examples:
        checked([key for key in keys.split() if key not in ("-m", "site=mine")])
        assert meaning


KEYS = {leaf.name: leaf.key for leaf in leaves(Config())}


def test_a_meaning_is_what_the_field_declares() -> None:
    assert KEYS["match.temperature"].meaning == "T in softmax(-nll / T)"
    assert KEYS["match.optimizer.clip"].meaning == "largest norm of the gradient"
    assert "  match.temperature=1.0                    T in softmax(-nll / T)\n" in text_of(COMMANDS["train"])
    assert "match.temperature" not in text_of(COMMANDS["generate"])


def test_a_meaning_has_choices_and_units() -> None:
    assert KEYS["device"].meaning == "where tensors are: auto, cpu, cuda"
    assert KEYS["generate.pool"].meaning.endswith(
        ". fresh: new ones for every data set; shared: one pool, halved for each data set"
    )
    assert KEYS["launcher.minutes"].meaning == "time limit of a job; null: the site's [minutes]"
    assert "  launcher.mem_gb=null                     memory on each node; null: the site's [GB]\n" in text_of(
        COMMANDS["export"]
    )


def test_every_key_has_a_meaning() -> None:
    assert len(KEYS) > 150
    assert [name for name, key in KEYS.items() if not key.help] == []


def test_a_part_that_a_name_chooses_says_what_it_is_for() -> None:
    text = re.sub(r"\n {20,}", " ", text_of(COMMANDS["train"]) + text_of(COMMANDS["generate"]))
    assert "match.learner=bert_base                  learner whose gradients are matched, with keys as" in text
    assert "generate.encoder=bert_base               encoder whose embeddings choose texts, with keys as" in text
    assert "task=sst2                                the task; one of your own: docs/own-data.md\n" in text


def test_the_page_of_all_keys_is_current() -> None:
    committed = Path(CONF_FOLDER.parent / "docs" / "keys.md").read_text(encoding="utf-8")
    assert committed == page(), "make it again: python -m dilm.config.help > docs/keys.md"


def test_the_page_has_every_key() -> None:
    """But for keys of models inside other parts: those stand once, under `learner` and `source`."""
    rows = set(re.findall(r"^\| `([a-z0-9_.]+)` \|", page(), re.M))
    nested = re.compile(r"(match\.learner|generate\.encoder|[a-z_.]+\.source)\.")
    assert {name for name in KEYS if not nested.match(name)} <= rows
    assert {f"source.{field.name}" for field in fields(Config().learner.source)} <= rows


def test_the_page_escapes_what_markdown_would_read() -> None:
    lines = [line for line in page().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7}
    assert "conf/site/&lt;name>.yaml" in page()


def value_of(text: str) -> Any:
    return text == "true" if text in ("true", "false") else float(text.replace(",", ""))


def test_defaults_are_the_papers_where_it_has_one_value() -> None:
    declared = [(leaf.name, leaf.value, leaf.key) for leaf in leaves(Config())]
    stated = [
        (name, value, key.paper) for name, value, key in declared if re.fullmatch(r"[\d.,]+|true|false", key.paper)
    ]
    assert len(stated) > 25
    from_other_keys = {"match.pool_dpc": 64 * 10 * 20}  # where it is null
    for name, value, paper in stated:
        assert value_of(paper) == from_other_keys.get(name, value), name
    assert all(value == key.paper for _, value, key in declared if key.choices and key.paper)


def test_the_groups_are_those_of_the_folder() -> None:
    text = text_of(COMMANDS["train"])
    groups = {path.name for path in CONF_FOLDER.iterdir() if path.is_dir()} - {"hydra"}
    assert groups == {group for group in groups if f"  {group}= " in text}
