"""The kinds of requests that need a person's yes. Each domain registers its kinds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from django.db.models import Model

from access.actors import Actor
from outbox import subjects
from outbox.models import Message

if TYPE_CHECKING:
    from approvals.models import Approval, Verdict
    from approvals.services import Act


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of request.

    Its approvals and audit entries have the `name`. `model` keeps the requests: its `verbose_name`
    is for people, its `own_id` is the field with the id that people know, and its `approval` is the
    request's approval. It is registered in the admin.

    `permission` is needed to approve and reject. With it, or with one of the permissions
    `seen_with`, people see all requests; others see what they submitted. `verdicts` are the
    verdicts that a request of this kind can get.

    `decided` does what follows from a verdict, in the transaction that takes it: it writes the
    request's state and enqueues the message to the workflow, which it returns. `messages` has the
    words for each of its messages, by the word in their keys.
    """

    name: str
    model: type[Model]
    own_id: str
    permission: str
    seen_with: tuple[str, ...]
    verdicts: "frozenset[Verdict]"
    decided: "Callable[[Approval, Act], Message | None]"
    messages: Mapping[str, str] = field(default_factory=lambda: {"decision": "decision on"})

    def key(self, message: str, reference: str) -> str:
        """Return the key of a message about a request: `expense-decision:lunch-1`."""
        return self.prefix(message) + reference

    def prefix(self, message: str) -> str:
        return f"{self.name}-{message}:"

    def keys(self, reference: str) -> list[str]:
        """Return the keys of all messages about a request."""
        return [self.key(message, reference) for message in self.messages]

    def page(self, reference: str) -> str:
        """Return the path of the request's page in the admin."""
        return subjects.page(self.model, self.own_id, reference)

    def is_seen_by(self, actor: Actor) -> bool:
        """Return whether the actor sees all requests of this kind (requirements X10)."""
        return any(map(actor.may, (self.permission, *self.seen_with)))


KINDS: Final[dict[str, Kind]] = {}


def register(kind: Kind) -> None:
    """Make approvals of this kind possible: in the admin, over REST and in the outbox."""
    KINDS[kind.name] = kind
    for message, words in kind.messages.items():
        subjects.register(kind.prefix(message), words=words, model=kind.model, own_id=kind.own_id)
