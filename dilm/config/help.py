"""What `--help` prints: examples, groups, and every key of the command with its default and its meaning.

A key's meaning is the comment behind it where it is declared, so that there is one place to read and to write it.
"""

import inspect
import io
import textwrap
import tokenize
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from dilm.config import schema as tree
from dilm.config.compose import options_of
from dilm.config.schema import Config
from dilm.core.io import CONF_FOLDER

WIDTH = 112
KEY_WIDTH = 42
GROUPS = sorted(path.name for path in CONF_FOLDER.iterdir() if path.is_dir() and path.name != "hydra")
CHOSEN: dict[Any, str] = {  # parts that a name chooses, and what that name is
    tree.TaskConfig: "the task; one of your own: docs/own-data.md",
    tree.LearnerConfig: "a learner, with keys as `dilm.evaluate --help` has them",
    tree.GeneratorConfig: "the language model that writes, with keys as `dilm.train --help` has them",
    tree.LlmConfig: "a language model that reads prompts",
    tree.SourceConfig: "where it comes from; chosen with its name",
    tree.SiteConfig: "the cluster, conf/site/<name>.yaml",
}
NAMED = ("task", "site")  # of which no command lists all keys
WHAT = ("task", "data", "method", "dpc", "n_datasets", "seed")
WHERE = ("root", "force", "precision", "device", "threads", "cache", "site", "launcher")
ENDING = """\
A model's name chooses a whole part: learner=minilm, match.learner=minilm, generate.encoder=minilm.
Exit status: 0 done; 2 something to mend, told in one line; 1 a bug; 75 stopped by a signal; 130 interrupted.
--cfg job prints the whole tree. Tab completion: eval "$({call} -sc install=bash)"."""


@dataclass(frozen=True)
class Command:
    """What `--help` says of a command, and what it names as the next one when it has ended."""

    name: str
    about: str  # what it does, in a line
    reads: tuple[str, ...]  # parts of the configuration, besides what all commands share
    examples: tuple[tuple[str, str], ...] = ()  # keys, and what they bring; (): a file in tools/
    next: str = "open {config.root}/report/index.html"  # the line that follows, from the run's `keys` and `config`


@cache
def meanings() -> dict[type, dict[str, str]]:
    """The comment behind every field of the configuration's classes."""
    found = {}
    for kind in vars(tree).values():
        if inspect.isclass(kind) and is_dataclass(kind):
            found[kind] = _comments(inspect.getsource(kind))
    return found


def _comments(source: str) -> dict[str, str]:
    comments, name = {}, ""
    for token in tokenize.generate_tokens(io.StringIO(textwrap.dedent(source)).readline):
        if token.type == tokenize.NAME and token.start[1] == 4:
            name = token.string
        elif token.type == tokenize.COMMENT and token.start[1] > 4:
            comments[name] = token.string.lstrip("# ")
    return comments


def register(command: Command) -> None:
    """Have Hydra's `--help` print ours; conf/config.yaml asks for it."""

    def resolve(*, _root_: DictConfig) -> str:
        return help_text(command, _root_).replace("$", "$$")  # Hydra substitutes what follows a single one

    OmegaConf.register_new_resolver("dilm_help", resolve, replace=True)


def help_text(command: Command, composed: DictConfig) -> str:
    """All that `--help` says of a command, with the defaults of the composed configuration."""
    examples = command.examples
    call = f"python -m dilm.{command.name}" if examples else f"python tools/{command.name}.py"
    width = max((len(keys) for keys, _ in examples), default=0)
    lines = [command.about, "", "Usage", f"  {call} key=value ...            one run"]
    lines += [f"  {call} -m key=a,b key2=c,d ...   one run for every combination"]
    lines += ["", "Examples"] if examples else []
    lines += [f"  {call} {keys:<{width}}   {meaning}" for keys, meaning in examples]
    lines += ["", "Groups: a name chooses a part of the tree"]
    for group in GROUPS:
        head = f"  {group + '=':<18}"
        lines += textwrap.wrap(", ".join(options_of(group)), WIDTH, initial_indent=head, subsequent_indent=" " * 20)
    for title, names in (("Keys of this command", command.reads), ("Keys of all commands", WHAT + WHERE)):
        body = [line for name in names for line in _described(Config, (name,), composed)]
        lines += ["", title, *body] if body else []
    return "\n".join([*lines, "", ENDING.format(call=call)])


def _described(kind: type, path: tuple[str, ...], values: DictConfig) -> list[str]:
    """A line for a key; for all keys of a part, or, of a part that a name chooses, that name."""
    name = path[-1]
    own: Any = get_type_hints(kind)[name]
    value = values[name]
    if own in CHOSEN and (len(path) > 1 or name in NAMED):
        return _line(".".join(path), (value.name or "null") if "name" in value else "...", CHOSEN[own])
    if not hasattr(own, "__dataclass_fields__"):
        return _line(".".join(path), _shown(value), meanings()[kind].get(name, ""))
    return [line for part in fields(own) for line in _described(own, (*path, part.name), value)]


def _shown(value: Any) -> str:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    text = "null" if plain is None else str(plain).lower() if isinstance(plain, bool) else str(plain) or "''"
    return text if len(text) <= 24 else text[:21] + "..."


def _line(key: str, value: str, meaning: str) -> list[str]:
    head = f"  {key}={value}"
    room = f"{head:<{KEY_WIDTH}} "
    return textwrap.wrap(meaning, WIDTH, initial_indent=room, subsequent_indent=" " * len(room)) or [head]
