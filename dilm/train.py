"""`python -m dilm.train`: train a generator for a task: language-model pre-training, then gradient matching."""

from dilm.config import Config
from dilm.launch import main
from dilm.tracking import tracking_uri


def run(config: Config) -> None:
    """Run the configured stages in order; what is there already is found."""
    tracking_uri(config)  # a wrong one is told before anything is loaded
    from dilm.engine import check_engine  # torch, which --help and a typo need not wait for
    from dilm.stages import learners, match, pretrain
    from dilm.world import joined

    stages = {"pretrain": pretrain.run, "learners": learners.run, "match": match.run}
    with joined() as world:
        check_engine(config, world)
        for name in stages:
            if name in config.stages:
                stages[name](config, world)


if __name__ == "__main__":
    main("Train a generator: language-model pre-training, then gradient matching.", run)
