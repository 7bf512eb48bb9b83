"""A report's plots, as SVG in the colour of the text around it. matplotlib is loaded when the first is drawn."""

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dilm.report.summary import Across, Table
from dilm.tracking.tracker import finished_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


INK = "#010203"  # drawn in this colour, which is then replaced by `currentColor`
ABOVE, BELOW = 0.6, 0.6  # inches for titles and for the axis
FIGURE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "sans-serif",
    "font.size": 10,
}


def plot_all(tables: list[Table], across: list[Across], costs: pd.DataFrame, root: Path) -> dict[str, str]:
    """Every plot of a report: the file's name -> SVG."""
    plots = {name_of(table): score_plot(table) for table in tables if table.sizes}
    for part in across:
        plots[f"{part.task}-across-{part.evaluator}"] = heat_map(part)
    for metrics in finished_metrics(root, "dilm-*"):
        name = f"{metrics.parent.parent.name}-{metrics.parent.name}"
        records = pd.DataFrame([json.loads(line) for line in metrics.read_text().splitlines()])
        plots[name] = matching_plot(records, name)
    for metrics in finished_metrics(root, "lm-*"):
        records = pd.DataFrame([json.loads(line) for line in metrics.read_text().splitlines()])
        name = f"{metrics.parent.parent.name}-{metrics.parent.name}"
        plots[name] = pretraining_plot(records, name)
    for task, part in costs.groupby("task"):
        plots[f"{task}-cost"] = cost_plot(part, str(task))
    return plots


def name_of(table: Table) -> str:
    """The name of a table's plot."""
    protocol = f"-{table.protocol}" if table.protocol else ""
    return f"{table.task}-{table.model}-{table.evaluator}{protocol}"


@contextmanager
def _drawn(
    columns: int, width: float, height: float, left: float = 0.7, right: float = 0.2
) -> Iterator[tuple["Figure", Any, list[str]]]:
    """A figure, its axes, and a list that holds the figure as SVG after the block. Sizes are in inches.

    Margins are given rather than measured, because measuring them draws the figure twice.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    content: list[str] = []
    whole, high = left + width + right, height + ABOVE + BELOW
    with matplotlib.rc_context(FIGURE):
        figure = Figure(figsize=(whole, high))
        FigureCanvasSVG(figure)
        figure.subplots_adjust(left / whole, BELOW / high, (left + width) / whole, 1 - ABOVE / high)
        axes = figure.subplots(1, columns, squeeze=False)[0]
        yield figure, axes, content
        stream = io.StringIO()
        # Ids in the SVG are made from the label, so they are the same every time and differ between figures.
        with matplotlib.rc_context({"svg.hashsalt": str(figure.get_label())}):
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    content.append(text[text.index("<svg") :].replace(INK, "currentColor"))


def _room_for(names: Iterable[str]) -> float:
    """Inches that the longest name takes."""
    return 0.085 * max(map(len, names), default=0)


def score_plot(table: Table) -> str:
    """Means by method and size, with the interval over data sets, and the whole training set as a line."""
    legend = _room_for([*table.methods, *table.whole]) + 0.6
    with _drawn(1, 5, 2.8, right=legend) as (figure, (axes,), content):
        figure.set_label(table.title)
        width = 0.6 / len(table.methods)
        for number, method in enumerate(table.methods):
            summaries = [(place, table.summaries.get((method, dpc))) for place, dpc in enumerate(table.sizes)]
            shown = [(place, summary) for place, summary in summaries if summary is not None]
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
    return content[0]


def heat_map(part: Across) -> str:
    """Means by method, and by model and size."""
    columns = [(model, dpc) for model in part.models for dpc in part.sizes]
    means = [
        [cell.mean if (cell := part.cells.get((model, method, dpc))) else np.nan for model, dpc in columns]
        for method in part.methods
    ]
    left = _room_for(part.methods) + 0.2
    with _drawn(1, 1.5 + 0.5 * len(columns), 0.35 * len(part.methods), left, 0.6) as (figure, (axes,), content):
        figure.set_label(part.title)
        mesh = axes.pcolormesh(np.array(means), cmap="viridis")
        middle = np.nanmean([np.nanmin(means), np.nanmax(means)])
        for (row, column), value in np.ndenumerate(means):
            ink = "black" if value > middle else "white"
            shown = "" if np.isnan(value) else f"{value:.1f}"
            axes.text(column + 0.5, row + 0.5, shown, ha="center", va="center", color=ink, fontsize=8)
        axes.set_xticks(np.arange(len(columns)) + 0.5, [str(dpc) for _, dpc in columns])
        for place, model in enumerate(part.models):
            axes.text((place + 0.5) * len(part.sizes), len(part.methods) + 0.9, model, ha="center", va="top")
        axes.set_yticks(np.arange(len(part.methods)) + 0.5, part.methods)
        axes.invert_yaxis()
        figure.suptitle(part.title)
        figure.colorbar(mesh, label=f"{part.metric} (%)")
    return content[0]


def matching_plot(records: pd.DataFrame, name: str) -> str:
    """The matching loss, and the gradient similarity of fresh texts at fixed learner states, over updates."""
    with _drawn(2, 11, 2.6) as (figure, (left, right), content):
        figure.set_label(name)
        losses = records.dropna(subset=["loss"])
        left.plot(losses["step"], losses["loss"], color="0.6", linewidth=0.8, label="every update")
        smooth = losses["loss"].rolling(max(1, len(losses) // 10), min_periods=1).mean()
        left.plot(losses["step"], smooth, label="running mean")
        left.set_title("matching loss")
        if "fresh_similarity" in records:
            fresh = records.dropna(subset=["fresh_similarity"])
            for column in [str(name) for name in fresh if str(name).startswith("fresh_similarity_at_")]:
                label = f"learner after {column.rsplit('_', 1)[1]} steps"
                right.plot(fresh["step"], fresh[column], linewidth=0.8, marker=".", alpha=0.6, label=label)
            right.plot(fresh["step"], fresh["fresh_similarity"], marker="o", color=INK, label="mean")
            real = float(fresh["real_similarity"].iloc[-1])
            right.axhline(real, linestyle="--", color="0.5", label="as many real texts")
        right.set_title("gradient similarity of freshly written texts")
        for axes in (left, right):
            axes.set_xlabel("generator update")
            if axes.has_data():
                axes.legend(frameon=False, fontsize=8)
        figure.suptitle(name)
    return content[0]


def pretraining_plot(records: pd.DataFrame, name: str) -> str:
    """The language-model loss over steps, and on held-out texts the loss and the accuracy of telling labels by it."""
    with _drawn(2, 11, 2.6) as (figure, (left, right), content):
        figure.set_label(name)
        losses = records.dropna(subset=["loss"]) if "loss" in records else records.iloc[:0].assign(loss=0.0)
        left.plot(losses["step"], losses["loss"], color="0.6", linewidth=0.8, label="training")
        if "valid_nll" in records:
            held = records.dropna(subset=["valid_nll"])
            left.plot(held["step"], held["valid_nll"], marker="o", label="held-out texts")
        left.set_title("language-model loss (nats a token)")
        left.legend(frameon=False, fontsize=8)
        if "valid_label_accuracy" in records:
            held = records.dropna(subset=["valid_label_accuracy"])
            right.plot(held["step"], held["valid_label_accuracy"], marker="o")
        right.set_title("held-out texts that are likeliest under their own label")
        for axes in (left, right):
            axes.set_xlabel("step")
        figure.suptitle(name)
    return content[0]


def cost_plot(costs: pd.DataFrame, task: str) -> str:
    """Scores over the hours that the data sets took to make; `costs` is as `costs_of` gives it."""
    with _drawn(1, 5, 2.8, right=_room_for(costs["method"]) + 0.6) as (figure, (axes,), content):
        figure.set_label(f"{task} cost")
        for method, part in costs.groupby("method", sort=False):
            axes.plot(part["hours"], part["value"], marker="o", linestyle="", label=str(method))
            for _, point in part.iterrows():
                axes.annotate(str(point["dpc"]), (point["hours"], point["value"]), fontsize=7, xytext=(3, 3),
                              textcoords="offset points")  # fmt: skip
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.set_xlabel(f"{costs['device'].iloc[0]} hours to make the data sets")
        axes.set_ylabel(f"{costs['metric'].iloc[0]} (%)")
        axes.set_title(f"{task}: cost and score, {costs['model'].iloc[0]} (numbers: dpc)")
        axes.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
    return content[0]
