"""Requests that name an encoding."""

import io
import json
from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIHandler

from access import groups
from expensesite.charset import Utf8Only
from tests import factories
from tests.conftest import Unchanged

# The WSGI application, since Django looks a charset up before any middleware runs.
APPLICATION = Utf8Only(WSGIHandler())
ROUTES = [
    ("GET", "/list?q=%C3%A9", ""),
    ("GET", "/status?id=exp-1", ""),
    ("POST", "/registerCallback?id=exp-1", "task_token=00"),
    ("POST", "/decide", "id=exp-1&type=approve"),
    ("GET", "/api/v1/expenses/?state=CREATED", ""),
    ("POST", "/api/v1/expenses/", '{"amount": "1", "currency": "EUR"}'),
    ("POST", "/orders", "{}"),
    ("POST", "/jobs", '{"msg": "x"}'),
    ("GET", "/admin/expenses/expense/?q=x", ""),
    ("GET", "/admin/login/?next=/list", ""),
    ("POST", "/admin/login/", "username=a&password=b"),
    ("GET", "/metrics", ""),
]
OTHERS = [
    *("hex", "utf-7", "idna", "undefined", "punycode", "rot13", "base64", "zlib", "utf-16"),
    *("no-such-codec", '"hex"', "'hex'", "utf-8x", "cp1252", "mbcs", "unicode_escape"),
    "raw_unicode_escape",
]


def call(method: str, target: str, body: str = "", **headers: str) -> tuple[int, bytes]:
    path, _, query = target.partition("?")
    sent = body.encode()
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_LENGTH": str(len(sent)),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(sent),
        **headers,
    }
    status: list[str] = []
    answer = APPLICATION(environ, lambda line, *args: status.append(line))  # type: ignore[arg-type, func-returns-value]
    return int(status[0][:3]), b"".join(answer)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "content_type",
    [
        *(
            f"{kind}; charset={name}"
            for kind in ("text/plain", "application/json")
            for name in OTHERS
        ),
        "application/x-www-form-urlencoded; charset=hex",
        "multipart/form-data; boundary=x; charset=hex",
        "multipart/form-data; boundary=x; charset = hex",
        "text/plain; a=b;charset=\thex",
        "text/plain; charset*=utf-8''%00",
        "text/plain; charset*=nonsense''x",
        "text/plain; charset*0=he; charset*1=x",
        "text/plain; name*=nonsense''x",
        "text/plain; charset=utf-8; charset=hex",
    ],
)
def test_another_charset_is_415_on_every_kind_of_route(
    unchanged: Unchanged, content_type: str
) -> None:
    """X11: Python would remember each unknown name, and some codecs always fail."""
    factories.expense("exp-1")
    token = factories.bearer(factories.user(groups.EMPLOYEE, groups.WORKER))["Authorization"]
    with unchanged():
        for method, target, body in ROUTES:
            for authorization in ({}, {"HTTP_AUTHORIZATION": token}):
                status, answer = call(
                    method, target, body, CONTENT_TYPE=content_type, **authorization
                )
                assert (status, json.loads(answer)["status"]) == (415, 415)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "charset", ["", "utf-8", "UTF-8", '"utf-8"', "utf8", "us-ascii", "ISO-8859-1", "latin1"]
)
def test_the_charsets_of_clients_are_served(charset: str) -> None:
    """E12: UTF-8 and, from older clients, Latin-1."""
    content_type = "application/json" + (f"; charset={charset}" if charset else "")
    user = factories.user(groups.EMPLOYEE)
    token = factories.bearer(user)["Authorization"]
    for method, target, body in ROUTES:
        status, _ = call(method, target, body, CONTENT_TYPE=content_type, HTTP_AUTHORIZATION=token)
        assert status < 500
    body = '{"amount": "1", "currency": "EUR"}'
    status, _ = call(
        "POST", "/api/v1/expenses/", body, CONTENT_TYPE=content_type, HTTP_AUTHORIZATION=token
    )
    assert status == 201


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "accept", ["*/*", "application/json; q*=nonsense''x", "a/b; *=x''", "text/html; charset=hex"]
)
def test_no_accept_header_is_a_500(accept: str) -> None:
    """X11: the REST framework parses Accept like Content-Type."""
    token = factories.bearer(factories.user(groups.EMPLOYEE))["Authorization"]
    for target in ("/api/v1/expenses/", "/orders", "/status?id=x", "/admin/login/", "/metrics"):
        assert call("GET", target, HTTP_ACCEPT=accept, HTTP_AUTHORIZATION=token)[0] < 500
