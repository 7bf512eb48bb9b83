"""The data card of exported data sets: what they are, how they were made, what they teach, and what to beware of."""

from pathlib import Path
from typing import Any

from dilm.artifacts.rows import read_table, rows_folder
from dilm.artifacts.shards import Inspected
from dilm.config.schema import EMBEDDED, GENERATOR_METHODS, WRITING_METHODS
from dilm.core.io import TEMPORARY, read_json
from dilm.evaluation.text_metrics import words_of
from dilm.report.render import render
from dilm.report.statistics import Summary, summarise

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))  # the hub's
KINDS = {
    "random": "training texts, drawn at random",
    "k_centers": "training texts, chosen by K-centers",
    "herding": "training texts, chosen by herding",
    "rank": "training texts, those that a trained language model finds likeliest",
    "lm": "texts that a language model wrote, which was trained on the training set",
    "dilm": "texts that a language model wrote, trained on the training set and tuned by gradient matching",
    "full": "the whole training set",
    "published": "texts that others published",
}


def card(subject: Inspected, splits: list[str], root: Path) -> str:
    """The README of an export: metadata for `datasets` and the hub, then text for people.

    Scores are those of the rows below `root`; the audit is the newest that stands beside the shards.
    """
    index, method = subject.index, subject.index["method"]
    config = index["about"]["config"]
    selection, encoders = _selection_of(method, config["generate"])
    audits = audits_of(subject)
    return render(
        "card.md.j2",
        metadata=_metadata(subject, splits),
        task=subject.task,
        index=index,
        key=subject.key,
        config=config,
        splits=splits,
        size=f", {index['dpc']} texts a class" if index["dpc"] else "",
        kind=KINDS.get(method, f"training texts, chosen by {method}"),
        lengths=[sum(len(words_of(field)) for field in text) for text in subject.rows.table.texts],
        trained=method in GENERATOR_METHODS,
        written=method in WRITING_METHODS,
        selection=selection,
        encoders=encoders,
        overlapping=config["generate"]["pool"] == "shared" and method != "random",
        scores=_scores(subject, root),
        audit=audits[-1] if audits else None,
    )


def _metadata(subject: Inspected, splits: list[str]) -> str:
    """The YAML at the top of the card, which the hub and `datasets` read."""
    from huggingface_hub import DatasetCardData

    task, rows = subject.task, len(subject.rows)
    files = [{"split": name, "path": f"data/{name}.parquet"} for name in splits]
    data = DatasetCardData(
        language=task.language,
        license="other" if task.licence else "unknown",
        license_name=task.licence or None,
        task_categories=["text-classification"],
        size_categories=[next((name for limit, name in SIZES if rows < limit), "n>1M")],
        tags=["dataset-distillation", subject.index["method"]],
        configs=[{"config_name": "default", "data_files": files}],
    )
    return str(data.to_yaml())


def _selection_of(method: str, generate: dict[str, Any]) -> tuple[str, list[str]]:
    """How texts were chosen by their embeddings, and the encoders' names; empty where they were not."""
    selection = generate["selection"] if method in WRITING_METHODS else method
    if selection == "none" or method not in (*EMBEDDED, *WRITING_METHODS, "teach"):
        return "", []
    views = generate["teach"]["views"].values() if selection == "teach" else ()
    return selection, [encoder["name"] for encoder in (views or [generate["encoder"]])]


def _scores(subject: Inspected, root: Path) -> list[tuple[str, str, str, Summary]]:
    """Model, evaluator, metric and scores of the learners that the rows below `root` say were trained on this."""
    if not rows_folder(root).is_dir():
        return []
    rows = read_table(root).to_pandas()
    rows = rows[(rows["source_key"] == subject.key) & (rows["status"] == "done")]
    return [
        (model, evaluator, metric, summarise(part["value"].to_numpy(), part["dataset"].to_numpy()))
        for (model, evaluator, metric, _), part in rows.groupby(["model", "evaluator", "metric", "protocol"])
    ]


def audits_of(subject: Inspected) -> list[dict[str, Any]]:
    """Audits of these shards that stand beside them, oldest first."""
    folders = [path for path in subject.folder.parent.glob(f"audit-{subject.name}-*") if TEMPORARY not in path.name]
    files = sorted((folder / "audit.json" for folder in folders), key=lambda file: file.stat().st_mtime_ns)
    return [audit for file in files if (audit := read_json(file))["shard"]["key"] == subject.key]
