"""Audit: what data sets copy from the corpus, whether their labels hold, and how varied they are.

Every finding has a control: what dev texts share with the training texts, or how varied as many real texts are.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from dilm.artifacts.artifact import Artifact, make
from dilm.artifacts.fingerprint import audit_artifact
from dilm.artifacts.shards import Inspected, inspected
from dilm.config.schema import Config
from dilm.core.errors import ConfigError
from dilm.core.hashing import derive_seed
from dilm.core.io import write_json
from dilm.data.corpus import load_split
from dilm.data.text_table import TextTable, table
from dilm.distributed.context import Context
from dilm.evaluation.cells import Training
from dilm.evaluation.finetune import finetuned, frozen
from dilm.evaluation.text_metrics import NONE, copies, divergence, longest_spans, measures, near_duplicates, words_of
from dilm.models.features import FeatureStore

REPORT = "audit.json"
CONTROL_QUANTILE = 0.99
Text = tuple[str, ...]


def run(config: Config) -> Artifact:
    """Audit the data sets that `shard=` names, or find their audit. Raises ConfigError and ShardError."""
    subject = inspected(config)
    if subject.index["method"] == "full":
        raise ConfigError(
            f"shard {config.shard!r} is the training set itself; audit a data set that was chosen from it."
        )
    config = replace(config, task=subject.task, data=subject.data)
    context = Context(config)
    corpus, dev = context.corpus, load_split(config.task, "dev", context.cache)
    hashes = {"train": corpus.content_hash, "dev": dev.content_hash}
    artifact = audit_artifact(config, subject.key, subject.name, hashes)

    def build(folder: Path) -> None:
        write_json(folder / REPORT, audit(context, subject, dev))

    make(artifact, build, config)
    return artifact


@dataclass(frozen=True)
class Distinct:
    """The texts of all data sets without repeats: what is asked of a text is asked once."""

    texts: list[Text]
    labels: np.ndarray  # (N,) of the first row that has the text
    count: np.ndarray  # (N,) rows that have it
    dataset: np.ndarray  # (N,) the first data set that has it


def distinct_texts(subject: Inspected) -> Distinct:
    """Every distinct text, in the order of the shards."""
    rows = subject.rows
    first: dict[Text, int] = {}
    for row, text in enumerate(rows.table.texts):
        first.setdefault(text, row)
    counts = Counter(rows.table.texts)
    where = np.array(list(first.values()), dtype=int)
    count = np.array([counts[text] for text in first], dtype=int)
    return Distinct(list(first), rows.table.labels[where], count, rows.dataset[where])


def audit(context: Context, subject: Inspected, dev: TextTable) -> dict[str, Any]:
    """All findings, and every distinct text with what is flagged about it."""
    config, corpus = context.config, context.corpus
    found = distinct_texts(subject)
    real = [*corpus.train.texts, *corpus.valid.texts]  # the held-out rows are training texts too
    flags: list[list[str]] = [[] for _ in found.texts]
    copied = _copies(found, real, dev, flags)
    spans, runs = _spans(config, found, real, dev, flags)
    near = _near(config, found, real, flags)
    neighbours, nearest = _neighbours(context, found, dev, flags)
    labels, said = _labels(context, found, flags)
    texts = [
        {
            "text": list(found.texts[n]),
            "label": int(found.labels[n]),
            "rows": int(found.count[n]),
            "data_set": int(found.dataset[n]),
            "teacher": said[n],
            **nearest[n],
            **runs[n],
            "flags": flags[n],
        }
        for n in range(len(found.texts))
    ]
    about = {name: subject.index[name] for name in ("key", "task", "method", "dpc", "labels", "fields")}
    return {
        "shard": {**about, "rows": len(subject.rows), "distinct": len(found.texts)},
        "corpus": {"train": len(real), "dev": len(dev)},
        "copies": copied,
        "spans": spans,
        "near_duplicates": near,
        "neighbours": neighbours,
        "labels": labels,
        "diversity": _diversity(subject, corpus.train),
        "vocabulary": _vocabulary(found, corpus.train),
        "flagged": sum(bool(own) for own in flags),
        "texts": texts,
    }


Flags = list[list[str]]


def _copies(found: Distinct, real: list[Text], dev: TextTable, flags: Flags) -> dict[str, Any]:
    counts = {}
    for split, texts in (("train", real), ("dev", dev.texts)):
        rows = copies(found.texts, texts)
        for number in np.flatnonzero(rows != NONE):
            flags[number].append(f"copy of a {'training' if split == 'train' else 'dev'} text")
        counts[split] = int((rows != NONE).sum())
    return counts | {"control": int((copies(dev.texts, real) != NONE).sum())}


def _spans(
    config: Config, found: Distinct, real: list[Text], dev: TextTable, flags: Flags
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    spans, control = longest_spans(found.texts, real), longest_spans(dev.texts, real)
    for number in np.flatnonzero(spans.length >= config.audit.span):
        flags[number].append(f"{spans.length[number]} words in a row of a training text")
    summary = {
        "words": config.audit.span,
        "texts": int((spans.length >= config.audit.span).sum()),
        "longest": int(spans.length.max()),
        "mean": float(spans.length.mean()),
        "control": {"share": float((control.length >= config.audit.span).mean()), "mean": float(control.length.mean())},
    }
    where = zip(spans.length, spans.row, strict=True)
    return summary, [{"span": int(n), "span_of": None if row == NONE else list(real[row])} for n, row in where]


def _near(config: Config, found: Distinct, real: list[Text], flags: Flags) -> dict[str, Any]:
    best: dict[int, float] = {}
    for number, _, similarity in near_duplicates(found.texts, real, config.audit.near):
        best.setdefault(number, similarity)
    for number, similarity in best.items():
        flags[number].append(f"near-duplicate of a training text ({similarity:.2f})")
    return {"jaccard": config.audit.near, "texts": len(best)}


def _neighbours(
    context: Context, found: Distinct, dev: TextTable, flags: Flags
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How near the texts are to training texts among embeddings, beside how near dev texts are."""
    config, train = context.config, context.corpus.train
    wanted = config.audit.embedded_rows
    if wanted is not None and wanted < len(train):
        draws = np.random.default_rng(derive_seed("audit", config.task.name))
        train = train.take(np.sort(draws.choice(len(train), wanted, replace=False)))
    store = FeatureStore(config.generate.encoder, context.n_labels, context.cache, context.device, config.precision)
    train_ND, dev_ND, own_ND = (
        normalize(store.get(texts, "embed"), dim=1) for texts in (train.texts, dev.texts, found.texts)
    )
    (similarity, row), (control, _) = _nearest(own_ND, train_ND), _nearest(dev_ND, train_ND)
    limit = float(np.quantile(control, CONTROL_QUANTILE))
    for number in np.flatnonzero(similarity > limit):
        flags[number].append(f"nearer to a training text ({similarity[number]:.2f}) than 99% of dev texts are")
    summary = {
        "encoder": config.generate.encoder.name,
        "among": len(train),
        "mean": float(similarity.mean()),
        "control": {"mean": float(control.mean()), "limit": limit},
        "texts": int((similarity > limit).sum()),
    }
    nearest = zip(row, similarity, strict=True)
    return summary, [{"nearest": list(train.texts[n]), "similarity": round(float(value), 4)} for n, value in nearest]


def _nearest(own_ND: torch.Tensor, others_MD: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The highest cosine of each row of length one, and which row of the others has it."""
    parts = [(part_BD @ others_MD.T).max(dim=1) for part_BD in own_ND.split(256)]
    return torch.cat([part.values for part in parts]).numpy(), torch.cat([part.indices for part in parts]).numpy()


def _labels(context: Context, found: Distinct, flags: Flags) -> tuple[dict[str, Any], list[int]]:
    """What a learner that was trained on the whole training set takes the texts for."""
    config, corpus = context.config, context.corpus
    asked = table(config.task.fields, [*found.texts, *corpus.valid.texts], [*found.labels, *corpus.valid.labels])
    names = ("audit", config.task.name)
    teacher = context.changed(method="full")  # whose schedule is that of the whole training set
    predictor = frozen if config.learner.freeze_encoder else finetuned
    said = predictor(teacher, [Training(corpus.train, names)], asked)(corpus.train, names)
    own, valid = said[: len(found.texts)], said[len(found.texts) :]
    for number in np.flatnonzero(own != found.labels):
        flags[number].append(f"the teacher takes it for {config.task.labels[own[number]]}")
    summary = {
        "teacher": config.learner.name + (" (frozen encoder)" if config.learner.freeze_encoder else ""),
        "agreement": 100 * float((own == found.labels).mean()),
        "control": 100 * float((valid == corpus.valid.labels).mean()) if len(valid) else None,
        "texts": int((own != found.labels).sum()),
    }
    return summary, [int(label) for label in own]


def _diversity(subject: Inspected, train: TextTable) -> dict[str, Any]:
    """Means over data sets, and over as many draws of as many real texts of each label."""
    own, control = [], []
    for number in np.unique(subject.rows.dataset):
        rows = subject.rows.take(np.flatnonzero(subject.rows.dataset == number))
        own.append(measures(rows.table.texts))
        control.append(measures(_drawn(train, rows.table.labels, int(number))))
    return {"mean": _means(own), "control": _means(control)}


def _drawn(train: TextTable, labels: np.ndarray, number: int) -> Sequence[Text]:
    draws = np.random.default_rng(derive_seed("audit", "control", number))
    texts: list[Text] = []
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        rows = train.rows_by_label[int(label)]
        texts += [train.texts[row] for row in draws.choice(rows, min(count, len(rows)), replace=False)]
    return texts


def _means(found: list[dict[str, float]]) -> dict[str, float | None]:
    means = {name: float(np.mean([own[name] for own in found])) for name in found[0]}
    return {name: None if np.isnan(value) else value for name, value in means.items()}


def _vocabulary(found: Distinct, train: TextTable) -> dict[str, Any]:
    """Lengths and words of all distinct texts against the corpus, and of as many real texts against it."""
    corpus = _counted(train.texts)
    draws = np.random.default_rng(derive_seed("audit", "vocabulary"))
    control = [train.texts[row] for row in draws.choice(len(train), min(len(found.texts), len(train)), replace=False)]
    described = {}
    for name, texts in (("texts", found.texts), ("control", control)):
        counts = _counted(texts)
        lengths = [sum(len(words_of(field)) for field in text) for text in texts]
        described[name] = {
            "words_quartiles": [float(value) for value in np.quantile(lengths, [0.25, 0.5, 0.75])],
            "divergence": divergence(counts, corpus),
            "unseen_words": 1 - sum(n for word, n in counts.items() if word in corpus) / max(counts.total(), 1),
        }
    return described


def _counted(texts: Sequence[Text]) -> Counter[str]:
    return Counter(word for text in texts for field in text for word in words_of(field))
