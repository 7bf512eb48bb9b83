"""`python -m dilm.train`: train a generator for a task: language-model pre-training, then gradient matching."""

from pkgutil import resolve_name

from dilm.cli import main
from dilm.config.help import Command
from dilm.config.schema import Config
from dilm.config.stages import STAGES
from dilm.tracking.tracker import tracking_uri

COMMAND = Command(
    "train",
    "Train a generator: language-model pre-training, then gradient matching.",
    reads=("stages", "generator", "pretrain", "match", "engine", "checkpoint", "tracking", "tracking_uri"),
    examples=(
        ("task=sst2", "one generator, with the paper's models and steps"),
        ("experiment=quickstart", "small models, ten minutes on a CPU"),
        ("-m hydra/launcher=slurm site=mine task=sst2,qqp,mnli", "three jobs on a cluster"),
    ),
    next="python -m dilm.generate {keys}",
)


def run(config: Config) -> None:
    """Run the stages of `stages=` in order; what is there already is found."""
    tracking_uri(config)  # a wrong one is told before anything is loaded
    from dilm.distributed.world import joined
    from dilm.training.engine import check_engine  # torch, which --help and a typo need not wait for

    with joined() as world:
        check_engine(config, world)
        for stage in STAGES:
            if stage.command == "train" and stage.name in config.stages:
                resolve_name(stage.run)(config, world)


if __name__ == "__main__":
    main(COMMAND, run)
