"""The characters and lengths of ids and texts."""

import sys
import unicodedata

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
    "نام": True,
    "日本": True,
    # Bidirectional, zero-width, and drawn as nothing: of several categories.
    "\u200b": False,
    "a\u200db": False,
    "a\u202eb": False,
    "a\u2066": False,
    "a\u061c": False,
    "\ufeffa": False,
    "a\u00ad": False,
    "a\u2028": False,
    "a\u2029": False,
    "a\u2065": False,
    "a\u034f": False,
    "a\u115f": False,
    "a\u3164": False,
    "a\uffa0": False,
    "a\u17b4": False,
    "a\u180b": False,
    "a\ufe0f": False,
    "a\U000e0100": False,
    "a\U000e0041": False,
    "a\U0001d173": False,
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
def test_only_ids_within_the_rules_are_accepted(value: str, opaque: bool) -> None:
    """E8: 1 to 100 characters, not blank, no control, bidirectional or zero-width characters, no
    U+FFFD."""
    assert text.is_opaque_id(value) is opaque
    if opaque:
        text.validate_opaque_id(value)
    else:
        with pytest.raises(ValidationError):
            text.validate_opaque_id(value)


def test_another_maximum_length_may_be_given() -> None:
    """E7: ids of workflows may be longer."""
    assert text.is_opaque_id("a" * 255, 255)
    assert not text.is_opaque_id("a" * 256, 255)


@pytest.mark.parametrize("value", ["x" * 2001, "a\0", "\ud800", "a\udfff"], ids=ascii)
def test_a_text_that_cannot_be_stored_is_refused(value: str) -> None:
    """E4: the message names the field and what to do."""
    with pytest.raises(ValidationError, match=r"^\['The reason has .*[;] \w+ \w+\.'\]$"):
        text.clean_text(value, field="reason")


@pytest.mark.parametrize(
    ("value", "clean"),
    [("", ""), (" \n\t ", ""), (" a\nb ", "a\nb"), (" " + "x" * 2000 + " ", "x" * 2000)],
)
def test_only_the_white_space_around_a_text_is_removed(value: str, clean: str) -> None:
    """E4: white space inside the text stays."""
    assert text.clean_text(value, field="reason") == clean


def test_every_format_character_is_refused_in_ids() -> None:
    """E8: as is every separator of lines and paragraphs."""
    refused = [
        chr(point)
        for point in range(sys.maxunicode + 1)
        if unicodedata.category(chr(point)) in ("Cf", "Zl", "Zp")
    ]
    assert len(refused) > 160
    assert not [character for character in refused if text.is_opaque_id(f"a{character}")]


@pytest.mark.parametrize(
    "character", "\u202e\u2066\u200b\u200f\u061c\u00ad\ufeff\u2028\u3164\U000e0041"
)
def test_an_invisible_character_is_marked(character: str) -> None:
    """X8: the mark shows its code point."""
    assert text.mark_invisible(f"a{character}b") == f"a‹U+{ord(character):04X}›b"


@pytest.mark.parametrize(
    "plain",
    ["", "Café: “5 €”…", "می\u200cروم", "👩\u200d💻", "❤\ufe0f", "葛\U000e0100", "\u0600"],
)
def test_a_character_that_shapes_a_letter_is_not_marked(plain: str) -> None:
    """X8: texts of any language stay as they are."""
    assert text.mark_invisible(plain) == plain
