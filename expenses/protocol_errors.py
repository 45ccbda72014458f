"""Why the root routes of expenses refuse a request: the word for programs, the sentence for people
(requirements E4-E8)."""

from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from access import open_access
from access.text import ID_RULE, is_opaque_id
from approvals import services as approvals
from expenses import services
from expenses.models import Expense
from rest.problems import log_refusal
from worker import contracts


class Refusal(Exception):
    """A request is refused; `word` is one of the ERROR words of :mod:`worker.contracts`."""

    def __init__(self, word: str, sentence: str, status: int = 400) -> None:
        self.word = word
        self.status = status
        super().__init__(sentence)


class ParametersMissing(Exception):
    """Required parameters are absent; each is a pair of its place and its name."""

    def __init__(self, parameters: list[tuple[str, str]]) -> None:
        self.parameters = parameters
        super().__init__(f"missing: {', '.join(name for _, name in parameters)}")


def require(request: HttpRequest, *parameters: tuple[str, str]) -> None:
    """Raise ParametersMissing unless the request has each parameter, such as ("query", "id")."""
    places = {"query": request.GET, "body": request.POST}
    missing = [(place, name) for place, name in parameters if name not in places[place]]
    if missing:
        raise ParametersMissing(missing)


def valid_id(expense_id: str) -> str:
    """Return the id. Raises Refusal for an id that no expense can have."""
    if not is_opaque_id(expense_id):
        raise Refusal(
            contracts.INVALID_ID, f"This is not an expense id. An expense id has {ID_RULE}."
        )
    return expense_id


def find_expense(expense_id: str) -> Expense:
    """Return the expense with this id. Raises Refusal."""
    try:
        return Expense.objects.select_related("approval").get(expense_id=valid_id(expense_id))
    except Expense.DoesNotExist:
        raise unknown(expense_id) from None


def unknown(expense_id: str) -> Refusal:
    return Refusal(contracts.INVALID_ID, f"There is no expense {expense_id}.")


def answer(request: HttpRequest, error: Exception, *, api: bool, expense_id: str) -> HttpResponse:
    """Answer an exception of this module, of access or of a service, and log it (requirements E10).

    The answer is plain text for the API and a page for people. Any other exception is raised again.
    """
    if isinstance(error, ParametersMissing):
        details = [
            {"type": "missing", "loc": list(parameter), "msg": "Field required"}
            for parameter in error.parameters
        ]
        response: HttpResponse = JsonResponse({"detail": details}, status=422)
        log_refusal(request, response, str(error), record_id=expense_id)
        return response
    refusal = _refusal_of(error, api=api)
    if api:
        # The clients of the protocol raise for any status but 200 before they read the body.
        status = refusal.status if refusal.word == contracts.FORBIDDEN else 200
        response = plain_text(refusal.word, status)
    else:
        response = render(
            request,
            "expenses/message.html",
            {"sentence": str(refusal), "sign_in": refusal.status == 401},
            status=refusal.status,
        )
    if refusal.status == 401:
        response["WWW-Authenticate"] = "Bearer"
    log_refusal(request, response, f"{refusal.word} {refusal}", record_id=expense_id)
    return response


def _refusal_of(error: Exception, *, api: bool) -> Refusal:
    match error:
        case Refusal():
            return error
        case open_access.NotServed():
            raise Http404 from error
        case open_access.NotSignedIn():
            sentence = "A valid bearer token is needed." if api else "Sign in first."
            return Refusal(contracts.FORBIDDEN, sentence, 401)
        case open_access.NotAllowed() | approvals.NotPermitted() | approvals.SelfApproval():
            return Refusal(contracts.FORBIDDEN, str(error), 403)
        case services.ExpenseExists():
            return Refusal(contracts.ID_ALREADY_EXISTS, str(error))
        case approvals.WrongState() | services.CallbackRefused():
            return Refusal(contracts.INVALID_STATE, str(error))
        case ValidationError():
            return Refusal(contracts.INVALID_FORM_DATA, error.messages[0])
    raise error


def plain_text(body: str, status: int = 200) -> HttpResponse:
    return HttpResponse(body, content_type="text/plain; charset=utf-8", status=status)
