"""Bringing results together as a job's last step; by hand `python tools/collect.py` does it."""

from pathlib import Path

from dilm.config import Config


def run(config: Config) -> None:
    """Write the report of all rows under `root` to `<root>/report`."""
    from dilm.stages import collect  # pandas and matplotlib

    root = Path(config.root)
    tables = collect.run(root, root / "report")
    print(f"{len(tables)} tables: {root / 'report' / 'tables.md'}")
