"""Text that somebody else wrote: what a device gives as its reason, a node's name, an image's file name.

It ends up in CSV files, on the console, in ``run.log``, in Markdown and in HTML. One function makes it safe
for all of them, where it enters; HTML and Markdown escape their own characters beside that.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST = 500
_CUT = "..."

# A cell that begins so is a formula to a spreadsheet; the wide forms are to some. After a semicolon, which
# CSV writers do not quote, begins a cell where a comma is the decimal sign.
_FORMULA = re.compile(r"(^|;)(\s*)(?=[=+\-@\uff0b\uff0d\uff1d\uff20])")

# Of the categories "other" (control, format such as bidirectional overrides, surrogate, private, unassigned)
# and "separator" only the space is printed as it is.
_SHOWN_AS_CODE = ("C", "Zl", "Zp")

# Nothing to be done: most text is a word of our own, and a round of many devices has hundreds.
_PLAIN = re.compile(r"\w+(?: [\w.,:()/]+)*", re.ASCII)


def safe_text(text: object, limit: int = LONGEST) -> str:
    """Return untrusted text as one short printable line that no terminal and no spreadsheet obeys.

    Control characters, escape sequences, invisible and bidirectional format characters are shown by their
    code; white space becomes single spaces; an apostrophe before a leading ``=``, ``+``, ``-`` or ``@``
    keeps spreadsheets from computing it; what is longer than `limit` characters is cut. Applying it twice
    changes nothing.

    Args:
        text: anything; what is no string is converted.
        limit: most characters of the result, at least 4.
    """
    raw = text if isinstance(text, str) else str(text)
    if len(raw) <= limit and _PLAIN.fullmatch(raw):
        return raw
    return _made_safe(raw, limit)


def _made_safe(raw: str, limit: int) -> str:
    # A character makes at most ten; what lies far beyond the limit need not be looked at.
    words = " ".join(raw[: 8 * limit].split())
    shown = _FORMULA.sub(r"\1\2'", "".join(map(_shown, words)))
    if len(raw) > 8 * limit and len(shown) <= limit:
        shown += _CUT
    return shown if len(shown) <= limit else shown[: limit - len(_CUT)] + _CUT


def last_line(text: object) -> str:
    """Return the last line of an untrusted traceback that says something, safe to show."""
    lines = [line for line in str(text)[-20 * LONGEST :].splitlines() if line.strip()]
    return safe_text(lines[-1]) if lines else "unknown error"


def _shown(character: str) -> str:
    if character.isascii() and character.isprintable():
        return character
    category = unicodedata.category(character)
    if not category.startswith(_SHOWN_AS_CODE):
        return " " if category == "Zs" else character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
