"""`python -m dilm.generate`: write distilled data sets as HDF5 shards."""

from dilm.cli import main
from dilm.config.schema import Config


def run(config: Config) -> None:
    """Make the data sets of one task, method and size."""
    from dilm.distributed.world import joined
    from dilm.stages import generate  # torch, which --help and a typo need not wait for

    with joined() as world:
        generate.run(config, world)


if __name__ == "__main__":
    main(
        "Write distilled data sets: candidates from a trained generator or the real rows, and a selection of them.", run
    )
