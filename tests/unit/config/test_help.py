"""What `--help` says: every key of a command with its meaning, examples that work, nothing that is not."""

import re
from dataclasses import fields, is_dataclass
from pkgutil import resolve_name
from typing import get_type_hints

import pytest

from dilm.config.compose import checked, composed
from dilm.config.help import WHAT, WHERE, WIDTH, Command, help_text, meanings
from dilm.config.schema import Config, MatchConfig, OptimizerConfig
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


def test_a_meaning_is_the_comment_behind_the_field() -> None:
    assert meanings()[MatchConfig]["temperature"] == "T in softmax(-nll / T)"
    assert meanings()[OptimizerConfig]["clip"] == "largest norm of the gradient"
    assert "  match.temperature=1.0                    T in softmax(-nll / T)\n" in text_of(COMMANDS["train"])
    assert "match.temperature" not in text_of(COMMANDS["generate"])


def test_every_key_that_help_shows_has_a_meaning() -> None:
    unsaid = []
    for name, kind in get_type_hints(Config).items():
        if is_dataclass(kind):
            known = meanings()[kind]  # type: ignore[index]
            unsaid += [f"{name}.{item.name}" for item in fields(kind) if not known.get(item.name)]
        elif not meanings()[Config].get(name):
            unsaid.append(name)
    parts = {"optimizer", "learner_optimizer", "learner", "encoder", "full", "source", "teach"}  # of keys of their own
    left = [key for key in unsaid if key.rpartition(".")[2] not in parts and not key.startswith(("task.", "site."))]
    assert left == []


def test_the_groups_are_those_of_the_folder() -> None:
    text = text_of(COMMANDS["train"])
    groups = {path.name for path in CONF_FOLDER.iterdir() if path.is_dir()} - {"hydra"}
    assert groups == {group for group in groups if f"  {group}= " in text}
