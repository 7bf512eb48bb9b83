"""House rules as tests: imports point one way, files stay small, and the login node loads no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "dilm"
# Lowest first: a file imports only files that stand before it; the stages stand side by side, and so do the commands.
ORDER = """
errors keys signals files site models config checks text convert tiny sources tables data slurm claims artifacts
published lineage shards results cells overlap diversity inspected statistics card summaries markup live tracking jobs
health plots page mlflow_store compose help closing plan runner submit study status launcher
matching clustering selection metrics words
device batching world optimizer zero engine generator likelihood writer checkpoints learner gradients features streams
language_model teaching choosing trajectory teacher similarity finetune llm icl
""".split()
SIDE_BY_SIDE = [
    {f"stages.{path.stem}" for path in (PACKAGE / "stages").glob("[a-z]*.py")},
    {"launch"},
    {"train", "generate", "evaluate", "collect", "prefetch", "audit", "export"},
]
LEVEL = {name: level for level, name in enumerate(ORDER)} | {
    name: len(ORDER) + level for level, names in enumerate(SIDE_BY_SIDE) for name in names
}
NO_TORCH = ORDER[: ORDER.index("matching")]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "dilm":
            names |= {f"dilm.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "dilm.stages":
            names |= {f"dilm.stages.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.removeprefix("dilm.") for name in names if name.startswith("dilm.")} & set(LEVEL)


def test_every_file_has_its_place_in_the_order() -> None:
    assert {module(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_point_one_way(path: Path) -> None:
    upwards = {name for name in imported(path) if LEVEL[name] >= LEVEL[module(path)]}
    assert not upwards, f"{module(path)} imports {sorted(upwards)}, which stand above or beside it"


def test_the_order_is_the_one_that_is_imported() -> None:
    """The check above would pass on an empty set; this one says that imports are seen at all."""
    seen = set.union(*(imported(path) for path in FILES))
    assert {"errors", "config", "matching", "generator", "stages.match"} <= seen


@pytest.mark.parametrize("path", FILES, ids=module)
def test_files_and_functions_stay_small(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 300
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
            assert depth(node) <= 3, f"{node.name} nests {depth(node)} blocks"


BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)


def depth(node: ast.AST) -> int:
    """How many blocks are nested in a function, `elif` and functions inside it not counted."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def test_only_one_file_says_cuda() -> None:
    words = [module(path) for path in FILES if '"cuda"' in path.read_text()]
    assert set(words) <= {"device", "config"}  # config names what device= may be


def test_the_login_node_loads_no_torch() -> None:
    code = f"import sys; import {', '.join(f'dilm.{name}' for name in NO_TORCH)}; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("'torch'", "'transformers'", "'datasets'", "'sklearn'", "'mlflow'"):
        assert heavy not in loaded
