"""A task of text pairs, and its texts as token sequences, for the tests of the generator."""

from dilm.config.schema import TaskConfig
from dilm.data.text_table import table
from dilm.models.generator import Generator

TASK = TaskConfig("pairs", fields=["a", "b"], labels=["not_alike", "alike"], max_length=24)


def rows(generator: Generator, *texts: tuple[str, str]) -> list[list[int]]:
    return generator.encode(table(["a", "b"], list(texts), [0] * len(texts))).lists()
