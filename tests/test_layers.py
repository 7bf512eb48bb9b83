"""House rules as tests: packages import one way, folders and files stay small, and the login node loads no torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "dilm"
# Lowest first, and which packages each may import besides `core`. A package may be named with one module of it alone.
MAY_IMPORT = {
    "core": "",
    "config": "",
    "scheduler": "",
    "hub": "config",
    "data": "config hub",
    "distributed": "config data",
    "artifacts": "config scheduler hub data distributed",
    "tracking": "config scheduler artifacts",
    "models": "config hub data artifacts distributed",
    "training": "config data artifacts tracking distributed models",
    "selection": "config data artifacts tracking distributed models",
    "matching": "config data artifacts tracking distributed models training selection",
    "evaluation": "config hub data artifacts distributed models training",
    "report": "config scheduler artifacts tracking evaluation",
    "stages": "config scheduler hub data artifacts tracking distributed models training selection matching evaluation "
    "report",
    "launch": "config scheduler hub data artifacts evaluation.cells",
}
COMMANDS = ("train", "generate", "evaluate", "collect", "prefetch", "audit", "export")
ROOT = {"cli", *COMMANDS}  # files of the package's root, which may import everything but each other's commands
NO_TORCH = ("core", "config", "scheduler", "hub", "data", "artifacts", "tracking", "report", "launch")
OTHERS_FREE = "distributed.world evaluation.cells evaluation.metrics evaluation.text_metrics".split()
TORCH_FREE = (*OTHERS_FREE, *sorted(ROOT))  # of other packages
STILL_SHORT = """
core.hashing evaluation.metrics models.bag_of_words scheduler.job stages.collect training.optimizer
""".split()
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Modules of this project that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("dilm.") for name in names if name.startswith("dilm.")} & set(MODULES) - {module(path)}


def allowed(importer: str, name: str) -> bool:
    """Whether a file may import a module by the rule of its package."""
    package, other = importer.partition(".")[0], name.partition(".")[0]
    if importer in ROOT:
        return name not in COMMANDS
    if package == "stages" and other == "stages":
        return False
    return other in (package, "core") or not {other, name}.isdisjoint(MAY_IMPORT[package].split())


def test_every_file_has_its_room() -> None:
    assert {name.partition(".")[0] for name in MODULES} == {*MAY_IMPORT, *ROOT}


def test_packages_are_named_lowest_first() -> None:
    order = list(MAY_IMPORT)
    for package, others in MAY_IMPORT.items():
        above = {other.partition(".")[0] for other in others.split()} - set(order[: order.index(package)])
        assert not above, f"{package} may import {above}, which stand above it"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    refused = {other for other in imported(MODULES[name]) if not allowed(name, other)}
    assert not refused, f"{name} imports {sorted(refused)}, which its package may not"


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = {name: imported(path) for name, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # or CycleError


def test_imports_are_seen() -> None:
    """The checks above would pass on an empty set."""
    seen = set.union(*(imported(path) for path in FILES))
    assert {"core.errors", "config.schema", "matching.loss", "models.generator", "stages.generate"} <= seen


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES} - {PACKAGE}), ids=lambda path: path.name)
def test_folders_stay_small(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= 9


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_small(name: str) -> None:
    text = MODULES[name].read_text()
    assert len(text.splitlines()) <= 500
    assert name in {*COMMANDS, *STILL_SHORT} or len(text.splitlines()) >= 45, "joins its neighbour"
    for node in ast.walk(ast.parse(text)):
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
    words = [name for name, path in MODULES.items() if '"cuda"' in path.read_text()]
    assert set(words) <= {"distributed.device", "config.schema"}  # the schema names what device= may be


def test_the_login_node_loads_no_torch() -> None:
    names = [name for name in MODULES if name.partition(".")[0] in NO_TORCH or name in TORCH_FREE]
    code = f"import sys; import {', '.join(f'dilm.{name}' for name in names)}; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("'torch'", "'transformers'", "'datasets'", "'sklearn'", "'mlflow'"):
        assert heavy not in loaded
