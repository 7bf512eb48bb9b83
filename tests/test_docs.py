"""Docs that hold: links lead somewhere, commands and keys exist, code compiles."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml
from test_layers import MAY_IMPORT

from dilm.config.compose import checked
from dilm.core.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
OWN = {"task=complaints", "learner=my_encoder", "site=mine", "site=<name>", "match.learner=my_encoder"}  # the reader's


def blocks(page: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for name, text in fenced if name == language]


def anchors(page: Path) -> set[str]:
    """The ids that a page's headings get."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        if name.startswith(("http:", "https:")):
            continue
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def commands(page: Path) -> list[str]:
    """Lines of shell blocks, joined where they go on, without comments and what follows a pipe."""
    text = "\n".join(blocks(page, "")).replace("\\\n", " ")
    return [re.split(r"\s+#|\s+\|", line)[0].strip() for line in text.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_their_keys_exist(page: Path) -> None:
    seen = 0
    for line in commands(page):
        found = re.search(r"python (?:-m dilm\.(\w+)|(tools/\w+\.py))(.*)", line)
        if not found:
            continue
        module, tool, rest = found.groups()
        assert (REPOSITORY / (tool or f"dilm/{module}.py")).is_file(), line
        keys = [part for part in shlex.split(rest) if "=" in part and not part.startswith(("-", "$"))]
        try:
            checked([key for key in keys if key not in OWN and "..." not in key])
        except ConfigError as error:
            pytest.fail(f"{line}: {error}")
        seen += 1
    if page.name in ("README.md", "tour.md", "paper.md", "slurm.md"):
        assert seen > 2, "this page has commands"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_make_targets_exist(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z][a-z-]+)\b", "\n".join(commands(page))):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_compiles_and_yaml_loads(page: Path) -> None:
    for code in blocks(page, "python"):
        ast.parse(code)
    for text in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_pages_name_exist(page: Path) -> None:
    named = set(re.findall(r"`((?:dilm|tests|tools|docs)/[\w./-]+)`", page.read_text(encoding="utf-8")))
    assert named or page.name not in ("CONTRIBUTING.md", "architecture.md")
    assert [path for path in sorted(named) if not (REPOSITORY / path).exists()] == []


def test_the_tables_of_packages_name_every_package_and_module() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `dilm/(\w+)/` \| (.*?) \|", text, re.M))
    packages = [path.parent for path in (REPOSITORY / "dilm").glob("*/__init__.py")]
    assert set(rows) == {path.name for path in packages}
    for folder in packages:
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        assert set(re.findall(r"`(\w+)`", rows[folder.name])) == modules, folder.name
    architecture = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", architecture, re.M) == [*MAY_IMPORT, "commands"]


def test_every_page_is_reached_from_the_readme() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in (REPOSITORY / "docs").glob("*.md") if f"docs/{page.name}" not in text]
    assert missing == []
