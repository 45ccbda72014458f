"""Which requests the proxy before Temporal's Web UI passes on (X8)."""

import pytest

from local.temporal_ui import Refused, checked

PORT = 8233


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize("host", ["127.0.0.1:8233", "localhost:8233", "LOCALHOST:8233"])
def test_a_request_of_this_machine_passes(host: str) -> None:
    """X8: under the names that a person types; the connection carries no second request."""
    passed = checked(
        head(
            "POST /api/v1/namespaces?x=%20 HTTP/1.1",
            f"Host: {host}",
            f"Origin: http://{host}",
            "Connection: keep-alive",
            "Upgrade: websocket",
            "X-CSRF-Token:  a b ",
        ),
        port=PORT,
    )
    assert passed == head(
        "POST /api/v1/namespaces?x=%20 HTTP/1.1",
        f"host: {host}",
        f"origin: http://{host}",
        "x-csrf-token: a b",
        "connection: close",
    )


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Host: evil.example"], 403),
        (["Host: evil.example:8233"], 403),
        (["Host: 127.0.0.1:8233.evil.example"], 403),
        (["Host: 127.0.0.1:8234"], 403),
        (["Host: 127.0.0.1"], 403),
        (["Host:"], 403),
        ([], 403),
        (["Host: 127.0.0.1:8233", "Host: evil.example"], 403),
        (["Host: 127.0.0.1:8233", "Host: 127.0.0.1:8233"], 403),
        (["Host: 127.0.0.1:8233", "Origin: http://evil.example"], 403),
        (["Host: 127.0.0.1:8233", "Origin: null"], 403),
        (["Host: 127.0.0.1:8233", "Origin: http://127.0.0.1:8099"], 403),
        (["Host: 127.0.0.1:8233", "Origin: http://localhost:8233"], 403),
        (["Host: 127.0.0.1:8233", "Origin: https://127.0.0.1:8233"], 403),
        (
            ["Host: 127.0.0.1:8233", "Origin: http://127.0.0.1:8233", "ORIGIN: http://evil"],
            403,
        ),
        (["Host : 127.0.0.1:8233"], 400),
        (["X: y", " Host: 127.0.0.1:8233"], 400),
        (["Host: 127.0.0.1:8233", "X: y\nOrigin: http://evil.example"], 400),
    ],
)
def test_a_request_of_another_page_is_refused(lines: list[str], status: int) -> None:
    """X8: another Host (a rebound name), another Origin, or a header that two servers may read
    differently."""
    with pytest.raises(Refused) as refused:
        checked(head("GET / HTTP/1.1", *lines), port=PORT)
    assert refused.value.status == status


@pytest.mark.parametrize(
    "line", ["GET http://evil.example/ HTTP/1.1", "CONNECT evil.example:1 HTTP/1.1", "GET /", ""]
)
def test_a_request_for_more_than_a_path_is_refused(line: str) -> None:
    """X8: a server may prefer the host of an absolute address to the Host header."""
    with pytest.raises(Refused) as refused:
        checked(head(line, "Host: 127.0.0.1:8233"), port=PORT)
    assert refused.value.status == 400
