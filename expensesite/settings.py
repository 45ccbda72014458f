"""Django's settings. They come from the environment; the defaults run on a laptop.

`manage.py up` writes the secrets and addresses of a local installation to
`<data-dir>/settings.env`. This module reads that file below the real environment, so every command
uses the same installation. The README lists the variables.
"""

import ipaddress
import logging
import os
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import dotenv
import environs
from cryptography.fernet import Fernet
from csp.constants import NONE, SELF, UNSAFE_EVAL, UNSAFE_INLINE
from django.core.exceptions import ImproperlyConfigured

from worker.contracts import LONGEST_APPROVAL_SECONDS, SITE_URL

BASE_DIR = Path(__file__).resolve().parent.parent

env = environs.Env()
DATA_DIR = Path(env.str("EXPENSES_DATA_DIR", str(BASE_DIR / "var"))).resolve()
# Another name of TEMPORAL_ADDRESS (requirements O11), which overrides settings.env as well.
if host := os.environ.get("TEMPORAL_HOST"):
    os.environ.setdefault("TEMPORAL_ADDRESS", host)
_recorded = dotenv.dotenv_values(DATA_DIR / "settings.env", interpolate=False)
if os.environ.get("DATABASE_URL") not in (None, _recorded.get("DATABASE_URL")):
    # Another database than the installation's: nobody acts there without --as.
    for _name in ("LOCAL_EMPLOYEE", "LOCAL_APPROVER"):
        _recorded.pop(_name, None)
# Into os.environ, where Temporal's own configuration reads TEMPORAL_*.
for _name, _value in _recorded.items():
    os.environ.setdefault(_name, _value or "")

SECRET_KEY = env.str("SECRET_KEY", "")
# The keys for callback addresses at rest: the first encrypts, and all decrypt (for rotation).
EXPENSES_FERNET_KEYS: list[str] = env.list("EXPENSES_FERNET_KEYS", [])
for _name in ("SECRET_KEY", "EXPENSES_FERNET_KEYS"):
    if not globals()[_name]:
        raise ImproperlyConfigured(
            f"{_name} is not set. Set it in the environment, or start once with `make up`, "
            f"which makes the secrets of a local installation in {DATA_DIR}."
        )

try:
    for _key in EXPENSES_FERNET_KEYS:
        Fernet(_key)
except ValueError:
    raise ImproperlyConfigured(
        "EXPENSES_FERNET_KEYS holds something that is no key. Make one with `python -c 'from "
        "cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'`."
    ) from None

DEBUG = env.bool("DEBUG", False)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS: list[str] = env.list("CSRF_TRUSTED_ORIGINS", [])

EXPENSES_PROTOCOL_ACCESS = env.str("EXPENSES_PROTOCOL_ACCESS", "token")
if EXPENSES_PROTOCOL_ACCESS not in ("token", "open", "off"):
    raise ImproperlyConfigured(
        f"EXPENSES_PROTOCOL_ACCESS is {EXPENSES_PROTOCOL_ACCESS!r}; it must be token, open or off."
    )
# Addresses or networks of the reverse proxies. X-Forwarded-Proto, -Host and -For count only in
# requests from them (access.proxies).
_proxies: list[str] = env.list("TRUSTED_PROXIES", [])
try:
    TRUSTED_PROXIES = [ipaddress.ip_network(proxy.strip()) for proxy in _proxies]
except ValueError as error:
    raise ImproperlyConfigured(
        f"TRUSTED_PROXIES must list IP addresses or networks, as 10.0.0.7,10.1.0.0/16: {error}."
    ) from None
# How many proxies of this site append to X-Forwarded-For.
PROXY_HOPS = env.int("PROXY_HOPS", 1)
if not 1 <= PROXY_HOPS <= 10:
    raise ImproperlyConfigured("PROXY_HOPS must be a number from 1 to 10.")
# How many expenses and orders, together, one person may submit.
SUBMISSIONS_PER_HOUR = env.int("SUBMISSIONS_PER_HOUR", 600)
if SUBMISSIONS_PER_HOUR < 1:
    raise ImproperlyConfigured("SUBMISSIONS_PER_HOUR must be a number from 1.")
# The contact in /.well-known/security.txt.
SECURITY_CONTACT = env.str("SECURITY_CONTACT", "mailto:security@localhost")
if not (SECURITY_CONTACT.startswith(("mailto:", "https://")) and SECURITY_CONTACT.isprintable()):
    raise ImproperlyConfigured("SECURITY_CONTACT must start with mailto: or https://.")
# Threads of a web process. At most half of them serve requests that wait for an outcome.
WEB_THREADS = env.int("WEB_THREADS", 8)
# The address at which the worker and the commands reach this site.
EXPENSES_SITE_URL = env.str("EXPENSES_SITE_URL", SITE_URL).rstrip("/")
# The Temporal Web UI, to which the pages of expenses and orders link; empty: no link.
TEMPORAL_UI_URL = env.str("TEMPORAL_UI_URL", "").rstrip("/")
# An order above this total needs a decision, within this many seconds (requirements O1).
ORDERS_APPROVAL_THRESHOLD: Decimal = env.decimal("ORDERS_APPROVAL_THRESHOLD", Decimal(1000))
ORDERS_APPROVAL_SECONDS = env.int("ORDERS_APPROVAL_SECONDS", 300)
if not (ORDERS_APPROVAL_THRESHOLD.is_finite() and ORDERS_APPROVAL_THRESHOLD >= 0):
    raise ImproperlyConfigured("ORDERS_APPROVAL_THRESHOLD must be an amount from 0.")
if not 1 <= ORDERS_APPROVAL_SECONDS <= LONGEST_APPROVAL_SECONDS:
    raise ImproperlyConfigured(
        f"ORDERS_APPROVAL_SECONDS must be a number from 1 to {LONGEST_APPROVAL_SECONDS} (30 days)."
    )
# Whether `startorder` may inject failures (requirements O6). `up` in the open mode records this for
# commands in other terminals. Requests are judged by their origin instead.
FAULT_INJECTION = env.bool("FAULT_INJECTION", EXPENSES_PROTOCOL_ACCESS == "open")
# The users as whom commands submit and decide in an installation made by `up`, which records them
# for commands in other terminals. Elsewhere the commands need `--as`.
LOCAL_EMPLOYEE = env.str("LOCAL_EMPLOYEE", "")
LOCAL_APPROVER = env.str("LOCAL_APPROVER", "")
# Whether a signal to its workflow may decide an order, and up to which total. Any client of
# Temporal can send a signal, so outside the open mode somebody must choose this (requirements O3).
ORDERS_SIGNAL_DECISIONS = (
    env.bool("ORDERS_SIGNAL_DECISIONS")
    if env.str("ORDERS_SIGNAL_DECISIONS", "")
    else EXPENSES_PROTOCOL_ACCESS == "open"
)
ORDERS_SIGNAL_LIMIT: Decimal = env.decimal("ORDERS_SIGNAL_LIMIT", Decimal(2000))
if ORDERS_SIGNAL_LIMIT < 0:
    raise ImproperlyConfigured("ORDERS_SIGNAL_LIMIT must be an amount from 0.")
# The classes that implement the protocols of orders.integrations (requirements O9).
ORDERS_INVENTORY = env.str(
    "ORDERS_INVENTORY", "orders.integrations.inventory_provider.DatabaseInventory"
)
ORDERS_PAYMENTS = env.str(
    "ORDERS_PAYMENTS", "orders.integrations.payment_provider.DatabasePayments"
)
ORDERS_WAREHOUSE = env.str(
    "ORDERS_WAREHOUSE", "orders.integrations.warehouse_provider.DatabaseWarehouse"
)
ORDERS_MAILER = env.str("ORDERS_MAILER", "orders.integrations.mail_provider.DatabaseMailer")
TEMPORAL_NAMESPACE = env.str("TEMPORAL_NAMESPACE", "default")

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "knox",
    "axes",
    "csp",
    "access",
    "outbox",
    "approvals",
    "expenses",
    "orders",
    "jobs",
    "expensesite",
    "local",
]

MIDDLEWARE = [
    "access.proxies.Middleware",
    "expensesite.browser_headers.Middleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "access.sessions.Middleware",
    # Before the CSRF check, so that a cross-site request gets its own refusal.
    "access.cross_site.Middleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "rest.unavailable.Middleware",
    "access.passwords.Middleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "expensesite.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {
    "default": env.dj_db_url("DATABASE_URL", f"sqlite:///{quote(str(DATA_DIR / 'db.sqlite3'))}"),
}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"] |= {
        "CONN_MAX_AGE": None,
        # DEFERRED transactions fail with "database is locked" under concurrent writers (measured:
        # 121 of 1,200); IMMEDIATE ones wait. synchronous stays FULL, so that a decision outlives
        # a power cut.
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL",
        },
    }
else:
    _options = DATABASES["default"].setdefault("OPTIONS", {})
    # Without a database server a request fails after `timeout` seconds. With the pool's default of
    # 30 s all threads soon waited, and the process answered no probe (measured).
    _options["pool"] = {"min_size": 1, "max_size": WEB_THREADS + 4, "timeout": 3}
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    # Gives up a server that vanished after 10 s, not after 15 minutes.
    _options["tcp_user_timeout"] = 10_000
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "access.authentication.Backend",
]
PASSWORD_HASHERS = ["access.passwords.Hasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": name, "OPTIONS": options}
    for name, options in (
        ("django.contrib.auth.password_validation.UserAttributeSimilarityValidator", {}),
        ("django.contrib.auth.password_validation.MinimumLengthValidator", {"min_length": 12}),
        ("django.contrib.auth.password_validation.CommonPasswordValidator", {}),
        ("django.contrib.auth.password_validation.NumericPasswordValidator", {}),
        ("access.passwords.VariedValidator", {}),
    )
]
# After this many failed sign-ins, a user name or an address must wait (requirements X11). The wait
# is short, since strangers can cause it.
AXES_FAILURE_LIMIT = env.int("SIGN_IN_FAILURES", 10)
_wait = env.int("SIGN_IN_WAIT_SECONDS", 300)
if AXES_FAILURE_LIMIT < 1 or _wait < 1:
    raise ImproperlyConfigured("SIGN_IN_FAILURES and SIGN_IN_WAIT_SECONDS must be at least 1.")
AXES_COOLOFF_TIME = timedelta(seconds=_wait)
# Attempts during the wait do not make it longer.
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_LOCKOUT_PARAMETERS = "access.sign_in.lockout_parameters"
AXES_CLIENT_IP_CALLABLE = "access.sign_in.client_network"
AXES_LOCKOUT_CALLABLE = "access.sign_in.locked_out"
# axes deletes attempts that no longer count; a log of each sign-in would grow without limit.
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
# The log names the address but never the user: people type passwords into that field.
AXES_VERBOSE = False
AXES_SENSITIVE_PARAMETERS = ["username"]
LOGIN_REDIRECT_URL = "admin:index"

TIME_ZONE = "UTC"

STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True  # no collectstatic step; files are indexed once, at start

# Behind HTTPS: browsers send both cookies over HTTPS only.
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env.bool("COOKIES_OVER_HTTPS_ONLY", False)
# Over plain HTTP browsers do not say that a request comes from another site, and the plain protocol
# changes state by GET. So over plain HTTP browsers send no session with another site's links.
SESSION_COOKIE_SAMESITE = "Lax" if SESSION_COOKIE_SECURE else "Strict"
# How long browsers use HTTPS only for this host. Answers over plain HTTP do not say so.
SECURE_HSTS_SECONDS = env.int("HSTS_SECONDS", 0)
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.bool("HSTS_INCLUDE_SUBDOMAINS", False)
if SECURE_HSTS_SECONDS < 0:
    raise ImproperlyConfigured("HSTS_SECONDS must be a number from 0.")
SILENCED_SYSTEM_CHECKS = [
    # The owner of the domain decides about its other hosts, and about browsers' preload lists.
    "security.W005",
    "security.W021",
    # The proxy redirects to HTTPS. Behind it the worker and the probes use plain HTTP.
    "security.W008",
]
# A session ends after this many seconds without a request of its person (access.sessions).
SESSION_COOKIE_AGE = 8 * 3600
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        # The admin's Alpine evaluates attributes, and Unfold has a few inline scripts.
        "script-src": [SELF, UNSAFE_EVAL, UNSAFE_INLINE],
        "style-src": [SELF, UNSAFE_INLINE],
        "img-src": [SELF, "data:"],
        "frame-ancestors": [NONE],
        "form-action": [SELF],
        "base-uri": [SELF],
    }
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "access.authentication.BearerAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": [
        "access.cross_site.NotCrossSite",
        "rest_framework.permissions.IsAuthenticated",
    ],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest.parsers.BoundedJSONParser"],
    "EXCEPTION_HANDLER": "rest.problems.exception_handler",
}
REST_KNOX = {"TOKEN_TTL": timedelta(days=90), "AUTH_HEADER_PREFIX": "Bearer"}
KNOX_TOKEN_MODEL = "access.Token"  # noqa: S105
# The migrations of knox would make its own table as well.
MIGRATION_MODULES = {"knox": None}

UNFOLD = {
    "SITE_TITLE": "Expense approvals",
    "SITE_HEADER": "Expense approvals",
    # The list needs a sign-in.
    "SITE_URL": lambda request: "/list" if request.user.is_authenticated else None,
    "LOGIN": {"form": "access.sign_in.SignInForm"},
    "SITE_FAVICONS": [{"rel": "icon", "href": lambda request: "data:,"}],
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": False,
}

LOG_LEVEL = env.str("LOG_LEVEL", "INFO").upper()
if LOG_LEVEL not in logging.getLevelNamesMapping():
    raise ImproperlyConfigured(f"LOG_LEVEL is {LOG_LEVEL!r}; use DEBUG, INFO, WARNING or ERROR.")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "filters": {"one_line": {"()": "expensesite.logs.OneLine"}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "line",
            "filters": ["one_line"],
        }
    },
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        # httpx logs the URL of each request at INFO.
        "httpx": {"level": "WARNING"},
        # axes logs several lines for each failed sign-in at INFO.
        "axes": {"level": "WARNING"},
    },
}
