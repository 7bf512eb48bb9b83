"""Errors are told in one line, with the nearest name that is known."""

import inspect

import pytest

from dilm.core import errors
from dilm.core.errors import DilmError, MissingArtifactError, did_you_mean


def test_the_nearest_name_is_suggested_and_all_are_listed_in_order() -> None:
    assert did_you_mean("bert_bse", ["mpnet", "bert_base"]) == " Did you mean 'bert_base'? Known: bert_base, mpnet."


def test_nothing_is_suggested_where_no_name_is_near() -> None:
    assert did_you_mean("xyz", ["random", "k_centers"]) == " Known: k_centers, random."


def test_names_may_come_from_a_generator() -> None:
    assert did_you_mean("dlim", (name for name in ("lm", "dilm"))) == " Did you mean 'dilm'? Known: dilm, lm."


KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_caught_as_the_users_error(kind: type[Exception]) -> None:
    assert issubclass(kind, DilmError)


def test_a_missing_artifact_is_told_with_the_command_that_makes_it() -> None:
    error = MissingArtifactError("runs/toy/lm-0123", "python -m dilm.train")
    assert str(error) == "runs/toy/lm-0123 is not there yet. Make it with: python -m dilm.train with the same keys"
    told = error.with_keys("task=toy seed=1")
    assert str(told) == "runs/toy/lm-0123 is not there yet. Make it with: python -m dilm.train task=toy seed=1"
