"""Choosing a data set by what it teaches (docs/method.md): a proxy learns from chosen texts and is scored on others.

The proxy is ridge regression onto the labels, in the inner products of one encoder's features (a view); its outputs are
read as logits, and its value is their mean cross-entropy on training texts. It is convex and exact: what a text more
would change follows from a Schur complement, for all candidates at once.

Shape suffixes: K chosen texts, B candidates for a place, N all candidates, M scored texts, C classes, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # times a text's mean squared length
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # of logits
PROBES = 8  # random sets on which ridge and scale are fitted
LARGEST = 80.0  # exponent; beyond it a cross-entropy is as good as its difference of logits


@dataclass(frozen=True)
class View:
    """Candidates and scored texts as one encoder sees them, centred and of mean squared length one."""

    features_ND: Tensor
    cross_NM: Tensor  # inner products of candidates and scored texts, one added for the intercept
    ridge: float = 0.1
    scale: float = 4.0

    def inner(self, rows: Sequence[int] | np.ndarray, others: Sequence[int] | np.ndarray) -> Tensor:
        """Inner products of candidates, one added for the intercept, in double precision."""
        return self.features_ND[rows].double() @ self.features_ND[others].double().T + 1


@dataclass(frozen=True)
class Labels:
    """The classes of candidates and scored texts, as numbers from 0."""

    candidates_N: np.ndarray
    scored_M: np.ndarray
    n: int

    def targets(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """What the proxy is fitted to, targets_KC: one for the own class, less the mean."""
        labels_K = torch.as_tensor(self.candidates_N[np.asarray(rows, dtype=np.int64)])
        return one_hot(labels_K, self.n).double() - 1 / self.n


def view_of(candidates_ND: Tensor, scored_MD: Tensor) -> View:
    """A view of features as an encoder gives them. The scored texts set its middle and its unit of length."""
    middle_D = scored_MD.mean(0)
    unit = (scored_MD - middle_D).square().sum(1).mean().sqrt().clamp_min(1e-12)
    features_ND, scored_MD = (candidates_ND - middle_D) / unit, (scored_MD - middle_D) / unit
    return View(features_ND, features_ND @ scored_MD.T + 1)


def outputs(view: View, labels: Labels, rows: Sequence[int] | np.ndarray) -> Tensor:
    """What the proxy says of the scored texts after learning these candidates, before scaling: outputs_MC."""
    inner_KK = view.inner(rows, rows) + view.ridge * torch.eye(len(rows), dtype=torch.float64)
    weights_KC = torch.linalg.solve(inner_KK, labels.targets(rows))
    return view.cross_NM[rows].T @ weights_KC.to(view.cross_NM.dtype)


def value(views: Sequence[View], labels: Labels, rows: Sequence[int] | np.ndarray) -> float:
    """A set's value: mean cross-entropy in nats, over views, of the proxy that learnt it, on the scored texts.

    The lower, the more the set teaches.
    """
    truth = torch.as_tensor(labels.scored_M)
    losses = [torch.nn.functional.cross_entropy(view.scale * outputs(view, labels, rows), truth) for view in views]
    return float(torch.stack(losses).mean())


def values_with(views: Sequence[View], labels: Labels, kept: Sequence[int], rows: np.ndarray) -> Tensor:
    """`value` of the set `kept` with each of these candidates of one class added, values_B: nothing is refitted."""
    return torch.stack([_values_with(view, labels, kept, rows) for view in views]).mean(0)


def _values_with(view: View, labels: Labels, kept: Sequence[int], rows: np.ndarray) -> Tensor:
    """`values_with` of one view.

    With A the regularised inner products of the kept, a candidate b changes every output by a product: the part of b's
    inner products that the kept don't explain, times its error so far over its Schur complement.
    """
    kind = view.cross_NM.dtype
    unexplained_BM, outputs_MC = view.cross_NM[rows], torch.zeros(len(labels.scored_M), labels.n, dtype=kind)
    error_BC = labels.targets(rows)
    complement_B = view.features_ND[rows].double().square().sum(1) + 1 + view.ridge
    if len(kept):
        inner_KK = view.inner(kept, kept) + view.ridge * torch.eye(len(kept), dtype=torch.float64)
        inner_KB, targets_KC = view.inner(kept, rows), labels.targets(kept)
        solved = torch.cholesky_solve(torch.cat([targets_KC, inner_KB], 1), torch.linalg.cholesky(inner_KK))
        weights_KC, explained_KB = solved[:, : labels.n], solved[:, labels.n :]
        cross_KM = view.cross_NM[kept]
        outputs_MC = cross_KM.T @ weights_KC.to(kind)
        unexplained_BM = torch.addmm(unexplained_BM, explained_KB.T.to(kind), cross_KM, alpha=-1)
        error_BC = error_BC - inner_KB.T @ weights_KC
        complement_B = complement_B - (inner_KB * explained_KB).sum(0)
    steps_BC = (error_BC / complement_B[:, None]).to(kind)
    return cross_entropies(unexplained_BM, steps_BC * view.scale, outputs_MC * view.scale, labels)


def cross_entropies(moves_BM: Tensor, steps_BC: Tensor, logits_MC: Tensor, labels: Labels) -> Tensor:
    """Mean cross-entropy, for each b, of logits_MC + moves_BM[b, m] * steps_BC[b]: values_B in nats."""
    total_B = torch.zeros(len(moves_BM), dtype=moves_BM.dtype)
    for label in range(labels.n):
        scored = torch.as_tensor(np.flatnonzero(labels.scored_M == label))
        moves_Bm = moves_BM.index_select(1, scored)
        odds_Bm = torch.zeros_like(moves_Bm)  # of the other classes together
        for other in set(range(labels.n)) - {label}:
            behind_m = logits_MC[scored, other] - logits_MC[scored, label]
            step_B1 = (steps_BC[:, other] - steps_BC[:, label])[:, None]
            odds_Bm += torch.addcmul(behind_m, moves_Bm, step_B1).clamp_max_(LARGEST).exp_()
        total_B += odds_Bm.log1p_().sum(1)
    return total_B / len(labels.scored_M)


def fitted(view: View, labels: Labels, sets: Sequence[Sequence[int]]) -> View:
    """The view with the ridge and the scale that these sets are worth most with, on the scored (training) texts."""
    truth, best = torch.as_tensor(labels.scored_M), (np.inf, view)
    for ridge in RIDGES:
        tried = replace(view, ridge=ridge)
        outputs_of_sets = [outputs(tried, labels, rows) for rows in sets]
        for scale in SCALES:
            losses = [torch.nn.functional.cross_entropy(scale * outputs_MC, truth) for outputs_MC in outputs_of_sets]
            best = min(best, (float(torch.stack(losses).mean()), replace(tried, scale=scale)), key=lambda pair: pair[0])
    return best[1]


def random_start(labels: Labels, dpc: int, random: np.random.Generator) -> list[int]:
    """A set of `dpc` candidates a class, classes in turn."""
    classes = range(labels.n)
    drawn = [random.choice(np.flatnonzero(labels.candidates_N == c), dpc, replace=False) for c in classes]
    return [int(row) for rows in zip(*drawn, strict=True) for row in rows]


def greedy_start(views: Sequence[View], labels: Labels, dpc: int) -> list[int]:
    """A set of `dpc` candidates a class: classes in turn, each adding the text that is worth most beside the others."""
    chosen: list[int] = []
    for place in range(dpc * labels.n):
        rows = _free(labels, place % labels.n, chosen)
        chosen.append(int(rows[values_with(views, labels, chosen, rows).argmin()]))
    return chosen


def swapped(
    views: Sequence[View], labels: Labels, start: Sequence[int], passes: int, random: np.random.Generator
) -> tuple[list[int], float]:
    """Local search: every text in turn is replaced by the candidate of its class that is worth most in its place.

    Until a pass changes nothing, or `passes` are over. Returns the set and its value, which no swap has raised.
    """
    chosen, best = list(start), value(views, labels, start)
    for _ in range(passes):
        before = list(chosen)
        for place in random.permutation(len(chosen)):
            kept = [*chosen[:place], *chosen[place + 1 :]]
            rows = _free(labels, int(labels.candidates_N[chosen[place]]), chosen)
            values_B = values_with(views, labels, kept, rows)
            if len(rows) and float(values_B.min()) < best - 1e-7:
                best, chosen[place] = float(values_B.min()), int(rows[values_B.argmin()])
        if chosen == before:
            break
    return chosen, best


def tuned(views: Sequence[View], labels: Labels, dpc: int, seed: int) -> list[View]:
    """The views with ridge and scale for sets that were searched for, rather than for random ones.

    Random sets teach little: what fits them is too timid for what a search finds. So they only fit a first greedy set,
    which then fits the views.
    """
    random = np.random.default_rng(seed)
    probes = [random_start(labels, dpc, random) for _ in range(PROBES)]
    greedy = greedy_start([fitted(view, labels, probes) for view in views], labels, dpc)
    return [fitted(view, labels, [greedy]) for view in views]


def search(
    views: Sequence[View], labels: Labels, dpc: int, seed: int, passes: int = 2, restarts: int = 0
) -> tuple[list[int], float]:
    """The set of `dpc` candidates a class that is worth most, and its value: greedy and random starts, then swaps.

    Rows stand class by class. Raises ValueError where a class has fewer candidates.
    """
    fewest = int(np.bincount(labels.candidates_N, minlength=labels.n).min())
    if fewest < dpc:
        raise ValueError(f"{dpc} of {fewest} texts can't be chosen")
    random = np.random.default_rng(seed)
    starts = [greedy_start(views, labels, dpc), *(random_start(labels, dpc, random) for _ in range(restarts))]
    chosen, best = min((swapped(views, labels, start, passes, random) for start in starts), key=lambda pair: pair[1])
    return sorted(chosen, key=lambda row: int(labels.candidates_N[row])), best


def _free(labels: Labels, label: int, chosen: Sequence[int]) -> np.ndarray:
    """The candidates of a class that aren't chosen."""
    return np.setdiff1d(np.flatnonzero(labels.candidates_N == label), chosen)
