"""The report as one page that needs no network: tables and plots with filters, the run's health, and the texts."""

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dilm import __version__
from dilm.artifacts.shards import read_index, read_shards
from dilm.config.schema import METHODS
from dilm.core.io import TEMPORARY, read_json
from dilm.report.health import Health
from dilm.report.plots import name_of
from dilm.report.summary import Across, Table
from dilm.report.tables import NOTES, OVERLAP, across_rows, cell_text, difference_rows, marked, missing_of

TEMPLATE = Path(__file__).with_name("page.html")
SHOWN_DATASETS = 3  # of each method and size


def page(
    tables: list[Table], across: list[Across], plots: dict[str, str], health: Health, texts: dict[str, Any]
) -> str:
    """The whole page; `texts` is what `texts_below` gives."""
    drawn = {name_of(table) for table in tables}
    results = [_table(table, plots.get(name_of(table), "")) for table in tables] or ["<p>No cell is done yet.</p>"]
    parts = {
        "made": f"dilm {escape(__version__)}" + (f", cells up to {escape(health.newest)}" if health.newest else ""),
        "summary": _summary(health, len(tables)),
        "filters": _filters(tables),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in NOTES),
        "results": "".join([*results, *map(_across, across)]),
        "plots": "".join(f"<figure>{svg}</figure>" for name, svg in plots.items() if name not in drawn),
        "health": _health(health),
        "texts": json.dumps(texts, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    whole = TEMPLATE.read_text(encoding="utf-8")
    for name, content in parts.items():
        whole = whole.replace(f"<!--{name}-->", content, 1)
    return whole


def _summary(health: Health, n_tables: int) -> str:
    counts = {
        "models evaluated": health.done,
        "failed": health.failed,
        "missing": health.missing,
        "tables": n_tables,
    }
    return "".join(f"<div class=tile><b>{number:,}</b> {name}</div>" for name, number in counts.items())


def _filters(tables: list[Table]) -> str:
    parts = []
    for name, label, values in (
        ("tasks", "Task", {table.task for table in tables}),
        ("models", "Model", {table.model for table in tables}),
    ):
        options = "".join(f"<option>{escape(value)}</option>" for value in sorted(values))
        parts.append(f'<label>{label} <select id="{name}"><option value="">all</option>{options}</select></label>')
    methods = dict.fromkeys(method for table in tables for method in table.methods)
    boxes = [
        f'<label><input type=checkbox name=method value="{escape(name)}" checked> {escape(name)}</label>'
        for name in methods
    ]
    return "".join([*parts, "<fieldset><legend>Methods</legend>", *boxes, "</fieldset>"])


def _table(table: Table, svg: str) -> str:
    sizes = [f"dpc {dpc}" for dpc in table.sizes]
    rows = [_row(method, [_cell(table, method, dpc) for dpc in table.sizes]) for method in table.methods]
    rows += [_row(name, [f"<td>{cell_text(own)}</td>"] * max(1, len(sizes))) for name, own in table.whole.items()]
    notes = [OVERLAP] if table.shared_pool else []
    notes += [f"{missing} models are missing for equal numbers."] if (missing := missing_of(table)) else []
    compared = [_row(first, [f"<td>{escape(text)}</td>" for text in rest]) for first, *rest in difference_rows(table)]
    parts = [
        f'<section class=result data-task="{escape(table.task)}" data-model="{escape(table.model)}">',
        f"<h3>{escape(table.title)}</h3>",
        *(f"<p class=note>{note}</p>" for note in notes),
        f"<div class=pair>{_grid('method', sizes or ['all texts'], rows)}<figure>{svg}</figure></div>",
    ]
    if compared:
        parts.append(f"<details><summary>Differences</summary>{_grid('difference', sizes, compared)}</details>")
    return "".join([*parts, "</section>"])


def _cell(table: Table, method: str, dpc: int) -> str:
    summary = table.summaries.get((method, dpc))
    best, star = marked(table, method, dpc)
    text = escape(cell_text(summary)) + ("*" if star else "")
    of = f"{summary.n_models} models, {summary.n_datasets} data sets" if summary else "missing"
    return f'<td title="{of}">{f"<strong>{text}</strong>" if best else text}</td>'


def _row(name: str, cells: Iterable[str], methods: str = "") -> str:
    """A row that the methods' filter shows or hides; one of a difference belongs to both its methods."""
    shown_with = escape(methods or "|".join(name.split(" − ")))
    return f'<tr data-methods="{shown_with}"><th scope=row>{escape(name)}</th>{"".join(cells)}</tr>'


def _grid(first: str, heads: list[str], rows: list[str]) -> str:
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in [first, *heads])
    body = "".join(rows)
    return f"<div class=scroll tabindex=0><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _across(part: Across) -> str:
    rows = [
        _row(model, [f"<td>{escape(text)}</td>" for text in (method, *cells)], method)
        for model, method, *cells in across_rows(part)
    ]
    grid = _grid("model", ["method", *(f"dpc {dpc}" for dpc in part.sizes)], rows)
    section = f'<section class=result data-task="{escape(part.task)}" data-model="">'
    return f"{section}<h3>{escape(part.title)}</h3>{grid}</section>"


def _health(health: Health) -> str:
    rows = [
        f"<tr><th scope=row>{escape(stage)}</th><td>{escape(task)}</td><td>{_duration(spent)}</td>"
        f"<td>{_duration(gpu) if gpu else '–'}</td></tr>"
        for stage, task, spent, gpu in health.hours
    ]
    time_spent = _grid("stage", ["task", "time", "of GPUs"], rows) if rows else "<p>No times are recorded.</p>"
    failed = [
        f"<tr><th scope=row>{escape(' '.join(str(row[name]) for name in ('task', 'method')))}</th>"
        f"<td>{row['dpc']}</td><td>{row['dataset']}/{row['seed']}</td><td>{escape(str(row['model']))}</td>"
        f"<td>{escape(str(row['error']))}</td></tr>"
        for row in health.failures
    ]
    failures = f"<h3>Failed</h3>{_grid('cells', ['dpc', 'data set/seed', 'model', 'error'], failed)}" if failed else ""
    return f"<h3>Where the time went</h3>{time_spent}{failures}"


def _duration(hours: float) -> str:
    minutes, seconds = divmod(round(hours * 3600), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


def texts_below(root: Path, shown: int = SHOWN_DATASETS) -> dict[str, Any]:
    """The texts of the first data sets of every method and size, with what audits say of them."""
    audits = _audits(root)
    found = []
    for path in sorted(root.glob("*/*/index.json")):
        folder = path.parent
        if TEMPORARY in folder.name or folder.name.startswith("candidates-"):
            continue
        index = read_index(folder)
        if index["method"] == "full":
            continue
        found.append(_texts(folder, index, shown, audits.get(str(index["key"]), {})))
    order = {name: place for place, name in enumerate(METHODS)}
    found.sort(key=lambda own: (own["task"], own["dpc"], order.get(own["method"], len(order)), own["key"]))
    return {"sets": found, "shown": shown}


def _texts(folder: Path, index: dict[str, Any], shown: int, audit: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    rows = read_shards(folder)
    kept = rows.take(np.flatnonzero(rows.dataset < shown))
    columns = zip(kept.table.texts, kept.table.labels, kept.dataset, kept.nll, kept.cluster, strict=True)
    about = {name: index[name] for name in ("task", "method", "dpc", "key", "labels", "fields")}
    texts = [
        {
            "t": text,
            "l": int(label),
            "d": int(dataset),
            "n": None if np.isnan(nll) else round(float(nll), 3),
            "c": int(cluster),
            **audit.get(text, {}),
        }
        for text, label, dataset, nll, cluster in columns
    ]
    return {**about, "datasets": len(np.unique(rows.dataset)), "audited": bool(audit), "texts": texts}


def _audits(root: Path) -> dict[str, dict[tuple[str, ...], Any]]:
    """What audits say, by the shards' key and the text: the nearest training text with its cosine, and flags."""
    found = {}
    for path in sorted(root.glob("*/audit-*/audit.json"), key=lambda path: path.stat().st_mtime_ns):
        if TEMPORARY not in path.parent.name:
            audit = read_json(path)
            found[str(audit["shard"]["key"])] = {
                tuple(text["text"]): {"near": text["nearest"], "s": text["similarity"], "f": text["flags"]}
                for text in audit["texts"]
            }
    return found
