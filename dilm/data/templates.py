"""How a labelled text is written for the generator, how what it writes is read back, and how a prompt shows it.

One text is the token sequence `<bos_y> sentence [<sep> sentence2] <eos>` (paper, section 3.1). Control tokens live
among the token ids alone: a text that happens to contain the characters "<sep>" is tokenised as ordinary text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ControlTokens:
    """Token ids of the generator's control tokens; `bos` has one a class."""

    bos: tuple[int, ...]
    sep: int
    eos: int
    pad: int
    prefix: tuple[int, ...] = ()  # what stands before `<bos_y>`, if anything

    @property
    def all(self) -> frozenset[int]:
        """Every control token's id."""
        return frozenset((*self.bos, *self.prefix, self.sep, self.eos, self.pad))

    def prompt(self, label: int) -> list[int]:
        """What the generator continues to write a text of class `label`."""
        return [*self.prefix, self.bos[label]]

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt: they are given, and no likelihood counts them."""
        return len(self.prefix) + 1


def bos_token(label: int) -> str:
    """The new token that opens a text of class `label`."""
    return f"<bos_{label}>"


SEP_TOKEN = "<sep>"
PAD_TOKEN = "<pad>"


def write_tokens(fields: Sequence[Sequence[int]], label: int, control: ControlTokens, max_length: int) -> list[int]:
    """Join the token ids of a text's fields into one sequence of at most `max_length` tokens.

    Too long a text loses the end of its longest field, a token at a time, so that every field and `<eos>` survive.
    """
    lengths = [len(ids) for ids in fields]
    excess = sum(lengths) + len(lengths) + control.prompt_length - max_length
    for _ in range(max(excess, 0)):
        lengths[lengths.index(max(lengths))] -= 1
    sequence = control.prompt(label)
    for position, (ids, length) in enumerate(zip(fields, lengths, strict=True)):
        sequence += [control.sep] if position else []
        sequence += ids[:length]
    return [*sequence, control.eos]


def parse_tokens(ids: Sequence[int], n_fields: int, control: ControlTokens) -> list[list[int]] | None:
    """The token ids of each field of what was written after `<bos_y>`, or None where it isn't a well-formed text.

    Well-formed means: `<eos>` ends it, `n_fields` non-empty fields are joined by `<sep>`, and there is no other
    control token.
    """
    if control.eos not in ids:
        return None
    fields: list[list[int]] = [[]]
    for token in ids[: list(ids).index(control.eos)]:
        if token == control.sep:
            fields.append([])
        elif token in control.all:
            return None
        else:
            fields[-1].append(token)
    return fields if len(fields) == n_fields and all(fields) else None


def parse_text(
    ids: Sequence[int], n_fields: int, control: ControlTokens, decode: Callable[[list[int]], str]
) -> tuple[str, ...] | None:
    """The fields as strings, white space folded; None where the sequence isn't a well-formed text."""
    fields = parse_tokens(ids, n_fields, control)
    if fields is None:
        return None
    texts = tuple(fold_space(decode(field)) for field in fields)
    return texts if all(texts) else None


def fold_space(text: str) -> str:
    """Runs of white space become one blank, the ends are trimmed: the form in which data sets are kept."""
    return " ".join(text.split())


PROMPT_VERSION = 1  # raised when what follows changes
LABEL_CUE = "label:"  # a blank and the label word come after it
DEMONSTRATION_END = "\n\n"


def prompt_text(names: Sequence[str], text: Sequence[str]) -> str:
    """A text as a prompt shows it, a line for each of its named fields, up to where the label word goes."""
    return "".join(f"{name}: {value}\n" for name, value in zip(names, text, strict=True)) + LABEL_CUE


def label_words(labels: Sequence[str], words: Sequence[str]) -> list[str]:
    """What a prompt calls the labels: `words`, or where there are none, the labels with `_` as a blank."""
    return list(words) or [label.replace("_", " ") for label in labels]
