"""Text that somebody else wrote does nothing where it is shown."""

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import untrusted
from protocol.untrusted import last_line, safe_text

# Every code point, lone surrogates too: a reason arrives as a Python string that somebody else made.
ANYTHING = st.text(st.characters(), max_size=700) | st.text(
    st.sampled_from(list("=+-@;,'\"\t\r\n\x1b[0m\x9b\u202e\u2066\u200b\ufeff\uff1d\ud800\U000e0041 abc")),
    max_size=700,
)


@given(ANYTHING)
def test_it_is_one_short_printable_line(text):
    shown = safe_text(text)
    assert len(shown) <= 500
    assert shown.isprintable()
    assert shown == " ".join(shown.split())
    assert shown.encode("utf-8").decode() == shown  # no lone surrogate


@given(ANYTHING)
def test_no_spreadsheet_computes_it(text):
    """Neither as a cell of a CSV with commas nor where semicolons separate the cells."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerow([safe_text(text), 1])
    assert len(file.getvalue().splitlines()) == 1
    (cell, one) = next(csv.reader([file.getvalue()]))
    assert one == "1"
    for part in [cell, *cell.split(";")]:
        assert not part.strip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"))


@given(ANYTHING)
def test_twice_is_once(text):
    assert safe_text(safe_text(text)) == safe_text(text)


@given(
    st.text(
        st.characters(categories=("L", "N", "S", "P"), exclude_characters="=+-@;\uff1d\uff0b\uff0d\uff20"),
        max_size=500,
    )
)
def test_plain_words_of_any_language_stay(text):
    assert safe_text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=HYPERLINK(\"http://x\")", "'=HYPERLINK(\"http://x\")"),
        ("\t+1", "'+1"),
        ("\r\n@SUM(A1)", "'@SUM(A1)"),
        ("-2+3", "'-2+3"),
        ("a;=1", "a;'=1"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("a\x00b", "a\\x00b"),
        ("Ger\u00e4t 3 l\u00e4uft nicht", "Ger\u00e4t 3 l\u00e4uft nicht"),
        (b"\xff", "b'\\xff'"),
        ("", ""),
    ],
)  # fmt: skip
def test_examples(text, shown):
    assert safe_text(text) == shown


def test_what_is_long_is_cut_and_says_so():
    assert safe_text("x" * 10_000_000) == "x" * 497 + "..."
    assert safe_text(" " * 10_000 + "x").endswith("...")
    assert safe_text("abcdef", limit=5) == "ab..."


def test_the_last_line_of_a_traceback():
    assert last_line("Traceback\n  File\nValueError: =1+1\n\n") == "ValueError: =1+1"
    assert last_line("x\n=1+1\n") == "'=1+1"
    assert last_line(" \n") == "unknown error"


@given(
    ANYTHING | st.text(st.sampled_from(list("aZ_9 .,:()/;-=\n\x00\u202e\u00e4")), max_size=12),
    st.integers(4, 20),
)
def test_a_glance_at_plain_words_changes_nothing(text, limit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untrusted, "_PLAIN", re.compile("(?!)"))  # matches nothing
        careful = safe_text(text, limit)
    assert safe_text(text, limit) == careful
