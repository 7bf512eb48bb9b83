"""A task of text pairs, and its texts as token sequences, for the tests of the generator."""

from dilm.config import TaskConfig
from dilm.generator import Generator
from dilm.tables import table

TASK = TaskConfig("pairs", fields=["a", "b"], labels=["not_alike", "alike"], max_length=24)


def rows(generator: Generator, *texts: tuple[str, str]) -> list[list[int]]:
    return generator.encode(table(["a", "b"], list(texts), [0] * len(texts))).lists()
