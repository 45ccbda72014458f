"""Settings: every one comes from the environment, with defaults that run on a laptop.

`manage.py up` keeps the secrets and addresses of a local installation in `<data-dir>/settings.env`;
it is read here, below the real environment, so that any other command sees the same installation.
The README lists the variables.
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
# Another name of the address (requirements O11), and as strong.
if host := os.environ.get("TEMPORAL_HOST"):
    os.environ.setdefault("TEMPORAL_ADDRESS", host)
# Into os.environ, where Temporal's own configuration reads it as well.
dotenv.load_dotenv(DATA_DIR / "settings.env", interpolate=False)

SECRET_KEY = env.str("SECRET_KEY", "")
# The keys that encrypt callback addresses at rest; the first encrypts, all decrypt (rotation).
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
# The reverse proxies before this site: addresses or networks. From them, and from nobody else,
# X-Forwarded-Proto, -Host and -For say what the client asked for (access.proxies).
_proxies: list[str] = env.list("TRUSTED_PROXIES", [])
try:
    TRUSTED_PROXIES = [ipaddress.ip_network(proxy.strip()) for proxy in _proxies]
except ValueError as error:
    raise ImproperlyConfigured(
        f"TRUSTED_PROXIES must list IP addresses or networks, as 10.0.0.7,10.1.0.0/16: {error}."
    ) from None
# How many of our proxies append to X-Forwarded-For.
PROXY_HOPS = env.int("PROXY_HOPS", 1)
if not 1 <= PROXY_HOPS <= 10:
    raise ImproperlyConfigured("PROXY_HOPS must be a number from 1 to 10.")
# What one person may submit, expenses and orders together.
SUBMISSIONS_PER_HOUR = env.int("SUBMISSIONS_PER_HOUR", 600)
if SUBMISSIONS_PER_HOUR < 1:
    raise ImproperlyConfigured("SUBMISSIONS_PER_HOUR must be a number from 1.")
# Whom /.well-known/security.txt names.
SECURITY_CONTACT = env.str("SECURITY_CONTACT", "mailto:security@localhost")
if not (SECURITY_CONTACT.startswith(("mailto:", "https://")) and SECURITY_CONTACT.isprintable()):
    raise ImproperlyConfigured("SECURITY_CONTACT must start with mailto: or https://.")
# Threads of a web process; at most half of them may hold a request that waits.
WEB_THREADS = env.int("WEB_THREADS", 8)
# Where the worker and the commands find this site.
EXPENSES_SITE_URL = env.str("EXPENSES_SITE_URL", SITE_URL).rstrip("/")
# Where people see a run: an expense's page links there. Empty: no link.
TEMPORAL_UI_URL = env.str("TEMPORAL_UI_URL", "").rstrip("/")
# Above this total a human decides on an order, within so many seconds (requirements O1).
ORDERS_APPROVAL_THRESHOLD: Decimal = env.decimal("ORDERS_APPROVAL_THRESHOLD", Decimal(1000))
ORDERS_APPROVAL_SECONDS = env.int("ORDERS_APPROVAL_SECONDS", 300)
if not (ORDERS_APPROVAL_THRESHOLD.is_finite() and ORDERS_APPROVAL_THRESHOLD >= 0):
    raise ImproperlyConfigured("ORDERS_APPROVAL_THRESHOLD must be an amount from 0.")
if not 1 <= ORDERS_APPROVAL_SECONDS <= LONGEST_APPROVAL_SECONDS:
    raise ImproperlyConfigured(
        f"ORDERS_APPROVAL_SECONDS must be a number from 1 to {LONGEST_APPROVAL_SECONDS} (30 days)."
    )
# Whether a signal to its workflow decides an order, and up to which total: any client of
# Temporal can send one. Everywhere but in the open mode that is a choice to make (requirements O3).
ORDERS_SIGNAL_DECISIONS = (
    env.bool("ORDERS_SIGNAL_DECISIONS")
    if env.str("ORDERS_SIGNAL_DECISIONS", "")
    else EXPENSES_PROTOCOL_ACCESS == "open"
)
ORDERS_SIGNAL_LIMIT: Decimal = env.decimal("ORDERS_SIGNAL_LIMIT", Decimal(2000))
if ORDERS_SIGNAL_LIMIT < 0:
    raise ImproperlyConfigured("ORDERS_SIGNAL_LIMIT must be an amount from 0.")
# The classes behind the protocols of orders.integrations (requirements O9).
ORDERS_INVENTORY = env.str("ORDERS_INVENTORY", "orders.integrations.database.Inventory")
ORDERS_PAYMENTS = env.str("ORDERS_PAYMENTS", "orders.integrations.database.Payments")
ORDERS_WAREHOUSE = env.str("ORDERS_WAREHOUSE", "orders.integrations.database.Warehouse")
ORDERS_MAILER = env.str("ORDERS_MAILER", "orders.integrations.database.Mailer")
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
    "expensesite.pages.Middleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "access.sessions.Middleware",
    # Before the check of the CSRF token: a foreign request is told that it is one.
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
    # Without a server a request fails after `timeout` seconds. With the pool's own 30 soon every
    # thread waits, and the process answers no probe (measured).
    _options["pool"] = {"min_size": 1, "max_size": WEB_THREADS + 4, "timeout": 3}
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    # A server that vanished without a word is given up after 10 s, not after 15 minutes.
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
# After so many failed sign-ins a name, or an address, waits for so long (requirements X11). The
# wait is short, since strangers can cause it.
AXES_FAILURE_LIMIT = env.int("SIGN_IN_FAILURES", 10)
_wait = env.int("SIGN_IN_WAIT_SECONDS", 300)
if AXES_FAILURE_LIMIT < 1 or _wait < 1:
    raise ImproperlyConfigured("SIGN_IN_FAILURES and SIGN_IN_WAIT_SECONDS must be at least 1.")
AXES_COOLOFF_TIME = timedelta(seconds=_wait)
# A sign-in that is refused while one waits does not make the wait longer.
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_LOCKOUT_PARAMETERS = "access.sign_in.lockout_parameters"
AXES_CLIENT_IP_CALLABLE = "access.sign_in.client_network"
AXES_LOCKOUT_CALLABLE = "access.sign_in.locked_out"
# Attempts are deleted when they no longer count; a record of each sign-in would grow forever.
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
# The log names the address. It never names the user: people type passwords into that field.
AXES_VERBOSE = False
AXES_SENSITIVE_PARAMETERS = ["username"]
LOGIN_REDIRECT_URL = "admin:index"

TIME_ZONE = "UTC"

STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True  # no collectstatic step; files are indexed once, at start

# Behind HTTPS: both cookies travel over it only.
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env.bool("COOKIES_OVER_HTTPS_ONLY", False)
# Over plain HTTP browsers do not say that another site sent a request, and the plain protocol
# changes state by GET; so there another site's links carry no session at all.
SESSION_COOKIE_SAMESITE = "Lax" if SESSION_COOKIE_SECURE else "Strict"
# For so long browsers ask for this host over HTTPS only; sent over HTTPS alone.
SECURE_HSTS_SECONDS = env.int("HSTS_SECONDS", 0)
SECURE_HSTS_INCLUDE_SUBDOMAINS = env.bool("HSTS_INCLUDE_SUBDOMAINS", False)
if SECURE_HSTS_SECONDS < 0:
    raise ImproperlyConfigured("HSTS_SECONDS must be a number from 0.")
SILENCED_SYSTEM_CHECKS = [
    # The owner of the domain decides whether its other hosts speak HTTPS only, and whether browsers
    # ship with that rule.
    "security.W005",
    "security.W021",
    # The proxy redirects to HTTPS. The worker and the probes speak plain HTTP inside.
    "security.W008",
]
# A session ends after so many seconds in which its person did nothing (access.sessions).
SESSION_COOKIE_AGE = 8 * 3600
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        # The admin's Alpine evaluates its attributes, and Unfold carries a few inline scripts.
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
# Knox's migrations would make its own table as well.
MIGRATION_MODULES = {"knox": None}

UNFOLD = {
    "SITE_TITLE": "Expense approvals",
    "SITE_HEADER": "Expense approvals",
    # Who has not signed in finds nothing there.
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
        # httpx logs each request's URL at INFO; the worker logs what matters itself.
        "httpx": {"level": "WARNING"},
        # At INFO it writes several lines for each sign-in that fails.
        "axes": {"level": "WARNING"},
    },
}
