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
def test_an_unusable_id_starts_nothing(arguments: list[str]) -> None:
    """E13: of several ids, the longest decides."""
    assert refusal(*arguments).startswith("The ID is not usable: an id has 1 to 100 characters,")


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5", ""])
def test_a_count_below_one_starts_nothing(count: str) -> None:
    """E13: a count is a whole number from 1."""
    whole = count.removeprefix("-").isdigit()
    expected = "--count takes a whole number from 1." if whole else "invalid int value"
    assert expected in refusal("exp", "--count", count)


@pytest.mark.parametrize("arguments", [["exp-2"], ["exp", "--count", "3"]])
def test_an_existing_id_starts_none_of_several(unchanged: Unchanged, arguments: list[str]) -> None:
    """E13: the error names the remedy."""
    factories.expense("exp-2")
    with unchanged():
        said = refusal(*arguments)
    assert said == "There is an expense exp-2 already. Choose another ID, or leave it out."


@pytest.mark.parametrize("arguments", [[], ["exp"], ["exp", "--count", "3"], ["exp", "--wait"]])
def test_an_unreachable_temporal_is_named_with_the_remedy(arguments: list[str]) -> None:
    """E13: the workflow creates the record, so nothing is stored."""
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
def test_unusable_settings_are_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """E13: as an error of the command."""
    monkeypatch.setenv(variable, value)
    assert "TEMPORAL_" in refusal("exp")
