"""The content of a drawing: boxes, frames, symbols and the lines between them, equal neighbours folded into one."""

import dataclasses
import re
from collections.abc import Sequence


@dataclasses.dataclass(eq=False)
class Node:
    """One thing in a drawing.

    Attributes:
      kind: "box", "frame", "symbol" (a plus or a product in a circle), "function" (a small rounded step), "end" (an
        input or output of the model), or "port" (where a line crosses the edge of a frame).
      title: the field's name, or the symbol.
      lines: further text.
      inputs: whose output it reads, in order. Those of a frame enter at its ports in this order.
      nodes: inside a frame, in the order of the program: first its ports, last the port "out".
      repeat: equal layers of which one is drawn.
      loop: shape of the state that goes round, "" where none does.
      facts: what must be equal for two nodes to be folded, besides their texts.
    """

    kind: str
    title: str = ""
    lines: tuple[str, ...] = ()
    inputs: list["Node"] = dataclasses.field(default_factory=list, repr=False)
    nodes: list["Node"] = dataclasses.field(default_factory=list, repr=False)
    repeat: int = 1
    loop: str = ""
    facts: tuple = ()

    @property
    def ports(self) -> list["Node"]:
        """The places at which lines enter a frame."""
        return [node for node in self.nodes if node.kind == "port" and node.title != "out"]

    @property
    def parts(self) -> list["Node"]:
        """The nodes of a frame that are no ports."""
        return [node for node in self.nodes if node.kind != "port"]


def frame(
    title: str,
    lines: Sequence[str],
    inputs: Sequence[Node],
    ports: Sequence[Node],
    parts: Sequence[Node],
    outputs: Sequence[Node],
    **more,
) -> Node:
    """A frame around `parts`, of which `outputs` leave it."""
    nodes = [*ports, *parts, Node("port", "out", inputs=list(outputs))]
    return Node("frame", title, tuple(lines), list(inputs), nodes, **more)


def _signature(node: Node, named: bool = False) -> tuple:
    """Equal for nodes that look alike inside and out, whatever their own names are."""
    place = {one: i for i, one in enumerate(node.nodes)}
    inside = tuple(
        (_signature(one, named=True), tuple(place.get(source, -1) for source in one.inputs)) for one in node.nodes
    )
    title = node.title if named or (node.kind != "frame" and not node.facts) else ""
    return (node.kind, title, node.lines, node.repeat, node.loop, node.facts, inside)


def equal_inside(node: Node) -> tuple:
    """Equal for frames that have the same inside, whatever their names and repeats are."""
    return _signature(dataclasses.replace(node, title="", repeat=1))


def fold(nodes: list[Node]) -> list[Node]:
    """The nodes with each run of equal neighbours, or of equal groups of them, as one node with a `repeat`."""
    start, signs = 0, [_signature(node) for node in nodes]
    while start < len(nodes):
        found = _longest(nodes, signs, start)
        if found is not None:
            nodes = _folded(nodes, start, *found)
            signs = [_signature(node) for node in nodes]
        start += 1
    return nodes


def _longest(nodes: list[Node], signs: list[tuple], start: int) -> tuple[int, int] | None:
    """(period, repeats) of the run of equal groups that begins at `start` and folds the most nodes away."""
    place = {node: i for i, node in enumerate(nodes)}
    users: dict[Node, list[int]] = {node: [] for node in nodes}
    for i, node in enumerate(nodes):
        for source in node.inputs:
            users.get(source, []).append(i)
    best = None
    for period in range(1, (len(nodes) - start) // 2 + 1):
        if not any(node.kind in ("box", "frame") for node in nodes[start : start + period]):
            continue
        if any(node.kind in ("port", "end") for node in nodes[start : start + period]):
            break
        count = 1
        while _equal(nodes, signs, place, start + (count - 1) * period, period):
            count += 1
        # A value inside the run that is used later, as by the skips of a U, can't be folded away.
        while count > 1 and not _closed(nodes, users, start, period, count):
            count -= 1
        if count > 1 and (best is None or (count - 1) * period > (best[1] - 1) * best[0]):
            best = (period, count)
    return best


def _equal(nodes: list[Node], signs: list[tuple], place: dict[Node, int], at: int, period: int) -> bool:
    """True if the group after the one at `at` is equal to it, and reads it as that one reads what is before."""
    if at + 2 * period > len(nodes):
        return False
    entries: dict[int, int] = {}
    for i in range(at, at + period):
        one, other = nodes[i], nodes[i + period]
        if signs[i] != signs[i + period] or len(one.inputs) != len(other.inputs):
            return False
        for source, next_source in zip(one.inputs, other.inputs):
            a, b = place.get(source, -1), place.get(next_source, -1)
            if a >= at:  # within the group
                if b != a + period:
                    return False
            elif a == b:  # the same thing outside
                continue
            elif at <= b < at + period:  # what the group before made takes the place of what came in
                if entries.setdefault(a, b) != b:
                    return False
            else:
                return False
    return bool(entries)


def _closed(nodes: list[Node], users: dict[Node, list[int]], start: int, period: int, count: int) -> bool:
    for turn in range(count - 1):
        for i in range(start + turn * period, start + (turn + 1) * period):
            if any(user >= start + (turn + 2) * period for user in users[nodes[i]]):
                return False
    return True


def _folded(nodes: list[Node], start: int, period: int, count: int) -> list[Node]:
    first = nodes[start : start + period]
    last = nodes[start + (count - 1) * period : start + count * period]
    after = nodes[start + count * period :]
    if period == 1:
        (kept,) = first
        kept.repeat *= count
        kept.title = _range([node.title for node in nodes[start : start + count]])
        result = kept
        nodes = [*nodes[:start], kept, *after]
    else:
        outside = list(dict.fromkeys(s for node in first for s in node.inputs if s not in first))
        ports = {source: Node("port") for source in outside}
        for i, node in enumerate(first):
            node.title = _range([nodes[start + turn * period + i].title for turn in range(count)])
            node.inputs = [ports.get(source, source) for source in node.inputs]
        used = [first[i] for i, node in enumerate(last) if any(node in other.inputs for other in after)]
        result = frame("", (), outside, list(ports.values()), first, used or first[-1:], repeat=count)
        nodes = [*nodes[:start], result, *after]
    for node in after:
        node.inputs = list(dict.fromkeys(result if source in last else source for source in node.inputs))
    return nodes


def _range(names: list[str]) -> str:
    """One name for those of a run: "layer 0" to "layer 11" give "layer 0–11", every second one "layer 0, 2 … 10"."""
    apart = [re.split(r"(\d+)", name) for name in names]
    if len({len(parts) for parts in apart}) != 1:
        return names[0]
    differ = [i for i, parts in enumerate(zip(*apart)) if len(set(parts)) > 1]
    if len(differ) != 1 or differ[0] % 2 == 0:
        return names[0]
    numbers = [parts[differ[0]] for parts in apart]
    if int(numbers[1]) - int(numbers[0]) == 1:
        said = f"{numbers[0]}–{numbers[-1]}"
    else:
        said = f"{numbers[0]}, {numbers[1]}" + (f" … {numbers[-1]}" if len(numbers) > 2 else "")
    return "".join([*apart[0][: differ[0]], said, *apart[0][differ[0] + 1 :]])
