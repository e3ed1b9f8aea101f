"""Tables of benchmarks as numbers: those of the printed text."""

import re

import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.experiment import directories
from arch_jax.study import tables


@pytest.mark.parametrize(("name", "units"), [("mixers_by_length", 2), ("decoding_recurrent", 1)])
def test_numbers_are_those_of_the_text(name, units):
    table = arch_jax.load_table(name)
    lines = (directories()[0] / "benchmarks" / "results" / f"{name}.txt").read_text().splitlines()
    assert lines[0] == f"# {table.title}"
    assert [line.split()[0] for line in lines[3:]] == list(table)
    for line in lines[3:]:
        row, *numbers = line.split()
        printed = list(map(float, numbers))
        times = [cells["milliseconds"] for cells in table[row].values()]
        assert printed[: len(times)] == times
        sizes = [size for cells in table[row].values() for unit, size in cells.items() if unit != "milliseconds"]
        skipped = len(times) + (0 if units == 2 else 1)
        assert printed[skipped : skipped + len(sizes)] == sizes


def test_unknown_and_damaged_tables(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"unknown table 'mixers_by_lenght'.*'mixers_by_length'"):
        arch_jax.load_table("mixers_by_lenght")
    monkeypatch.setattr(tables, "directories", lambda: [tmp_path])
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    for text in ("", "[]", '{"title": "t"}', '{"title": "t", "rows": {"a": {"x": {}}}}'):
        (folder / "broken.json").write_text(text)
        with pytest.raises(UsageError, match=re.escape("the table broken.json is damaged")):
            arch_jax.load_table("broken")
