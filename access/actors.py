"""The actor of a request: a signed-in user, or the anonymous person at a local installation."""

from dataclasses import dataclass
from typing import Final

from django.contrib.auth.models import User

from access import groups


@dataclass(frozen=True)
class Actor:
    """A user, or None for the anonymous person of a local installation, who may do everything."""

    user: User | None
    name: str

    @classmethod
    def of(cls, user: User) -> "Actor":
        return cls(user, user.get_username())

    def may(self, permission: str) -> bool:
        return self.user is None or self.user.has_perm(permission)

    @property
    def carries(self) -> bool:
        """Whether the actor does a worker's part: creates, registers, pays and runs steps.

        A superuser has every permission, so only membership of the Worker group counts there.
        """
        if self.user is None:
            return False
        if self.user.is_superuser:
            return groups.is_worker(self.user)
        return any(map(self.user.has_perm, groups.CARRY))


LOCAL: Final = Actor(None, "local")
