"""How a key is declared: type and default as for any dataclass field, and what is known of it besides, in one place.

`--help`, the checks of single values and docs/keys.md are made from these declarations.
"""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from dilm.core.errors import did_you_mean

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Key:
    """What is known of a key besides its type and default. Bounds also hold for each value of a list or dictionary."""

    help: str  # what it does
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)  # allowed names, each with what it means
    paper: str = ""  # value in the paper or in its authors' configurations

    @property
    def meaning(self) -> str:
        """Help, choices and unit in a line, as `--help` prints it."""
        choices = (". " if any(self.choices.values()) else ": ") + self.allowed if self.choices else ""
        return f"{self.help}{choices}" + (f" [{self.unit}]" if self.unit else "")

    @property
    def allowed(self) -> str:
        """The allowed names, with what each means, or numbers; empty where the type alone says it."""
        if any(self.choices.values()):
            return "; ".join(f"{name}: {text}" if text else name for name, text in self.choices.items())
        return ", ".join(self.choices) or self.range

    @property
    def range(self) -> str:
        """The allowed numbers in words, such as `at least 1`; empty for a key without bounds."""
        words = {"at least": self.at_least, "greater than": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)

    def refusal(self, name: str, value: Any) -> str | None:
        """Why a value is not allowed, as a line for the user; `None` where it is allowed.

        Types are OmegaConf's to check: a null that gets here is that of an optional key.
        """
        if isinstance(value, dict):
            refusals = (self.refusal(f"{name}.{label}", item) for label, item in value.items())
            return next(filter(None, refusals), None)
        several = isinstance(value, list)
        for item in value if several else [value]:
            if item is None:
                continue
            if self.choices and item not in self.choices:
                told = f"{name} names {item!r}" if several else f"{name} {item!r} is unknown"
                return f"{told}.{did_you_mean(str(item), self.choices)}"
            if not self._in_range(item):
                return f"{name} {'has' if several else 'is'} {item}; it {self._must_be()}."
        return None

    def _must_be(self) -> str:
        if self.unit.startswith("share"):
            return f"is a {self.unit}, {self.range}"
        return "must not be negative" if self.range == "at least 0" else f"must be {self.range}"

    def _in_range(self, value: float) -> bool:
        """Whether a number is within the bounds, which nan never is."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def key(
    default: T,
    help: str,
    *,
    unit: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Iterable[str] | Mapping[str, str] = (),
    paper: str = "",
) -> T:
    """Declare a key, as a field of a dataclass. Choices may have meanings: a mapping from names."""
    named = choices if isinstance(choices, Mapping) else dict.fromkeys(choices, "")
    metadata = {"key": Key(help, unit, at_least, above, at_most, below, named, paper)}
    if isinstance(default, list | dict):  # a new one for each instance
        return dataclasses.field(default_factory=partial(copy.deepcopy, default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def part(kind: type[T], help: str = "", **changed: Any) -> T:
    """Declare a nested dataclass; `changed` are the keys of it that have another default here."""
    made = partial(kind, **changed) if changed else kind
    return dataclasses.field(default_factory=made, metadata={"key": Key(help)})


def key_of(field: dataclasses.Field[Any]) -> Key:
    """The declaration of a field that `key` or `part` has made."""
    return cast(Key, field.metadata["key"])


class Leaf(NamedTuple):
    """A key that has a value, with that value."""

    name: str  # as on a command line, such as match.optimizer.lr
    value: Any
    type: Any
    key: Key


def leaves(part: Any, above: str = "") -> Iterator[Leaf]:
    """Every key of an instance, in the order of declaration, also in its parts and in dictionaries of parts."""
    for field in dataclasses.fields(part):
        name, value = f"{above}{field.name}", getattr(part, field.name)
        parts = value if isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())) else {}
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{name}.")
        elif parts:
            for label, inner in parts.items():
                yield from leaves(inner, f"{name}.{label}.")
        else:
            yield Leaf(name, value, field.type, key_of(field))
