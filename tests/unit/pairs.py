"""A task of text pairs, and its texts as token sequences, for the tests of the generator."""

from dilm.config import TaskConfig
from dilm.data import table
from dilm.generator import Generator

TASK = TaskConfig("pairs", fields=["a", "b"], labels=["not_alike", "alike"], max_length=24)


def rows(generator: Generator, *texts: tuple[str, str]) -> list[list[int]]:
    return generator.encode(table(["a", "b"], list(texts), [0] * len(texts)))
