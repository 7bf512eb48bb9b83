"""The data card of exported data sets: what they are, how they were made, what they teach, and what to beware of."""

from pathlib import Path
from typing import Any

from dilm.artifacts.rows import read_table, rows_folder
from dilm.artifacts.shards import Inspected
from dilm.config.schema import EMBEDDED
from dilm.core.io import TEMPORARY, read_json
from dilm.evaluation.text_metrics import words_of
from dilm.report.statistics import summarise

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
CITATION = """\
@inproceedings{maekawa-etal-2024-dilm,
    title = "{D}i{LM}: Distilling Dataset into Language Model for Text-level Dataset Distillation",
    author = "Maekawa, Aru and Kosugi, Satoshi and Funakoshi, Kotaro and Okumura, Manabu",
    booktitle = "Findings of the Association for Computational Linguistics: NAACL 2024",
    year = "2024",
}"""
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
WRITTEN = ("lm", "dilm")


def card(subject: Inspected, splits: list[str], root: Path) -> str:
    """The README of an export: metadata for `datasets` and the hub, then text for people."""
    from huggingface_hub import DatasetCardData

    task, rows = subject.task, len(subject.rows)
    data = DatasetCardData(
        language=task.language,
        license="other" if task.licence else "unknown",
        license_name=task.licence or None,
        task_categories=["text-classification"],
        size_categories=[next((name for limit, name in SIZES if rows < limit), "n>1M")],
        tags=["dataset-distillation", subject.index["method"]],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}.parquet"} for name in splits],
            }
        ],
    )
    parts = [_what(subject, splits), _made(subject), _teaches(subject, root), _audited(subject), _beware(subject)]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(line for part in parts for line in [*part, ""])


def _what(subject: Inspected, splits: list[str]) -> list[str]:
    index, task = subject.index, subject.task
    lengths = [sum(len(words_of(field)) for field in text) for text in subject.rows.table.texts]
    size = f", {index['dpc']} texts a class" if index["dpc"] else ""
    kind = KINDS.get(index["method"], f"training texts, chosen by {index['method']}")
    return [
        f"# {task.name}, {index['method']}{size}",
        "",
        f"{kind[0].upper()}{kind[1:]}: a small stand-in for the training set of "
        f"`{task.name}`, to train a classifier on or to show a language model in its prompt.",
        "",
        "| | |",
        "| --- | --- |",
        f"| texts | {len(subject.rows)}, in {len(splits)} {'split' if len(splits) == 1 else 'splits'}"
        f"{', each a data set of its own' if len(splits) > 1 else ''} |",
        f"| fields | {', '.join(index['fields'])} |",
        f"| labels | {', '.join(index['labels'])} |",
        f"| language | {task.language} |",
        f"| words a text | {min(lengths)} to {max(lengths)}, mean {sum(lengths) / len(lengths):.1f} |",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'rows = load_dataset("path/to/this/folder", split="{splits[0]}")',
        "```",
        "",
        "`jsonl/` has the same texts as JSON lines, with the label's number as `labels`.",
    ]


def _made(subject: Inspected) -> list[str]:
    config, method = subject.index["about"]["config"], subject.index["method"]
    lines = ["## How it was made", "", f"By `dilm` (method `{method}`, seed {config['seed']}); key `{subject.key}`."]
    if method in ("rank", *WRITTEN):
        steps = f"{config['pretrain']['steps']} steps of language-model training"
        lines.append(f"Generator: `{config['generator']['name']}`, {steps}.")
    if method == "dilm":
        match = config["match"]
        updates = match["outer_steps"] * match["inner_steps"]
        lines.append(f"Gradient matching: {updates} updates against `{match['learner']['name']}`.")
    if method in (*EMBEDDED, "teach") or (method in WRITTEN and config["generate"]["selection"] != "none"):
        way = config["generate"]["selection"] if method in WRITTEN else method
        settings = config["generate"]
        views = settings["teach"]["views"].values() if way == "teach" else ()
        encoders = ", ".join(f"`{encoder['name']}`" for encoder in (views or [settings["encoder"]]))
        lines.append(f"Selection: `{way}` among embeddings of {encoders}.")
    return [*lines, "`provenance.json` has every setting, seed, version and hash."]


def _teaches(subject: Inspected, root: Path) -> list[str]:
    """What the rows below `root` say of learners that were trained on these data sets."""
    lines = ["## What it teaches", ""]
    rows = read_table(root).to_pandas() if rows_folder(root).is_dir() else None
    if rows is not None:
        rows = rows[(rows["source_key"] == subject.key) & (rows["status"] == "done")]
    if rows is None or not len(rows):
        return [*lines, "Not evaluated yet."]
    lines += ["| learner | how | metric | score | models |", "| --- | --- | --- | --- | --- |"]
    for (model, how, metric, _), part in rows.groupby(["model", "evaluator", "metric", "protocol"]):
        found = summarise(part["value"].to_numpy(), part["dataset"].to_numpy())
        spread = f" ± {found.std:.1f}" if found.n_models > 1 else ""
        ends = f" [{found.low:.1f}, {found.high:.1f}]" if found.n_datasets > 1 else ""
        lines.append(f"| {model} | {how} | {metric} | {found.mean:.1f}{spread}{ends} | {found.n_models} |")
    return [
        *lines,
        "",
        "Mean ± standard deviation over models, on dev [95% interval of the mean over data sets].",
    ]


def _audited(subject: Inspected) -> list[str]:
    """What the newest audit beside the shards has found."""
    lines = ["## What it copies", ""]
    found = audits_of(subject)
    if not found:
        return [*lines, "Not audited: `python -m dilm.audit shard=...` compares it with its training and dev texts."]
    audit = found[-1]
    copied, spans, labels = audit["copies"], audit["spans"], audit["labels"]
    total = audit["shard"]["distinct"]
    return [
        *lines,
        f"Of {total} distinct texts {copied['train']} are training texts and {copied['dev']} dev texts (without case "
        f"and punctuation), {audit['near_duplicates']['texts']} are near-duplicates of training texts, and "
        f"{spans['texts']} share {spans['words']} words in a row or more with one (the longest: {spans['longest']}).",
        f"A `{labels['teacher']}` trained on the whole training set agrees with {labels['agreement']:.1f}% of labels.",
    ]


def audits_of(subject: Inspected) -> list[dict[str, Any]]:
    """Audits of these shards that stand beside them, oldest first."""
    folders = [path for path in subject.folder.parent.glob(f"audit-{subject.name}-*") if TEMPORARY not in path.name]
    files = sorted((folder / "audit.json" for folder in folders), key=lambda file: file.stat().st_mtime_ns)
    return [found for file in files if (found := read_json(file))["shard"]["key"] == subject.key]


def _beware(subject: Inspected) -> list[str]:
    written = subject.index["method"] in WRITTEN
    lines = ["## Limits", ""]
    if written:
        lines.append("- A language model wrote the texts: they may be false, offensive, or say what no label says.")
    lines += [
        "- They carry the training set's biases, and are no anonymised form of it: a text may be copied from there.",
        "- They are made to teach classifiers this one task. They are no benchmark, and no sample of the language.",
    ]
    if subject.index["about"]["config"]["generate"]["pool"] == "shared" and subject.index["method"] != "random":
        lines.append("- The data sets were chosen from halves of one pool of candidates, so they overlap.")
    terms = f"The training set's terms: {subject.task.licence}." if subject.task.licence else (
        "The training set's terms are not known to `dilm`; look them up at its source before you pass this on."
    )  # fmt: skip
    return [*lines, "", "## Licence", "", terms, "", "## Citation", "", "```", CITATION, "```"]
