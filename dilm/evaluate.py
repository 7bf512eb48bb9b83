"""`python -m dilm.evaluate`: train fresh learners on distilled data sets and score them on dev."""

from dilm.cli import main
from dilm.config.help import Command
from dilm.config.schema import Config

COMMAND = Command(
    "evaluate",
    "Evaluate distilled data sets: train fresh learners on each and score them on dev.",
    reads=("evaluator", "n_seeds", "learner", "llm", "evaluate", "icl"),
    examples=(
        ("-m task=sst2 method=random,dilm dpc=5,10,20", "fine-tuned learners: data sets x seeds"),
        ("task=sst2 method=dilm learner=minilm learner.freeze_encoder=true", "the head alone is trained"),
        ("task=sst2 method=dilm dpc=5 evaluator=icl llm=gpt2_xl", "in context"),
    ),
    next="python tools/collect.py {config.root} --out report",
)


def run(config: Config) -> str:
    """Evaluate the missing cells of one task, method, size and learner; print and return how it went, in a line."""
    from dilm.stages import evaluate  # torch, which --help and a typo need not wait for

    outcome = evaluate.run(config)
    mean = f", mean {config.task.metric} {sum(outcome.values) / len(outcome.values):.1f}" if outcome.values else ""
    elsewhere = f", {outcome.elsewhere} with other jobs" if outcome.elsewhere else ""
    told = f"{outcome.title}: {outcome.done} cells evaluated{mean}, {outcome.found} found{elsewhere}"
    print(told)
    return told


if __name__ == "__main__":
    main(COMMAND, run)
