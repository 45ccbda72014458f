"""What `manage.py check` says about the settings of orders."""

from typing import Any

import pytest
from django.core import checks

from orders import checks as orders_checks


@pytest.mark.parametrize("setting", orders_checks.SETTINGS)
@pytest.mark.parametrize("path", ["", "nowhere", "nowhere.Class", "orders.integrations.Nobody"])
def test_integration_that_cannot_be_imported_is_an_error(
    settings: Any, setting: str, path: str
) -> None:
    """O9: a dotted path that leads to nothing is named, with what to do, before any order."""
    setattr(settings, setting, path)
    (found,) = [one for one in checks.run_checks() if one.id == "orders.E001"]
    assert found.level == checks.ERROR
    assert found.msg.startswith(f"{setting} is {path!r}: ")
    assert found.hint == "Name a class with the methods of the protocol in orders.integrations."


def test_built_in_integrations_pass() -> None:
    """O9: the built-in ones are."""
    assert [one for one in checks.run_checks() if one.id.startswith("orders.")] == []
