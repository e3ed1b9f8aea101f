"""Lines between places: through the gaps between rows, and past rows in lanes where nothing stands."""

import dataclasses
from typing import Any

from arch_jax.drawing.diagram import Node

#: Height of a gap without side steps; of each side step; distance of a lane from what it passes.
_GAP, _TRACK, _LANE = 24.0, 9.0, 12.0
_STUB = 8.0


@dataclasses.dataclass
class Line:
    """A line from one node to another.

    Attributes:
      source: whose output it carries.
      target: what reads it.
      points: its corners.
      arrow: whether it ends in an arrow; at the edge of a frame it does not, since it goes on inside.
      branch: where it leaves another line of the same source, or None.
    """

    source: Node
    target: Node
    points: list[tuple[float, float]]
    arrow: bool
    branch: tuple[float, float] | None = None


@dataclasses.dataclass(eq=False)
class _Edge:
    source: Node
    target: Node
    index: int
    begin: float = 0.0
    end: float = 0.0
    lane: float | None = None
    side: int = 0  # -1 or 1: enters a symbol from that side


class Router:
    """Routes all lines of one sheet, and sets the rows' heights.

    Args:
      rows: of nodes.
      places: of the nodes; x is known, y is set here.
      ranks: row of each node.
      top: free space under the upper edge.
    """

    def __init__(self, rows: list[list[Node]], places: dict[Node, Any], ranks: dict[Node, int], top: float) -> None:
        self.rows, self.places, self.ranks, self.top = rows, places, ranks, top
        self.bottom = 0.0
        self.edges = [
            _Edge(source, node, i)
            for row in rows
            for node in row
            for i, source in enumerate(node.inputs)
            if source in places
        ]
        self.tracks: dict[tuple[int, Node], int] = {}
        self.heights: list[float] = []

    def route(self) -> list[Line]:
        """The lines."""
        for edge in self.edges:
            place = self.places[edge.source]
            edge.begin = place.x + place.out
        self._ends()
        self._straight_down()
        for edge in sorted(self.edges, key=lambda e: self.ranks[e.target] - self.ranks[e.source]):
            if self.ranks[edge.target] - self.ranks[edge.source] > 1:
                edge.lane = self._lane(edge)
        self._ends()
        self._sides()
        counts = self._assign_tracks()
        self._heights(counts)
        return [self._line(edge) for edge in self.edges]

    def _ends(self) -> None:
        """Sets where lines enter their targets: at a frame's ports, or spread over the top in the order of coming."""
        for row in self.rows:
            for node in row:
                place = self.places[node]
                coming = [edge for edge in self.edges if edge.target is node]
                come_from = lambda e: e.begin if e.lane is None else e.lane
                straight = [e for e in coming if abs(come_from(e) - place.centre) < 2 * len(coming)]
                for i, edge in enumerate(sorted(coming, key=lambda e: (come_from(e), e.index))):
                    if edge.index < len(place.entries):
                        edge.end = place.x + place.entries[edge.index]
                    elif node.kind in ("port", "symbol") or len(coming) == 1:
                        edge.end = place.centre
                    elif len(straight) == 1 and len(coming) % 2 == 0:  # what comes from straight above stays straight
                        at = [e for e in sorted(coming, key=lambda e: (come_from(e), e.index))].index(straight[0])
                        edge.end = place.centre + (i - at) * min(22.0, place.width / (2 * len(coming)))
                    else:
                        step = min(40.0, place.width / (len(coming) + 1))
                        edge.end = place.centre + (i - (len(coming) - 1) / 2) * step

    def _straight_down(self) -> None:
        """Moves the ports that one line leaves to stand above where it ends, if nothing is in its way."""
        ports = [node for row in self.rows for node in row if node.kind == "port" and node.title != "out"]
        for edge in self.edges:
            alone = sum(other.source is edge.source for other in self.edges) == 1
            if edge.source not in ports or not alone or edge.target.kind == "symbol":
                continue
            near = [abs(self.places[port].x - edge.end) for port in ports if port is not edge.source]
            if min(near, default=99.0) >= 14 and self._free(edge.end, edge):
                edge.begin = self.places[edge.source].x = edge.end

    def _free(self, x: float, edge: _Edge) -> bool:
        first, last = self.ranks[edge.source] + 1, self.ranks[edge.target] - 1
        for row in self.rows[first : last + 1]:
            for node in row:
                place = self.places[node]
                left, right = place.x - place.beside, place.x + place.width + place.beside
                if node.kind != "port" and left - _LANE + 0.1 < x < right + _LANE - 0.1:
                    return False
        for other in self.edges:
            if other.lane is None or other.source is edge.source or abs(other.lane - x) >= _TRACK - 0.1:
                continue
            if (
                self.ranks[other.source] < self.ranks[edge.target]
                and self.ranks[edge.source] < self.ranks[other.target]
            ):
                return False
        return True

    def _lane(self, edge: _Edge) -> float:
        """The nearest position across at which a line passes all rows between source and target."""
        tried = [edge.begin, edge.end]
        for row in self.rows[self.ranks[edge.source] + 1 : self.ranks[edge.target]]:
            for node in row:
                place = self.places[node]
                for k in range(12):
                    tried.append(place.x + place.width + place.beside + _LANE + k * _TRACK)
                    tried.append(place.x - place.beside - _LANE - k * _TRACK)
        free = [x for x in tried if self._free(x, edge)]
        away = max(place.x + place.width for place in self.places.values()) + 13 * _TRACK
        # To the right where both sides are as near.
        return min(free, key=lambda x: (round(abs(x - edge.begin) + abs(x - edge.end)), -x), default=away)

    def _sides(self) -> None:
        for edge in self.edges:
            if edge.target.kind != "symbol":
                continue
            place = self.places[edge.target]
            x = edge.begin if edge.lane is None else edge.lane
            side = -1 if x < place.centre else 1
            if abs(x - place.centre) < place.width / 2 + 6:
                continue
            if any(o.target is edge.target and o.side == side for o in self.edges):
                continue
            low, high = min(x, place.centre), max(x, place.centre)
            others = [self.places[n] for n in self.rows[self.ranks[edge.target]] if n is not edge.target]
            if any(o.x - o.beside - 4 < high and o.x + o.width + o.beside + 4 > low for o in others):
                continue
            edge.side = side

    def _steps(self, edge: _Edge) -> list[tuple[int, float, float]]:
        """The side steps of an edge: (gap, from, to)."""
        first, last = self.ranks[edge.source], self.ranks[edge.target] - 1
        x = edge.begin if edge.lane is None else edge.lane
        steps = [] if abs(x - edge.begin) < 0.5 else [(first, edge.begin, x)]
        if not edge.side and abs(x - edge.end) >= 0.5:
            steps.append((last, x, edge.end))
        return steps

    def _assign_tracks(self) -> dict[int, int]:
        """Heights of the side steps within each gap; those of one source share theirs. The number in each gap."""
        counts: dict[int, int] = {}
        for gap in range(len(self.rows)):
            nets: dict[Node, list[tuple[float, float]]] = {}
            for edge in self.edges:
                for at, begin, end in self._steps(edge):
                    if at == gap:
                        nets.setdefault(edge.source, []).append((begin, end))
            order = sorted(nets, key=lambda n: (self.ranks[n] != gap, -max(abs(a - b) for a, b in nets[n])))
            for _ in range(len(order)):
                for i in range(len(order) - 1):
                    # A line that comes down where another arrives has to turn off above it.
                    upper, lower = order[i], order[i + 1]
                    comes = [a for a, _ in nets[lower]]
                    arrives = [b for _, b in nets[upper]]
                    back = [a for a, _ in nets[upper]], [b for _, b in nets[lower]]
                    clash = any(abs(a - b) < 5 for a in comes for b in arrives)
                    if clash and not any(abs(a - b) < 5 for a in back[0] for b in back[1]):
                        order[i], order[i + 1] = lower, upper
            for i, net in enumerate(order):
                self.tracks[gap, net] = i
            counts[gap] = len(order)
        return counts

    def _heights(self, counts: dict[int, int]) -> None:
        y, self.gaps = 0.0, []
        for r, row in enumerate(self.rows):
            height = max((self.places[node].height for node in row), default=0.0)
            for node in row:
                self.places[node].y = y + (height - self.places[node].height) / 2
            y += height
            ports = all(node.kind == "port" for node in row)
            self.gaps.append(y + (self.top if r == 0 and ports else 0.0) + _STUB)
            if r == len(self.rows) - 1:
                break
            y += (self.top - 4 if r == 0 and ports else 0.0) + _GAP + _TRACK * max(0, counts.get(r, 0) - 1)
        self.bottom = y

    def _line(self, edge: _Edge) -> Line:
        source, target = self.places[edge.source], self.places[edge.target]
        x, y = edge.begin, source.y + source.height
        points = [(x, y)]
        branch = None
        steps = self._steps(edge)
        shared = sum(other.source is edge.source for other in self.edges) > 1
        for gap, _, end in steps:
            at = self.gaps[gap] + _TRACK * self.tracks[gap, edge.source]
            if shared and gap == self.ranks[edge.source]:
                branch = (x, at)
            points += [(x, at), (end, at)]
            x = end
        if edge.side:
            middle = target.y + target.height / 2
            if shared and not steps:
                branch = (x, self.gaps[self.ranks[edge.source]])
            points += [(x, middle), (target.centre + edge.side * target.width / 2, middle)]
        else:
            points.append((x, target.y))
        arrow = edge.target.kind not in ("port", "frame")
        return Line(edge.source, edge.target, points, arrow, branch)
