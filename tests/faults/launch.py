"""Run a process of the product with the points of `tests.faults.points` installed.

`python -m tests.faults.launch COMMAND` runs `manage.py COMMAND`. FAULTS_DIR is the folder with the
armed points.
"""

import os
import sys
from pathlib import Path

import django
from django.core.management import execute_from_command_line

from tests.faults import points
from worker import __main__ as worker

django.setup()
faults = points.Faults(Path(os.environ["FAULTS_DIR"]))

process = {"web": "web", "relay": "relay", "runworker": "worker"}[sys.argv[1]]
points.install(process, faults)
if process == "worker":
    worker.main(sys.argv[2:])
execute_from_command_line(["manage.py", *sys.argv[1:]])
