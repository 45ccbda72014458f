"""Refuse requests in other encodings than UTF-8, before Django decodes them."""

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Clients send UTF-8, ASCII and Latin-1 under these names. Python knows a hundred more codecs: some
# decode no text (hex, rot13) or always fail (undefined), and Python remembers every unknown name
# until the process ends.
_OTHER_CHARSET: Final = re.compile(
    r"charset\s*=(?!\s*[\"']?(?:utf-?8|(?:us-)?ascii|iso-?8859-1|latin-?1)[\"']?\s*(?:;|$))",
    re.I,
)
# A parameter in the form of RFC 2231, which names an encoding of its own: `charset*=hex''%00`.
_ENCODED_PARAMETER: Final = re.compile(r"\*[\d*\s]*=")
_PROBLEM: Final = {
    "type": "about:blank",
    "title": "Unsupported Media Type",
    "status": 415,
    "detail": "Send text in UTF-8; the Content-Type or Accept header names something else.",
    "code": "unsupported_charset",
}


class Utf8Only:
    """Answer 415 to a request whose headers name another encoding; pass other requests on.

    This is a WSGI application, since Django looks the encoding up before any middleware runs.
    """

    def __init__(self, application: "WSGIApplication") -> None:
        self._application = application

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        content_type = environ.get("CONTENT_TYPE", "")
        if not _OTHER_CHARSET.search(content_type) and not _ENCODED_PARAMETER.search(
            f"{content_type}\n{environ.get('HTTP_ACCEPT', '')}"
        ):
            return self._application(environ, start_response)
        body = json.dumps(_PROBLEM).encode()
        start_response(
            "415 Unsupported Media Type",
            [
                ("Content-Type", "application/problem+json"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [body]
