"""A sheet as SVG text: shapes, lines and labels, in the order in which they cover each other."""

from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

from arch_jax.drawing.diagram import Node
from arch_jax.drawing.layout import Place, Sheet, arrange, badge, lines_of, shift, title_of
from arch_jax.drawing.routing import Line
from arch_jax.drawing.text import BADGE, BOLD, LINE, SMALL, TITLE, text_width, wrapped

#: The widest drawing, in pixels; a wider one is scaled down to it. Margin of the page, size of its heading.
WIDEST, _PAGE, _HEADING = 760.0, 20.0, 17.0
_INK, _GREY, _LINE = "#1f2933", "#52606d", "#52606d"
#: (fill, edge) by what a box is.
_COLOURS = {
    "matrix": ("#e6f0fb", "#4a7fb5"), "norm": ("#e8f5e9", "#5a9a60"), "table": ("#f1eafa", "#8562b8"),
    "attention": ("#fdeedd", "#c77f30"), "function": ("#fff8dc", "#b59a2e"), "end": ("#334155", "#334155"),
    "plain": ("#f4f5f7", "#7b8794"),
}  # fmt: skip
_TABLES, _MATRICES = ("Embedding", "Position", "Words"), ("Dense", "Convolution", "BlockDiagonal")
_FRAMES = ("#fbfcfd", "#f1f4f8")


def _printable(text: str) -> str:
    """The text without characters that XML has no place for."""
    return "".join(letter if letter.isprintable() or letter in " \u00a0" else "�" for letter in text)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _colour(node: Node) -> tuple[str, str]:
    kind = str(node.facts[0]) if node.facts else ""
    if node.kind in ("end", "function"):
        return _COLOURS[node.kind]
    if node.title.startswith("softmax("):
        return _COLOURS["attention"]
    if kind.endswith("Norm") and "Convolution" not in kind:
        return _COLOURS["norm"]
    if any(word in kind for word in _TABLES):
        return _COLOURS["table"]
    if any(word in kind for word in _MATRICES) or not kind:
        return _COLOURS["matrix"]
    return _COLOURS["plain"]


def _text(x: float, y: float, text: str, size: float, colour: str, bold: bool = False, anchor: str = "middle") -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{_number(x)}" y="{_number(y)}" font-size="{_number(size)}" fill="{colour}" '
        f'text-anchor="{anchor}"{weight}>{escape(_printable(text))}</text>'
    )


def _rectangle(place: Place, dx: float, dy: float, fill: str, edge: str, radius: float, name: str = "") -> str:
    mark = f' class="{name}"' if name else ""
    return (
        f'<rect{mark} x="{_number(place.x + dx)}" y="{_number(place.y + dy)}" width="{_number(place.width)}" '
        f'height="{_number(place.height)}" rx="{_number(radius)}" fill="{fill}" stroke="{edge}"/>'
    )


def _loop(x: float, top: float, bottom: float) -> str:
    """An arrow that leaves to the right near the bottom and comes back near the top."""
    out = _number(x + 13)
    return (
        f'<path class="loop" d="M{_number(x)} {_number(bottom)}H{out}V{_number(top)}H{_number(x + 1)}" fill="none" '
        f'stroke="{_LINE}" stroke-width="1.3" stroke-linejoin="round" marker-end="url(#arrow)"/>'
    )


def _path(line: Line, dx: float, dy: float) -> str:
    """The line with rounded corners."""
    points = [(x + dx, y + dy) for x, y in line.points]
    points = [p for i, p in enumerate(points) if i == 0 or p != points[i - 1]]
    path = f"M{_number(points[0][0])} {_number(points[0][1])}"
    for (ax, ay), (bx, by), (cx, cy) in zip(points, points[1:], points[2:]):
        before, after = abs(ax - bx) + abs(ay - by), abs(cx - bx) + abs(cy - by)
        radius = min(5.0, before / 2, after / 2)
        if (ax == bx) == (bx == cx):  # straight on
            path += f"L{_number(bx)} {_number(by)}"
            continue
        near = (bx + radius * (ax - bx) / before, by + radius * (ay - by) / before)
        far = (bx + radius * (cx - bx) / after, by + radius * (cy - by) / after)
        path += (
            f"L{_number(near[0])} {_number(near[1])}Q{_number(bx)} {_number(by)} {_number(far[0])} {_number(far[1])}"
        )
    path += f"L{_number(points[-1][0])} {_number(points[-1][1])}"
    arrow = ' marker-end="url(#arrow)"' if line.arrow else ""
    ends = f"data-from={quoteattr(_printable(line.source.title))} data-to={quoteattr(_printable(line.target.title))}"
    return f'<path class="line" {ends} d="{path}" fill="none" stroke="{_LINE}" stroke-width="1.3"{arrow}/>'


def _node(node: Node, place: Place, dx: float, dy: float, depth: int) -> Iterable[str]:
    x, y, centre = place.x + dx, place.y + dy, place.centre + dx
    if node.kind == "port":
        return
    yield f'<g class="{node.kind}">'
    if node.kind == "symbol":
        middle = y + place.height / 2
        yield (
            f'<circle cx="{_number(centre)}" cy="{_number(middle)}" r="{_number(place.width / 2)}" fill="#ffffff" '
            f'stroke="{_INK}" stroke-width="1.3"/>'
        )
        yield _text(centre, middle + 5, node.title, 15.0, _INK, bold=True)
    elif node.kind == "frame":
        if node.repeat > 1:
            for step in (6.0, 3.0):
                yield _rectangle(place, dx + step, dy + step, "#ffffff", "#c3ccd8", 9.0)
        yield _rectangle(place, dx, dy, _FRAMES[depth % 2], "#a9b5c3", 9.0, "outline")
        for i, (text, main) in enumerate(place.heading):
            size, colour = (TITLE, _INK) if main else (SMALL, _GREY)
            yield _text(x + 10, y + 18 + i * LINE, text, size, colour, main, "start")
        right = x + place.width - 10
        if node.repeat > 1:
            yield _text(right, y + 18, badge(node), BADGE, "#b4531a", True, "end")
        if node.loop:
            yield _text(right - 18, y + 18, f"state {node.loop}", SMALL, _GREY, anchor="end")
            yield _loop(right - 12, y + 14, y + place.height - 12)
        assert place.sheet is not None
        yield from sheet_svg(place.sheet, x, y, depth + 1)
    else:
        fill, edge = _colour(node)
        if node.repeat > 1:
            yield _rectangle(place, dx + 4, dy + 4, "#ffffff", edge, 5.0)
        radius = {"end": place.height / 2, "function": 10.0}.get(node.kind, 5.0)
        yield _rectangle(place, dx, dy, fill, edge, radius, "outline")
        ink, grey = ("#ffffff", "#e2e8f0") if node.kind == "end" else (_INK, _GREY)
        small = node.kind == "function"
        base = y + (14 if small else 16)
        yield _text(centre, base, title_of(node), SMALL if small else TITLE, ink, not small)
        if node.repeat > 1:
            yield _text(x + place.width - 8, base, badge(node), BADGE, "#b4531a", True, "end")
        for i, text in enumerate(lines_of(node)):
            yield _text(centre, base + LINE * (i + 1), text, SMALL, grey)
        if node.loop:
            yield _loop(x + place.width, y + 7, y + place.height - 7)
    yield "</g>"


def sheet_svg(sheet: Sheet, dx: float, dy: float, depth: int) -> Iterable[str]:
    """Everything on a sheet whose upper left corner is at (dx, dy)."""
    for node, place in sheet.places.items():
        yield from _node(node, place, dx, dy, depth)
    for line in sheet.lines:
        yield _path(line, dx, dy)
    for x, y in dict.fromkeys(line.branch for line in sheet.lines if line.branch is not None):
        yield f'<circle cx="{_number(x + dx)}" cy="{_number(y + dy)}" r="2.4" fill="{_LINE}"/>'


def page(nodes: list[Node], title: str, lines: list[str]) -> str:
    """The whole drawing, with a heading above it."""
    sheet = arrange(nodes)
    across = max(sheet.width, 420.0)
    heading = [(part, _HEADING, True) for part in wrapped(title, _HEADING * BOLD, across)]
    heading += [(part, SMALL + 1, False) for line in lines for part in wrapped(line, SMALL + 1, across)]
    across = max([across, *(text_width(text, size, bold) for text, size, bold in heading)])
    shift(sheet, (across - sheet.width) / 2)
    width, y = across + 2 * _PAGE, _PAGE
    drawn = []
    for text, size, bold in heading:
        y += size + 5
        drawn.append(_text(width / 2, y - 4, text, size, _INK if bold else _GREY, bold))
    y += 16
    height = y + sheet.height + _PAGE
    scale = min(1.0, WIDEST / width)
    drawn += sheet_svg(sheet, _PAGE, y, 0)
    says = escape(_printable(", ".join([title, *lines])))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_number(width * scale)}" '
            f'height="{_number(height * scale)}" viewBox="0 0 {_number(width)} {_number(height)}" role="img" '
            "font-family=\"Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif\">",
            f"<title>{says}</title>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="6.5" markerHeight="6.5" '
            f'orient="auto-start-reverse"><path d="M0 0.5L8 4L0 7.5z" fill="{_LINE}"/></marker></defs>',
            f'<rect width="{_number(width)}" height="{_number(height)}" fill="#ffffff"/>',
            *drawn,
            "</svg>\n",
        ]
    )
