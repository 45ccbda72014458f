"""Settings of the suite: the product's own, with secrets and a data directory made for the run."""

import os
import tempfile

os.environ.setdefault("SECRET_KEY", "tests-only")
os.environ.setdefault("EXPENSES_FERNET_KEYS", "dGVzdHMtb25seS10ZXN0cy1vbmx5LXRlc3RzLW9ubHk=")
# Never the developer's own installation.
os.environ["EXPENSES_DATA_DIR"] = tempfile.mkdtemp(prefix="expenses-tests-")

from expensesite.settings import *  # noqa: F403

if DATABASES["default"]["ENGINE"].endswith("sqlite3"):  # noqa: F405
    # A file, as in production: the default, shared memory, knows neither WAL nor waiting writers.
    DATABASES["default"]["TEST"] = {"NAME": DATA_DIR / "test.sqlite3"}  # noqa: F405
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
