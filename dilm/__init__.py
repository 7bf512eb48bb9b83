"""dilm: dataset distillation for text, after DiLM (Maekawa et al., Findings of NAACL 2024).

The Python API is what `__all__` names (docs/api.md). Each name is imported when it is first asked for, so that
`import dilm` loads none of torch, Hydra and pandas.
"""

import importlib
import os
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dilm.artifacts.huggingface import load_dataset
    from dilm.artifacts.rows import results
    from dilm.artifacts.shards import read_shards
    from dilm.core.errors import DilmError
    from dilm.selection.texts import select

__version__ = "0.1.0"
__all__ = ["DilmError", "load_dataset", "read_shards", "results", "select"]
_MODULES = {
    "DilmError": "dilm.core.errors",
    "load_dataset": "dilm.artifacts.huggingface",
    "read_shards": "dilm.artifacts.shards",
    "results": "dilm.artifacts.rows",
    "select": "dilm.selection.texts",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


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
