"""`python -m dilm.export`: data sets that anyone can load, with a data card and their provenance."""

from dilm.cli import main
from dilm.config.schema import Config


def run(config: Config) -> str:
    """Export the data sets of `shard=` to the folder or hub name of `to=`; print and return what was done."""
    from dilm.stages import export  # pyarrow

    told = export.run(config)
    print(told)
    return told


if __name__ == "__main__":
    main(
        "Export data sets to a folder that datasets.load_dataset loads (to=folder), or to the hub (to=hub://name).", run
    )
