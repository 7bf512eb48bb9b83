"""Padding and batches of like length."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dilm.batching import by_length, deal, pad

CPU = torch.device("cpu")


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=6))
def test_pad_keeps_every_token_and_masks_by_length(sequences: list[list[int]]) -> None:
    ids, mask = pad(sequences, 0, CPU)
    assert ids.shape == mask.shape == (len(sequences), max(map(len, sequences)))
    for row, sequence in enumerate(sequences):
        assert ids[row, mask[row].bool()].tolist() == sequence


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
def test_every_row_is_dealt_once_and_hands_are_alike(lengths: list[int], hands: int) -> None:
    dealt = deal(lengths, hands)
    assert sorted(row for hand in dealt for row in hand) == list(range(len(lengths)))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    tokens = [sum(lengths[row] for row in hand) for hand in dealt]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)
