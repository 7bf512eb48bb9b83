"""Padding and batches of like length."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dilm.models.batching import ROWS, Tokens, by_length, kept_tokens, pad, split_by_length, tokenized

CPU = torch.device("cpu")


SEQUENCES = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), max_size=6)


@given(SEQUENCES, st.data())
def test_packed_tokens_are_the_sequences(sequences: list[list[int]], data: st.DataObject) -> None:
    packed = Tokens.of(iter(sequences))
    assert packed.lists() == sequences
    assert packed.lengths.tolist() == list(map(len, sequences))
    assert packed[1:].lists() == sequences[1:]
    rows = data.draw(st.lists(st.sampled_from(range(-len(sequences), len(sequences))))) if sequences else []
    assert packed.take(rows).lists() == [packed[row].tolist() for row in rows] == [sequences[row] for row in rows]
    with pytest.raises(IndexError):
        packed[len(sequences)]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=6), st.booleans())
def test_pad_keeps_every_token_and_masks_by_length(sequences: list[list[int]], left: bool) -> None:
    ids, mask = pad(sequences, 0, CPU, left)
    assert ids.shape == mask.shape == (len(sequences), max(map(len, sequences)))
    for row, sequence in enumerate(sequences):
        assert ids[row, mask[row].bool()].tolist() == sequence
        assert mask[row].tolist() == sorted(mask[row].tolist(), reverse=not left)
    assert all(map(torch.equal, pad(Tokens.of(sequences), 0, CPU, left), (ids, mask)))


def test_rows_are_tokenised_in_order_however_many_there_are() -> None:
    first, second = np.arange(2 * ROWS + 3), list(range(2 * ROWS + 3))
    packed = tokenized(lambda *columns: [list(row) for row in zip(*columns, strict=True)], first, second)
    assert np.array_equal(packed.flat, np.repeat(first, 2))


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 60))
def test_batches_cover_every_row_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    batches = list(by_length(lengths, tokens))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or longest * len(batch) <= tokens
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 7))
def test_every_row_is_dealt_once_and_parts_are_alike(lengths: list[int], parts: int) -> None:
    dealt = split_by_length(lengths, parts)
    assert sorted(row for part in dealt for row in part) == list(range(len(lengths)))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    tokens = [sum(lengths[row] for row in part) for part in dealt]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


def test_kept_tokens_are_made_once_for_each_identity(tmp_path: Path) -> None:
    made: list[int] = []

    def make(token: int) -> Tokens:
        made.append(token)
        return Tokens.of([[token], [], [7, 2**31 - 1]])

    for token in (1, 2, 1, 2):
        kept = kept_tokens(tmp_path, "tiny", {"token": token}, partial(make, token))
        assert kept.lists() == [[token], [], [7, 2**31 - 1]]
        assert kept.flat.dtype == np.int32
    assert made == [1, 2]
    assert kept_tokens(tmp_path, "tiny", {}, lambda: Tokens.of([])).lists() == []
