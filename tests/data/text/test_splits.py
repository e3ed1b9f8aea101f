import itertools
import random

import pytest

from arch_jax.data.text import sources, splits

LINE = "this line is certainly longer than forty characters: {}"


def document(*lines, size=0):
    return "\n".join([*map(LINE.format, lines), "short line"]) + "." * size


@pytest.fixture(scope="module")
def pydocs():
    return sources.documents("pydocs").texts


def test_documents_that_share_a_long_line_are_one_group():
    texts = [document(1, 2), document(3), document(2, 4), document(5), document(4), document(3)]
    assert splits.group_by_shared_lines(texts) == [[0, 2, 4], [1, 5], [3]]


def test_short_lines_and_indentation_do_not_matter():
    at_39, at_40 = "x" * 39, "y" * 40
    assert splits.group_by_shared_lines([at_39, at_39]) == [[0], [1]]
    assert splits.group_by_shared_lines([at_40, f"   {at_40}  \nother"]) == [[0, 1]]


def test_the_sides_hold_every_document_once_in_order_and_share_nothing(pydocs):
    split = splits.split(pydocs, 0.1)
    assert sorted(split.train + split.validation) == sorted(pydocs)
    assert [text for text in pydocs if text in set(split.train)] == list(split.train)
    assert [text for text in pydocs if text in set(split.validation)] == list(split.validation)
    assert splits.leakage(split.train, split.validation) == 0
    share = sum(len(text.encode()) for text in split.validation) / sum(len(text.encode()) for text in pydocs)
    assert share == pytest.approx(0.1, abs=1e-3)
    assert split.groups == len(splits.group_by_shared_lines(pydocs)) < len(pydocs)


def test_a_split_at_random_leaks(pydocs):
    """Without the grouping, the measure that is 0 above is not."""
    shares = []
    for seed in range(20):
        texts = random.Random(seed).sample(pydocs, len(pydocs))
        shares.append(splits.leakage(texts[8:], texts[:8]))
    assert sum(shares) / len(shares) > 0.2


def test_leakage_counts_long_lines():
    assert splits.leakage([document(1, 2)], [document(2, 3, 4, 5)]) == 0.25
    assert splits.leakage(["short"], ["short"]) == 0
    assert splits.leakage([], [document(1)]) == 0


def test_the_largest_group_always_trains(pydocs):
    groups = splits.group_by_shared_lines(pydocs)
    largest = max(groups, key=lambda group: sum(len(pydocs[i]) for i in group))
    for seed, share in itertools.product(range(5), (0.1, 0.45)):
        assert {pydocs[i] for i in largest} <= set(splits.split(pydocs, share, seed).train)


def test_the_seed_decides_which_groups_and_nothing_else_does(pydocs):
    held_out = [splits.split(pydocs, 0.1, seed).validation for seed in (0, 0, 1, 2)]
    assert held_out[0] == held_out[1]
    assert len(set(held_out)) == 3


@pytest.mark.parametrize("seed", range(8))
def test_the_share_is_as_near_as_whole_groups_permit(seed):
    generator = random.Random(seed)
    texts = [document(i, size=generator.randrange(2000)) for i in range(9)]
    target = generator.choice([0.02, 0.1, 0.3, 0.6])
    sizes = [len(text) for text in texts]
    got = sum(map(len, splits.split(texts, target, seed).validation))
    rest = sorted(sizes)[:-1]
    sums = [sum(chosen) for n in range(1, 9) for chosen in itertools.combinations(rest, n)]
    wanted = round(target * sum(sizes))
    assert abs(got - wanted) == min(abs(s - wanted) for s in sums)


def test_more_text_than_is_searched_exactly_is_still_split_near_the_share(monkeypatch):
    monkeypatch.setattr(splits, "_EXACT_BYTES", 500)
    texts = [document(i, size=i % 50) for i in range(300)]
    split = splits.split(texts, 0.2)
    assert sum(map(len, split.validation)) == pytest.approx(0.2 * sum(map(len, texts)), rel=1e-3)
    assert splits.split(texts, 0.2, seed=1).validation != split.validation


def test_a_single_document_is_cut_where_nanogpt_cuts():
    text = "".join(chr(97 + i % 26) for i in range(1237))
    split = splits.split([text], 0.1)
    assert split.train == (text[: int(1237 * 0.9)],)
    assert split.validation == (text[int(1237 * 0.9) :],)
    assert splits.split(["x" * 100], 0.9).train == ("x" * 10,)


def test_a_single_group_is_cut_and_nothing_is_lost():
    texts = [document(1, size=50), document(1, size=10), document(1, size=300), document(1)]
    split = splits.split(texts, 0.5)
    assert split.groups == 1
    assert "".join(split.train + split.validation) == "".join(texts)
    assert len("".join(split.train)) == int(sum(map(len, texts)) * 0.5)
    assert all(split.train)
    assert all(split.validation)


def test_validation_is_never_without_a_group():
    split = splits.split([document(1), document(2, 3), document(4, 5, 6)], 0.001)
    assert split.validation == (document(1),)
