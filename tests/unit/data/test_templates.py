"""Texts as token sequences: what is written is read back, and what is ill-formed is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dilm.data.templates import ControlTokens, bos_token, fold_space, parse_text, parse_tokens, write_tokens

reproducible = settings(max_examples=200, deadline=None, derandomize=True)

CONTROL = ControlTokens(bos=(100, 101, 102), sep=103, eos=104, pad=105)
LONG = 10_000

words = st.integers(0, 99)
fields_of_words = st.lists(st.lists(words, min_size=1, max_size=12), min_size=1, max_size=4)
labels = st.integers(0, 2)


def test_the_control_tokens_are_one_set() -> None:
    assert CONTROL.all == {100, 101, 102, 103, 104, 105}
    assert [bos_token(label) for label in range(2)] == ["<bos_0>", "<bos_1>"]


def test_a_text_with_two_fields_as_the_paper_writes_it() -> None:
    assert write_tokens([[1, 2], [3]], 1, CONTROL, LONG) == [101, 1, 2, 103, 3, 104]


@reproducible
@given(fields_of_words, labels)
def test_what_was_written_is_read_back(fields: list[list[int]], label: int) -> None:
    sequence = write_tokens(fields, label, CONTROL, LONG)
    assert sequence[0] == CONTROL.bos[label]
    assert sequence[-1] == CONTROL.eos
    assert parse_tokens(sequence[1:], len(fields), CONTROL) == fields


@reproducible
@given(fields_of_words, labels, st.integers(0, 60))
def test_too_long_a_text_keeps_every_field_and_its_end(fields: list[list[int]], label: int, spare: int) -> None:
    max_length = 2 * len(fields) + 1 + spare  # the shortest: one token a field
    sequence = write_tokens(fields, label, CONTROL, max_length)
    whole = sum(map(len, fields)) + len(fields) + 1
    assert len(sequence) == min(whole, max_length)
    kept = parse_tokens(sequence[1:], len(fields), CONTROL)
    assert kept is not None
    assert all(part == ids[: len(part)] for part, ids in zip(kept, fields, strict=True))


@reproducible
@given(fields_of_words, st.integers(0, 40))
def test_the_longest_field_is_the_one_that_is_cut(fields: list[list[int]], spare: int) -> None:
    sequence = write_tokens(fields, 0, CONTROL, 2 * len(fields) + 1 + spare)
    kept = [len(part) for part in parse_tokens(sequence[1:], len(fields), CONTROL) or []]
    cut = [length for length, ids in zip(kept, fields, strict=True) if length < len(ids)]
    assert all(length <= min(cut, default=LONG) + 1 for length in kept)
    assert not cut or max(cut) - min(cut) <= 1


def test_the_tokens_of_the_caller_are_left_alone() -> None:
    fields = [[1, 2, 3], [4]]
    write_tokens(fields, 0, CONTROL, 5)
    assert fields == [[1, 2, 3], [4]]


@reproducible
@given(st.lists(st.integers(0, 105), max_size=20), st.integers(1, 3))
def test_reading_against_a_plain_description(ids: list[int], n_fields: int) -> None:
    """By splitting a string: what stands before the first end, cut at the separators."""
    before, end, _ = ("".join(map(chr, ids))).partition(chr(CONTROL.eos))
    parts = [[ord(character) for character in part] for part in before.split(chr(CONTROL.sep))]
    others = {*CONTROL.bos, CONTROL.pad}
    good = end and len(parts) == n_fields and all(parts) and not others & set(ids[: len(before)])
    assert parse_tokens(ids, n_fields, CONTROL) == (parts if good else None)


@pytest.mark.parametrize(
    ("ids", "n_fields", "why"),
    [
        ([1, 2], 1, "no end"),
        ([], 1, "nothing at all"),
        ([104], 1, "no text"),
        ([1, 103, 2, 104], 1, "one field too many"),
        ([1, 104], 2, "one field too few"),
        ([103, 1, 104], 2, "the first field is empty"),
        ([1, 103, 104], 2, "the last field is empty"),
        ([1, 103, 103, 2, 104], 3, "the middle field is empty"),
        ([1, 101, 2, 104], 1, "a class token inside"),
        ([1, 105, 2, 104], 1, "padding inside"),
    ],
)
def test_ill_formed_sequences_are_refused(ids: list[int], n_fields: int, why: str) -> None:
    assert parse_tokens(ids, n_fields, CONTROL) is None, why
    assert parse_text(ids, n_fields, CONTROL, lambda part: "text") is None, why


def test_what_follows_the_end_does_not_count() -> None:
    assert parse_tokens([1, 2, 104, 105, 105, 101, 103], 1, CONTROL) == [[1, 2]]


def letters(ids: list[int]) -> str:
    return "".join(" " if token == 0 else chr(96 + token) for token in ids)


def test_fields_become_strings_with_white_space_folded() -> None:
    assert parse_text([0, 1, 0, 0, 2, 103, 3, 0, 104], 2, CONTROL, letters) == ("a b", "c")


def test_a_field_of_white_space_alone_is_refused() -> None:
    assert parse_text([0, 0, 103, 3, 104], 2, CONTROL, letters) is None


@reproducible
@given(st.text())
def test_folding_keeps_the_words_and_single_blanks(text: str) -> None:
    folded = fold_space(text)
    assert folded.split() == text.split()
    assert folded == folded.strip()
    assert not any(character.isspace() and character != " " for character in folded)
    assert "  " not in folded
    assert fold_space(folded) == folded


def test_folding_removes_tabs_and_line_breaks() -> None:
    assert fold_space("\t a\r\n b\u00a0\u2028c ") == "a b c"
