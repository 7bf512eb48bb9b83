"""`python -m dilm.audit`: what data sets copy from the corpus, whether their labels hold, and how varied they are."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dilm.cli import main
from dilm.config.help import Command
from dilm.config.schema import Config
from dilm.core.io import read_json

COMMAND = Command(
    "audit",
    "Tell what a data set copies from the corpus, whether its labels hold, and how varied it is.",
    reads=("shard", "audit", "generate", "learner"),
    examples=(
        ("shard=runs/sst2/dilm-dpc5-<key>", "with the paper's learner as teacher"),
        ("shard=... learner=minilm learner.freeze_encoder=true generate.encoder=minilm", "on a CPU"),
        ("shard=... audit.span=8 audit.embedded_rows=5000", "stricter, and faster"),
    ),
    next="python -m dilm.export shard={config.shard} to=<folder>",
)


def run(config: Config) -> None:
    """Audit the data sets of `shard=` and print what was found."""
    from dilm.stages import audit  # torch

    artifact = audit.run(config)
    found = read_json(artifact.folder / audit.REPORT)
    console = Console(highlight=False)
    console.print(summary(found))
    flagged = [text for text in found["texts"] if text["flags"]]
    for text in flagged[: config.audit.listed]:
        label = found["shard"]["labels"][text["label"]]
        console.print(escape(f"[{label}] {' | '.join(text['text'])}: {'; '.join(text['flags'])}"), soft_wrap=True)
    if len(flagged) > config.audit.listed:
        console.print(f"... and {len(flagged) - config.audit.listed} more (audit.listed)")
    console.print(f"report: {artifact.folder / audit.REPORT}", soft_wrap=True)


def summary(found: dict[str, Any]) -> Table:
    """The findings of an audit, each beside its control."""
    shard, total = found["shard"], found["shard"]["distinct"]
    size = f", dpc {shard['dpc']}" if shard["dpc"] else ""
    shown = Table(title=f"{shard['task']} {shard['method']}{size}: {total} distinct texts in {shard['rows']} rows")
    shown.add_column("", no_wrap=True)
    shown.add_column("texts")
    shown.add_column("control")
    for row in _findings(found, total):
        shown.add_row(*row)
    return shown


def _findings(found: dict[str, Any], total: int) -> list[tuple[str, str, str]]:
    def share(count: int, of: int = total) -> str:
        return f"{count} ({count / max(of, 1):.1%})"

    copied, spans, near = found["copies"], found["spans"], found["near_duplicates"]
    neighbours, labels, diversity = found["neighbours"], found["labels"], found["diversity"]
    words, dev = found["vocabulary"], found["corpus"]["dev"]
    agreement = "" if labels["control"] is None else f"{labels['control']:.1f}% of held-out texts"
    return [
        ("copies of training texts", share(copied["train"]), f"{share(copied['control'], dev)} of dev texts"),
        ("copies of dev texts", share(copied["dev"]), ""),
        (
            f"{spans['words']} words in a row of a training text",
            f"{share(spans['texts'])}, longest {spans['longest']}, mean {spans['mean']:.1f}",
            f"{spans['control']['share']:.1%} of dev texts, mean {spans['control']['mean']:.1f}",
        ),
        (f"near-duplicates (Jaccard {near['jaccard']})", share(near["texts"]), ""),
        (
            f"cosine to the nearest training text, {neighbours['encoder']}",
            f"{neighbours['mean']:.3f}, {share(neighbours['texts'])} above dev's 99%",
            f"{neighbours['control']['mean']:.3f} of dev texts",
        ),
        (f"label as {labels['teacher']} has it", f"{labels['agreement']:.1f}%", agreement),
        *(
            (name.replace("_", " "), _number(value), _number(diversity["control"][name]))
            for name, value in diversity["mean"].items()
        ),
        *(
            (label, _number(words["texts"][name]), _number(words["control"][name]))
            for name, label in (("divergence", "divergence from the corpus's words"), ("unseen_words", "unseen words"))
        ),
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main(COMMAND, run)
