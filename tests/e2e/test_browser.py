"""The report in a real browser: nothing fails, filters filter, and the texts shown are those of the shards."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dilm.artifacts.shards import read_shards
from dilm.config.schema import Config
from dilm.stages import audit, collect, evaluate, generate

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (make system-packages)"),
]
Compose = Callable[..., Config]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def report(tiny: Compose, tmp_path: Path) -> Path:
    """Two methods, two sizes, one of them audited."""
    for method in ("random", "k_centers"):
        for dpc in (2, 3):
            keys = [f"method={method}", f"dpc={dpc}", "n_seeds=1"]
            generate.run(tiny(*keys))
            evaluate.run(tiny(*keys, "evaluator=words"))
    evaluate.run(tiny("method=random", "dpc=2", "learner.freeze_encoder=true"))
    audited = generate.run(tiny("method=random", "dpc=2")).folder
    audit.run(tiny(f"shard={audited}", "learner.freeze_encoder=true"))
    collect.run(tmp_path / "runs", tmp_path / "report")
    return tmp_path / "report" / "index.html"


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """The page, offline; whatever it says on the console, or asks of the network, fails the test."""
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(report.as_uri())
    yield page
    assert [line for line in said if not line.startswith("data:")] == []
    context.close()


def visible(page: Any, what: str) -> list[str]:
    return [found.inner_text() for found in page.locator(what).all() if found.is_visible()]


def test_filters_show_what_is_chosen(opened: Any) -> None:
    sections = "section.result h3"
    assert len(visible(opened, sections)) == 2
    opened.select_option("#models", "words")
    assert visible(opened, sections) == ["tiny, words (words), accuracy"]
    assert "k_centers" in visible(opened, "section.result:not([hidden]) tbody th")
    opened.uncheck("input[name=method][value=k_centers]")
    assert visible(opened, "section.result:not([hidden]) tbody th") == ["random"]
    assert opened.locator("#none").is_hidden()
    opened.select_option("#models", "")
    assert len(visible(opened, sections)) == 2


def test_the_texts_shown_are_those_of_the_shard(opened: Any, tiny: Compose) -> None:
    rows = read_shards(generate.run(tiny("method=random", "dpc=3")).folder)
    own = rows.take(np.flatnonzero(rows.dataset == 1))
    opened.select_option("#text-dpc", "3")
    opened.select_option("#text-dataset", "1")
    opened.uncheck("input[name=text-method][value=k_centers]")
    shown = visible(opened, ".text p:first-child")
    assert sorted(shown) == sorted(text for (text,) in own.table.texts)
    opened.select_option("#text-label", "1")
    expected = [text for (text,), label in zip(own.table.texts, own.table.labels, strict=True) if label == 1]
    assert sorted(visible(opened, ".text p:first-child")) == sorted(expected)
    opened.fill("#search", expected[0][3:12].upper())
    found = visible(opened, ".text p:first-child")
    assert expected[0] in found and len(found) <= len(expected)
    assert visible(opened, ".text mark")[0].lower() == expected[0][3:12].strip().lower() or visible(
        opened, ".text mark"
    )
    opened.fill("#search", "no such words")
    assert visible(opened, ".text") == [] and "0 texts" in opened.locator("#told").inner_text()


def test_audited_texts_have_their_nearest_training_text_and_flags(opened: Any) -> None:
    opened.select_option("#text-dpc", "2")
    opened.uncheck("input[name=text-method][value=k_centers]")
    assert len(visible(opened, ".text .flag")) >= 4, "random texts are training texts"
    assert all("nearest training text (1.00)" in text for text in visible(opened, ".text"))
    opened.uncheck("input[name=text-method][value=random]")
    opened.check("input[name=text-method][value=k_centers]")
    assert any("not audited" in text for text in visible(opened, "#columns section"))
    opened.check("#flagged")
    assert visible(opened, ".text") == []


def test_it_is_usable_by_keyboard_on_a_phone_and_in_the_dark(browser: Any, report: Path) -> None:
    context = browser.new_context(offline=True, viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing makes the whole page scroll sideways"
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert contrast(ink, paper) > 7
    assert contrast(page.evaluate("getComputedStyle(document.querySelector('.faint')).color"), paper) > 4.5
    assert contrast(page.evaluate("getComputedStyle(document.querySelector('svg')).color"), paper) > 7
    names = []
    for _ in range(12):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate("document.activeElement.id || document.activeElement.name || document.activeElement.hash")
        )
    assert {"#results", "tasks", "models", "method"} <= set(names)
    fields = "[...document.querySelectorAll('input, select')]"
    unnamed = page.evaluate(f"{fields}.filter((found) => !found.labels.length).map((found) => found.id)")
    assert unnamed == []
    context.close()


def contrast(ink: str, paper: str) -> float:
    """The contrast ratio of WCAG 2.2."""
    lights = []
    for colour in (ink, paper):
        shares = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)
