"""dilm: dataset distillation for text, after DiLM (Maekawa et al., Findings of NAACL 2024)."""

import os
import sys
from importlib.abc import MetaPathFinder

__version__ = "0.1.0"


class _EarlierJobs(MetaPathFinder):
    """Ends a job that was queued before the modules moved into packages, and names the old ones."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Never finds anything."""
        if name in ("dilm.runner", "dilm.jobs"):
            print(
                f"this job was queued by an earlier version of dilm ({name} is gone); run the command that queued it "
                "again, or `python tools/status.py <root> --retry-failed`.",
                file=sys.stderr,
            )
            raise SystemExit(2)


if "SUBMITIT_EXECUTOR" in os.environ:
    sys.meta_path.insert(0, _EarlierJobs())
