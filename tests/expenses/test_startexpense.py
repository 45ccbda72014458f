"""`manage.py startexpense`, as far as it needs no Temporal."""

import io

import pytest
from django.core.management import CommandError, call_command

from expenses.models import Expense
from tests import factories
from tests.conftest import Unchanged

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_temporal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")


def refusal(*arguments: str) -> str:
    """What the command says before it exits with 1, having started nothing."""
    output = io.StringIO()
    with pytest.raises(CommandError) as error:
        call_command("startexpense", *arguments, stdout=output)
    assert (output.getvalue(), error.value.returncode) == ("", 1)
    return str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [*([name] for name in ("", " ", "a" * 101, "a\0", "\ufffd")), ["a" * 98, "--count", "10"]],
    ids=ascii,
)
def test_unusable_id(arguments: list[str]) -> None:
    """E13: an id that breaks design rule 7; of several ids, the longest decides."""
    assert refusal(*arguments).startswith("The ID is not usable: an id has 1 to 100 characters,")


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5", ""])
def test_bad_count(count: str) -> None:
    """E13: a count is a whole number from 1."""
    whole = count.removeprefix("-").isdigit()
    expected = "--count takes a whole number from 1." if whole else "invalid int value"
    assert expected in refusal("exp", "--count", count)


@pytest.mark.parametrize("arguments", [["exp-2"], ["exp", "--count", "3"]])
def test_existing_id(unchanged: Unchanged, arguments: list[str]) -> None:
    """E13: an id that exists already is an error with its remedy; none of several is started."""
    factories.expense("exp-2")
    with unchanged():
        said = refusal(*arguments)
    assert said == "There is an expense exp-2 already. Choose another ID, or leave it out."


@pytest.mark.parametrize("arguments", [[], ["exp"], ["exp", "--count", "3"], ["exp", "--wait"]])
def test_no_temporal(arguments: list[str]) -> None:
    """E13: Temporal that does not answer is named, with what to do. The workflow makes the record,
    so there is none."""
    remedy = "Start it with `make up`, or name another in TEMPORAL_ADDRESS."
    assert refusal(*arguments) == f"Temporal at 127.0.0.1:1 does not answer. {remedy}"
    assert not Expense.objects.exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(("TEMPORAL_ADDRESS", value) for value in ("nonsense", "a b", "127.0.0.1:99999")),
        ("TEMPORAL_PROFILE", "nope"),
    ],
)
def test_unusable_settings(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """E13: settings that cannot be are an error with its remedy too."""
    monkeypatch.setenv(variable, value)
    assert "TEMPORAL_" in refusal("exp")
