"""`python -m dilm.train`: train a generator for a task: language-model pre-training, then gradient matching."""

from dilm.cli import main
from dilm.config.schema import Config
from dilm.tracking.tracker import tracking_uri


def run(config: Config) -> None:
    """Run the configured stages in order; what is there already is found."""
    tracking_uri(config)  # a wrong one is told before anything is loaded
    from dilm.distributed.world import joined
    from dilm.stages import train
    from dilm.training.engine import check_engine  # torch, which --help and a typo need not wait for

    stages = {"pretrain": train.pretrain, "learners": train.make_trajectories, "match": train.match}
    with joined() as world:
        check_engine(config, world)
        for name in stages:
            if name in config.stages:
                stages[name](config, world)


if __name__ == "__main__":
    main("Train a generator: language-model pre-training, then gradient matching.", run)
