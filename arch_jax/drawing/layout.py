"""Positions in a drawing: rows by depth in the data flow, lines in the gaps between rows and in lanes beside them."""

import dataclasses

from arch_jax.drawing.diagram import Node
from arch_jax.drawing.routing import Line, Router
from arch_jax.drawing.text import BADGE, BOLD, LINE, SMALL, TITLE, shortened, text_width, wrapped

RADIUS = 9.0
#: Least distance of two things in a row; inside margin of a frame; the space beside a box for its loop.
_APART, _MARGIN, _LOOP = 22.0, 16.0, 20.0
_SWEEPS, _STRAIGHTEN = 40, 26.0
#: The heading of a frame is not made narrower than this.
_NARROW = 112.0
#: A row wider than this is broken.
_WIDE = 640.0
#: The widest text in a box.
_WIDEST = 320.0


@dataclasses.dataclass
class Place:
    """A rectangle, in coordinates of the sheet that it lies on.

    Attributes:
      x: left edge.
      y: top edge.
      width: across.
      height: down.
      out: where lines leave at the bottom, from the left edge.
      entries: where lines enter at the top, from the left edge, input by input; empty where they are spread evenly.
      beside: space on both sides that is kept free, for a loop.
      sheet: inside a frame.
      heading: of a frame: its lines, and whether each is part of the title.
    """

    x: float
    y: float
    width: float
    height: float
    out: float
    entries: tuple[float, ...] = ()
    beside: float = 0.0
    sheet: "Sheet | None" = None
    heading: tuple[tuple[str, bool], ...] = ()

    @property
    def centre(self) -> float:
        return self.x + self.width / 2


@dataclasses.dataclass
class Sheet:
    """A drawn frame or the whole drawing.

    Attributes:
      width: across.
      height: down.
      places: of its nodes.
      lines: between them.
    """

    width: float
    height: float
    places: dict[Node, Place]
    lines: list[Line]


def _heading(node: Node, room: float) -> tuple[tuple[str, bool], ...]:
    """The lines of a frame's heading, none wider than `room`, and whether each is part of the title."""
    said = [(text, True) for text in wrapped(node.title, TITLE * BOLD, room)]
    return (*said, *((text, False) for line in node.lines for text in wrapped(line, SMALL, room)))


def badge(node: Node) -> str:
    """The number of equal layers that a node stands for; "" for one."""
    return f"× {node.repeat}" if node.repeat > 1 else ""


def title_of(node: Node) -> str:
    """The title of a box, cut where it is too wide."""
    bold = node.kind != "function"
    return shortened(node.title, TITLE if bold else SMALL, _WIDEST, bold)


def lines_of(node: Node) -> tuple[str, ...]:
    """The small lines of a box."""
    said = (*node.lines, f"state {node.loop}" if node.loop else "")
    return tuple(shortened(line, SMALL, _WIDEST) for line in said if line)


def _size(node: Node) -> Place:
    if node.kind == "port":
        return Place(0.0, 0.0, 0.0, 0.0, 0.0)
    if node.kind == "symbol":
        return Place(0.0, 0.0, 2 * RADIUS, 2 * RADIUS, RADIUS)
    if node.kind == "frame":
        return _frame(node)
    if node.kind == "function":
        width = max(text_width(title_of(node), SMALL), *[text_width(t, SMALL) for t in lines_of(node)], 26.0) + 18
        return Place(0.0, 0.0, width, 20 + LINE * len(lines_of(node)), width / 2, beside=_LOOP if node.loop else 0.0)
    title = text_width(title_of(node), TITLE, bold=True)
    if badge(node):  # on the right, and as much room on the left
        title += 2 * (text_width(badge(node), BADGE, bold=True) + 14)
    width = max(title, *[text_width(t, SMALL) for t in lines_of(node)], 40.0) + 22
    return Place(0.0, 0.0, width, 24 + LINE * len(lines_of(node)), width / 2, beside=_LOOP if node.loop else 0.0)


def _frame(node: Node) -> Place:
    places = {one: _size(one) for one in node.nodes}
    sheet = arrange(node.nodes, places=places)
    first = min((sheet.places[port].x for port in node.ports), default=140.0)
    heading = _heading(node, max(_NARROW, first + _MARGIN - 22))
    band = 8 + LINE * len(heading) + 2
    sheet = arrange(node.nodes, band, places)
    wide = max([text_width(t, TITLE if main else SMALL, bold=main) for t, main in heading], default=0.0)
    mark = text_width(badge(node), BADGE, bold=True) + 10 if badge(node) else 0.0
    mark += _LOOP + 6 + text_width(f"state {node.loop}", SMALL) if node.loop else 0.0
    at = [sheet.places[port].x for port in node.ports]
    # The lines that come in pass between the heading on the left and the number of repeats on the right.
    left = max(_MARGIN, 12 + wide + 10 - min(at, default=1e9))
    right = max(_MARGIN + (_LOOP if node.loop else 0), 12 + mark + 10 - (sheet.width - max(at, default=-1e9)))
    if not at:
        right = max(right, 24 + wide + mark + 10 - left - sheet.width)
    shift(sheet, left)
    sheet.width += left + right
    (out,) = [one for one in node.nodes if one.kind == "port" and one.title == "out"]
    entries = tuple(sheet.places[port].x for port in node.ports)
    return Place(0.0, 0.0, sheet.width, sheet.height, sheet.places[out].x, entries, sheet=sheet, heading=heading)


def shift(sheet: Sheet, right: float, down: float = 0.0) -> None:
    """Moves everything on a sheet."""
    for place in sheet.places.values():
        place.x += right
        place.y += down
    for line in sheet.lines:
        line.points = [(x + right, y + down) for x, y in line.points]
        if line.branch is not None:
            line.branch = (line.branch[0] + right, line.branch[1] + down)


def arrange(nodes: list[Node], top: float = 0.0, places: dict[Node, Place] | None = None) -> Sheet:
    """Places for nodes and lines.

    Args:
      nodes: of one frame, or of the whole drawing.
      top: kept free above the first row, for a heading.
      places: sizes of the nodes, whose positions are set; None computes them.
    """
    places = {node: _size(node) for node in nodes} if places is None else places
    ranks = _narrowed(nodes, _ranks(nodes), places)
    rows: list[list[Node]] = [[] for _ in range(max(ranks.values()) + 1)]
    for node in nodes:
        rows[ranks[node]].append(node)
    _spread(rows, places, ranks)
    router = Router(rows, places, ranks, top)
    lines = router.route()
    xs = [x for line in lines for x, _ in line.points]
    left = min([*(p.x - p.beside for p in places.values()), *xs])
    sheet = Sheet(0.0, router.bottom, places, lines)
    sheet.width = max([*(p.x + p.width + p.beside for p in places.values()), *xs]) - left
    shift(sheet, -left)
    return sheet


def _ranks(nodes: list[Node]) -> dict[Node, int]:
    """The row of each node: below all that it reads; what reads nothing stands right above its first reader."""
    here = set(nodes)
    ranks: dict[Node, int] = {}
    base = 1 if any(node.kind == "port" for node in nodes) else 0
    for node in nodes:
        below = [ranks[source] + 1 for source in node.inputs if source in ranks]
        ranks[node] = 0 if node.kind == "port" and node.title != "out" else max([base, *below])
    users: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        for source in node.inputs:
            if source in here:
                users[source].append(node)
    for node in reversed(nodes):
        free = node.kind != "port" and users[node] and not any(s in here and s.kind != "port" for s in node.inputs)
        if free and (not node.inputs or node.kind == "end"):
            ranks[node] = max(ranks[node], min(ranks[user] for user in users[node]) - 1)
    for node in nodes:
        if node.title == "out" and node.kind == "port":
            ranks[node] = max([base, *(rank for one, rank in ranks.items() if one is not node)]) + 1
    return ranks


def _narrowed(nodes: list[Node], ranks: dict[Node, int], places: dict[Node, Place]) -> dict[Node, int]:
    """The ranks, with each row that is too wide broken into several."""
    level: dict[Node, tuple[int, int]] = {}
    filled: dict[int, tuple[int, float]] = {}
    widest = _WIDE if any(node.kind == "port" for node in nodes) else _WIDE + 96.0  # nothing is around the whole
    for node in nodes:
        rank, wide = ranks[node], places[node].width + 2 * places[node].beside + _APART
        row, used = filled.get(rank, (0, 0.0))
        if used and used + wide > widest and node.kind not in ("port", "end"):
            row, used = row + 1, 0.0
        filled[rank] = (row, used + wide)
        level[node] = (rank, row)
    order = {one: i for i, one in enumerate(sorted(set(level.values())))}
    return {node: order[one] for node, one in level.items()}


def _spread(rows: list[list[Node]], places: dict[Node, Place], ranks: dict[Node, int]) -> None:
    """Positions across: each node near what it is joined to, in rows without overlaps."""
    joined: dict[Node, list[tuple[Node, int, float]]] = {node: [] for row in rows for node in row}
    readers = {node: sum(node in other.inputs for other in joined) for node in joined}
    for row in rows:
        for node in row:
            for i, source in enumerate(node.inputs):
                if source in joined:
                    # What goes past other rows, as a residual does, pulls little, but for a branch of its own.
                    near = 1.0 if ranks[node] - ranks[source] == 1 else (0.02 if readers[source] > 1 else 0.6)
                    joined[node].append((source, i, near))
                    joined[source].append((node, -1 - i, near))
    centres = {node: 0.0 for node in joined}
    # Inputs of a model are ordered by what reads them; the parts of a layer keep the order of the program.
    whole = not any(node.kind == "port" for node in joined)

    def offset(node: Node, other: Node, which: int) -> float:
        """The place where a line between two nodes meets the second one, from its centre."""
        place = places[other]
        if which >= 0:  # `other` is read by `node`
            return place.out - place.width / 2
        entry = -1 - which
        return place.entries[entry] - place.width / 2 if entry < len(place.entries) else 0.0

    def own(node: Node, which: int) -> float:
        place = places[node]
        if which >= 0:
            return place.entries[which] - place.width / 2 if which < len(place.entries) else 0.0
        return place.out - place.width / 2

    def wish(node: Node, above: bool | None) -> tuple[float, float]:
        total, weight = 0.0, 0.0
        for other, which, near in joined[node]:
            if above is None or (ranks[other] < ranks[node]) == above:
                near = near if above is None else 1.0  # for the order all count alike
                total += near * (centres[other] + offset(node, other, which) - own(node, which))
                weight += near
        return (total / weight, weight) if weight else (centres[node], 0.01)

    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            ordering = sweep == 0 or (sweep < 3 and whole)
            wishes = {node: wish(node, sweep % 2 == 0 if ordering else None) for node in row}
            if ordering:
                place = {node: i for i, node in enumerate(row)}
                row.sort(key=lambda node: (round(wishes[node][0], 3), place[node]))
            widths = [places[node].width + 2 * places[node].beside for node in row]
            apart = [0.0 if node.kind == "port" else _APART for node in row]
            found = _packed([wishes[node] for node in row], widths, apart)
            centres.update(zip(row, found))
    for row in rows:  # lines that are nearly straight become so
        for i, node in enumerate(row):
            close = [one for one in joined[node] if one[1] >= 0 and ranks[node] - ranks[one[0]] == 1]
            if (node.kind == "port" and node.title != "out") or len(close) != 1:
                continue
            other, which, _ = close[0]
            goal = centres[other] + offset(node, other, which) - own(node, which)
            half = places[node].width / 2 + places[node].beside
            lower, upper = -1e9, 1e9
            if i:
                lower = (
                    centres[row[i - 1]] + places[row[i - 1]].width / 2 + places[row[i - 1]].beside + _APART / 2 + half
                )
            if i + 1 < len(row):
                after = row[i + 1]
                upper = centres[after] - places[after].width / 2 - places[after].beside - _APART / 2 - half
            if abs(goal - centres[node]) < _STRAIGHTEN and lower <= goal <= upper:
                centres[node] = goal
    for node, centre in centres.items():
        places[node].x = centre - places[node].width / 2


def _packed(wishes: list[tuple[float, float]], widths: list[float], apart: list[float]) -> list[float]:
    """Centres nearest to the wishes in least squares, in the given order and without overlap."""
    before = [0.0]
    for i in range(1, len(widths)):
        before.append(before[-1] + (widths[i - 1] + widths[i]) / 2 + max(apart[i - 1], apart[i], 14.0))
    pools: list[list[float]] = []  # sum of weighted wishes, of weights, number
    for (centre, weight), shifted in zip(wishes, before):
        pools.append([weight * (centre - shifted), weight, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last)]
    found = []
    for total, weight, number in pools:
        found += [total / weight] * int(number)
    return [base + shifted for base, shifted in zip(found, before)]
