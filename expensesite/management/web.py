"""The site as `manage.py up` serves it: `granian --interface wsgi expensesite.management.web:…`.

Granian's processes outlive a main process that is killed, and go on to answer on its port
(measured with granian 2.8); those that load this module do not.
"""

import multiprocessing

from expensesite.management.supervisor import die_with
from expensesite.wsgi import application

__all__ = ["application"]

if granian := multiprocessing.parent_process():
    die_with(granian.pid or 0)
