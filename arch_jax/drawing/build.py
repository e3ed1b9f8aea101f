"""From the traced data flow to the diagram: a box, a frame or a symbol for each step that has an effect."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from arch_jax.drawing.diagram import Node, fold, frame
from arch_jax.drawing.flow import flow
from arch_jax.drawing.ordering import arithmetic_groups, levels, needed, ordered
from arch_jax.drawing.portraits import arithmetic, inside, is_known, magnitude, sentence, times, words
from arch_jax.drawing.simplify import collapsed, once_each
from arch_jax.drawing.steps import Call, FlowStep, Frame
from arch_jax.layers.dense import Embedding


class Builder:
    """Makes the diagram of one trace.

    Args:
      calls: of the trace.
      counts: path of each layer -> parameters in it, those of inner layers included.
    """

    def __init__(self, calls: list[Call], counts: Mapping[str, int]) -> None:
        self.calls = calls
        self.counts = counts
        self.seen: set[str] = set()
        self.made: dict[FlowStep, Node] = {}

    def model(self, outside: Frame, names: tuple[str, ...]) -> list[Node]:
        """Everything from the model's inputs, called `names`, to its output."""
        (root,) = [step for step in outside.steps if step.kind == "call"]
        assert root.inner is not None
        made, used = self._inside(root.inner, turns=1, folded=False)
        given = [step for step in outside.steps if step.kind == "input"]
        labels = names if len(names) == len(given) else tuple(f"input {i}" for i in range(len(given)))
        ends = {}
        for step, label in zip(given, labels):
            entered = root.inner.entered.get(step)
            if entered in used:
                ends[used[entered]] = Node("end", label.replace("_", " "), (times(step.shape[1:]),))
        parts = [node for node in made if node.kind != "port"]
        for node in parts:
            node.inputs = [ends.get(source, source) for source in node.inputs]
        nodes = fold([*ends.values(), *parts, *self._outputs(root.inner, parts)])
        return once_each(nodes)

    def _outputs(self, whole: Frame, parts: list[Node]) -> list[Node]:
        """An end for each thing that returned arrays come from, with their names and the shape of the first."""
        assert whole.number is not None
        returned = self.calls[whole.number].outputs
        by_step: dict[Node, list[int]] = {}
        for step, place in whole.leaving:
            node = self.made.get(step)
            if node is not None and node in parts:
                by_step.setdefault(node, []).append(place)
        ends = []
        for node, at in by_step.items():
            names = list(dict.fromkeys(filter(None, (words(returned[i][0]) for i in at))))
            shapes = [times(returned[i][1][1:]) for i in at]
            said = [f"{shapes.count(s)} of {s}" if shapes.count(s) > 1 else s for s in dict.fromkeys(shapes) if s]
            ends.append(Node("end", ", ".join(names) or "output", tuple(said[:3]), [node]))
        return ends

    def _inside(self, whole: Frame, turns: int, folded: bool = True) -> tuple[list[Node], dict[FlowStep, Node]]:
        """The nodes of a frame, ports first and "out" last, and the ports that are used by step."""
        effective = needed(whole)
        steps = [step for step in ordered(whole) if step in effective]
        groups = arithmetic_groups(steps, whole.number is not None and is_known(self.calls[whole.number].module))
        if groups:
            level = levels(steps)
            steps.sort(key=level.__getitem__)  # a group is whole before what reads it
        nodes: dict[FlowStep, Node] = {}
        ports, parts = {}, []
        for step in steps:
            if step.kind == "input":
                nodes[step] = ports[step] = Node("port")
            elif step in groups:
                members = groups[step]
                if step is members[-1]:
                    sources = [s for one in members for s in one.inputs if s not in members]
                    title, lines, loop = self._arithmetic_of(whole)
                    node = Node("box", title, lines, _sources(sources, nodes), loop=loop)
                    parts.append(node)
                    nodes.update(dict.fromkeys(members, node))
            else:
                nodes[step] = self._node(step, nodes, turns)
                parts.append(nodes[step])
        leaving = [nodes[step] for step in whole.outputs if step in nodes]
        round_only = [nodes[step] for step in whole.carrying if step in nodes]
        parts = _leading_to([*leaving, *round_only], parts)
        read = {source for node in parts for source in node.inputs}
        # Of what goes round only, what nothing else reads is joined to the end, so that no line ends nowhere.
        leaving += [node for node in round_only if node not in read | set(leaving)]
        used = {step: port for step, port in ports.items() if port in read or port in leaving}
        out = Node("port", "out", inputs=list(dict.fromkeys(leaving)))
        self.made.update(nodes)
        everything = [*used.values(), *parts, out]
        return (once_each(fold(everything)) if folded else everything), used

    def _arithmetic_of(self, whole: Frame) -> tuple[str, tuple[str, ...], str]:
        if whole.number is None:
            return "operations", (), ""
        call = self.calls[whole.number]
        return arithmetic(call.module, call.inputs)

    def _node(self, step: FlowStep, nodes: dict[FlowStep, Node], turns: int) -> Node:
        if step.kind == "operation":
            kind = "symbol" if step.label in ("+", "×", "−", "·") else "function"
            if step.label == "product":
                return Node("symbol", "·", (), _sources(step.inputs, nodes))
            return Node(kind, step.label, (), _sources(step.inputs, nodes))
        if step.kind == "parameter":
            path = self.calls[next(f.number for f in step.frame.outward() if f.number is not None)].path
            count = self.counts.get(f"{path}/{step.label}".removeprefix("/"), 0) // turns
            said = ("learned", magnitude(count)) if count else ("learned",)
            return Node("box", words(step.label), said, facts=("Embedding parameter",))
        assert step.inner is not None
        return self._loop(step, nodes, turns) if step.kind == "loop" else self._call(step, nodes, turns)

    def _loop(self, step: FlowStep, nodes: dict[FlowStep, Node], turns: int) -> Node:
        whole = step.inner
        made, used = self._inside(whole, turns * (1 if whole.over_time else whole.length))
        inputs = _entering(whole, used, nodes)
        title = f"at each of {whole.length} steps" if whole.over_time else ""
        loop = ""
        if whole.over_time:
            sizes = dict.fromkeys(times(shape[1:]) for shape in whole.carried if len(shape) > 1)
            loop = ", ".join(sizes)
        node = Node("frame", title, (), inputs, _with_ports(made, inputs, whole, used, nodes), loop=loop)
        if not whole.over_time:
            node.repeat = whole.length
        return collapsed(node)

    def _name(self, step: FlowStep, call: Call) -> str:
        """The layer's field, after those of layers around it that are not frames here."""
        owner = next((frame.number for frame in step.frame.outward() if frame.number is not None), None)
        around = "" if owner is None else self.calls[owner].path
        if around and call.path.startswith(around + "/"):
            return call.path[len(around) + 1 :].replace("/", " ")
        return call.path.replace("/", " ") if not around else call.path.split("/")[-1]

    def _call(self, step: FlowStep, nodes: dict[FlowStep, Node], turns: int) -> Node:
        whole = step.inner
        call = self.calls[whole.number]
        kind = words(type(call.module).__name__)
        title = words(self._name(step, call)) or kind
        count = self.counts.get(call.path, 0) // turns
        shared = call.path in self.seen and call.method != "weights"
        self.seen.add(call.path)
        tied = shared and call.method == "attend"
        size = "" if not count or tied else ("shared" if shared else magnitude(count))
        given = call.inputs[:1] or tuple(one.shape for one in step.inputs[:1])
        before = given[0][1:] if given else ()
        after = tuple(step.shape[1:])
        facts = (type(call.module).__qualname__, call.method, count)
        portrait_ports = [Node("port", facts=source.shape) for source in step.inputs]
        portrait = inside(call.module, call.method, portrait_ports, call.inputs)
        about = kind if kind != title else ""
        if call.method not in ("__call__", "weights") and not isinstance(call.module, Embedding):
            about = f"{about}, {words(call.method)}" if about else words(call.method)
        if portrait is not None:
            parts, last, loop = portrait
            for part in parts:
                own = self.counts.get(f"{call.path}/{part.title.replace(' ', '_')}", 0) // turns
                part.lines += (magnitude(own),) if own else ()
            line = " · ".join(filter(None, (about, size)))
            inputs = _sources(step.inputs, nodes)
            read = {source for node in parts for source in node.inputs}
            kept = [(s, port) for s, port in zip(inputs, portrait_ports) if port in read]
            return frame(
                title,
                (line,) if line else (),
                [s for s, _ in kept],
                [p for _, p in kept],
                parts,
                [last],
                facts=facts,
                loop=loop,
            )
        made, used = self._inside(whole, turns)
        parts = [node for node in made if node.kind != "port"]
        if any(one in self.made and one.kind in ("call", "loop") for one in whole.steps) and call.method != "weights":
            line = " · ".join(filter(None, (about, size)))
            inputs = _entering(whole, used, nodes)
            node = Node("frame", title, (line,) if line else (), inputs, made, facts=facts)
            return collapsed(node, " · ".join(filter(None, (size, times(after) if after != before else ""))))
        said = sentence(call.module, call.method, before, after)
        lines = [", ".join(filter(None, (about, said))) if len(about + said) < 30 else about]
        if len(about + said) >= 30:
            lines.append(said)
        changed = after and after != before and "→" not in said
        lines.append(" · ".join(filter(None, (size, times(after) if changed or len(after) > 2 != len(before) else ""))))
        return Node("box", title, tuple(filter(None, lines)), _sources(step.inputs, nodes), facts=facts)


def _leading_to(ends: list[Node], parts: list[Node]) -> list[Node]:
    """The parts that `ends` depend on: a layer's drawing may leave out an input, such as a mask."""
    found: set[Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.inputs
    return [part for part in parts if part in found]


def _sources(steps: list[FlowStep], nodes: dict[FlowStep, Node]) -> list[Node]:
    return list(dict.fromkeys(nodes[step] for step in steps if step in nodes))


def _entering(whole: Frame, used: dict[FlowStep, Node], nodes: dict[FlowStep, Node]) -> list[Node]:
    """The nodes outside that feed the used ports, in the ports' order."""
    by_port = {entered: outer for outer, entered in whole.entered.items()}
    return [nodes[by_port[step]] for step in used if step in by_port and by_port[step] in nodes]


def _with_ports(made: list[Node], inputs: list[Node], whole: Frame, used: dict, nodes: dict) -> list[Node]:
    """A state that begins at a constant has no line from outside: its port is a small step of its own."""
    by_port = {entered: outer for outer, entered in whole.entered.items()}
    for step, port in used.items():
        if step not in by_port or by_port[step] not in nodes:
            port.kind, port.title = "function", "state before"
    return made


def diagram(
    module: nn.Module, variables: Any, arguments: tuple, names: tuple[str, ...], counts: Mapping[str, int]
) -> list[Node]:
    """The nodes of a model's drawing.

    Args:
      module: the model.
      variables: its variables, or their shapes.
      arguments: arrays or their shapes, as it is called with.
      names: of the arguments' arrays; any other number of names is not used.
      counts: path of each layer -> parameters in it.
    """
    outside, calls = flow(module, variables, arguments)
    return Builder(calls, counts).model(outside, names)
