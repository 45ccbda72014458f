"""A person with a password, and a clock that stops."""

from collections.abc import Iterator
from typing import Final

import pytest
import time_machine
from django.contrib.auth.models import User

from access import groups
from tests import factories

PASSWORD: Final = "pass-of-ada"


@pytest.fixture
def ada() -> User:
    return factories.user(groups.APPROVER, username="ada", password=PASSWORD)


@pytest.fixture
def clock() -> Iterator[time_machine.Traveller]:
    with time_machine.travel("2026-03-01T12:00:00Z", tick=False) as traveller:
        yield traveller
