"""The product's settings, with secrets and a data directory for one run of the tests."""

import os
import tempfile

os.environ.setdefault("SECRET_KEY", "tests-only")
os.environ.setdefault("EXPENSES_FERNET_KEYS", "dGVzdHMtb25seS10ZXN0cy1vbmx5LXRlc3RzLW9ubHk=")
# A test must not touch the developer's own installation.
os.environ["EXPENSES_DATA_DIR"] = tempfile.mkdtemp(prefix="expenses-tests-")

from expensesite.settings import *  # noqa: F403

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):  # noqa: F405
    # A file, as in production. Shared memory, the default, has neither WAL nor waiting writers.
    DATABASES["default"]["TEST"] = {"NAME": DATA_DIR / "test.sqlite3"}  # noqa: F405
    # No test cuts the power, and thousands of commits need not wait for the disk.
    DATABASES["default"]["OPTIONS"]["init_command"] += "; PRAGMA synchronous=OFF"  # noqa: F405
# A kind of request that only the tests have.
INSTALLED_APPS = [*INSTALLED_APPS, "tests.leave"]  # noqa: F405
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Each test client loads the middleware again, which would index every static file each time.
WHITENOISE_AUTOREFRESH = True
