"""Parsing of compiler output: the collectives in a program's text, and the reason of a refusal."""

import re
from collections.abc import Sequence
from typing import Any

#: Operations that move data between chips.
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_WIDTHS = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}  # bytes; the others say their bits in their name
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+)(?:e\w+)?\[([\d,]*)\]")
_CALL = re.compile(r"\b(body|condition|calls|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.-]+)")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_FULL = (
    re.compile(r"\(([\d.]+)([KMGT])\) exceeds available \w+ \(([\d.]+)([KMGT])\)"),
    re.compile(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def too_large(message: str) -> tuple[int, int] | None:
    """The memory that a refusal mentions, as (bytes needed, bytes available); None if its reason is another."""
    for pattern in _FULL:
        if found := pattern.search(message):
            needed, unit, there, other = found.groups()
            return int(float(needed) * _UNITS[unit]), int(float(there) * _UNITS[other])
    return None


def refusal(problem: Exception) -> dict[str, Any]:
    """The compiler's reason in a sentence, and the memory it mentions."""
    text = " ".join(str(problem).split())
    sizes = too_large(text)
    if sizes is not None:
        needed, there = (f"{size / 2**30:.2f} GiB" for size in sizes)
        sentence = f"the compiler needs {needed} of a chip's memory, and {there} are available"
        return {"reason": sentence, "needed": sizes[0], "available": sizes[1]}
    first = re.split(r"(?<=[a-z)\"'])\. |\n", text)[0]
    kind = "" if type(problem).__name__ == "JaxRuntimeError" else f"{type(problem).__name__}: "
    return {"reason": f"the compiler says: {kind}{first[:300]}", "needed": None, "available": None}


def collectives(text: str) -> list[dict[str, Any]]:
    """The collectives of one step of a compiled program, by kind.

    Loops are multiplied out where their length is known; the outermost one of unknown length is that over the steps.
    What belongs to one collective that the compiler runs in pieces, overlapped with other work, counts once.

    Args:
      text: of the optimized HLO module.

    Returns:
      For each kind that occurs: `kind`; `count`, how often it runs; `bytes`, of its results on one chip, summed; and
      `at_least`, whether it is inside a further loop of unknown length, whose body was counted once.
    """
    lines, entry = _computations(text)
    found: dict[tuple[str, str], tuple[int, int, bool]] = {}

    def visit(name: str, times: int, stepping: bool, unknown: bool, path: tuple[str, ...]) -> None:
        for number, line in enumerate(lines.get(name, ())):
            if (match := _COLLECTIVE.search(line)) is not None:
                channel = re.search(r"channel_id=(\d+)", line)
                key = (match[2], channel[1] if channel else f"{name}:{number}")
                size = _moved(match[1], match[2], bool(match[3]))
                before = found.get(key, (0, 0, False))
                found[key] = (max(before[0], times), max(before[1], size), before[2] or unknown)
            calls = {kind: re.findall(r"[\w.-]+", names) for kind, names in _CALL.findall(line)}
            loop = "body" in calls
            length = _length(line, lines.get(calls["condition"][0], ())) if loop and "condition" in calls else None
            for kind, names in calls.items():
                for inner in names:
                    if inner in path or kind == "condition":
                        continue
                    inside = loop and kind == "body"
                    first = inside and length is None and not stepping
                    visit(
                        inner,
                        times * (length or 1) if inside else times,
                        stepping or first,
                        unknown or (inside and length is None and not first),
                        (*path, inner),
                    )

    visit(entry, 1, False, False, (entry,))
    rows = []
    for kind in COLLECTIVES:
        of_kind = [value for (name, _), value in found.items() if name == kind]
        if of_kind:
            counted = {"count": sum(n for n, _, _ in of_kind), "bytes": sum(n * size for n, size, _ in of_kind)}
            rows.append({"kind": kind, **counted, "at_least": any(unknown for _, _, unknown in of_kind)})
    return rows


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Name -> lines of every computation, and the name of the entry."""
    lines: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith("}"):
            current = None
        elif current is not None:
            lines[current].append(line)
        elif (match := _HEADER.match(line)) is not None:
            current = match[2]
            lines[current] = []
            entry = current if match[1] else entry
    return lines, entry


def _length(line: str, condition: Sequence[str]) -> int | None:
    """The number of iterations of a loop: as stated, or the constant that its condition compares a counter with."""
    if (known := re.search(r'known_trip_count"?:?=?\{"n":"(\d+)"', line)) is not None:
        return int(known[1])
    constants = dict(re.findall(r"%?([\w.-]+) = s\d+\[\]\S* constant\((\d+)\)", "\n".join(condition)))
    root = next((one for one in condition if one.lstrip().startswith("ROOT")), "")
    compared = re.search(r"compare\(([^)]*)\), direction=LT", root)
    names = re.findall(r"%([\w.-]+)", compared[1]) if compared else []
    return int(constants[names[1]]) if len(names) == 2 and names[1] in constants else None


def _moved(result: str, kind: str, begun: bool) -> int:
    """Bytes of a collective's result on one chip; a start operation also lists its operand."""
    sizes = []
    for dtype, shape in _ARRAY.findall(result):
        width = _WIDTHS.get(dtype) or max(1, int(re.sub(r"\D", "", dtype)) // 8)
        count = 1
        for length in filter(None, shape.split(",")):
            count *= int(length)
        sizes.append(count * width)
    return max(sizes, default=0) if begun and kind != "all-reduce" else sum(sizes)
