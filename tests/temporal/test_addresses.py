import random
from typing import Any

import pytest

from temporal.addresses import Address, Ids, Unreadable, ids_in_token

ADDRESS = Address(b"token \x00\xff", "workflow", "run", "1")


def test_a_sealed_address_unseals_to_itself_and_hides_its_token() -> None:
    """E10: what is stored gives the address back and does not show the token."""
    sealed = ADDRESS.sealed()
    assert Address.unseal(sealed) == ADDRESS
    for text in (str(sealed), repr(ADDRESS), str(ADDRESS)):
        assert "token \\x00" not in text
        assert ADDRESS.token.hex() not in text


def test_a_rotated_key_still_unseals_and_a_missing_key_is_named(settings: Any) -> None:
    """E10: a new key in front encrypts, the old one behind it still decrypts; without it the
    error names the setting."""
    sealed = ADDRESS.sealed()
    old, new = settings.EXPENSES_FERNET_KEYS[0], "bmV3LW5ldy1uZXctbmV3LW5ldy1uZXctbmV3LW5ldy0="
    settings.EXPENSES_FERNET_KEYS = [new, old]
    assert Address.unseal(sealed) == ADDRESS
    settings.EXPENSES_FERNET_KEYS = [new]
    with pytest.raises(Unreadable, match="EXPENSES_FERNET_KEYS"):
        Address.unseal(sealed)


def test_bytes_that_are_no_token_yield_no_ids() -> None:
    """X7: bytes that are no token yield no ids, and never an error."""
    generator = random.Random(1)
    for _ in range(5000):
        ids = ids_in_token(generator.randbytes(generator.randrange(40)))
        assert len(ids) == 3
    for token in (b"", bytes.fromhex("deadbeef")):
        assert ids_in_token(token) == Ids("", "", "")


def test_unknown_groups_in_a_token_do_not_hide_its_ids() -> None:
    """X7: a group, which the server passes over, neither hides the ids nor replaces them; ids that
    may not be registered are none."""
    token = bytes.fromhex("1201611a01723201") + b"1"
    assert ids_in_token(token) == Ids("a", "r", "1")
    assert ids_in_token(token + b"\x7b\x7c") == Ids("a", "r", "1")
    assert ids_in_token(token + b"\x7b\x12\x01b\x7c") == Ids("a", "r", "1")
    assert ids_in_token(b"\x7b" * 1000 + b"\x7c" * 1000 + token) == Ids("a", "r", "1")
    assert ids_in_token(b"\x12\x01\x00") == Ids()
    assert ids_in_token(b"\x12\x80\x02" + b"a" * 256) == Ids()


def test_named_ids_are_not_replaced_by_the_ids_of_the_token() -> None:
    """E7: the token fills in what was not named, and replaces nothing."""
    named = Address(b"t", "workflow")
    assert named.with_ids_of(Ids("other", "run", "1")) == Address(b"t", "workflow", "run", "1")
