"""`python -m dilm.generate`: write distilled data sets as HDF5 shards."""

from dilm.cli import main
from dilm.config.help import Command
from dilm.config.schema import Config

COMMAND = Command(
    "generate",
    "Write distilled data sets: candidates from a trained generator or the real rows, and a selection of them.",
    reads=("variant", "generator", "generate", "published"),
    examples=(
        ("task=sst2 method=random dpc=10", "data sets of real texts"),
        ("-m task=sst2 method=lm,dilm dpc=5,10,20", "from a trained generator"),
        ("task=sst2 method=dilm generate.exclude_copies=true", "without copies of training texts"),
    ),
    next="python -m dilm.evaluate {keys}",
)


def run(config: Config) -> None:
    """Make the data sets of one task, method and size."""
    from dilm.distributed.world import joined
    from dilm.stages import generate  # torch, which --help and a typo need not wait for

    with joined() as world:
        generate.run(config, world)


if __name__ == "__main__":
    main(COMMAND, run)
