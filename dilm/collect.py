"""`python -m dilm.collect`: bring all rows together, as a study's last job does."""

from pathlib import Path

from dilm.cli import main
from dilm.config.help import Command
from dilm.config.schema import Config
from dilm.config.stages import REPORT
from dilm.tracking.tracker import tracking_uri

COMMAND = Command(
    "collect",
    "Bring the rows of all jobs together in a report.",
    reads=("tracking", "tracking_uri"),
    examples=(
        ("root=runs", "the report of all rows, in runs/report"),
        ("root=/scratch/me/runs", "of another root"),
        ("hydra/launcher=slurm site=mine root=runs -m", "as a job"),
    ),
)


def run(config: Config) -> None:
    """Write the report of all rows under `root` to `<root>/report`; to an MLflow server where there is one, too."""
    from dilm.stages import collect  # pandas and matplotlib

    uri = tracking_uri(config)
    folder = Path(config.root) / REPORT
    tables = collect.run(Path(config.root), folder)
    print(f"{len(tables)} tables: {folder / 'index.html'}")
    if uri:  # the report is there, and a server that is away may be back later
        collect.to_mlflow(Path(config.root), uri, required=False)


if __name__ == "__main__":
    main(COMMAND, run)
