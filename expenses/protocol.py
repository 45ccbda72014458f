"""The plain-text endpoints and the list page (requirements E2–E8).

Order of answers: 405, cross-site 403, access 401/403, 422, INVALID_ID, INVALID_TYPE or
INVALID_STATE, INVALID_FORM_DATA. In API mode an ERROR body travels with status 200, because the
workers' clients raise for any other status before they read the body.
"""

import re
import zlib
from typing import Any, Final
from urllib.parse import urlencode

from csp.constants import SELF
from csp.decorators import csp_replace
from django.core.exceptions import ValidationError
from django.db.models import Q
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    JsonResponse,
)
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.request import Request
from rest_framework.views import APIView

from access import actors, cross_site, open_access
from access.text import ID_LENGTH, ID_RULE, clean_text, is_opaque_id, search_fault
from approvals import services as approvals
from approvals.models import VERDICT_OF_VERB, Route
from expenses import services
from expenses.models import Expense, State
from rest.problems import log_refusal
from temporal import addresses
from worker import contracts

SUCCEED: Final = "SUCCEED"
UNSTATED_REASON: Final = "rejected over the protocol"
PAGE_ROWS: Final = 100
LONGEST_TOKEN_HEX: Final = 8192

_VERBS = ("approve", "reject")
# The state in which an expense can be asked for each of these.
_STATE_FOR = {"approve": State.CREATED, "reject": State.CREATED, "payment": State.APPROVED}
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")


class ProtocolError(Exception):
    """An answer other than success: the code for clients, the sentence for people."""

    def __init__(self, code: str, sentence: str, status: int = 400) -> None:
        self.code = code
        self.status = status
        super().__init__(sentence)


class ParametersMissing(Exception):
    """Required parameters are absent; each is a pair of its place and its name."""

    def __init__(self, parameters: list[tuple[str, str]]) -> None:
        self.parameters = parameters
        super().__init__(f"missing: {', '.join(name for _, name in parameters)}")


def error_response(
    request: HttpRequest, error: Exception, *, api: bool, expense_id: str
) -> HttpResponse:
    """Answer an exception of this module or of access, and log it; raise any other."""
    match error:
        case ParametersMissing():
            details = [
                {"type": "missing", "loc": list(parameter), "msg": "Field required"}
                for parameter in error.parameters
            ]
            response: HttpResponse = JsonResponse({"detail": details}, status=422)
            log_refusal(request, response, str(error), record_id=expense_id)
            return response
        case open_access.NotServed():
            raise Http404 from error
        case open_access.NotSignedIn():
            sentence = "Sign in first." if not api else "A valid bearer token is needed."
            error = ProtocolError("FORBIDDEN", sentence, 401)
        case open_access.NotAllowed() | approvals.NotPermitted() | approvals.SelfApproval():
            error = ProtocolError("FORBIDDEN", str(error), 403)
        case ProtocolError():
            pass
        case _:
            raise error
    if api:
        status = error.status if error.code == "FORBIDDEN" else 200
        response = _text(f"ERROR:{error.code}", status)
    else:
        response = render(
            request,
            "expenses/message.html",
            {"sentence": str(error), "sign_in": error.status == 401},
            status=error.status,
        )
    if error.status == 401:
        response["WWW-Authenticate"] = "Bearer"
    log_refusal(request, response, f"ERROR:{error.code} {error}", record_id=expense_id)
    return response


# The admin's scripts need more; these pages have one, of their own.
strict_csp = csp_replace({"script-src": [SELF]})


@method_decorator(strict_csp, name="dispatch")
class ProtocolView(APIView):
    """One plain endpoint. Subclasses answer `get` or `post` once access is granted."""

    authentication_classes = ()
    permission_classes = ()
    http_method_names = ["get"]
    changes_state = True

    actor: actors.Actor
    api = True
    # Whether the answer is a page that asks the person, by POST, instead of the change.
    asks = False

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        if str(request.method).lower() not in self.http_method_names:
            raise MethodNotAllowed(str(request.method))
        self.api = self.is_api_call(request)
        if self.changes_state and cross_site.is_cross_site(request._request):
            raise ProtocolError("FORBIDDEN", cross_site.REFUSAL, 403)
        self.actor = _actor(
            request._request,
            permission=self.permission(request),
            cookies=not self.api,
            expense_id=request.query_params.get("id", "") if self.changes_state else "",
            route=Route.PROTOCOL,
        )
        # A person may have been led here by a link, so a session never changes anything by GET.
        if (
            self.changes_state
            and request.method == "GET"
            and open_access.is_by_session(request._request)
        ):
            if self.api:
                raise open_access.NotSignedIn
            self.asks = True

    def is_api_call(self, request: Request) -> bool:
        return str(request.query_params.get("is_api_call")).lower() == "true"

    def permission(self, request: Request) -> str | None:
        """The permission that this request needs; None when being signed in is enough."""
        return services.CARRY

    def handle_exception(self, exc: Exception) -> HttpResponseBase:  # type: ignore[override]
        if isinstance(exc, MethodNotAllowed):
            return HttpResponseNotAllowed([name.upper() for name in self.http_method_names])
        return error_response(
            self.request._request,
            exc,
            api=self.api,
            expense_id=self.request.query_params.get("id", ""),
        )

    def succeed(self) -> HttpResponse:
        return _text(SUCCEED) if self.api else _to_list()


class CreateView(ProtocolView):
    """`GET /create?id=…` (E5)"""

    def get(self, request: Request) -> HttpResponse:
        _require(("query", "id") if "id" not in request.query_params else None)
        expense_id = _valid_id(request.query_params["id"])
        key = request.headers.get("Idempotency-Key")
        workflow_id = contracts.workflow_id_of_key(key) if key else None
        if workflow_id is not None and not is_opaque_id(workflow_id, addresses.ID_LENGTH):
            raise ProtocolError(
                "INVALID_FORM_DATA", "The Idempotency-Key is not a workflow id, percent-encoded."
            )
        if self.asks:
            if Expense.objects.filter(expense_id=expense_id).exists():
                raise ProtocolError("ID_ALREADY_EXISTS", f"There is an expense {expense_id}.")
            return _ask(request._request, "create", expense_id)
        create(expense_id, workflow_id, actor=self.actor, route=Route.PROTOCOL)
        return self.succeed()


class ActionView(ProtocolView):
    """`GET /action?type=approve|reject|payment&id=…` (E3)"""

    def permission(self, request: Request) -> str | None:
        kind = request.query_params.get("type")
        if kind in _VERBS:
            return services.DECIDE
        return services.CARRY if kind == "payment" else None

    def get(self, request: Request) -> HttpResponse:
        missing = [("query", name) for name in ("type", "id") if name not in request.query_params]
        _require(*missing)
        expense = _expense(request.query_params["id"])
        kind = request.query_params["type"]
        if self.asks and kind in _STATE_FOR:
            _check_offered(expense, kind, self.actor)
            return _ask(request._request, kind, expense.expense_id)
        if kind == "payment":
            pay(expense, actor=self.actor, route=Route.PROTOCOL)
            return self.succeed()
        decide(
            expense,
            kind,
            actor=self.actor,
            route=Route.PROTOCOL,
            reason=request.query_params.get("reason", ""),
            unstated=UNSTATED_REASON if kind == "reject" else "",
        )
        return self.succeed()


class StatusView(ProtocolView):
    """`GET /status?id=…` (E6)"""

    changes_state = False

    def is_api_call(self, request: Request) -> bool:
        return True

    def permission(self, request: Request) -> str | None:
        return None

    def get(self, request: Request) -> HttpResponse:
        _require(("query", "id") if "id" not in request.query_params else None)
        expense_id = _valid_id(request.query_params["id"])
        # Programs poll this: it reads one column.
        found = services.visible_to(self.actor).select_related(None).filter(expense_id=expense_id)
        state = found.values_list("state", flat=True).first()
        if state is None:
            raise _unknown(expense_id)
        return _text(state)


class RegisterCallbackView(ProtocolView):
    """`POST /registerCallback?id=…`, form field `task_token` (E7)"""

    http_method_names = ["post"]

    def is_api_call(self, request: Request) -> bool:
        return True

    def post(self, request: Request) -> HttpResponse:
        form = request._request.POST
        _require(
            ("query", "id") if "id" not in request.query_params else None,
            ("body", "task_token") if "task_token" not in form else None,
        )
        expense = _expense(request.query_params["id"])
        if expense.state != State.CREATED:
            raise ProtocolError("INVALID_STATE", "The expense is decided.")
        token = form["task_token"]
        if len(token) > LONGEST_TOKEN_HEX or not _HEX.fullmatch(token):
            raise ProtocolError("INVALID_FORM_DATA", "task_token is not hexadecimal.")
        ids = {name: form.get(name, "") for name in ("workflow_id", "run_id", "activity_id")}
        for name, value in ids.items():
            if value and not is_opaque_id(value, addresses.ID_LENGTH):
                raise ProtocolError("INVALID_FORM_DATA", f"{name} is not an id.")
        try:
            services.register_callback(
                expense,
                addresses.Address(bytes.fromhex(token), **ids),
                actor=self.actor,
                route=Route.PROTOCOL,
                now=timezone.now(),
            )
        except (services.NotWaiting, services.CallbackRefused) as error:
            raise ProtocolError("INVALID_STATE", str(error)) from error
        return self.succeed()


class ListView(ProtocolView):
    """`GET /` and `GET /list`: the expenses that the person sees, a page of 100 by id, with search
    (E2, X10)"""

    changes_state = False

    def is_api_call(self, request: Request) -> bool:
        return False

    def permission(self, request: Request) -> str | None:
        return None

    def get(self, request: Request) -> HttpResponse:
        search, after = (
            text if "\0" not in (text := request.query_params.get(name, "")) else ""
            for name in ("q", "after")
        )
        expenses = (
            services.visible_to(self.actor)
            .select_related(None)
            .only("expense_id", "state", "submitter_id", "opened_by_id")
            .filter(expense_id__gt=after)
        )
        fault = search_fault(search)
        if fault:
            expenses = expenses.none()
        elif search:
            # icontains folds ASCII letters alone where ids are compared by code point.
            found = Q(expense_id__icontains=search) | Q(expense_id__contains=search)
            expenses = expenses.filter(found) if len(search) <= ID_LENGTH else expenses.none()
        rows = list(expenses.order_by("expense_id")[: PAGE_ROWS + 1])
        page = rows[:PAGE_ROWS]
        version = zlib.crc32("\0".join(f"{row.expense_id}\0{row.state}" for row in rows).encode())
        context = {
            "expenses": page,
            "version": version,
            "search": search,
            "fault": fault,
            "after": after,
            "next": len(rows) > PAGE_ROWS
            and urlencode({"q": search, "after": page[-1].expense_id}),
            "offered": {
                row.pk
                for row in page
                if row.state == State.CREATED and services.may_decide(row, self.actor)
            },
        }
        response = render(request._request, "expenses/list.html", context)
        response["Cache-Control"] = "no-store"
        return response


@method_decorator(strict_csp, name="dispatch")
class FormView(View):
    """Answers a form of the site's own pages, which carries a CSRF token. Subclasses do what it
    asks for; `permission` is what that needs."""

    http_method_names = ["post"]
    permission: str

    def post(self, request: HttpRequest) -> HttpResponse:
        form = request.POST
        try:
            actor = _actor(
                request,
                permission=self.permission,
                cookies=True,
                expense_id=form.get("id", ""),
                route=Route.PAGE,
            )
            _require(*(("body", name) for name in ("id", "type") if name not in form))
            return self.carry_out(request, form["type"], form["id"], actor)
        except Exception as error:  # noqa: BLE001 (error_response raises what it does not know)
            return error_response(request, error, api=False, expense_id=form.get("id", ""))

    def carry_out(
        self, request: HttpRequest, kind: str, expense_id: str, actor: actors.Actor
    ) -> HttpResponse:
        raise NotImplementedError


class DecideView(FormView):
    """`POST /decide`: the buttons of the list page, and the page that asks for a decision."""

    permission = services.DECIDE

    def carry_out(
        self, request: HttpRequest, kind: str, expense_id: str, actor: actors.Actor
    ) -> HttpResponse:
        form = request.POST
        expense = _expense(expense_id)
        back = {name: form[name] for name in ("q", "after") if form.get(name)}
        try:
            decide(
                expense,
                kind,
                actor=actor,
                route=Route.PAGE,
                reason=form.get("reason", ""),
            )
        except approvals.ReasonMissing as error:
            return _ask(request, "reject", expense_id, why=str(error), back=back, status=400)
        return _to_list(back)


class CarryView(FormView):
    """`POST /carry`: the page that asks whether to create or to pay an expense."""

    permission = services.CARRY

    def carry_out(
        self, request: HttpRequest, kind: str, expense_id: str, actor: actors.Actor
    ) -> HttpResponse:
        if kind == "create":
            create(_valid_id(expense_id), None, actor=actor, route=Route.PAGE)
        elif kind == "payment":
            pay(_expense(expense_id), actor=actor, route=Route.PAGE)
        else:
            raise ProtocolError(
                "INVALID_TYPE", "There is nothing to do of this type; use create or payment."
            )
        return _to_list()


def create(expense_id: str, workflow_id: str | None, *, actor: actors.Actor, route: Route) -> None:
    """Create an expense over the protocol or its page (E5). Raises ProtocolError."""
    try:
        services.create_expense(
            expense_id, workflow_id=workflow_id, actor=actor, route=route, now=timezone.now()
        )
    except services.AlreadyExists as error:
        raise ProtocolError("ID_ALREADY_EXISTS", str(error)) from error


def pay(expense: Expense, *, actor: actors.Actor, route: Route) -> None:
    """Pay over the protocol or its page (E3). Raises ProtocolError."""
    try:
        services.record_payment(expense, actor=actor, route=route, now=timezone.now())
    except services.NotPayable as error:
        raise ProtocolError("INVALID_STATE", str(error)) from error


def decide(
    expense: Expense,
    kind: str,
    *,
    actor: actors.Actor,
    route: Route,
    reason: str,
    unstated: str = "",
) -> None:
    """Decide over the protocol or its page; a repeat of the standing verdict changes nothing and
    succeeds (E4). `unstated` stands for an empty reason. Raises ProtocolError and
    approvals.Refused."""
    if kind not in _VERBS:
        raise ProtocolError(
            "INVALID_TYPE", "There is nothing to do of this type; use approve or reject."
        )
    verdict = VERDICT_OF_VERB[kind]
    if expense.state != State.CREATED:
        # The state answers before the reason does.
        reason = UNSTATED_REASON
    try:
        reason = clean_text(reason, field="reason") or unstated
    except ValidationError as error:
        raise ProtocolError("INVALID_FORM_DATA", error.messages[0]) from error
    try:
        services.decide_expense(
            expense, verdict=verdict, actor=actor, route=route, reason=reason, now=timezone.now()
        )
    except approvals.AlreadyDecided as error:
        if error.verdict != verdict:
            raise ProtocolError("INVALID_STATE", str(error)) from error


def _actor(
    request: HttpRequest, *, permission: str | None, cookies: bool, expense_id: str, route: Route
) -> actors.Actor:
    """Who asks; a person without the permission is refused, which is audited (X3)."""
    try:
        return open_access.actor_of(request, permission=permission, cookies=cookies)
    except open_access.NotAllowed as error:
        if is_opaque_id(expense_id):
            approvals.record_refusal(
                services.SUBJECT,
                expense_id,
                f"{request.path}: no permission",
                actor=error.actor,
                route=route,
                now=timezone.now(),
            )
        raise


def _check_offered(expense: Expense, kind: str, actor: actors.Actor) -> None:
    """Raise ProtocolError where the person would be asked for what is refused then (X10)."""
    if expense.state != _STATE_FOR[kind]:
        raise ProtocolError(
            "INVALID_STATE", f"{expense.expense_id} is {expense.get_state_display()} already."
        )
    if kind in _VERBS and not services.may_decide(expense, actor):
        raise ProtocolError("FORBIDDEN", f"{expense.expense_id} is not yours to decide.", 403)


def _ask(
    request: HttpRequest,
    kind: str,
    expense_id: str,
    *,
    why: str = "",
    back: dict[str, str] | None = None,
    status: int = 200,
) -> HttpResponse:
    """The page that asks before anything is done; `why` says what was missing."""
    expense = Expense.objects.filter(expense_id=expense_id).first()
    context = {
        "kind": kind,
        "expense_id": expense_id,
        "expense": expense,
        "action": reverse("decide" if kind in _VERBS else "carry"),
        "why": why,
        "back": back or {},
    }
    response = render(request, "expenses/ask.html", context, status=status)
    response["Cache-Control"] = "no-store"
    return response


def _require(*missing: tuple[str, str] | None) -> None:
    found = [parameter for parameter in missing if parameter]
    if found:
        raise ParametersMissing(found)


def _valid_id(expense_id: str) -> str:
    if not is_opaque_id(expense_id):
        raise ProtocolError(
            "INVALID_ID",
            f"This is not an expense id: it has {ID_RULE}.",
        )
    return expense_id


def _expense(expense_id: str) -> Expense:
    try:
        return Expense.objects.get(expense_id=_valid_id(expense_id))
    except Expense.DoesNotExist:
        raise _unknown(expense_id) from None


def _unknown(expense_id: str) -> ProtocolError:
    return ProtocolError("INVALID_ID", f"There is no expense {expense_id}.")


def _text(body: str, status: int = 200) -> HttpResponse:
    response = HttpResponse(body, content_type="text/plain; charset=utf-8", status=status)
    response["Cache-Control"] = "no-store"
    return response


def _to_list(query: dict[str, str] | None = None) -> HttpResponse:
    return HttpResponseRedirect(reverse("list") + (f"?{urlencode(query)}" if query else ""))
