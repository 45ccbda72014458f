"""What the log says of a refused request of the API."""

from typing import Any

import pytest
from django.test import Client

from access import groups
from expenses.models import State
from tests import factories

pytestmark = pytest.mark.django_db

JSON = "application/json"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged about answers, by the site and by Django."""
    return [
        f"{record.levelname} {record.getMessage()}"
        for record in caplog.records
        if record.name in ("rest.problems", "django.request")
    ]


@pytest.mark.parametrize(
    ("request_line", "body", "line"),
    [
        (
            "POST /api/v1/expenses/decided/reject?secret=1",
            '{"reason": "secret"}',
            "WARNING POST /api/v1/expenses/decided/reject refused: decided was already approved "
            "by local.",
        ),
        (
            "POST /api/v1/expenses/exp-1/reject/",
            "{}",
            "WARNING POST /api/v1/expenses/exp-1/reject/ refused: "
            '{"reason": ["A rejection needs a reason; say why."]}',
        ),
        (
            "GET /api/v1/expenses/a%0Aforged%1B%E2%80%A8?secret=1",
            "",
            r"WARNING GET /api/v1/expenses/a\nforged\x1b\u2028 refused: There is no such record, "
            "or you may not see it.",
        ),
        (
            "POST /api/v1/expenses",
            '{"secret": ',
            "WARNING POST /api/v1/expenses refused: JSON parse error - Expecting value: line 1 "
            "column 12 (char 11)",
        ),
        (
            "GET /api/v1/nothing",
            "",
            "WARNING GET /api/v1/nothing refused: The API has no such path.",
        ),
        (
            "GET /create?id=exp-1&is_api_call=true&secret=1",
            "",
            "WARNING GET /create (exp-1) refused: ERROR:ID_ALREADY_EXISTS There is an expense "
            "exp-1 already. Choose another ID.",
        ),
        (
            "GET /action?type=payment&id=no%0Aline&is_api_call=true",
            "",
            r"WARNING GET /action (no\nline) refused: ERROR:INVALID_ID This is not an expense id. "
            "An expense id has 1 to 100 characters, is not blank and has no control, bidirectional "
            "or zero-width characters.",
        ),
        (
            "GET /status?id=nope",
            "",
            "WARNING GET /status (nope) refused: ERROR:INVALID_ID There is no expense nope.",
        ),
        (
            "GET /action?type=approve&is_api_call=true",
            "",
            "WARNING GET /action refused: missing: id",
        ),
    ],
)
def test_a_refused_request_is_one_line_with_the_id_and_the_reason(
    caplog: pytest.LogCaptureFixture, request_line: str, body: str, line: str
) -> None:
    """E10: without the query, which may hold a secret, and without a line break of the client's."""
    factories.expense()
    factories.expense("decided", State.APPROVED)
    person = factories.user(is_superuser=True)
    caplog.clear()
    client: Any = Client(headers=factories.bearer(person))
    method, path = request_line.split(" ")
    answer = client.generic(method, path, body, JSON)
    assert answer.status_code != 500
    assert lines(caplog) == [line]
    assert "secret" not in caplog.text


def test_a_long_reason_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    """E10: a client cannot fill the log with what the answer repeats."""
    client: Any = Client(headers=factories.bearer(factories.user(groups.WORKER)))
    client.get("/status", {"id": "x" * 5000})
    client.get("/create", {"id": "x" * 5000, "is_api_call": "true"})
    assert [len(line) < 800 for line in lines(caplog)] == [True, True]


def test_an_invalid_token_is_refused_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """E10, X8: the reason is logged, the token is not."""
    headers: Any = {"Authorization": "Bearer secret-0badc0de"}
    assert Client().get("/api/v1/expenses/exp-1", headers=headers).status_code == 401
    assert lines(caplog) == [
        "WARNING GET /api/v1/expenses/exp-1 refused: The token is unknown or "
        "has expired; ask for a new one."
    ]
