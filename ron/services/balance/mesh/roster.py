"""Who is a member: the book's `member/` entries, less the keys in its `removed/` entries. No sockets, no clock.

In: the book, a name and a key at the door. Out: whether it is a member, may become one, or why not.
"""

from __future__ import annotations

from collections.abc import Mapping

from ron.proto.balance import MAX_NODES
from ron.services.balance.mesh.book import LocalBook, number_of
from ron.services.balance.mesh.entries import MEMBER, REMOVED, Removed
from ron.services.balance.mesh.wire import Reason, Refused
from ron.services.balance.ports import Member

_HINTS: dict[Reason, str] = {
    "removed": "this key was removed from the cluster: join with a new invitation, in an empty directory",
    "name_taken": "another node has this name: choose one, or remove the old node first if it is gone for good",
    "number_taken": "two names gave the same number: choose another name",
    "wrong_token": "the token is not the present one: make a new invitation on a member",
    "full": f"a cluster has at most {MAX_NODES} nodes",
    "other_cluster": "it is a node of another cluster: compare the seeds with the invitation",
    "twin": "a node with this name and key is running already: stop one, and join the other machine anew",
    "replayed": "a later run of this node was here before: start it again",
}


def hint_of(reason: Reason) -> str | None:
    """What to do about a refusal at the door."""
    return _HINTS.get(reason)


def member_of(name: str, key: bytes, addresses: tuple[str, ...]) -> Member:
    """A member with the number that follows from its name and key."""
    return Member(name=name, number=number_of(name, key), key=key, addresses=addresses)


class Roster:
    """Members by what the book says now."""

    def __init__(self, book: LocalBook) -> None:
        self._book = book
        self._members: dict[str, Member] | None = None
        book.on_change(self._forget)

    def _forget(self, key: str) -> None:
        if key.startswith((MEMBER, REMOVED)):
            self._members = None

    def members(self) -> Mapping[str, Member]:
        """All, by name, in the order of names."""
        if self._members is None:
            found = (self._book.get(key, Member) for key in self._book.keys(MEMBER))
            self._members = {m.name: m for m in found if m is not None and not self.is_removed(m.name, m.key)}
        return self._members

    def is_removed(self, name: str, key: bytes) -> bool:
        """Whether `key` was removed under this name."""
        removed = self._book.get(REMOVED + name, Removed)
        return removed is not None and key in removed.keys

    def is_member(self, name: str, key: bytes) -> bool:
        """Whether it stands there, with this key."""
        member = self.members().get(name)
        return member is not None and member.key == key

    def refuse(self, name: str, key: bytes, *, proved: bool) -> None:
        """Raise `Refused` unless it is a member or, having `proved` the token, may become one."""
        if self.is_member(name, key):
            return
        if self.is_removed(name, key):
            raise Refused("removed", name, fatal=True)
        # before the name is looked at: who does not know the token learns nothing of the roster
        if not proved:
            raise Refused("wrong_token", name, fatal=True)
        members = self.members()
        if name in members:
            raise Refused("name_taken", name, fatal=True)
        number = number_of(name, key)
        taken = next((member.name for member in members.values() if member.number == number), None)
        if taken is not None:
            raise Refused("number_taken", f"{name} and {taken} would both be {number}", fatal=True)
        if len(members) >= MAX_NODES:
            raise Refused("full", name, fatal=True)
