"""Callback addresses: the task token and the ids by which a waiting activity is completed."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings

from access.text import is_opaque_id

# Field numbers in the server's task token, a protobuf (measured on server 1.32). The protobuf
# library reads groups to a depth of 100 only, the server deeper, which would hide ids from us.
_WORKFLOW_ID, _RUN_ID, _ACTIVITY_ID = 2, 3, 6
_VARINT, _FIXED64, _LENGTH_DELIMITED, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
# The longest id that a registration may name.
ID_LENGTH = 255


class Unreadable(Exception):
    """The stored token cannot be decrypted: the key that encrypted it is missing."""


class Ids(NamedTuple):
    """The ids of a waiting activity in Temporal; "" for an unknown id."""

    workflow_id: str = ""
    run_id: str = ""
    activity_id: str = ""


@dataclass(frozen=True)
class Address:
    """A task token and the ids that were registered with it; "" for an id that was not given.

    The token stays out of the repr, and so out of logs and exception texts.
    """

    token: bytes = field(repr=False)
    workflow_id: str = ""
    run_id: str = ""
    activity_id: str = ""

    def with_ids_of(self, ids: Ids) -> "Address":
        """The address, completed with these ids where it has none."""
        return Address(
            self.token,
            self.workflow_id or ids.workflow_id,
            self.run_id or ids.run_id,
            self.activity_id or ids.activity_id,
        )

    def sealed(self) -> dict[str, str]:
        """The address as JSON, with the token encrypted."""
        return {
            "token": _fernet().encrypt(self.token).decode(),
            "workflow_id": self.workflow_id,
            "run_id": self.run_id,
            "activity_id": self.activity_id,
        }

    @classmethod
    def unseal(cls, sealed: dict[str, Any]) -> "Address":
        """Inverse of :meth:`sealed`. Raises Unreadable."""
        try:
            token = _fernet().decrypt(sealed["token"].encode())
        except InvalidToken:
            raise Unreadable(
                "The callback's token cannot be decrypted; put the key that encrypted it back "
                "into EXPENSES_FERNET_KEYS."
            ) from None
        return cls(**{**sealed, "token": token})


def ids_in_token(token: bytes) -> Ids:
    """Read the ids inside a task token; "" for an id that is missing or may not be registered.

    The server's format is not documented. The ids may refuse a registration or repair a delivery;
    nothing depends on finding them.
    """
    strings: dict[int, str] = {}
    at = depth = 0
    try:
        while at < len(token):
            tag, at = _varint(token, at)
            number, wire_type = tag >> 3, tag & 7
            if wire_type in (_START_GROUP, _END_GROUP):
                # The server skips an unknown group and its contents.
                depth += 1 if wire_type == _START_GROUP else -1
            elif wire_type == _VARINT:
                _, at = _varint(token, at)
            elif wire_type in (_FIXED64, _FIXED32):
                at += 8 if wire_type == _FIXED64 else 4
            elif wire_type == _LENGTH_DELIMITED:
                length, at = _varint(token, at)
                if depth == 0 and number in (_WORKFLOW_ID, _RUN_ID, _ACTIVITY_ID):
                    strings[number] = token[at : at + length].decode()
                at += length
            else:
                return Ids()
    except (IndexError, UnicodeDecodeError):
        return Ids()
    ids = (strings.get(number, "") for number in (_WORKFLOW_ID, _RUN_ID, _ACTIVITY_ID))
    return Ids(*(value if is_opaque_id(value, ID_LENGTH) else "" for value in ids))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _fernet() -> MultiFernet:
    return MultiFernet([Fernet(key) for key in settings.EXPENSES_FERNET_KEYS])
