"""An operator's removals and new tokens, as one node carries them out.

In: orders, the book, this node's files. Out: writings in the book, a new token. Where several members have to ask for a
removal, the one that completes it writes it; that one may be any of them, when their writings cross.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.proto.balance import NodeName
from ron.proto.errors import conflict, not_found
from ron.services.balance.mesh.book import LocalBook
from ron.services.balance.mesh.entries import TOKEN
from ron.services.balance.mesh.files import NodeFiles
from ron.services.balance.mesh.roster import Roster
from ron.services.balance.mesh.tokens import new_token, notice_of
from ron.services.balance.mesh.vouching import Vouching

_log = Logger(namespace="ron.balance.mesh")


class Removals:
    """Of one node. key: its own public key."""

    def __init__(self, book: LocalBook, roster: Roster, files: NodeFiles, vouching: Vouching, key: bytes) -> None:
        self._book = book
        self._roster = roster
        self._files = files
        self._vouching = vouching
        self._me = files.name
        self._key = key

    async def remove(self, name: NodeName) -> frozenset[NodeName]:
        """As `MeshService.remove`."""
        member = self._roster.members().get(name)
        if member is None:
            raise not_found(f"there is no member {name}")
        self._refuse_strangers()
        asked = frozenset({self._me})
        if name != self._me and self._book.needed > 1:
            asked = self._book.strike(await deferToThread(self._vouching.vouch, name, member.key))
            if len(asked) < self._book.needed:
                return asked
        self._book.remove(name)
        if name != self._me:
            await self.rotate_token()
        return asked

    async def rotate_token(self) -> int:
        """As `MeshService.rotate_token`."""
        self._refuse_strangers()
        token = new_token(self._files.token.version + 1)
        await deferToThread(self._files.keep_token, token)
        self._book.put(TOKEN, notice_of(token))
        return token.version

    def complete(self) -> None:
        """Others have asked for what this node's operator asked for too: it is enough now, perhaps."""
        for name, member in list(self._roster.members().items()):
            asked = self._book.asked_by(name, member.key)
            if self._me in asked and name != self._me and len(asked) >= self._book.needed > 1:
                self._book.remove(name)
                Deferred.fromCoroutine(self.rotate_token()).addErrback(_not_rotated)

    def _refuse_strangers(self) -> None:
        if not self._roster.is_member(self._me, self._key):
            raise conflict("this node is no member of the cluster", hint="look at ronctl balance status")


def _not_rotated(failure: Failure) -> None:
    _log.failure("a member was removed, and the token is the old one", failure, event="mesh_token_not_rotated")
