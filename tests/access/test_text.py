"""What ids and texts may contain (design rule 7)."""

import pytest
from django.core.exceptions import ValidationError

from access import text

IDS = {
    "a": True,
    " a ": True,
    "a" * 100: True,
    "😀" * 100: True,
    "é": True,
    "e\u0301": True,
    "a/b?c=d&e#f%": True,
    "\u200b": True,
    "": False,
    " ": False,
    "\u00a0\u2003": False,
    "a" * 101: False,
    "\0": False,
    "a\tb": False,
    "a\n": False,
    "\x7f": False,
    "\x85a": False,
    "\ufffd": False,
    "a\ud800": False,
}


@pytest.mark.parametrize(("value", "opaque"), IDS.items(), ids=map(ascii, IDS))
def test_opaque_id(value: str, opaque: bool) -> None:
    """E8: 1 to 100 characters, not blank, no control characters, no U+FFFD."""
    assert text.is_opaque_id(value) is opaque
    if opaque:
        text.validate_opaque_id(value)
    else:
        with pytest.raises(ValidationError):
            text.validate_opaque_id(value)


def test_longer_ids() -> None:
    """E7: the ids of a workflow may be longer."""
    assert text.is_opaque_id("a" * 255, 255)
    assert not text.is_opaque_id("a" * 256, 255)


@pytest.mark.parametrize("value", ["x" * 2001, "a\0", "\ud800", "a\udfff"], ids=ascii)
def test_unstorable_text(value: str) -> None:
    """E4: the message names the field and what to do."""
    with pytest.raises(ValidationError, match=r"^\['The reason has .*[;] \w+ \w+\.'\]$"):
        text.clean_text(value, field="reason")


@pytest.mark.parametrize(
    ("value", "clean"),
    [("", ""), (" \n\t ", ""), (" a\nb ", "a\nb"), (" " + "x" * 2000 + " ", "x" * 2000)],
)
def test_clean_text(value: str, clean: str) -> None:
    """E4: the white space around a text goes, that inside stays."""
    assert text.clean_text(value, field="reason") == clean
