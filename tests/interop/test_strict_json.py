"""Values as messages show them: whole while they are short, cut where they are long."""

import pytest

from arch_jax.interop.strict_json import shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x" * 80, "'" + "x" * 80 + "'"),
        ("x" * 81, "'" + "x" * 80 + "...'"),
        (3.5, "3.5"),
        ([1] * 53, "[" + ", ".join("1" * 53) + "]"),  # 159 characters
        ([1] * 54, ("[" + ", ".join("1" * 54))[:160] + "..."),
    ],
)
def test_long_values_are_cut(value, text):
    assert shown(value) == text
