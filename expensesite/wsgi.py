"""The WSGI application that `manage.py web` serves."""

import os

from django.core.wsgi import get_wsgi_application

from expensesite.charset import Utf8Only

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "expensesite.settings")
application = Utf8Only(get_wsgi_application())

from outbox import deliverer  # noqa: E402  (needs the apps)

deliverer.activate()
