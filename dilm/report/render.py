"""Numbers as readers see them, and the templates (`*.j2` beside this file) that show them. Jinja2 fills them in."""

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from dilm.report.statistics import Difference, Summary

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
    undefined=StrictUndefined,  # a name that is missing raises, rather than leave a gap
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # of `tojson`


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder. Values are escaped in `*.html.j2`, and stay as they are in others."""
    return TEMPLATES.get_template(template).render(values)


def cell_text(summary: Summary | None) -> str:
    """`mean ± std [low, high]` in percent; a dash where there is nothing."""
    if summary is None:
        return "–"
    std = "" if math.isnan(summary.std) else f" ± {summary.std:.1f}"
    interval = "" if math.isnan(summary.low) else f" [{summary.low:.1f}, {summary.high:.1f}]"
    return f"{summary.mean:.1f}{std}{interval}"


def difference_text(difference: Difference | None) -> str:
    """`+mean [low, high], p = ...` of a difference in percent points, p after Holm's correction; or a dash."""
    if difference is None:
        return "–"
    interval = "" if math.isnan(difference.low) else f" [{difference.low:+.1f}, {difference.high:+.1f}]"
    p_value = "" if math.isnan(difference.p_holm) else f", p = {difference.p_holm:.3f}"
    p_value = p_value.replace("p = 0.000", "p < 0.001")
    return f"{difference.mean:+.1f}{interval}{p_value}"


def duration_text(hours: float) -> str:
    """Hours and minutes; below one hour minutes and seconds."""
    minutes, seconds = divmod(round(hours * 3600), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


TEMPLATES.filters |= {"cell": cell_text, "difference": difference_text, "duration": duration_text}
