"""Collecting: rows of every job -> tables with intervals, plots, and one CSV (paper, tables 1 and 2)."""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from dilm.config import METHODS
from dilm.files import disk_full_named, temporary_name, write_bytes
from dilm.results import Row, read_rows
from dilm.statistics import Difference, Summary, dataset_means, paired_difference, summarise
from dilm.tracking import finished_metrics

COMPARISONS = (("dilm", "lm"), ("dilm", "k_centers"), ("dilm", "random"), ("k_centers", "random"))
SETTING = ["task", "evaluator", "model", "metric", "protocol"]  # rows that one table may hold


@dataclass(frozen=True)
class Table:
    """One task, learner and protocol: a summary for every method and size, and paired differences."""

    task: str
    evaluator: str
    model: str
    metric: str
    summaries: dict[tuple[str, int], Summary]  # (method, dpc)
    differences: dict[tuple[str, str, int], Difference]  # (first, second, dpc)
    shared_pool: bool
    protocol: str  # what tells it from other tables of this task and learner; empty where it is the only one

    @property
    def title(self) -> str:
        """What the table is of."""
        how = "frozen encoder" if self.evaluator == "frozen" else "fine-tuned"
        apart = f", protocol {self.protocol}" if self.protocol else ""
        return f"{self.task}, {self.model} ({how}), {self.metric}{apart}"

    @property
    def methods(self) -> list[str]:
        """Methods in the paper's order, then others."""
        order = {name: position for position, name in enumerate(METHODS)}
        return sorted({method for method, _ in self.summaries}, key=lambda name: (order.get(name, len(order)), name))

    @property
    def sizes(self) -> list[int]:
        """Texts a class, ascending."""
        return sorted({dpc for _, dpc in self.summaries})


def run(root: Path, out: Path) -> list[Table]:
    """Write `results.csv`, `tables.md` and `plots/` from every row under `root`."""
    rows = read_rows(root)
    frame = pd.DataFrame([asdict(row) for row in rows])
    write_bytes(out / "results.csv", frame.drop(columns="metrics", errors="ignore").to_csv(index=False).encode())
    tables = make_tables(rows)
    failed = [row for row in rows if row.status == "failed"]
    write_bytes(out / "tables.md", markdown(tables, failed).encode())
    plot_all(tables, root, out / "plots")
    return tables


def make_tables(rows: list[Row]) -> list[Table]:
    """Group the done rows. Data sets made in several ways under one name are told apart by their key."""
    frame = pd.DataFrame([asdict(row) for row in rows if row.status == "done"])
    if frame.empty:
        return []
    tables = []
    groups = list(frame.groupby(SETTING, sort=True))
    alike = Counter(setting[:3] for setting, _ in groups)
    for setting, group in groups:
        named = group.assign(method=_distinct_names(group))
        cells = {(str(method), int(dpc)): part for (method, dpc), part in named.groupby(["method", "dpc"], sort=True)}
        summaries = {
            key: summarise(part["value"].to_numpy(), part["dataset"].to_numpy()) for key, part in cells.items()
        }
        task, evaluator, model, metric, protocol = (str(value) for value in setting)
        shared = bool((group["pool"] == "shared").any())
        apart = protocol[:6] if alike[setting[:3]] > 1 else ""
        tables.append(Table(task, evaluator, model, metric, summaries, _differences(cells), shared, apart))
    return tables


def _distinct_names(group: pd.DataFrame) -> pd.Series:
    """The method's name, with the data sets' key behind it where one name and size has several sources."""
    sources = group.groupby(["method", "dpc"])["source_key"].transform("nunique")
    return group["method"].where(sources == 1, group["method"] + " " + group["source_key"].str[:6])


def _differences(cells: dict[tuple[str, int], pd.DataFrame]) -> dict[tuple[str, str, int], Difference]:
    found = {}
    for (first, second), dpc in product(COMPARISONS, sorted({dpc for _, dpc in cells})):
        if (first, dpc) in cells and (second, dpc) in cells:
            means, other_means = _paired_means(cells[first, dpc], cells[second, dpc])
            if len(means):
                found[first, second, dpc] = paired_difference(means, other_means)
    return found


def _paired_means(first: pd.DataFrame, second: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Means of the data sets, and over the seeds, that both have."""
    index = ["dataset", "seed"]
    pairs = first.merge(second, on=index)
    datasets = pairs["dataset"].to_numpy()
    return dataset_means(pairs["value_x"].to_numpy(), datasets), dataset_means(pairs["value_y"].to_numpy(), datasets)


def cell_text(summary: Summary | None) -> str:
    """`mean ± std [low, high]` in percent; a dash where there is nothing."""
    if summary is None:
        return "–"
    std = "" if math.isnan(summary.std) else f" ± {summary.std:.1f}"
    interval = "" if math.isnan(summary.low) else f" [{summary.low:.1f}, {summary.high:.1f}]"
    return f"{summary.mean:.1f}{std}{interval}"


def difference_text(difference: Difference) -> str:
    """`+mean [low, high], p` of a paired difference."""
    interval = "" if math.isnan(difference.low) else f" [{difference.low:+.1f}, {difference.high:+.1f}]"
    p_value = "" if math.isnan(difference.p_value) else f", p = {difference.p_value:.3f}"
    p_value = p_value.replace("p = 0.000", "p < 0.001")
    return f"{difference.mean:+.1f}{interval}{p_value}"


def markdown(tables: list[Table], failed: list[Row]) -> str:
    """All tables as Markdown."""
    lines = [
        "# Results",
        "",
        "Mean ± standard deviation over models, and a 95% bootstrap interval of the mean over data sets.",
        "Differences are paired over data sets; p is of a two-sided sign-flip permutation test, not corrected.",
    ]
    for table in tables:
        lines += ["", f"## {table.title}", ""]
        if table.shared_pool:
            lines += [
                "Data sets are halves of one shared pool of candidates: they overlap, so intervals are too narrow.",
                "",
            ]
        lines += _rows(["method", *(f"dpc {dpc}" for dpc in table.sizes), "models", "data sets"], _summary_rows(table))
        if table.differences:
            lines += ["", *_rows(["difference", *(f"dpc {dpc}" for dpc in table.sizes)], _difference_rows(table))]
    if not tables:
        lines += ["", "No cell is done yet."]
    if failed:
        lines += ["", f"{len(failed)} cells failed; the first: {failed[0].error}"]
    return "\n".join(lines) + "\n"


def _rows(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def _summary_rows(table: Table) -> list[list[str]]:
    body = []
    for method in table.methods:
        found = [table.summaries.get((method, dpc)) for dpc in table.sizes]
        models = "/".join(str(summary.n_models) for summary in found if summary)
        datasets = "/".join(str(summary.n_datasets) for summary in found if summary)
        body.append([method, *(cell_text(summary) for summary in found), models, datasets])
    return body


def _difference_rows(table: Table) -> list[list[str]]:
    pairs = dict.fromkeys((first, second) for first, second, _ in table.differences)
    return [
        [
            f"{first} − {second}",
            *(
                difference_text(table.differences[first, second, dpc])
                if (first, second, dpc) in table.differences
                else "–"
                for dpc in table.sizes
            ),
        ]
        for first, second in pairs
    ]


def plot_all(tables: list[Table], root: Path, out: Path) -> None:
    """One plot of scores by size for each table, and one of gradient similarity for each matched generator."""
    import matplotlib

    matplotlib.use("Agg")
    for table in tables:
        apart = f"-{table.protocol}" if table.protocol else ""
        _plot_scores(table, out / f"{table.task}-{table.model}-{table.evaluator}{apart}.png")
    for metrics in finished_metrics(root, "dilm-*"):
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        _plot_matching(
            pd.DataFrame(records), metrics.parent, out / f"{metrics.parent.parent.name}-{metrics.parent.name}.png"
        )


def _save(figure: "matplotlib.figure.Figure", path: Path) -> None:  # type: ignore[name-defined] # noqa: F821
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    with disk_full_named(path):
        try:
            figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            pyplot.close(figure)


def _plot_scores(table: Table, path: Path) -> None:
    """Means by method and size, with the interval over data sets."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    width = 0.6 / len(table.methods)
    for number, method in enumerate(table.methods):
        found = [(place, table.summaries.get((method, dpc))) for place, dpc in enumerate(table.sizes)]
        shown = [(place, summary) for place, summary in found if summary is not None]
        places = [place + (number - (len(table.methods) - 1) / 2) * width for place, _ in shown]
        means = np.array([summary.mean for _, summary in shown])
        ends = [[summary.low for _, summary in shown], [summary.high for _, summary in shown]]
        # Where data sets have unequal numbers of models, the mean over models may lie outside.
        errors = np.nan_to_num(np.maximum([means - ends[0], ends[1] - means], 0))
        axes.errorbar(places, means, yerr=errors, fmt="o", capsize=4, label=method)
    axes.set_xlim(-0.6, len(table.sizes) - 0.4)
    axes.grid(axis="y", alpha=0.3)
    axes.set_xticks(range(len(table.sizes)), [str(dpc) for dpc in table.sizes])
    axes.set_xlabel("texts a class (dpc)")
    axes.set_ylabel(f"{table.metric} (%)")
    axes.set_title(table.title)
    axes.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    _save(figure, path)


def _plot_matching(records: pd.DataFrame, folder: Path, path: Path) -> None:
    """The matching loss, and the gradient similarity of fresh texts at fixed learner states, over updates."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained")
    losses = records.dropna(subset=["loss"])
    left.plot(losses["step"], losses["loss"], color="0.75", linewidth=0.8, label="every update")
    smooth = losses["loss"].rolling(max(1, len(losses) // 10), min_periods=1).mean()
    left.plot(losses["step"], smooth, label="running mean")
    left.set_title("matching loss")
    if "fresh_similarity" in records:
        fresh = records.dropna(subset=["fresh_similarity"])
        for column in [name for name in fresh if str(name).startswith("fresh_similarity_at_")]:
            label = f"learner after {str(column).rsplit('_', 1)[1]} steps"
            right.plot(fresh["step"], fresh[column], linewidth=0.8, marker=".", alpha=0.6, label=label)
        right.plot(fresh["step"], fresh["fresh_similarity"], marker="o", color="black", label="mean")
        right.axhline(float(fresh["real_similarity"].iloc[-1]), linestyle="--", color="0.5", label="as many real texts")
    right.set_title("gradient similarity of freshly written texts")
    for axes in (left, right):
        axes.set_xlabel("generator update")
        if axes.has_data():
            axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{folder.parent.name}: {folder.name}")
    _save(figure, path)
