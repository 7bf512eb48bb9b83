"""A language model as evaluator: a data set stands in its prompt as demonstrations, and the likeliest label word wins.

A prompt is `[bos] demonstration ... demonstration question`, joined as token ids and never tokenised anew, so that each
part has the same ids wherever it stands. Demonstrations are read once, and all questions go on from there.

Shape suffixes: N questions, C labels, F content-free texts.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dilm.core.errors import ConfigError
from dilm.core.hashing import derive_seed
from dilm.data.templates import DEMONSTRATION_END, LABEL_CUE, label_words, prompt_text
from dilm.data.text_table import TextTable
from dilm.distributed.context import Context
from dilm.evaluation.cells import Predictor, SeedNames
from dilm.models.llm import Llm

CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al., 2021


def predictor(context: Context, dev: TextTable) -> Predictor:
    """Labels dev by what the language model makes of a data set. Dev is tokenised once."""
    config, reader = context.config, Reader(context)
    questions = reader.questions(dev.texts)
    said = False

    def predict(dataset: TextTable, names: SeedNames) -> np.ndarray:
        nonlocal said
        order = demonstration_order(dataset.labels, config.icl.shots, derive_seed("demonstrations", *names))
        demonstrations = reader.demonstrations(dataset.take(order))
        kept_N = reader.kept(demonstrations, questions)
        lost_N = len(demonstrations) - kept_N
        if lost_N.any() and not said:
            said = True  # once: other data sets and orders differ little
            _say(
                f"{(lost_N > 0).sum()} of {len(questions)} questions have no room for all {len(demonstrations)} "
                f"demonstrations in {reader.limit} tokens; the first {lost_N[lost_N > 0].min()} to {lost_N.max()} are "
                "left out of their prompts"
            )
        return reader.scores(demonstrations, questions, kept_N).argmax(1).numpy()

    return predict


def _say(what: str) -> None:
    print(f"icl: {what}", file=sys.stderr)


def demonstration_order(labels: np.ndarray, shots: int | None, seed: int) -> np.ndarray:
    """Rows in the order in which a prompt shows them: rounds that hold every label once, in random order.

    `shots` rows of each label, or all; a label that has fewer is missing from the last rounds.
    """
    rng = np.random.default_rng(seed)
    waiting = [list(rng.permutation(np.flatnonzero(labels == label))[:shots]) for label in np.unique(labels)]
    order: list[int] = []
    while any(waiting):
        left = [rows for rows in waiting if rows]
        order += [left[place].pop() for place in rng.permutation(len(left))]
    return np.array(order, dtype=np.int64)


def calibrated(scores_NC: Tensor, free_FC: Tensor) -> Tensor:
    """Scores less what each label has without content: the log of its mean probability after content-free texts."""
    return scores_NC - free_FC.softmax(1).mean(0).log()


class Reader:
    """A language model that reads prompts, and tells how likely each label word is where they end."""

    def __init__(self, context: Context) -> None:
        config = context.config
        self.config, self.llm = config, Llm(config.llm, config.precision, context.cache, context.device)
        words = label_words(config.task.labels, config.task.words)
        self.words = [self.llm.tokenize_after(LABEL_CUE, f" {word}") for word in words]
        self.end = self.llm.tokenize_after(f"{LABEL_CUE} {words[0]}", DEMONSTRATION_END)
        self.limit = min(config.icl.max_length, self.llm.positions or config.icl.max_length)
        self.room = self.limit - len(self.llm.bos) - max(map(len, self.words))  # for demonstrations and question
        free = [tuple([text] * len(config.task.fields)) for text in CONTENT_FREE]
        self.free = self.questions(free) if config.icl.calibrate == "contextual" else []

    def questions(self, texts: Sequence[tuple[str, ...]]) -> list[list[int]]:
        """Ids of texts up to and with `label:`; one that doesn't fit alone loses the end of its longest field."""
        fields = self.config.task.fields
        found = self.llm.tokenize([prompt_text(fields, text) for text in texts])
        long = [row for row, ids in enumerate(found) if len(ids) > self.room]
        for row in long:
            found[row] = self._cut(list(texts[row]), found[row])
        if long:
            _say(f"{len(long)} of {len(texts)} questions are longer than {self.limit} tokens alone; their ends are cut")
        return found

    def _cut(self, text: list[str], ids: list[int]) -> list[int]:
        while (excess := len(ids) - self.room) > 0:
            longest = max(range(len(text)), key=lambda position: len(text[position]))
            if not text[longest]:
                raise ConfigError(
                    f"icl.max_length leaves {self.room} tokens for a question, and one without text has {len(ids)}; "
                    "raise it."
                )
            text[longest] = text[longest][:-excess]  # a character is hardly ever more than a token
            (ids,) = self.llm.tokenize([prompt_text(self.config.task.fields, text)])
        return ids

    def demonstrations(self, table: TextTable) -> list[list[int]]:
        """Ids of each row with its label word and what ends it."""
        texts = self.llm.tokenize([prompt_text(self.config.task.fields, text) for text in table.texts])
        return [[*ids, *self.words[label], *self.end] for ids, label in zip(texts, table.labels, strict=True)]

    def kept(self, demonstrations: Sequence[Sequence[int]], questions: Sequence[list[int]]) -> np.ndarray:
        """How many demonstrations each question leaves room for, kept_N: the last ones."""
        least = max(map(len, self.free), default=0)
        room_N = np.array([self.room - max(len(ids), least) for ids in questions])
        sizes = np.cumsum([len(ids) for ids in reversed(demonstrations)])
        return np.searchsorted(sizes, room_N, side="right")

    def scores(
        self, demonstrations: Sequence[Sequence[int]], questions: Sequence[list[int]], kept_N: np.ndarray
    ) -> Tensor:
        """Scores of the label words after each question, scores_NC (nats, fp32, on the CPU)."""
        scores_NC = torch.empty(len(questions), len(self.words))
        for kept in np.unique(kept_N):
            rows = np.flatnonzero(kept_N == kept).tolist()
            shown = demonstrations[len(demonstrations) - int(kept) :]
            prefix = [*self.llm.bos, *(token for ids in shown for token in ids)]
            found = self.llm.word_scores(prefix, [*(questions[row] for row in rows), *self.free], self.words)
            if self.config.icl.normalise:
                found = found / torch.tensor([len(word) for word in self.words])
            if self.free:
                found = calibrated(found[: len(rows)], found[len(rows) :])
            scores_NC[rows] = found
        return scores_NC
