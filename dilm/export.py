"""`python -m dilm.export`: data sets that anyone can load, with a data card and their provenance."""

from dilm.cli import main
from dilm.config.help import Command
from dilm.config.schema import Config

COMMAND = Command(
    "export",
    "Export data sets to a folder that datasets.load_dataset loads (to=folder), or to the hub (to=hub://name).",
    reads=("shard", "to"),
    examples=(
        ("shard=runs/sst2/dilm-dpc5-<key> to=exported/sst2", "a folder that datasets.load_dataset loads"),
        ("shard=... to=exported/sst2 force=true", "again, with newer scores and audits on its card"),
        ("shard=... to=hub://me/sst2-distilled", "to the hub"),
    ),
    next='datasets.load_dataset("{config.to}")',
)


def run(config: Config) -> str:
    """Export the data sets of `shard=` to the folder or hub name of `to=`; print and return what was done."""
    from dilm.stages import export  # pyarrow

    told = export.run(config)
    print(told)
    return told


if __name__ == "__main__":
    main(COMMAND, run)
