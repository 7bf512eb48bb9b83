"""Tables from rows: for every task, learner and protocol the summaries by method and size, and their differences."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd

from dilm.config.schema import METHODS
from dilm.report.statistics import Difference, Summary, dataset_means, distance, holm, paired_difference, summarise

SETTING = ["task", "evaluator", "model", "metric", "protocol"]  # columns that are equal in all rows of a table
HOW = {"finetune": "fine-tuned", "frozen": "frozen encoder", "icl": "in context"}  # evaluators in titles
FULL = ("full", 0)  # method and size of the whole training set


@dataclass(frozen=True)
class Table:
    """One task, learner and protocol: a summary for every method and size, and differences between methods."""

    task: str
    evaluator: str
    model: str
    metric: str
    summaries: dict[tuple[str, int], Summary]  # (method, dpc)
    differences: dict[tuple[str, str, int], Difference]  # (first, second, dpc), p corrected for their number
    below_full: dict[tuple[str, int], Difference]  # full - method
    shared_pool: bool
    protocol: str  # start of the protocol's key; empty where the task and learner have no other table

    @property
    def title(self) -> str:
        """What the table is of."""
        protocol = f", protocol {self.protocol}" if self.protocol else ""
        return f"{self.task}, {self.model} ({HOW.get(self.evaluator, self.evaluator)}), {self.metric}{protocol}"

    @property
    def methods(self) -> list[str]:
        """Methods in the paper's order, then others."""
        return _in_order({method for method, dpc in self.summaries if dpc})

    @property
    def whole(self) -> dict[str, Summary]:
        """Scores of the whole training set, which has no size; several where its schedules differ."""
        return {method: summary for (method, dpc), summary in self.summaries.items() if not dpc}

    @property
    def sizes(self) -> list[int]:
        """Texts a class, ascending."""
        return sorted({dpc for _, dpc in self.summaries if dpc})


def make_tables(rows: pd.DataFrame) -> list[Table]:
    """Tables of the done rows of `read_table`. Data sets that were made in several ways have their key in the name."""
    done = rows[rows["status"] == "done"]
    if done.empty:
        return []
    tables = []
    groups = list(_within_protocols(done).groupby(SETTING, sort=True))
    alike = Counter(setting[:3] for setting, _ in groups)
    for setting, group in groups:
        named = group.assign(method=_distinct_names(group))
        cells = {(str(method), int(dpc)): part for (method, dpc), part in named.groupby(["method", "dpc"], sort=True)}
        summaries = {
            key: summarise(part["value"].to_numpy(), part["dataset"].to_numpy()) for key, part in cells.items()
        }
        task, evaluator, model, metric, protocol = (str(value) for value in setting)
        shared = bool((group["pool"] == "shared").any())
        shown = protocol[:6] if alike[setting[:3]] > 1 else ""
        table = Table(task, evaluator, model, metric, summaries, _differences(cells), _below_full(cells), shared, shown)
        tables.append(table)
    return tables


@dataclass(frozen=True)
class Across:
    """What the same data sets teach several models (the paper's table 2)."""

    task: str
    evaluator: str
    metric: str
    cells: dict[tuple[str, str, int], Summary]  # (model, method, dpc)

    @property
    def title(self) -> str:
        """What it is of."""
        return f"{self.task} across models ({HOW.get(self.evaluator, self.evaluator)}), {self.metric}"

    @property
    def methods(self) -> list[str]:
        """Methods in the paper's order, then others."""
        return _in_order({method for _, method, _ in self.cells})

    @property
    def models(self) -> list[str]:
        """Models in the order of their names."""
        return sorted({model for model, _, _ in self.cells})

    @property
    def sizes(self) -> list[int]:
        """Texts a class, ascending."""
        return sorted({dpc for _, _, dpc in self.cells})


def across_models(tables: list[Table]) -> list[Across]:
    """One for each task and evaluator with several models; two protocols of one model don't count as several."""
    groups: dict[tuple[str, str, str], list[Table]] = {}
    for table in tables:
        groups.setdefault((table.task, table.evaluator, table.metric), []).append(table)
    several = {setting: group for setting, group in groups.items() if len({table.model for table in group}) > 1}
    return [Across(*setting, _cells_of(group)) for setting, group in several.items()]


def _cells_of(group: list[Table]) -> dict[tuple[str, str, int], Summary]:
    cells: dict[tuple[str, str, int], Summary] = {}
    for table in group:
        model = table.model + (f" {table.protocol}" if table.protocol else "")
        cells |= {(model, method, dpc): summary for (method, dpc), summary in table.summaries.items() if dpc}
    return cells


def base_of(name: str) -> str:
    """The method of a name that may be followed by a variant, as in `dilm, no selection`."""
    return name.partition(", ")[0]


def _in_order(methods: set[str]) -> list[str]:
    order = {name: position for position, name in enumerate(METHODS)}
    return sorted(methods, key=lambda name: (order.get(base_of(name), len(order)), name))


def _within_protocols(frame: pd.DataFrame) -> pd.DataFrame:
    """Put rows of method=full under the protocol of the rows that they are compared with.

    Their column has both, with a slash between; their second part takes the place of `source_key`.
    """
    parts = frame["protocol"].str.partition("/")
    return frame.assign(protocol=parts[0], source_key=frame["source_key"].where(parts[2] == "", parts[2]))


def _distinct_names(group: pd.DataFrame) -> pd.Series:
    """Names of methods, followed by the data sets' key where one method and size has several sources."""
    sources = group.groupby(["method", "dpc"])["source_key"].transform("nunique")
    return group["method"].where(sources == 1, group["method"] + " " + group["source_key"].str[:6])


Cells = Mapping[tuple[str, int], pd.DataFrame]


def comparisons(methods: set[str]) -> list[tuple[str, str]]:
    """Pairs of methods to compare: dilm with every other, `teach` with K-centers, and all with random."""
    known = [name for name in _in_order(methods) if base_of(name) in METHODS and name != "full"]
    others = [name for name in known if name not in ("dilm", "random")]
    with_dilm = [("dilm", name) for name in [*reversed(others), "random"] if {"dilm", name} <= set(known)]
    taught = [name for name in others if "teach" in name.split(", ")]  # of real texts, or as a variant
    with_centers = [(name, "k_centers") for name in taught if "k_centers" in known]
    return with_dilm + with_centers + [(name, "random") for name in others if "random" in known]


def _differences(cells: Cells) -> dict[tuple[str, str, int], Difference]:
    """Paired differences at every size; Holm's correction is for all of them together."""
    differences = {}
    scores = {key: _scores(part) for key, part in cells.items()}
    sizes = sorted({dpc for _, dpc in cells})
    for (first, second), dpc in product(comparisons({method for method, _ in cells}), sizes):
        if (first, dpc) in cells and (second, dpc) in cells:
            means, other_means = _paired_means(scores[first, dpc], scores[second, dpc])
            if len(means):
                differences[first, second, dpc] = paired_difference(means, other_means)
    corrected = holm(np.array([difference.p_value for difference in differences.values()]))
    pairs = zip(differences.items(), corrected, strict=True)
    return {key: replace(difference, p_holm=float(p_value)) for (key, difference), p_value in pairs}


def _below_full(cells: Cells) -> dict[tuple[str, int], Difference]:
    """The score of the whole training set minus that of every method and size."""
    if FULL not in cells:
        return {}
    full = cells[FULL]["value"].to_numpy()
    return {key: distance(full, _means(part)) for key, part in cells.items() if key != FULL}


def _means(part: pd.DataFrame) -> np.ndarray:
    return dataset_means(part["value"].to_numpy(), part["dataset"].to_numpy())


Scores = dict[tuple[int, int], float]  # of a method and size: data set, seed -> score


def _scores(part: pd.DataFrame) -> Scores:
    columns = (part[name].tolist() for name in ("dataset", "seed", "value"))
    return {(dataset, seed): value for dataset, seed, value in zip(*columns, strict=True)}


def _paired_means(first: Scores, second: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Means by data set, over the data sets and seeds that both have."""
    pairs = [pair for pair in first if pair in second]
    datasets = np.array([dataset for dataset, _ in pairs])
    means, other_means = (
        dataset_means(np.array([scores[pair] for pair in pairs]), datasets) for scores in (first, second)
    )
    return means, other_means
