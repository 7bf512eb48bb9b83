"""Keys and seeds: equal for equal values, different for different ones, and the same tomorrow."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dilm.core.hashing import KEY_LENGTH, cached, canonical_json, content_key, derive_seed

reproducible = settings(max_examples=200, deadline=None, derandomize=True)

texts = st.text(max_size=8)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    leaves, lambda part: st.lists(part, max_size=4) | st.dictionaries(texts, part, max_size=4), max_leaves=12
)
names = st.lists(texts | st.integers(), max_size=5)


def shuffled(value: Any, draw: random.Random) -> Any:
    """The same value with every dictionary's items in another order."""
    if isinstance(value, dict):
        items = list(value.items())
        draw.shuffle(items)
        return {name: shuffled(part, draw) for name, part in items}
    return [shuffled(part, draw) for part in value] if isinstance(value, list) else value


def test_canonical_json_has_sorted_keys_no_blanks_and_plain_characters() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é😀"}) == '{"a":"é😀","b":[1,2.5,null]}'


@reproducible
@given(values)
def test_canonical_json_loses_nothing(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_what_json_has_no_word_for_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical_json(value)


@reproducible
@given(values, st.randoms(use_true_random=False))
def test_the_order_in_which_a_dictionary_was_filled_is_not_in_the_key(value: Any, draw: random.Random) -> None:
    assert content_key(shuffled(value, draw)) == content_key(value)


@reproducible
@given(values, values)
def test_keys_are_equal_just_where_the_canonical_forms_are(first: Any, second: Any) -> None:
    assert (content_key(first) == content_key(second)) == (canonical_json(first) == canonical_json(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 2], [2, 1]), ({"a": 1}, {"a": "1"}), ({"a": None}, {}), (["ab"], ["a", "b"]), (1, True), (1, 1.0)],
)
def test_a_difference_of_any_kind_changes_the_key(first: Any, second: Any) -> None:
    assert content_key(first) != content_key(second)


@reproducible
@given(values)
def test_a_key_is_twelve_hex_digits(value: Any) -> None:
    key = content_key(value)
    assert len(key) == KEY_LENGTH == 12
    assert set(key) <= set("0123456789abcdef")


def test_a_key_is_the_same_in_every_version() -> None:
    assert content_key({"task": "sst2", "dpc": 20, "labels": ["negative", "positive"]}) == "942881c6c7fa"


@reproducible
@given(names)
def test_a_seed_is_a_whole_number_that_every_generator_takes(parts: list[str | int]) -> None:
    seed = derive_seed(*parts)
    assert isinstance(seed, int)
    assert 0 <= seed < 2**63
    assert derive_seed(*parts) == seed


@reproducible
@given(names, names)
def test_seeds_differ_where_names_do(first: list[str | int], second: list[str | int]) -> None:
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)


def test_names_are_not_run_together() -> None:
    assert len({derive_seed("ab", "c"), derive_seed("a", "bc"), derive_seed("abc"), derive_seed("a", "b", "c")}) == 4
    assert derive_seed("dataset", 1, 12) != derive_seed("dataset", 11, 2)
    assert derive_seed("dataset", 1) != derive_seed("dataset", "1")


def test_seeds_are_the_same_in_every_version() -> None:
    assert derive_seed("evaluate", "sst2", 0, 3, 4) == 5900493201020388379
    assert derive_seed("valid", "mnli") == 1129144388087184383


def test_seeds_use_the_whole_range() -> None:
    seeds = [derive_seed("draw", number) for number in range(2000)]
    assert len(set(seeds)) == 2000
    assert 0.47 < sum(seed >= 2**62 for seed in seeds) / 2000 < 0.53
    assert 0.47 < sum(seed % 2 for seed in seeds) / 2000 < 0.53


def test_a_cached_file_is_made_once_for_an_identity(tmp_path: Path) -> None:
    made: list[str] = []

    def content(word: str) -> bytes:
        made.append(word)
        return word.encode()

    first = cached(tmp_path, "model-*.txt", {"texts": 1}, lambda: content("one"))
    again = cached(tmp_path, "model-*.txt", {"texts": 1}, lambda: content("again"))
    other = cached(tmp_path, "model-*.txt", {"texts": 2}, lambda: content("two"))
    assert first == again == tmp_path / f"model-{content_key({'texts': 1})}.txt" and first.read_bytes() == b"one"
    assert other.read_bytes() == b"two" and made == ["one", "two"]


def test_a_cached_file_that_could_not_be_made_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        cached(tmp_path, "*", {"texts": 1}, lambda: b"%d" % (1 // 0))
    assert list(tmp_path.iterdir()) == []
