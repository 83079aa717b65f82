"""What is kept of each user: the newest events, and what a model made of them.

A user's version grows by one with every change of the events, so that whoever has read them can
change them only as he has seen them, and what was made of old ones is not taken for what is made of
the new. All that is kept of models is rebuildable from the events.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

Event = Mapping[str, Any]


class Made(NamedTuple):
    """What a model made of a user's events up to a version of them."""

    model: str  # which model
    version: int  # of the user
    state: bytes


class Record(NamedTuple):
    """A user."""

    user: str
    version: int
    told: int  # events there were in all, of which the newest are kept
    events: list[dict[str, Any]]  # oldest first
    made: Made | None
    changed: float  # when the events last did; another for whoever begins anew under the name


class StoreError(Exception):
    """The store could not do what it was asked."""


class Conflict(StoreError):
    """The user is no longer as the caller knows him; nothing was changed."""


class Full(StoreError):
    """There is no room to write; nothing was changed, and what is stored can still be read."""


class Unavailable(StoreError):
    """The store does not answer; it may do so later.

    A change that a server was already sent may have been made: one that is tried again with its
    `if_version` is not made twice.
    """


@runtime_checkable
class Store(Protocol):
    """Users by name. What a call has acknowledged outlives the process.

    All raise `Unavailable`, and those that write `Full`.
    """

    def get(self, user: str) -> Record | None:
        """The user; None where there is none, or none any more."""
        ...

    def version(self, user: str) -> int:
        """The user's version alone, for little; 0 where there is none, or none any more."""
        return self.last(user)[0]

    def last(self, user: str) -> tuple[int, float]:
        """The user's version and when it came to be, for little; (0, 0.0) where there is none."""
        ...

    def append(
        self, user: str, events: Sequence[Event], *, if_version: int | None = None
    ) -> Record:
        """The user with these events behind those of before; one who is not known begins.

        Raises:
          Conflict: the user is not of version `if_version` (0: not known), where one is given.
        """
        ...

    def replace(
        self, user: str, events: Sequence[Event], *, if_version: int | None = None
    ) -> Record:
        """The same with these events in the place of all before."""
        ...

    def keep(self, user: str, made: Made) -> bool:
        """Stores what was made of the events, unless they have changed since; whether it did."""
        ...

    def delete(self, user: str) -> bool:
        """Erases a user and all that was made of him; whether there was one."""
        ...

    def users(self, count: int) -> list[str]:
        """The names of some users, those that changed last first."""
        ...

    def purge(self) -> int:
        """Erases the users whose time is over; how many they were."""
        ...

    def close(self) -> None:
        """Lets go of what it holds."""
        ...
