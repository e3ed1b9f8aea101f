"""Seeded mutations of a file's bytes, as a bad disk, a cut download or an attacker would make them."""

import json

import numpy as np

#: Numbers that size fields go wrong with.
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
#: Words that text formats go wrong with.
WORDS = [b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b"true", b"99999999999999999999", b"../../etc/passwd"]


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """One to three mutations: bits flipped, bytes cut off, removed, doubled or overwritten, numbers made extreme."""
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        size = len(data)
        at = int(random.integers(size + 1)) if random.random() < 0.5 else int(random.integers(min(size, 64) + 1))
        length = int(random.integers(1, 17))
        match random.integers(7):
            case 0:
                if at < size:
                    data[at] ^= 1 << int(random.integers(8))
            case 1:
                del data[at:]
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at : at + length] = random.bytes(length)
            case 5:
                width = int(random.choice([1, 2, 4, 8]))
                number = EXTREMES[random.integers(len(EXTREMES))] % 2 ** (8 * width)
                data[at : at + width] = number.to_bytes(width, ("little", "big")[random.integers(2)])
            case 6:
                word = WORDS[random.integers(len(WORDS))]
                data[at : at + int(random.integers(0, 9))] = word
    return bytes(data)


def mutate_json(data: object, random: np.random.Generator) -> object:
    """A copy of JSON data with one entry replaced, removed, renamed or doubled: JSON still, but another."""
    copy = json.loads(json.dumps(data))
    places = []

    def walk(value: object) -> None:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(copy)
    owner, key = places[random.integers(len(places))]
    values = [None, True, -1, 0, 3, 2**31, 1e308, 0.5, "", "x", "../../x", [], {}, [[]], {"module": "gan"}]
    match random.integers(4):
        case 0 | 1:
            owner[key] = values[random.integers(len(values))]
        case 2:
            del owner[key]
        case 3 if isinstance(owner, dict):
            owner[f"{key}_"] = owner.pop(key)
        case _:
            owner.append(owner[key])
    return copy
