"""The plain-text endpoints (requirements E3-E8).

Order of answers: 405, cross-site 403, access 401/403, 422, INVALID_ID, INVALID_TYPE or
INVALID_STATE, INVALID_FORM_DATA. Without `is_api_call=true` the answer is a page.
"""

import re
from typing import Final

from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_exempt

from access import cross_site, open_access
from access.text import is_opaque_id
from approvals import services as approvals
from approvals.models import Route
from expenses import pages, services
from expenses.models import Expense, State
from expenses.protocol_errors import Refusal, find_expense, plain_text, require, unknown, valid_id
from temporal import addresses
from worker import contracts

UNSTATED_REASON: Final = "rejected over the protocol"

# The state in which an expense can be asked for each of these.
_STATE_FOR = {"approve": State.CREATED, "reject": State.CREATED, "payment": State.APPROVED}
# At most 4 KiB.
_TOKEN = re.compile(r"(?:[0-9a-fA-F]{2}){1,4096}")


# Programs send no CSRF token; check_access refuses what another site or a session sends.
@method_decorator(csrf_exempt, name="dispatch")
class ProtocolView(pages.RootView):
    """A plain endpoint. It changes state, unless a subclass says otherwise."""

    http_method_names = ["get"]
    route = Route.PROTOCOL
    permission: str | None = services.CARRY
    changes_state = True
    # Whether the answer is a page that asks the person, instead of the change.
    asks = False

    @property
    def expense_id(self) -> str:
        return self.request.GET.get("id", "")

    def check_access(self) -> None:
        self.api = self.api or self.request.GET.get("is_api_call", "").lower() == "true"
        if self.changes_state and cross_site.is_cross_site(self.request):
            raise Refusal(contracts.FORBIDDEN, cross_site.REFUSAL, 403)
        super().check_access()
        # A link can lead a person here, so a session never changes anything by GET.
        if (
            self.changes_state
            and self.request.method == "GET"
            and open_access.is_by_session(self.request)
        ):
            if self.api:
                raise open_access.NotSignedIn
            self.asks = True

    def succeed(self) -> HttpResponse:
        return plain_text(contracts.SUCCEED) if self.api else pages.to_list()


class CreateView(ProtocolView):
    """`GET /create?id=…` (E5)"""

    def get(self, request: HttpRequest) -> HttpResponse:
        require(request, ("query", "id"))
        expense_id = valid_id(self.expense_id)
        key = request.headers.get("Idempotency-Key")
        workflow_id = contracts.workflow_id_of_key(key) if key else None
        if workflow_id is not None and not is_opaque_id(workflow_id, addresses.ID_LENGTH):
            raise Refusal(
                contracts.INVALID_FORM_DATA,
                "The Idempotency-Key is not a workflow id, percent-encoded.",
            )
        if self.asks:
            services.check_id_is_free(expense_id)
            return pages.ask(request, "create", expense_id)
        services.create_expense(
            expense_id,
            workflow_id=workflow_id,
            act=self.act(),
        )
        return self.succeed()


class ActionView(ProtocolView):
    """`GET /action?type=approve|reject|payment&id=…` (E3)"""

    def check_access(self) -> None:
        kinds = {"payment": services.CARRY, **dict.fromkeys(pages.VERBS, services.DECIDE)}
        self.permission = kinds.get(self.request.GET.get("type", ""))
        super().check_access()

    def get(self, request: HttpRequest) -> HttpResponse:
        require(request, ("query", "type"), ("query", "id"))
        expense = find_expense(self.expense_id)
        kind = request.GET["type"]
        if kind not in _STATE_FOR:
            raise Refusal(contracts.INVALID_TYPE, "The type must be approve, reject or payment.")
        if self.asks:
            self.check_offered(expense, kind)
            return pages.ask(request, kind, expense.expense_id)
        if kind == "payment":
            services.record_payment(expense, self.act())
            return self.succeed()
        reason = request.GET.get("reason", "")
        if kind == "reject" and not reason.strip():
            reason = UNSTATED_REASON
        pages.decide(expense, kind, self.act(reason))
        return self.succeed()

    def check_offered(self, expense: Expense, kind: str) -> None:
        """Raise Refusal where the page would ask for what is then refused (X10)."""
        if expense.state != _STATE_FOR[kind]:
            raise Refusal(
                contracts.INVALID_STATE,
                f"{expense.expense_id} is {expense.get_state_display()} already.",
            )
        if kind in pages.VERBS and not approvals.may_decide(
            self.actor, services.KIND, expense.approval
        ):
            raise Refusal(contracts.FORBIDDEN, f"{expense.expense_id} is not yours to decide.", 403)


class StatusView(ProtocolView):
    """`GET /status?id=…` (E6)"""

    api = True
    changes_state = False
    permission = None

    def get(self, request: HttpRequest) -> HttpResponse:
        require(request, ("query", "id"))
        # Programs poll this, so it reads one column.
        found = services.visible_to(self.actor).select_related(None)
        found = found.filter(expense_id=valid_id(self.expense_id))
        state = found.values_list("state", flat=True).first()
        if state is None:
            raise unknown(self.expense_id)
        return plain_text(state)


class RegisterCallbackView(ProtocolView):
    """`POST /registerCallback?id=…`, form field `task_token` (E7)"""

    http_method_names = ["post"]
    api = True

    def post(self, request: HttpRequest) -> HttpResponse:
        require(request, ("query", "id"), ("body", "task_token"))
        expense = find_expense(self.expense_id)
        if expense.state != State.CREATED:
            raise Refusal(contracts.INVALID_STATE, "The expense is decided.")
        token = request.POST["task_token"]
        if not _TOKEN.fullmatch(token):
            raise Refusal(contracts.INVALID_FORM_DATA, "task_token is not hexadecimal.")
        ids = {
            name: request.POST.get(name, "") for name in ("workflow_id", "run_id", "activity_id")
        }
        for name, value in ids.items():
            if value and not is_opaque_id(value, addresses.ID_LENGTH):
                raise Refusal(contracts.INVALID_FORM_DATA, f"{name} is not an id.")
        services.register_callback(
            expense,
            addresses.Address(bytes.fromhex(token), **ids),
            self.act(),
        )
        return self.succeed()
