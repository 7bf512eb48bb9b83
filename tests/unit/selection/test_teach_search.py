"""Choosing by what a set teaches: exact against refitting, and near the best of all sets where they can be counted."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from dilm.selection import teach
from dilm.selection.teach import Labels, View, view_of


def problem(seed: int, n_labels: int = 2, each: int = 6, scored: int = 30, width: int = 4) -> tuple[list[View], Labels]:
    """Two views of texts whose classes overlap, with their labels, in double precision."""
    random = np.random.default_rng(seed)
    labels = Labels(np.arange(each * n_labels) % n_labels, random.integers(n_labels, size=scored), n_labels)
    views = []
    for ridge, scale in ((0.1, 3.0), (1.0, 6.0)):
        middles = random.normal(size=(n_labels, width))
        candidates_ND, scored_MD = (
            middles[rows] + random.normal(size=(len(rows), width)) for rows in (labels.candidates_N, labels.scored_M)
        )
        view = view_of(torch.from_numpy(candidates_ND), torch.from_numpy(scored_MD))
        views.append(View(view.features_ND, view.cross_NM, ridge, scale))
    return views, labels


def refitted(view: View, labels: Labels, rows: list[int]) -> float:
    """The value of a set by a solver of ridge regression, from the features themselves."""
    inner_KK = np.array([[float(view.features_ND[a] @ view.features_ND[b]) + 1 for b in rows] for a in rows])
    targets_KC = np.eye(labels.n)[labels.candidates_N[rows]] - 1 / labels.n
    weights_KC = np.linalg.inv(inner_KK + view.ridge * np.eye(len(rows))) @ targets_KC
    logits_MC = view.scale * view.cross_NM[rows].numpy().T @ weights_KC
    return float(cross_entropy(torch.from_numpy(logits_MC), torch.from_numpy(labels.scored_M)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.data())
def test_what_a_text_more_would_change_is_what_refitting_finds(seed: int, n_labels: int, data: st.DataObject) -> None:
    views, labels = problem(seed, n_labels)
    kept = data.draw(st.lists(st.integers(0, len(labels.candidates_N) - 1), unique=True, max_size=8))
    own = data.draw(st.integers(0, n_labels - 1))
    rows = np.array([row for row in np.flatnonzero(labels.candidates_N == own) if row not in kept])
    found = teach.values_with(views, labels, kept, rows)
    for row, value in zip(rows, found, strict=True):
        whole = [*kept, int(row)]
        assert float(value) == pytest.approx(teach.value(views, labels, whole), abs=1e-8)
        assert float(value) == pytest.approx(np.mean([refitted(view, labels, whole) for view in views]), abs=1e-8)


@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_cross_entropies_are_torchs(seed: int, n_labels: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(n_labels, size=7)
    moves_BM, steps_BC, logits_MC = (
        torch.from_numpy(random.normal(size=shape)) * 2 for shape in ((3, 7), (3, n_labels), (7, n_labels))
    )
    found = teach.cross_entropies(moves_BM, steps_BC, logits_MC, Labels(truth[:0], truth, n_labels))
    for move_M, step_C, value in zip(moves_BM, steps_BC, found, strict=True):
        whole_MC = logits_MC + move_M[:, None] * step_C
        assert float(value) == pytest.approx(float(cross_entropy(whole_MC, torch.from_numpy(truth))), abs=1e-8)


def test_the_search_finds_a_set_within_a_hundredth_of_the_best() -> None:
    for seed in range(40):
        views, labels = problem(seed, n_labels=2 + seed % 2, each=5 if seed % 2 else 8)
        members = [np.flatnonzero(labels.candidates_N == own) for own in range(labels.n)]
        every = product(*(combinations(rows.tolist(), 2) for rows in members))
        best = min(teach.value(views, labels, [row for part in parts for row in part]) for parts in every)
        chosen, value = teach.search(views, labels, 2, seed, passes=20, restarts=24)
        assert best - 1e-9 <= value <= best * 1.01
        assert value == pytest.approx(teach.value(views, labels, chosen), abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 3), st.integers(1, 6))
def test_a_set_has_as_many_distinct_texts_of_every_class(seed: int, n_labels: int, dpc: int) -> None:
    views, labels = problem(seed, n_labels)
    chosen, value = teach.search(views, labels, dpc, seed, restarts=1)
    assert len(set(chosen)) == dpc * n_labels
    assert labels.candidates_N[chosen].tolist() == [own for own in range(n_labels) for _ in range(dpc)]
    assert (chosen, value) == teach.search(views, labels, dpc, seed, restarts=1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_swap_is_left_that_is_worth_more(seed: int) -> None:
    views, labels = problem(seed)
    start = teach.random_start(labels, 2, np.random.default_rng(seed))
    chosen, value = teach.swapped(views, labels, start, 50, np.random.default_rng(seed))
    assert value <= teach.value(views, labels, start)
    for place, row in product(range(len(chosen)), range(len(labels.candidates_N))):
        if labels.candidates_N[row] == labels.candidates_N[chosen[place]] and row not in chosen:
            other = [*chosen[:place], row, *chosen[place + 1 :]]
            assert teach.value(views, labels, other) >= value - 1e-6


def test_texts_with_a_wrong_label_are_not_chosen() -> None:
    random = np.random.default_rng(0)
    truth, scored = np.arange(40) % 2, np.arange(200) % 2
    wrong = np.arange(40) >= 30  # a quarter of the candidates
    features_ND, scored_MD = (
        torch.from_numpy(4.0 * rows[:, None] + random.normal(size=(len(rows), 3))) for rows in (truth, scored)
    )
    labels = Labels(np.where(wrong, 1 - truth, truth), scored, 2)
    views = teach.tuned([view_of(features_ND, scored_MD)], labels, 4, 0)
    chosen, _ = teach.search(views, labels, 4, 0)
    assert not wrong[chosen].any()


def test_ridge_and_scale_are_the_best_of_those_that_were_tried() -> None:
    (view, _), labels = problem(3, each=20, scored=200)
    random = np.random.default_rng(5)
    sets = [teach.random_start(labels, 3, random) for _ in range(4)]
    found = teach.fitted(view, labels, sets)

    def mean(ridge: float, scale: float) -> float:
        tried = View(view.features_ND, view.cross_NM, ridge, scale)
        return float(np.mean([teach.value([tried], labels, rows) for rows in sets]))

    best = min(mean(ridge, scale) for ridge in teach.RIDGES for scale in teach.SCALES)
    assert mean(found.ridge, found.scale) == pytest.approx(best)


def test_too_few_texts_are_refused() -> None:
    views, labels = problem(0, each=2)
    with pytest.raises(ValueError, match="3 of 2 texts"):
        teach.search(views, labels, 3, 0)
