"""Leak-free train and validation splits: documents with a long line in common stay on the same side.

Documents of one collection quote and contain each other, and a random split by document then measures how
well the model memorises. (Of the validation lines of a random split of Python's help topics, up to 62 % occur in the
training text.)
"""

import collections
import dataclasses
import random
from collections.abc import Sequence

LONG_LINE = 40  # characters, without surrounding white space; shorter lines coincide by chance ("See also:", "else:")
_EXACT_BYTES = 1 << 20  # up to this size, the validation text is chosen by exact search; beyond it, at random


@dataclasses.dataclass(frozen=True)
class Split:
    """The two sides of a split.

    Attributes:
      train: training documents, in the source's order.
      validation: validation documents, in the source's order.
      groups: the number of groups of documents connected by shared lines.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    groups: int


def split(texts: Sequence[str], validation: float, seed: int = 0) -> Split:
    """Splits documents into training and validation text that have no long line in common.

    Documents that share a line of 40 or more characters, directly or through others, form a group. Whole groups are
    split: the largest always goes to training; the others are taken in an order that `seed` determines, so that
    validation's fraction of all UTF-8 bytes is as near `validation` as whole groups permit (for more than 10 MB, within
    the smallest groups' size), and never zero.

    Where all documents are one group, the text is cut instead: of n characters, validation begins at character
    `int(n * (1 - validation))`, as in nanoGPT. A document may then be cut in two.

    Args:
      texts: the documents, none empty.
      validation: the fraction of the validation text, between 0 and 1, exclusive.
      seed: determines which groups are drawn; without effect on a single group.
    """
    groups = group_by_shared_lines(texts)
    if len(groups) == 1:
        return Split(*_cut(texts, validation), groups=1)
    sizes = [sum(len(texts[i].encode()) for i in group) for group in groups]
    largest = max(range(len(groups)), key=sizes.__getitem__)
    order = [group for group in range(len(groups)) if group != largest]
    random.Random(seed).shuffle(order)
    chosen = _nearest_subset([sizes[group] for group in order], round(validation * sum(sizes)))
    held_out = {document for position in chosen for document in groups[order[position]]}
    return Split(
        train=tuple(text for i, text in enumerate(texts) if i not in held_out),
        validation=tuple(text for i, text in enumerate(texts) if i in held_out),
        groups=len(groups),
    )


def long_lines(text: str) -> list[str]:
    """The lines of `text` that have 40 or more characters, stripped."""
    return [line for line in map(str.strip, text.splitlines()) if len(line) >= LONG_LINE]


def group_by_shared_lines(texts: Sequence[str]) -> list[list[int]]:
    """Groups documents connected by shared long lines: lists of indices into `texts`, in order of their first."""
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first_with: dict[str, int] = {}
    for i, text in enumerate(texts):
        for line in set(long_lines(text)):
            other = root(first_with.setdefault(line, i))
            here = root(i)
            parent[max(other, here)] = min(other, here)
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for i in range(len(texts)):
        groups[root(i)].append(i)
    return list(groups.values())


def leakage(train: Sequence[str], validation: Sequence[str]) -> float:
    """The fraction of validation's long lines, counted with repetition, that also occur in training; 0 without any."""
    known = {line for text in train for line in long_lines(text)}
    lines = [line for text in validation for line in long_lines(text)]
    return sum(line in known for line in lines) / len(lines) if lines else 0.0


def _cut(texts: Sequence[str], validation: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    total = sum(map(len, texts))
    # 1 - 0.9 is 0.09999999999999998: without rounding, a cut expected at character 10 of 100 would lie at 9.
    cut = int(total * round(1 - validation, 12))
    train, held_out = [], []
    for text in texts:
        train.append(text[:cut])
        held_out.append(text[cut:])
        cut = max(cut - len(text), 0)
    return tuple(filter(None, train)), tuple(filter(None, held_out))


def _nearest_subset(sizes: Sequence[int], target: int) -> list[int]:
    """Positions of a non-empty subset of `sizes` whose sum is nearest to `target`, preferring early positions."""
    import numpy as np

    chosen, rest = [], []
    for position, size in enumerate(sizes):
        if target > _EXACT_BYTES and size <= target:
            chosen.append(position)
            target -= size
        else:
            rest.append(position)

    # Subset sum. last[s] is the position whose addition first reached the sum s: those it was added to come before it.
    # Sums beyond twice the target are farther off than taking nothing.
    most = 2 * max(target, 1)
    last = np.full(most + 1, -1, np.int32)
    reached = np.zeros(most + 1, bool)
    reached[0] = True
    for position in rest:
        size = sizes[position]
        if size <= most and not reached[target]:
            new = reached[: most + 1 - size] & ~reached[size:]
            last[size:][new] = position
            reached[size:] |= new
    sums = np.flatnonzero(reached)
    if not chosen:
        sums = sums[1:]  # not the empty subset
    if not len(sums):
        return [min(rest, key=sizes.__getitem__)]
    best = int(sums[np.argmin(np.abs(sums - target))])
    while best > 0:
        chosen.append(int(last[best]))
        best -= sizes[int(last[best])]
    return chosen
