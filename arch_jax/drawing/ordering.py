"""The steps of a frame that have an effect, in order, and those that are a layer's own arithmetic."""

from arch_jax.drawing.steps import FlowStep, Frame

#: More operations than this in one frame are one box: they are the layer's own arithmetic, not its parts.
_OPERATIONS = 9


def needed(whole: Frame) -> set[FlowStep]:
    """The steps that what leaves a frame depends on, or what goes round in it."""
    found: set[FlowStep] = set()
    waiting = [*whole.outputs, *whole.carrying]
    while waiting:
        step = waiting.pop()
        if step not in found:
            found.add(step)
            waiting += step.inputs
    return found


def ordered(whole: Frame) -> list[FlowStep]:
    """The steps with inputs first, and else in the order of the program, each after what it reads."""
    order: dict[FlowStep, None] = {}
    here = set(whole.steps)

    def visit(step: FlowStep) -> None:
        stack = [(step, iter(step.inputs))]
        open_steps = {step}
        while stack:
            one, rest = stack[-1]
            for source in rest:
                if source in here and source not in order and source not in open_steps:
                    open_steps.add(source)
                    stack.append((source, iter(source.inputs)))
                    break
            else:
                order[one] = None
                stack.pop()

    for step in whole.steps:
        if step.kind == "input":
            order[step] = None
    for step in whole.steps:
        if step not in order:
            visit(step)
    return list(order)


def levels(steps: list[FlowStep]) -> dict[FlowStep, int]:
    """The number of layers on the longest way to each step."""
    level: dict[FlowStep, int] = {}
    for step in steps:
        own = 0 if step.kind in ("operation", "input") else 1
        level[step] = max((level.get(source, 0) for source in step.inputs), default=0) + own
    return level


def _outer(steps: list[FlowStep], symbols: tuple[str, ...]) -> set[FlowStep]:
    """Sums, gates and functions at the edge of a layer's arithmetic: right before another layer, or the end."""
    readers: dict[FlowStep, list[FlowStep]] = {step: [] for step in steps}
    for step in steps:
        for source in step.inputs:
            if source in readers:
                readers[source].append(step)
    found: set[FlowStep] = set()
    for step in reversed(steps):
        simple = step.label in symbols or len(step.inputs) == 1
        simple = simple or (step.label == "concatenate" and any(one.kind == "call" for one in step.inputs))
        simple = simple and step.kind == "operation" and step.label not in ("operation", "product")
        if simple and all(reader in found or reader.kind in ("call", "loop") for reader in readers[step]):
            found.add(step)
    return found


def arithmetic_groups(steps: list[FlowStep], known: bool = False) -> dict[FlowStep, list[FlowStep]]:
    """Connected operations that stand for a layer's own arithmetic, by member.

    Args:
      steps: of one frame, in order.
      known: whether it is said elsewhere what the arithmetic is, so that only gates remain outside of it.

    Those between the same layers go together: merging operations before and after a layer would make a circle.
    """
    operations = [step for step in steps if step.kind == "operation"]
    few = len(operations) <= _OPERATIONS and not any(step.label == "operation" for step in operations)
    if few and not known:
        return {}
    outer = _outer(steps, ("×",) if known else ("+", "×"))
    operations = [step for step in operations if step not in outer]
    level = levels(steps)
    group: dict[FlowStep, list[FlowStep]] = {}
    for step in operations:
        joined = [step]
        for source in step.inputs:
            if source in group and level[source] == level[step] and group[source] is not joined:
                joined = group[source] + [one for one in joined if one not in group[source]]
                for one in joined:
                    group[one] = joined
        for one in joined:
            group[one] = joined
    place = {step: i for i, step in enumerate(steps)}
    found = {}
    for step, members in group.items():
        ordered = sorted(members, key=place.__getitem__)
        if len(ordered) > 1 or step.label == "operation":
            found[step] = ordered
    return found
