"""Draw the packages and what they import: `python tools/rooms.py` writes docs/rooms.svg from the source files.

A package stands above everything that it imports. An arrow is drawn only where no other path leads there: what is
reached by two arrows may be imported too. Equal sources give equal bytes.
"""

import argparse
import ast
import itertools
from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from random import Random
from xml.sax.saxutils import escape

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "dilm"
PICTURE = REPOSITORY / "docs" / "rooms.svg"
COMMANDS = "commands"  # the box of the files beside the packages
Graph = dict[str, set[str]]  # importer: imported

BOX_WIDTH, LINE, PADDING = 236, 15, 9  # pixels
HEAD = 23  # of a box: its name
BETWEEN_LAYERS, BETWEEN_BOXES, BETWEEN_LINES = 34, 36, 22
MARGIN, LEGEND = 18, 26
CHARACTERS = 39  # of module names on one line of a box
NO_TORCH, TORCH = ("#eaf2fb", "#4a7db5"), ("#fdf0e3", "#c77f33")  # fill and edge
TRIES = 40  # at an order in the layers
PULL = 0.3  # of the picture's axis on everything; a line's ends pull with 1
SWEEPS = 60  # over the layers, to place what stands in them


def sources() -> dict[str, list[Path]]:
    """The files of every package by its name, and of the package's root."""
    files: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            folder = path.parent.name if path.parent != PACKAGE else COMMANDS
            files.setdefault(folder, []).append(path)
    return files


def imported_names(path: Path) -> set[str]:
    """The full names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def imports(files: dict[str, list[Path]]) -> Graph:
    """Which packages each package imports."""
    graph: Graph = {}
    for package, paths in files.items():
        names = {name.split(".")[1] for path in paths for name in imported_names(path) if name.startswith("dilm.")}
        graph[package] = (names & set(files)) - {package}
    return graph


def loads_torch(paths: Iterable[Path]) -> bool:
    """Whether any of these files imports torch or transformers when it is imported itself."""
    for path in paths:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.partition(".")[0] for name in names} & {"torch", "transformers"}:
                return True
    return False


def direct(graph: Graph) -> Graph:
    """The edges without those that a longer path implies (transitive reduction). Raises CycleError."""
    below: Graph = {}
    for name in TopologicalSorter(graph).static_order():
        below[name] = set().union(*(below[other] | {other} for other in graph[name]))
    return {name: {to for to in others if not any(to in below[other] for other in others)}
            for name, others in graph.items()}  # fmt: skip


def layers_of(graph: Graph) -> dict[str, int]:
    """The layer of each package, 0 the lowest: as near below the packages that import it as may be."""
    order = list(TopologicalSorter(graph).static_order())  # lowest first
    height: dict[str, int] = {}
    for name in order:
        height[name] = 1 + max((height[other] for other in graph[name]), default=-1)
    top = max(height.values())
    layer: dict[str, int] = {}
    for name in reversed(order):
        users = [layer[user] for user, others in graph.items() if name in others]
        layer[name] = min(users, default=top + 1) - 1
    return layer


class Layout:
    """Boxes in layers, and edges that pass the layers between as points, placed with few crossings and bends."""

    def __init__(self, graph: Graph) -> None:
        layer = layers_of(graph)
        self.rows: list[list[str]] = [[] for _ in range(max(layer.values()) + 1)]  # lowest first
        for name in sorted(graph):
            self.rows[layer[name]].append(name)
        self.paths = [self._path(name, to, layer) for name in sorted(graph) for to in sorted(graph[name])]
        self.boxes = set(graph)
        self.links = [pair for path in self.paths for pair in itertools.pairwise(path)]
        self.x = self._order()

    def _path(self, name: str, to: str, layer: dict[str, int]) -> list[str]:
        """An edge from its upper to its lower end, with a point in each layer between."""
        points = [f"{name}>{to}@{number}" for number in range(layer[name] - 1, layer[to], -1)]
        for point, number in zip(points, range(layer[name] - 1, layer[to], -1), strict=True):
            self.rows[number].append(point)
        return [name, *points, to]

    def width(self, name: str) -> int:
        """Of a box, or of a passing edge."""
        return BOX_WIDTH if name in self.boxes else 0

    def _neighbours(self, name: str) -> list[tuple[str, int]]:
        """What a box or line is linked to, with how much: the middle of a long line should stay straight."""
        ends = [other for pair in self.links if name in pair for other in pair if other != name]
        return [(other, (1, 3, 12)[(name not in self.boxes) + (other not in self.boxes)]) for other in ends]

    def crossings(self) -> int:
        """How many pairs of edges cross."""
        place = {name: number for row in self.rows for number, name in enumerate(row)}
        level = {name: number for number, row in enumerate(self.rows) for name in row}
        count = 0
        for number, (upper, lower) in enumerate(self.links):
            for other_upper, other_lower in self.links[:number]:
                same = level[upper] == level[other_upper]
                count += same and (place[upper] - place[other_upper]) * (place[lower] - place[other_lower]) < 0
        return count

    def _order(self) -> dict[str, int]:
        """Of several tries at an order the one with the fewest crossings, then the shortest lines: its places."""
        tries = []
        for seed in range(TRIES):
            random = Random(seed)
            for row in self.rows:
                random.shuffle(row)
            crossings, x = self._improve(), self._place()
            bends = sum((x[upper] - x[lower]) ** 2 for upper, lower in self.links)
            tries.append((crossings, bends, seed, [list(row) for row in self.rows], x))
        *_, self.rows, places = min(tries)
        return places

    def _improve(self) -> int:
        """Move one box or line at a time within its layer while that takes crossings away; how many are left."""
        least, before = self.crossings(), -1
        while least != before:
            before = least
            for row in self.rows:
                for name in list(row):
                    least = self._move(row, name, least)
        return least

    def _move(self, row: list[str], name: str, least: int) -> int:
        """Put a box or line where the crossings are fewest; where no place is better it stays."""
        stays = row.index(name)
        for place in range(len(row)):
            row.remove(name)
            row.insert(place, name)
            if (found := self.crossings()) < least:
                least, stays = found, place
        row.remove(name)
        row.insert(stays, name)
        return least

    def _gap(self, left: str, right: str) -> float:
        """How far apart the middles of two neighbours of a layer are at least."""
        between = BETWEEN_BOXES if {left, right} <= self.boxes else BETWEEN_LINES
        return (self.width(left) + self.width(right)) / 2 + between

    def _place(self) -> dict[str, int]:
        """The middle of everything: where its neighbours' middles are, as far as its layer has room."""
        x: dict[str, float] = {}
        for row in self.rows:
            x.update(self._spread(row, dict.fromkeys(row, 0.0)))
        for sweep in range(SWEEPS):
            rows = self.rows if sweep % 2 == 0 else self.rows[::-1]
            for row in rows:
                wanted = {}
                for name in row:
                    others = self._neighbours(name)
                    wanted[name] = sum(x[to] * pull for to, pull in others) / (PULL + sum(pull for _, pull in others))
                x.update(self._spread(row, wanted))
        left = min(x[name] - self.width(name) / 2 for name in x)
        return {name: round(value - left + MARGIN) for name, value in x.items()}

    def _spread(self, row: Sequence[str], wanted: dict[str, float]) -> dict[str, float]:
        """Places in the row's order, apart, with the least sum of squared distances to those wanted."""
        groups: list[tuple[float, list[str]]] = []  # where a group's first stands; its members, which touch
        for name in row:
            start, members = wanted[name], [name]
            while groups and groups[-1][0] + self._length([*groups[-1][1], members[0]]) > start:
                members = groups.pop()[1] + members
                starts = [wanted[member] - self._length(members[: place + 1]) for place, member in enumerate(members)]
                start = sum(starts) / len(starts)
            groups.append((start, members))
        return {
            member: start + self._length(members[: place + 1])
            for start, members in groups
            for place, member in enumerate(members)
        }

    def _length(self, members: Sequence[str]) -> float:
        """From the middle of the first to the middle of the last, side by side."""
        return sum(self._gap(left, right) for left, right in itertools.pairwise(members))


def lines_of(paths: Sequence[Path]) -> list[str]:
    """The names of modules in lines that fit a box."""
    lines = [""]
    for path in paths:
        if len(lines[-1]) + len(path.stem) > CHARACTERS:
            lines.append("")
        lines[-1] += f"{path.stem} · "
    return [line.removesuffix(" · ") for line in lines]


def picture(files: dict[str, list[Path]]) -> str:
    """The SVG."""
    layout = Layout(direct(imports(files)))
    text = {name: lines_of(paths) for name, paths in files.items()}
    tall = {name: HEAD + LINE * len(text[name]) + PADDING for name in files}
    top: dict[str, int] = {}
    bottom: dict[str, int] = {}
    y = MARGIN + LEGEND
    for row in layout.rows[::-1]:
        height = max(tall.get(name, 0) for name in row)
        for name in row:
            top[name] = y + (height - tall[name]) // 2 if name in tall else y
            bottom[name] = top[name] + tall[name] if name in tall else y + height
        y += height + BETWEEN_LAYERS
    width = max(int(layout.x[name]) + layout.width(name) // 2 for name in layout.x) + MARGIN
    parts = [_head(width, y - BETWEEN_LAYERS + MARGIN)]
    parts += [_edge(layout, path, top, bottom) for path in layout.paths]
    for name in sorted(files):
        parts += _box(name, text[name], int(layout.x[name]), top[name], tall[name], loads_torch(files[name]))
    return "\n".join([*parts, "</svg>", ""])


def _head(width: int, height: int) -> str:
    legend = []
    x = MARGIN
    for label, (fill, edge) in (("loads no torch", NO_TORCH), ("loads torch", TORCH)):
        legend.append(f'<rect x="{x}" y="{MARGIN - 4}" width="13" height="13" rx="3" fill="{fill}" stroke="{edge}"/>')
        legend.append(f'<text x="{x + 20}" y="{MARGIN + 7}" class="key">{label}</text>')
        x += 132
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-label="The packages of dilm and what they import">',
            "<style>text { font-family: -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif; "
            "fill: #24292f } .name { font-size: 14px; font-weight: 600 } .files, .key { font-size: 11px; "
            "fill: #57606a } .edge { fill: none; stroke: #8c959f; stroke-width: 1.3 }</style>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0.5 L7.5 4 L0 7.5 z" fill="#8c959f"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *legend,
        ]
    )


def _box(name: str, lines: Sequence[str], x: int, y: int, height: int, torch: bool) -> list[str]:
    fill, edge = TORCH if torch else NO_TORCH
    return [
        f'<rect x="{x - BOX_WIDTH // 2}" y="{y}" width="{BOX_WIDTH}" height="{height}" rx="6" fill="{fill}" '
        f'stroke="{edge}"/>',
        f'<text x="{x}" y="{y + 19}" text-anchor="middle" class="name">{escape(name)}</text>',
        *(
            f'<text x="{x}" y="{y + HEAD + 12 + LINE * number}" text-anchor="middle" class="files">'
            f"{escape(line)}</text>"
            for number, line in enumerate(lines)
        ),
    ]


def _port(layout: Layout, name: str, other: str, lower: bool) -> int:
    """Where on a box's edge a line to `other` begins: lines stand side by side, in the order of where they go."""
    ends = [pair[1] if lower else pair[0] for pair in layout.links if name == pair[0 if lower else 1]]
    ends.sort(key=lambda end: (layout.x[end], end))
    if name not in layout.boxes:
        return int(layout.x[name])
    step = min(44, (BOX_WIDTH - 40) // max(len(ends), 1))
    return int(layout.x[name] + (ends.index(other) - (len(ends) - 1) / 2) * step)


def _edge(layout: Layout, path: Sequence[str], top: dict[str, int], bottom: dict[str, int]) -> str:
    """A line from the lower edge of the importer to the upper edge of the imported, straight through passed layers."""
    x = _port(layout, path[0], path[1], lower=True)
    drawn = f"M{x} {bottom[path[0]]}"
    for name, other in itertools.pairwise(path):
        end = _port(layout, other, name, lower=False)
        start_y, end_y = bottom[name], top[other]
        middle = (start_y + end_y) // 2
        drawn += f" C{x} {middle} {end} {middle} {end} {end_y}"
        if other != path[-1]:
            drawn += f" L{end} {bottom[other]}"
        x = end
    return f'<path class="edge" marker-end="url(#arrow)" d="{drawn}"><title>{path[0]} imports {path[-1]}</title></path>'


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=PICTURE, help="the file to write")
    given = parser.parse_args()
    given.to.write_text(picture(sources()), encoding="utf-8")
    print(f"wrote {given.to}")


if __name__ == "__main__":
    main()
