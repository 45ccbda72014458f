"""The pages of expenses: the list, the page that asks, and the forms of both (requirements E2)."""

import zlib
from dataclasses import replace
from typing import Final
from urllib.parse import urlencode

from csp.constants import SELF
from csp.decorators import csp_replace
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views import View

from access import actors, open_access
from access.text import ID_LENGTH, clean_text, is_opaque_id, search_fault
from approvals import services as approvals
from approvals.models import VERDICT_OF_VERB, Route
from expenses import protocol_errors, services
from expenses.models import Expense, State
from worker import contracts

PAGE_ROWS: Final = 100
VERBS: Final = ("approve", "reject")


# The scripts of the admin need a wider policy; these pages have one script, from this site.
@method_decorator(csp_replace({"script-src": [SELF]}), name="dispatch")
class RootView(View):
    """A view outside the admin and `/api/v1/`. Once `self.actor` is known it answers `get` or
    `post`; what these raise becomes a refusal."""

    route = Route.PAGE
    # Whether a program asks: it gets plain text, and its cookies do not count.
    api = False
    # The permission that the request needs; None where signing in is enough.
    permission: str | None = None
    actor: actors.Actor

    @property
    def expense_id(self) -> str:
        return self.request.POST.get("id", "")

    def dispatch(self, request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
        if str(request.method).lower() not in self.http_method_names:
            return self.http_method_not_allowed(request)
        try:
            self.check_access()
            return super().dispatch(request, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 (answer raises what it does not know)
            return protocol_errors.answer(request, error, api=self.api, expense_id=self.expense_id)

    def check_access(self) -> None:
        """Find out who asks. A person without the permission is refused, which is audited (X3)."""
        try:
            self.actor = open_access.actor_of(
                self.request, permission=self.permission, cookies=not self.api
            )
        except open_access.NotAllowed as error:
            if is_opaque_id(self.expense_id):
                approvals.record_refusal(
                    services.KIND.name,
                    self.expense_id,
                    f"{self.request.path}: no permission",
                    approvals.Act(error.actor, self.route, timezone.now()),
                )
            raise

    def act(self, reason: str = "") -> approvals.Act:
        """Return what the actor does by this request."""
        return approvals.Act(self.actor, self.route, timezone.now(), reason)


class ListView(RootView):
    """`GET /` and `GET /list`: the expenses that the person sees, by id, 100 on a page, with search
    (E2, X10)."""

    http_method_names = ["get"]

    def get(self, request: HttpRequest) -> HttpResponse:
        search, after = (
            text if "\0" not in (text := request.GET.get(name, "")) else ""
            for name in ("q", "after")
        )
        expenses = (
            services.visible_to(self.actor)
            .select_related(None)
            .select_related("approval")
            .only(
                *("expense_id", "state", "approval__verdict", "approval__submitter_id"),
                *("approval__opened_by_id",),
            )
            .filter(expense_id__gt=after)
        )
        fault = search_fault(search)
        if fault or len(search) > ID_LENGTH:
            expenses = expenses.none()
        elif search:
            # Ids are compared by code point, where `icontains` misses letters beyond ASCII;
            # `contains` finds them.
            expenses = expenses.filter(
                Q(expense_id__icontains=search) | Q(expense_id__contains=search)
            )
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
                if row.state == State.CREATED
                and approvals.may_decide(self.actor, services.KIND, row.approval)
            },
        }
        return render(request, "expenses/list.html", context)


class DecideView(RootView):
    """`POST /decide`: the buttons of the list, and the page that asks for a decision."""

    http_method_names = ["post"]
    permission = services.DECIDE

    def post(self, request: HttpRequest) -> HttpResponse:
        protocol_errors.require(request, ("body", "id"), ("body", "type"))
        expense = protocol_errors.find_expense(self.expense_id)
        back = {name: request.POST[name] for name in ("q", "after") if request.POST.get(name)}
        try:
            decide(expense, request.POST["type"], self.act(request.POST.get("reason", "")))
        except approvals.ReasonMissing as error:
            return ask(request, "reject", self.expense_id, why=str(error), back=back, status=400)
        return to_list(back)


class CarryView(RootView):
    """`POST /carry`: the page that asks whether to create or to pay an expense."""

    http_method_names = ["post"]
    permission = services.CARRY

    def post(self, request: HttpRequest) -> HttpResponse:
        protocol_errors.require(request, ("body", "id"), ("body", "type"))
        if request.POST["type"] == "create":
            services.create_expense(
                protocol_errors.valid_id(self.expense_id),
                workflow_id=None,
                act=self.act(),
            )
        elif request.POST["type"] == "payment":
            services.record_payment(protocol_errors.find_expense(self.expense_id), self.act())
        else:
            raise protocol_errors.Refusal(
                contracts.INVALID_TYPE, "The type must be create or payment."
            )
        return to_list()


def decide(expense: Expense, verb: str, act: approvals.Act) -> None:
    """Decide on a page or over the protocol; asking again for the verdict that was taken changes
    nothing and succeeds (E4).

    Raises Refusal, ValidationError for the reason, and what approvals.decide raises.
    """
    if verb not in VERBS:
        raise protocol_errors.Refusal(contracts.INVALID_TYPE, "The type must be approve or reject.")
    # Of a decided expense the answer names the state, whatever is wrong with the reason.
    undecided = expense.state == State.CREATED
    reason = clean_text(act.reason, field="reason") if undecided else ""
    try:
        approvals.decide(expense.approval, VERDICT_OF_VERB[verb], replace(act, reason=reason))
    except approvals.AlreadyDecided as error:
        if error.verdict != VERDICT_OF_VERB[verb]:
            raise


def ask(
    request: HttpRequest,
    kind: str,
    expense_id: str,
    *,
    why: str = "",
    back: dict[str, str] | None = None,
    status: int = 200,
) -> HttpResponse:
    """Show the page that asks the person before anything is done; `why` says what was missing."""
    context = {
        "kind": kind,
        "expense_id": expense_id,
        "expense": Expense.objects.select_related("approval__submitter")
        .filter(expense_id=expense_id)
        .first(),
        "action": reverse("decide" if kind in VERBS else "carry"),
        "why": why,
        "back": back or {},
    }
    return render(request, "expenses/ask.html", context, status=status)


def to_list(query: dict[str, str] | None = None) -> HttpResponse:
    return HttpResponseRedirect(reverse("list") + (f"?{urlencode(query)}" if query else ""))
