"""Who acts: a signed-in user, or the anonymous person at a local installation."""

from dataclasses import dataclass
from typing import Final

from django.contrib.auth.models import User


@dataclass(frozen=True)
class Actor:
    """`user` is None for the anonymous person of a local installation, who may do everything."""

    user: User | None
    name: str

    @classmethod
    def of(cls, user: User) -> "Actor":
        return cls(user, user.get_username())

    def may(self, permission: str) -> bool:
        return self.user is None or self.user.has_perm(permission)


LOCAL: Final = Actor(None, "local")
