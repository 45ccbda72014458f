"""Ids that are made from an idempotency key."""

from typing import Any

import pytest

from rest import idempotency
from tests import factories

pytestmark = pytest.mark.django_db


def test_nobody_else_computes_the_id_of_a_key(settings: Any) -> None:
    """X8: the same person and key give the same id; another person, key or secret another one."""
    one, other = factories.user(), factories.user()
    first = idempotency.digest(one, "k")
    assert first == idempotency.digest(one, "k")
    others = {idempotency.digest(who, key) for who, key in ((one, "l"), (other, "k"), (None, "k"))}
    settings.SECRET_KEY = "another"
    others.add(idempotency.digest(one, "k"))
    assert len(others | {first}) == 5
