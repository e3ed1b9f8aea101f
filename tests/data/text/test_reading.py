"""Text files: as Python's text mode reads them, in whatever Unicode form they say they are, and by one reader."""

import ast
import codecs
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import arch_jax
from arch_jax.data.text.reading import read_text, text_of
from arch_jax.errors import UsageError
from arch_jax.study.scaling.measurements import read_measurements

PACKAGE = Path(arch_jax.__file__).parent
TEXT = st.text(st.sampled_from("ab\r\n\u0085\u2028ä\u4e2d\U0001f600\ufeff") | st.characters(exclude_categories=["Cs"]))
FORMS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT.map(lambda text: text.replace("\0", "")), st.sampled_from(sorted(FORMS)))
def test_any_text_is_what_python_s_text_mode_reads(tmp_path, text, form):
    path = tmp_path / "text.txt"
    path.write_bytes(FORMS[form] + text.encode(form))
    # The codecs that take a mark for a mark, and not for a character.
    assert read_text(path) == path.read_text(encoding=form[:6] if FORMS[form] else "utf-8-sig")


@settings(max_examples=150, deadline=None)
@given(st.binary() | st.binary(max_size=8).map(lambda tail: codecs.BOM_UTF16_LE + tail))
@example(b"\x00\x80")
def test_other_bytes_are_a_sentence_with_the_first_that_is_wrong(content):
    try:
        text = text_of(content, "file")
    except UsageError as refused:
        message = str(refused)
        offset = int(message.split("at offset ")[1].split(",")[0])
        assert f"byte 0x{content[offset]:02x} at offset {offset}, in line " in message
        assert "\n" not in message
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF8))
        if not marked and not content.startswith(codecs.BOM_UTF32_BE):
            text_of(content[:offset], "file")  # nothing before it is wrong
            with pytest.raises(UsageError):
                text_of(content[: offset + 1], "file")
    else:
        assert "\0" not in text
        assert "\r" not in text


def test_the_place_of_a_wrong_byte():
    with pytest.raises(UsageError) as caught:
        text_of("eins\r\nzw\xf6lf".encode("latin-1"), "list.txt")
    assert str(caught.value) == (
        "'list.txt' is not UTF-8 text (byte 0xf6 at offset 8, in line 2); expected UTF-8, such as "
        "`iconv -f LATIN1 -t UTF-8` makes of Latin-1, or UTF-16 with a byte order mark"
    )
    with pytest.raises(UsageError, match=r"is not UTF-16 text \(byte 0x61 at offset 4, in line 1\)"):
        text_of(codecs.BOM_UTF16_LE + "ä".encode("utf-16-le") + b"a", "file")


def test_a_byte_order_mark_joins_no_vocabulary(write):
    plain = "".join(f"line {i} of {i * i}\r\n" for i in range(60))
    corpora = [
        arch_jax.Text(f"text:{write(f'{form}.txt', FORMS[form] + plain.encode(form))}", "characters", 8, 2).load()
        for form in FORMS
    ]
    assert len({corpus.facts["sha256"] for corpus in corpora}) == 1
    assert all(corpus.tokenizer.characters == "\n 0123456789efilno" for corpus in corpora)


def test_tables_are_read_in_any_unicode_form(write):
    rows = "N,D,L\r\n" + "".join(f"{10 + i}e6,{20 + i}e6,{3 - i / 10}\r\n" for i in range(6))
    for form in FORMS:
        found = read_measurements(write(f"{form}.csv", FORMS[form] + rows.encode(form)))
        assert found.parameters.tolist() == [(10 + i) * 1e6 for i in range(6)]
    with pytest.raises(UsageError, match=r"latin.csv' is not UTF-8 text \(byte 0xe9 at offset 4, in line 1\)"):
        read_measurements(write("latin.csv", "N,D,é\n".encode("latin-1")))


#: Files that decode bytes of their own making: a tokenizer's tokens, records that this package wrote, file names.
OWN = {"data/text/tokenizer.py", "data/files/tfds_builders.py", "data/files/walk.py"}


def test_no_reader_of_data_decodes_by_itself():
    """The next reader of text, too, would meet byte order marks and other encodings."""
    found = set()
    for file in [*PACKAGE.glob("data/**/*.py"), *PACKAGE.glob("study/scaling/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            first = node.args[0] if node.args else None
            text = first is None or (isinstance(first, ast.Constant) and isinstance(first.value, str))
            mode = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else "r"
            opens = name == "open" and isinstance(node.func, ast.Name) and "b" not in str(mode)
            reads = name == "read_text" and isinstance(node.func, ast.Attribute)
            if opens or reads or (name == "decode" and text):
                found.add(file.relative_to(PACKAGE).as_posix())
    assert found - OWN == set()
