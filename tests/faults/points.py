"""Points of the product's code at which tests let a process fail, and what recovers from it.

The product does not know the points: :func:`install` wraps functions of the product in the
processes that `tests.faults.launch` starts. An armed point fires once, at the first matching call,
and writes the id of the process to a file. The actions:

- `exit`: the process ends at that line, as in a crash.
- `hang`: the thread or coroutine waits until the test disarms the point.
- `drop`: the work is done, but the caller gets no answer. `tests.faults.proxy` drops the answer to
  an HTTP request; other calls raise the error of a lost connection after the work.
"""

import asyncio
import dataclasses
import functools
import inspect
import os
import pkgutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from django.db import OperationalError
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

EXIT_CODE: Final = 70
# A hanging call looks this often whether its point is still armed.
HANG_SECONDS: Final = 0.2

Action = Literal["exit", "hang", "drop"]
ACTIONS: Final[tuple[Action, ...]] = ("exit", "hang", "drop")


def _call_lost() -> Exception:
    return RPCError("the connection was lost", RPCStatusCode.UNAVAILABLE, b"")


def _database_lost() -> Exception:
    return OperationalError("the connection was lost")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A line of the product: before or after the function at `place` is called in `process`.

    `about` says whether a call with these arguments matches. `frees` says what ends a hang: "kill"
    if the process must be killed, otherwise the mechanism that takes over. `drop` loses the answer
    to the request that begins with `reply`, or raises `error`. `without` gives the reason for each
    action that is not tried here.
    """

    name: str
    process: Literal["web", "relay", "worker"]
    place: str
    when: Literal["before", "after"]
    about: Callable[..., bool] = lambda *_args, **_kwargs: True
    frees: str = ""
    reply: str = ""
    error: Callable[[], Exception] | None = None
    without: dict[Action, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        means = {"exit": True, "hang": bool(self.frees), "drop": bool(self.reply or self.error)}
        assert {action for action, meant in means.items() if not meant} == set(self.without)


_UNANSWERED: Final = "there is no answer yet"
_COMPLETE: Final = "temporalio.client:AsyncActivityHandle.complete"


def _is_of(path: str, **query: str) -> Callable[..., bool]:
    def about(_site: Any, _method: str, asked: str, *, params: Any = None, **_: Any) -> bool:
        return asked == path and query.items() <= params.items()

    return about


def _starts(message: Any) -> bool:
    return bool(message.kind == "start_workflow")


def _attempts_decision(_temporal: Any, message: Any) -> bool:
    return not _starts(message)


def _settles_decision(attempts: Any, **_: Any) -> bool:
    return any(not _starts(attempt.message) for attempt in attempts)


# Three groups, each with its own test file, so that they run at the same time.
# A decision and its delivery at commit.
DECISION: Final = (
    Point(
        name="decision-taken",  # after the compare-and-set, within the transaction
        process="web",
        place="expenses.services:_notify",
        when="before",
        frees="kill",
        without={"drop": _UNANSWERED},
    ),
    Point(
        name="decision-recorded",  # before the message is enqueued
        process="web",
        place="outbox.services:enqueue",
        when="before",
        about=lambda kind, *_: kind != "start_workflow",
        without={
            "hang": "the same locks as at decision-taken, freed by the same kill",
            "drop": _UNANSWERED,
        },
    ),
    Point(
        name="decision-committed",  # before the message is handed over
        process="web",
        place="outbox.deliverer:hand_over",
        when="before",
        about=lambda message: not _starts(message),
        frees="the lease of the message ends",
        reply="GET /action?type=approve",
    ),
    Point(
        name="bulk-row",  # the second of three rows
        process="web",
        place="approvals.services:decide",
        when="after",
        about=lambda approval, *_: approval.reference.endswith("-2"),
        frees="each row is its own transaction, and the approver repeats the action",
        reply="POST /admin/expenses/expense/",
    ),
    Point(
        name="delivery-begun",
        process="web",
        place="outbox.relay:try_once",
        when="before",
        about=_attempts_decision,
        frees="the lease of the message ends",
        without={"drop": _UNANSWERED},
    ),
    Point(
        name="delivery-applied",
        process="web",
        place=_COMPLETE,
        when="after",
        frees="the bound of a call",
        error=_call_lost,
    ),
    Point(
        name="delivery-unsettled",
        process="web",
        place="outbox.relay:settle",
        when="before",
        about=_settles_decision,
        frees="the lease of the message ends",
        without={"drop": _UNANSWERED},
    ),
    Point(
        name="delivery-settled",
        process="web",
        place="outbox.relay:settle",
        when="after",
        about=_settles_decision,
        error=_database_lost,
        without={"hang": "delays the next messages, as at delivery-unsettled"},
    ),
)

# A submission, and the answers to the worker's requests.
CARRYING: Final = (
    Point(
        name="created",
        process="web",
        place="expenses.services:create_expense",
        when="after",
        frees="the worker's bound of a request",
        reply="GET /create?",
    ),
    Point(
        name="registered",
        process="web",
        place="expenses.services:register_callback",
        when="after",
        frees="the worker's bound of a request",
        reply="POST /registerCallback?",
    ),
    Point(
        name="paid",
        process="web",
        place="expenses.services:record_payment",
        when="after",
        frees="the worker's bound of a request",
        reply="GET /action?id=",  # in a decision the type comes first
    ),
    Point(
        name="submission-committed",  # before the message is handed over
        process="web",
        place="outbox.deliverer:hand_over",
        when="before",
        about=_starts,
        frees="the lease of the message ends",
        reply="POST /api/v1/expenses/",
    ),
    Point(
        name="start-applied",
        process="web",
        place="temporalio.client:Client.start_workflow",
        when="after",
        frees="the bound of a call",
        error=_call_lost,
    ),
)

# The worker, and the relay, which alone delivers meanwhile.
BACKGROUND: Final = (
    Point(
        name="relay-leased",
        process="relay",
        place="outbox.relay:try_once",
        when="before",
        about=_attempts_decision,
        frees="kill",
        without={"drop": _UNANSWERED},
    ),
    Point(
        name="relay-applied",
        process="relay",
        place=_COMPLETE,
        when="after",
        frees="the bound of a call",
        error=_call_lost,
    ),
    Point(
        name="relay-attempted",  # before the message is settled
        process="relay",
        place="outbox.relay:settle",
        when="before",
        about=_settles_decision,
        frees="kill",
        without={"drop": _UNANSWERED},
    ),
    Point(
        name="relay-settled",
        process="relay",
        place="outbox.relay:settle",
        when="after",
        about=_settles_decision,
        error=_database_lost,
        without={"hang": "the same as at relay-attempted, with less left to do"},
    ),
    Point(
        name="create-unasked",
        process="worker",
        place="worker.site:Site.request",
        when="before",
        about=_is_of("/create"),
        frees="the timeout of the activity",
        without={"drop": _UNANSWERED},
    ),
    Point(
        name="registration-unasked",
        process="worker",
        place="worker.site:Site.request",
        when="before",
        about=_is_of("/registerCallback"),
        frees="the decision, which finds the attempt by the activity type",
        without={"drop": _UNANSWERED},
    ),
    Point(
        name="registration-answered",  # before the activity waits
        process="worker",
        place="worker.site:Site.request",
        when="after",
        about=_is_of("/registerCallback"),
        frees="the decision, which completes the attempt by the task token",
        without={"drop": "the same as at registered"},
    ),
    Point(
        name="payment-answered",
        process="worker",
        place="worker.site:Site.request",
        when="after",
        about=_is_of("/action", type="payment"),
        frees="the timeout of the activity",
        without={"drop": "the same as at paid"},
    ),
)

ALL: Final = (*DECISION, *CARRYING, *BACKGROUND)


def called(name: str) -> Point:
    [point] = (point for point in ALL if point.name == name)
    return point


def cases(points: Sequence[Point]) -> list[Any]:
    """Return the parameters of a test: each point with each of its actions."""
    return [
        pytest.param(point, action, id=f"{point.name}-{action}")
        for point in points
        for action in ACTIONS
        if action not in point.without
    ]


# Shorter times than the product's. The order is kept: a relay's lease is longer than an attempt and
# a back-off, an attempt longer than its calls, an activity longer than a request.
SHORTER: Final = {
    "outbox.services:COMMIT_LEASE": timedelta(seconds=1),
    "outbox.relay:ATTEMPT_SECONDS": 3.5,
    "outbox.relay:RELAY_LEASE": timedelta(seconds=4.5),
    "outbox.relay:LONGEST_BACKOFF_SECONDS": 2.0,
    "temporal.client:CALL_SECONDS": 1.5,
    "temporal.loop:PAUSE_SECONDS": 0.2,
    "outbox.relay:PROBE_SECONDS": 0.2,
    "worker.site:TOTAL_SECONDS": 1.5,
    "worker.site:READ_SECONDS": 1.0,
}
# Timeouts of activities that send a request: for an expense, a step and an undo of an order.
REQUEST_ACTIVITIES: Final = (timedelta(seconds=10), timedelta(seconds=30), timedelta(seconds=60))
SHORTER_REQUEST_ACTIVITY: Final = timedelta(seconds=2)
SHORTER_WORKFLOW_TASK: Final = timedelta(seconds=2)
SHORTER_INTERVALS: Final = {
    "initial_interval": timedelta(seconds=0.2),
    "maximum_interval": timedelta(seconds=1),
}


class Faults:
    """The armed points: files in a folder that the test and the processes share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # While this file exists, no web process delivers.
        self.relay_alone = folder / "relay-alone"

    def arm(self, point: Point, action: Action) -> None:
        (self._folder / point.name).write_text(action)

    def disarm(self, point: Point) -> None:
        """Disarm the point and let a hanging call continue."""
        (self._folder / point.name).unlink(missing_ok=True)
        self._mark(point).unlink(missing_ok=True)

    def fired_in(self, point: Point) -> int | None:
        """Return the id of the process in which the point fired; None before."""
        try:
            return int(self._mark(point).read_text() or 0) or None
        except FileNotFoundError:
            return None

    def claim(self, point: Point) -> str | None:
        """Return the action to the first caller, and None to the others."""
        armed = self._folder / point.name
        try:
            action = armed.read_text()
            armed.unlink()
        except FileNotFoundError:
            return None
        self._mark(point).write_text(str(os.getpid()))
        return action

    def _mark(self, point: Point) -> Path:
        return self._folder / f"{point.name}.fired"


def install(process: str, faults: Faults) -> None:
    """Install the points of `process` in the current process, and shorten its times."""
    for place, value in SHORTER.items():
        _replace(place, lambda _, value=value: value)
    # A workflow task is repeated after this time when its worker has died; the default is 10 s.
    Client.start_workflow.__kwdefaults__["task_timeout"] = SHORTER_WORKFLOW_TASK
    # The sandbox imports the workflow's module again, but shares `temporalio.workflow`.
    _replace("temporalio.workflow:execute_activity", _with_shorter_times)
    if process == "web":
        _replace(
            "outbox.deliverer:is_ready",
            lambda is_ready: lambda: not faults.relay_alone.exists() and is_ready(),
        )
    if process == "relay":
        # Without reconciliation, delivery alone has to succeed.
        _replace("outbox.reconciliation:Reconciler.step", lambda _: _do_nothing)
    for point in ALL:
        if point.process == process:
            _replace(point.place, lambda function, point=point: _wrapped(function, point, faults))


def _replace(place: str, make: Callable[[Any], Any]) -> None:
    """Replace the object at `place` with `make(object)`."""
    module, _, path = place.partition(":")
    *holders, name = path.split(".")
    holder = pkgutil.resolve_name(":".join([module, *holders[:1]]))
    setattr(holder, name, make(getattr(holder, name)))


async def _do_nothing(_: Any) -> None:
    pass


def _wrapped(function: Callable[..., Any], point: Point, faults: Faults) -> Callable[..., Any]:
    def claimed(*args: Any, **kwargs: Any) -> str | None:
        return faults.claim(point) if point.about(*args, **kwargs) else None

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            result = await function(*args, **kwargs) if point.when == "after" else None
            if (action := claimed(*args, **kwargs)) == "hang":
                while faults.fired_in(point):
                    await asyncio.sleep(HANG_SECONDS)
            elif action:
                _fail(action, point)
            return result if point.when == "after" else await function(*args, **kwargs)

        return awaited

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs) if point.when == "after" else None
        if (action := claimed(*args, **kwargs)) == "hang":
            while faults.fired_in(point):
                time.sleep(HANG_SECONDS)
        elif action:
            _fail(action, point)
        return result if point.when == "after" else function(*args, **kwargs)

    return called


def _fail(action: str, point: Point) -> None:
    if action == "exit":
        os._exit(EXIT_CODE)
    assert point.error is not None, "the proxy drops the answer of a request"
    raise point.error()


def _with_shorter_times(execute_activity: Callable[..., Any]) -> Callable[..., Any]:
    execute_activity = with_shorter_intervals(execute_activity)

    @functools.wraps(execute_activity)
    def shorter(*args: Any, start_to_close_timeout: timedelta, **kwargs: Any) -> Any:
        if start_to_close_timeout in REQUEST_ACTIVITIES:
            start_to_close_timeout = SHORTER_REQUEST_ACTIVITY
        return execute_activity(*args, start_to_close_timeout=start_to_close_timeout, **kwargs)

    return shorter


def with_shorter_intervals(execute_activity: Callable[..., Any]) -> Callable[..., Any]:
    """Shorten the intervals between retries."""

    @functools.wraps(execute_activity)
    def shorter(*args: Any, retry_policy: Any, **kwargs: Any) -> Any:
        retry_policy = dataclasses.replace(retry_policy, **SHORTER_INTERVALS)
        return execute_activity(*args, retry_policy=retry_policy, **kwargs)

    return shorter
