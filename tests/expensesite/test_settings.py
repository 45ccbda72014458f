"""The settings of a deployment, and the sentences about wrong ones."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

MANAGE = Path(__file__).resolve().parents[2] / "manage.py"
GOOD = {
    "SECRET_KEY": "s",
    "EXPENSES_FERNET_KEYS": "dGVzdHMtb25seS10ZXN0cy1vbmx5LXRlc3RzLW9ubHk=",
}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"SECRET_KEY": ""}, "SECRET_KEY is not set."),
        ({"EXPENSES_FERNET_KEYS": ""}, "EXPENSES_FERNET_KEYS is not set."),
        ({"EXPENSES_FERNET_KEYS": "abc"}, "EXPENSES_FERNET_KEYS holds something that is no key."),
        ({"EXPENSES_PROTOCOL_ACCESS": "all"}, "EXPENSES_PROTOCOL_ACCESS is 'all'; it must be"),
        ({"TRUSTED_PROXIES": "10.0.0.7, proxy"}, "TRUSTED_PROXIES must list IP addresses"),
        ({"TRUSTED_PROXIES": "10.1.2.3/16"}, "TRUSTED_PROXIES must list IP addresses"),
        ({"PROXY_HOPS": "0"}, "PROXY_HOPS must be a number from 1 to 10."),
        ({"HSTS_SECONDS": "-1"}, "HSTS_SECONDS must be a number from 0."),
        ({"SUBMISSIONS_PER_HOUR": "0"}, "SUBMISSIONS_PER_HOUR must be a number from 1."),
        ({"ORDERS_SIGNAL_DECISIONS": "maybe"}, 'Environment variable "ORDERS_SIGNAL_DECISIONS"'),
        ({"ORDERS_SIGNAL_LIMIT": "NaN"}, 'Environment variable "ORDERS_SIGNAL_LIMIT" invalid'),
        ({"ORDERS_SIGNAL_LIMIT": "-1"}, "ORDERS_SIGNAL_LIMIT must be an amount from 0."),
        ({"ORDERS_SIGNAL_LIMIT": "all"}, 'Environment variable "ORDERS_SIGNAL_LIMIT" invalid'),
        ({"SECURITY_CONTACT": "ada@expenses.example"}, "SECURITY_CONTACT must start with"),
        ({"WEB_THREADS": "many"}, 'Environment variable "WEB_THREADS" invalid'),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(wrong: dict[str, str], said: str, tmp_path: Path) -> None:
    """X8: with its remedy, without a traceback; secrets have no default."""
    checked = subprocess.run(
        [sys.executable, MANAGE, "check"],
        env={"PATH": os.environ["PATH"], "EXPENSES_DATA_DIR": str(tmp_path), **GOOD, **wrong},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 1
    assert checked.stderr.startswith(said)
    assert checked.stderr.count("\n") == 1


def test_a_deployment_as_documented_passes_its_check(tmp_path: Path) -> None:
    """X8: `check --deploy` reports nothing with the settings of docs/operations.md."""
    deployment = {
        "SECRET_KEY": secrets.token_urlsafe(50),
        "ALLOWED_HOSTS": "expenses.example",
        "COOKIES_OVER_HTTPS_ONLY": "true",
        "HSTS_SECONDS": "31536000",
        "TRUSTED_PROXIES": "10.0.0.7,10.1.0.0/16,2001:db8::1",
        "EXPENSES_PROTOCOL_ACCESS": "token",
    }
    checked = subprocess.run(
        [sys.executable, MANAGE, "check", "--deploy", "--fail-level", "INFO"],
        env={"PATH": os.environ["PATH"], "EXPENSES_DATA_DIR": str(tmp_path), **GOOD, **deployment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout == "System check identified no issues (3 silenced).\n"


def test_the_session_of_a_deployment_travels_over_https_alone(tmp_path: Path) -> None:
    """X8: both cookies. Over HTTPS browsers name the site that sent a request, so they may send the
    session with a link in a mail."""
    told = subprocess.run(
        [
            *(sys.executable, MANAGE, "shell", "--no-imports", "-c"),
            "from django.conf import settings as s; print(s.SESSION_COOKIE_SECURE, "
            "s.CSRF_COOKIE_SECURE, s.SESSION_COOKIE_SAMESITE, s.SESSION_COOKIE_HTTPONLY)",
        ],
        env={
            "PATH": os.environ["PATH"],
            "EXPENSES_DATA_DIR": str(tmp_path),
            **GOOD,
            "COOKIES_OVER_HTTPS_ONLY": "true",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "True True Lax True\n"


# What a browser gets of the sign-in page through a proxy.
BEHIND_A_PROXY = """
import sys
from django.test import Client
peer, scheme = sys.argv[1:]
answer = Client().get("/admin/login/", REMOTE_ADDR=peer, headers={
    "Host": "inside.example", "X-Forwarded-Host": "expenses.example",
    "X-Forwarded-Proto": f"{scheme}, http", "X-Forwarded-For": "192.0.2.7, 10.1.0.9",
})
print(answer.status_code, answer.get("Location"), answer.get("Strict-Transport-Security"))
print([(name, cookie["secure"]) for name, cookie in answer.cookies.items()])
print(answer.wsgi_request.build_absolute_uri("/"), answer.wsgi_request.META["REMOTE_ADDR"])
"""


@pytest.mark.parametrize(
    ("peer", "scheme", "hsts", "address"),
    [
        (
            "10.1.2.3",
            "https",
            "max-age=3600; includeSubDomains",
            "https://expenses.example/ 192.0.2.7",
        ),
        ("10.1.2.3", "http", "None", "http://expenses.example/ 192.0.2.7"),
        ("10.2.2.3", "https", "None", "http://inside.example/ 10.2.2.3"),
    ],
)
def test_the_environment_puts_the_site_behind_an_https_proxy(
    peer: str, scheme: str, hsts: str, address: str, tmp_path: Path
) -> None:
    """X8: TRUSTED_PROXIES, PROXY_HOPS, HSTS_… and COOKIES_OVER_HTTPS_ONLY. The site redirects
    nobody to HTTPS: the proxy does, and the worker and the probes use plain HTTP."""
    answered = subprocess.run(
        [sys.executable, "-c", f"import django; django.setup(){BEHIND_A_PROXY}", peer, scheme],
        cwd=MANAGE.parent,
        env={
            "PATH": os.environ["PATH"],
            "DJANGO_SETTINGS_MODULE": "expensesite.settings",
            "EXPENSES_DATA_DIR": str(tmp_path),
            **GOOD,
            "ALLOWED_HOSTS": "expenses.example,inside.example",
            "TRUSTED_PROXIES": "10.0.0.7,10.1.0.0/16",
            "PROXY_HOPS": "2",
            "HSTS_SECONDS": "3600",
            "HSTS_INCLUDE_SUBDOMAINS": "true",
            "COOKIES_OVER_HTTPS_ONLY": "true",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert answered.stdout.splitlines() == [
        f"200 None {hsts}",
        "[('csrftoken', True)]",
        address,
    ]


@pytest.mark.parametrize(
    ("chosen", "decides"),
    [
        ({}, False),
        ({"EXPENSES_PROTOCOL_ACCESS": "token"}, False),
        ({"EXPENSES_PROTOCOL_ACCESS": "off"}, False),
        ({"EXPENSES_PROTOCOL_ACCESS": "open"}, True),
        # An empty variable means that nobody chose.
        ({"EXPENSES_PROTOCOL_ACCESS": "open", "ORDERS_SIGNAL_DECISIONS": ""}, True),
        ({"EXPENSES_PROTOCOL_ACCESS": "token", "ORDERS_SIGNAL_DECISIONS": ""}, False),
        ({"EXPENSES_PROTOCOL_ACCESS": "open", "ORDERS_SIGNAL_DECISIONS": "0"}, False),
        ({"EXPENSES_PROTOCOL_ACCESS": "token", "ORDERS_SIGNAL_DECISIONS": "true"}, True),
    ],
    ids=str,
)
def test_signals_decide_in_the_open_mode_or_by_choice(
    chosen: dict[str, str], decides: bool, tmp_path: Path
) -> None:
    """O3, X8: in the open mode, or if somebody chose it; up to 2000."""
    asked = subprocess.run(
        [
            sys.executable,
            "-c",
            "from expensesite import settings as s;"
            "print(s.ORDERS_SIGNAL_DECISIONS, s.ORDERS_SIGNAL_LIMIT)",
        ],
        cwd=MANAGE.parent,
        env={"PATH": os.environ["PATH"], "EXPENSES_DATA_DIR": str(tmp_path), **GOOD, **chosen},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout == f"{decides} 2000\n"
