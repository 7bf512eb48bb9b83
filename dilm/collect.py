"""`python -m dilm.collect`: bring all rows together, as a study's last job does."""

from pathlib import Path

from dilm.config import Config
from dilm.launch import main
from dilm.plan import REPORT


def run(config: Config) -> None:
    """Write the report of all rows under `root` to `<root>/report`."""
    from dilm.stages import collect  # pandas and matplotlib

    folder = Path(config.root) / REPORT
    tables = collect.run(Path(config.root), folder)
    print(f"{len(tables)} tables: {folder / 'index.html'}")


if __name__ == "__main__":
    main("Bring the rows of all jobs together in a report.", run)
