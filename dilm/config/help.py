"""What `--help` prints: examples, groups, and every key of the command with its default and its meaning.

As a script it prints the page of all keys: `python -m dilm.config.help > docs/keys.md`.
"""

import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, get_args

from omegaconf import MISSING, DictConfig, OmegaConf

from dilm.config import schema as tree
from dilm.config.compose import options_of
from dilm.config.keys import key_of
from dilm.config.schema import Config
from dilm.core.io import CONF_FOLDER

WIDTH = 112
KEY_WIDTH = 42
GROUPS = sorted(path.name for path in CONF_FOLDER.iterdir() if path.is_dir() and path.name != "hydra")
CHOSEN: dict[Any, str] = {  # parts that a name chooses, and where their keys are told
    tree.TaskConfig: "; one of your own: docs/own-data.md",
    tree.LearnerConfig: ", with keys as `dilm.evaluate --help` has them",
    tree.SourceConfig: "",
    tree.SiteConfig: "",
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
    parts = {field.name: field for field in fields(Config)}
    for title, names in (("Keys of this command", command.reads), ("Keys of all commands", WHAT + WHERE)):
        body = [line for name in names for line in _described(parts[name], (name,), composed[name])]
        lines += ["", title, *body] if body else []
    return "\n".join([*lines, "", ENDING.format(call=call)])


def _described(field: "Field[Any]", path: tuple[str, ...], value: Any) -> list[str]:
    """A line for a key; for all keys of a part, or, of a part that a name chooses, that name."""
    kind: Any = field.type
    meaning = key_of(field).meaning
    if kind in CHOSEN and (len(path) > 1 or path[0] in NAMED):
        name = (value.name or "null") if "name" in value else "..."
        return _line(".".join(path), name, meaning + CHOSEN[kind])
    if not is_dataclass(kind):
        return _line(".".join(path), _shown(value), meaning)
    return [line for part in fields(kind) for line in _described(part, (*path, part.name), value[part.name])]


def _shown(value: Any) -> str:
    text = _text(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    return text if len(text) <= 24 else text[:21] + "..."


def _text(value: Any) -> str:
    """A value as it is written on a command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value) or "''"


def _line(key: str, value: str, meaning: str) -> list[str]:
    head = f"  {key}={value}"
    room = f"{head:<{KEY_WIDTH}} "
    return textwrap.wrap(meaning, WIDTH, initial_indent=room, subsequent_indent=" " * len(room)) or [head]


PAGE = """\
# All keys

Made by `python -m dilm.config.help > docs/keys.md` from `dilm/config/schema.py`, where every key is declared. The
`--help` of a command has those that it reads. Defaults are those of the schema; the names chosen in `conf/config.yaml`
(task, models, engine, site) then fill their parts. *Paper* is the value of the paper or of its authors' configurations,
where known. A value that is not allowed is refused by name before anything runs; null is allowed where the type has it.
"""
COLUMNS = ("key", "type", "default", "allowed", "meaning", "paper")


def page() -> str:
    """All keys as Markdown, a table for each part of the tree."""
    config = Config()
    alone = [field for field in fields(Config) if not is_dataclass(field.type)]
    lines = [PAGE, "## Keys outside of parts", *_table(alone, config, "")]
    for field in (field for field in fields(Config) if field not in alone):
        values: Any = getattr(config, field.name)
        lines += [f"## {field.name}", "", values.__doc__, *_table(fields(values), values, f"{field.name}.")]
    source = tree.SourceConfig()
    lines += ["## source", "", f"A part of every model. {source.__doc__}", *_table(fields(source), source, "source.")]
    return "\n".join(lines).rstrip() + "\n"


def _table(keys: Iterable["Field[Any]"], values: Any, above: str) -> list[str]:
    lines = ["", _row(COLUMNS), _row(["---"] * len(COLUMNS))]
    return [*lines, *(_row(cells) for field in keys for cells in _cells(field, values, above)), ""]


def _cells(field: "Field[Any]", values: Any, above: str) -> Iterator[tuple[str, ...]]:
    """A row for a key; for a part, the rows of its keys, or a link where a section has them."""
    name, value, key = f"{above}{field.name}", getattr(values, field.name), key_of(field)
    if isinstance(value, tree.SourceConfig | tree.LearnerConfig):
        section = "source" if isinstance(value, tree.SourceConfig) else "learner"
        yield f"`{name}`", f"[{section}](#{section})", "", "", key.meaning, ""
    elif is_dataclass(value):
        for part in fields(value):
            yield from _cells(part, value, f"{name}.")
    else:
        default = "required" if value == MISSING else f"`{_text(value)}`"
        help = f"{key.help} [{key.unit}]" if key.unit else key.help
        yield f"`{name}`", _type(field), default, key.allowed, help, key.paper


def _type(field: "Field[Any]") -> str:
    kind: Any = field.type
    name = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    return name.replace(" | None", " or null").replace("typing.", "").replace(f"{tree.__name__}.", "")


def _row(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*") for cell in cells)
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    sys.stdout.write(page())
