"""`/.well-known/security.txt`."""

from datetime import datetime
from typing import Any

from django.test import Client
from django.utils import timezone


def test_anybody_finds_the_contact(client: Client, settings: Any) -> None:
    """X8: the file is valid for less than a year, as RFC 9116 demands."""
    settings.SECURITY_CONTACT = "https://expenses.example/security"
    answer = client.get("/.well-known/security.txt")
    assert (answer.status_code, answer["Content-Type"]) == (200, "text/plain; charset=utf-8")
    fields = dict(line.split(": ", 1) for line in answer.content.decode().splitlines())
    assert fields["Contact"] == "https://expenses.example/security"
    left = datetime.fromisoformat(fields["Expires"]) - timezone.now()
    assert 170 < left.days < 365
    assert client.post("/.well-known/security.txt").status_code == 405
