"""A report's plots. matplotlib is loaded when the first is drawn."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from dilm.files import disk_full_named, temporary_name
from dilm.summaries import Table
from dilm.tracking import finished_metrics


def plot_all(tables: list[Table], root: Path, out: Path) -> None:
    """One plot of scores by size for each table, and one of gradient similarity for each matched generator."""
    import matplotlib

    matplotlib.use("Agg")
    for table in (table for table in tables if table.sizes):
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
    for method, summary in table.whole.items():
        axes.axhline(summary.mean, linestyle="--", color="0.5", label=method)
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
