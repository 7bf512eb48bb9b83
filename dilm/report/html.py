"""The report as one page that needs no network: tables and plots with filters, the run's health, and the texts."""

from pathlib import Path
from typing import Any

import numpy as np

from dilm import __version__
from dilm.artifacts.shards import read_index, read_shards
from dilm.config.schema import METHODS
from dilm.core.io import TEMPORARY, read_json
from dilm.report.health import Health
from dilm.report.plots import name_of
from dilm.report.render import render
from dilm.report.summary import Across, Table
from dilm.report.tables import NOTES, OVERLAP, across_rows, difference_rows, marked, missing_of, size_heads

SHOWN_DATASETS = 3  # of each method and size


def page(
    tables: list[Table], across: list[Across], plots: dict[str, str], health: Health, texts: dict[str, Any]
) -> str:
    """The whole page. `plots` are SVG by name, as `plot_all` gives them; `texts` is what `texts_below` gives."""
    of_tables = {name_of(table) for table in tables}
    return render(
        "page.html.j2",
        version=__version__,
        health=health,
        counts={
            "models evaluated": health.done,
            "failed": health.failed,
            "missing": health.missing,
            "tables": len(tables),
        },
        tables=tables,
        across=across,
        tasks=sorted({table.task for table in tables}),
        models=sorted({table.model for table in tables}),
        methods=dict.fromkeys(method for table in tables for method in table.methods),
        notes=NOTES,
        overlap=OVERLAP,
        plots=plots,
        other_plots=[svg for name, svg in plots.items() if name not in of_tables],
        plot_of=name_of,
        marked=marked,
        missing_of=missing_of,
        sizes_of=size_heads,
        difference_rows=difference_rows,
        across_rows=across_rows,
        texts=texts,
    )


def texts_below(root: Path, shown: int = SHOWN_DATASETS) -> dict[str, Any]:
    """The texts of the first data sets of every method and size, with what audits say of them."""
    audits = _audits(root)
    sets = []
    for path in sorted(root.glob("*/*/index.json")):
        folder = path.parent
        if TEMPORARY in folder.name or folder.name.startswith("candidates-"):
            continue
        index = read_index(folder)
        if index["method"] == "full":
            continue
        sets.append(_texts(folder, index, shown, audits.get(str(index["key"]), {})))
    order = {name: place for place, name in enumerate(METHODS)}
    sets.sort(key=lambda each: (each["task"], each["dpc"], order.get(each["method"], len(order)), each["key"]))
    return {"sets": sets, "shown": shown}


def _texts(folder: Path, index: dict[str, Any], shown: int, audit: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    rows = read_shards(folder)
    kept = rows.take(np.flatnonzero(rows.dataset < shown))
    columns = zip(kept.table.texts, kept.table.labels, kept.dataset, kept.nll, kept.cluster, strict=True)
    about = {name: index[name] for name in ("task", "method", "dpc", "key", "labels", "fields")}
    texts = [
        {  # short names: there are many
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
    audits = {}
    for path in sorted(root.glob("*/audit-*/audit.json"), key=lambda path: path.stat().st_mtime_ns):
        if TEMPORARY not in path.parent.name:
            audit = read_json(path)
            audits[str(audit["shard"]["key"])] = {
                tuple(text["text"]): {"near": text["nearest"], "s": text["similarity"], "f": text["flags"]}
                for text in audit["texts"]
            }
    return audits
