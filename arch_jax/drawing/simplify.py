"""Frames that are one with what they hold, and equal ones that are drawn once."""

from arch_jax.drawing.diagram import Node, equal_inside


def once_each(nodes: list[Node]) -> list[Node]:
    """The nodes, of which a frame equal to an earlier one is a box that says so."""
    first: dict[tuple, Node] = {}
    for node in nodes:
        if node.kind != "frame" or not node.facts:
            continue
        sign = equal_inside(node)
        if sign in first:
            inside = first[sign]
            node.lines = (f"as {inside.title}", *node.lines[:1])
            node.kind, node.nodes = "box", []
        else:
            first[sign] = node
    return nodes


def collapsed(node: Node, sizes: str = "") -> Node:
    """A frame whose only part is a frame or box is one with it."""
    if len(node.parts) != 1:
        return _compact(node, sizes)
    (part,) = node.parts
    if part.kind not in ("frame", "box") or (node.loop and part.loop):
        return node
    ports = node.ports
    if any(source not in ports for source in part.inputs):
        return node
    part.inputs = [node.inputs[ports.index(source)] for source in part.inputs]
    part.repeat *= node.repeat
    part.loop = part.loop or node.loop
    if node.title:
        part.title = node.title
    return part


def _compact(node: Node, sizes: str) -> Node:
    """A chain of one matrix with norms and functions is one box, with a line for each."""
    parts, ports = node.parts, node.ports
    before = ports
    for part in parts:
        if part.inputs != before or part.kind not in ("box", "function") or part.loop or part.repeat > 1:
            return node
        before = [part]
    matrices = [part for part in parts if part.kind == "box" and not str(part.facts[:1]).endswith("Norm',)")]
    if len(ports) != 1 or len(matrices) > 1 or node.nodes[-1].inputs != parts[-1:] or node.loop:
        return node
    lines: list[str] = []
    for part in parts:
        if part in matrices:
            lines += [line for line in part.lines[:-1] if line]
        else:
            lines.append(part.title if part.kind == "function" or not part.lines else part.lines[0])
    short = ", ".join(lines)
    lines = [short] if len(short) < 34 else lines
    lines.append(sizes)
    return Node("box", node.title, tuple(filter(None, lines)), node.inputs, repeat=node.repeat, facts=node.facts)
