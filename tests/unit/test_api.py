"""What `import dilm` gives: quickly, by name, and as docs/api.md shows it."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dilm
from dilm.config.schema import Config
from dilm.core.errors import ArgumentError
from dilm.core.io import REPOSITORY
from dilm.stages import evaluate, generate

Compose = Callable[..., Config]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_it_loads_nothing_heavy() -> None:
    loaded = python("import sys; before = set(sys.modules); import dilm; print(sorted(set(sys.modules) - before))")
    assert "'dilm'" in loaded
    for heavy in ("torch", "hydra", "omegaconf", "pandas", "numpy", "datasets", "dilm.core"):
        assert f"'{heavy}'" not in loaded


def test_every_name_is_there_and_no_other() -> None:
    assert set(dilm.__all__) == {"DilmError", "load_dataset", "read_shards", "results", "select"}
    assert set(dilm.__all__) < set(dir(dilm)) and dilm.__version__
    for name in dilm.__all__:
        assert getattr(dilm, name).__name__ == name and getattr(dilm, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'selct'"):
        dilm.selct  # type: ignore[attr-defined]  # noqa: B018


def test_commands_stay_modules_of_the_package() -> None:
    shown = python("import dilm.train, dilm.export; print(dilm.train.__name__, dilm.export.__name__, dilm.__all__)")
    assert shown.startswith("dilm.train dilm.export [")


def test_the_page_runs_as_it_stands(
    tiny: Compose, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate.run(tiny("method=random"))
    evaluate.run(tiny("method=random", "evaluator=words"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DILM_CACHE", str(tiny_cache))
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    shown = capsys.readouterr().out
    assert len(blocks) == 6 and len(names["rows"]) == 4  # type: ignore[arg-type]
    assert "data_set_01" in shown and "count" in shown
    assert "dpc=5, but class 'bad' has only 4 distinct texts" in shown


def test_the_page_names_every_argument() -> None:
    page = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    code = dilm.select.__code__
    for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        assert re.search(rf"^\|.*`{name}`.*\|", page, re.M), name


def test_results_are_rows_and_a_wrong_root_is_told(tiny: Compose, tmp_path: Path) -> None:
    generate.run(tiny("method=random"))
    evaluate.run(tiny("method=random", "evaluator=words"))
    frame = dilm.results(str(tmp_path / "runs"))
    assert len(frame) == 4 and set(frame["status"]) == {"done"}
    assert frame["value"].between(0, 100).all() and {"dataset", "seed", "error"} <= set(frame)
    with pytest.raises(ArgumentError, match=r"root '.*nowhere': there is no .*rows\. Name the root="):
        dilm.results(tmp_path / "nowhere")
