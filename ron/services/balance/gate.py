"""Who gets into the cluster and who is shown out: the mesh, the node's files and the CA, as operators' orders need.

In: names and addresses. Out: removals, tokens, invitations. Without the CA's key on this host nobody is invited here.
"""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.threads import deferToThread

from ron.crypto import x509
from ron.kernel.files import read_private
from ron.proto.balance import NodeName, Where
from ron.proto.balanceviews import InvitationAnswer, RemoveAnswer, TokenAnswer
from ron.proto.errors import ErrorCode, RonError, bad_request, unavailable
from ron.services.balance.mesh.files import NodeFiles, invitation
from ron.services.balance.mesh.mesh import MeshService

PASSPHRASE_VARIABLE = "RON_CA_PASSPHRASE"  # noqa: S105 - the variable's name
# An invitation names so many members at most: one that is up is enough.
MAX_SEEDS = 8


class MeshGate:
    """`operations.Gate`: the mesh, the node's files, and the CA's folder where there is one. needed: how many members
    have to ask for a removal."""

    def __init__(self, mesh: MeshService, files: NodeFiles, ca: Path, needed: int) -> None:
        self._needed = needed
        self._mesh = mesh
        self._files = files
        self._ca = ca

    async def remove(self, name: NodeName) -> RemoveAnswer:
        """As `MeshService.remove`."""
        asked = await self._mesh.remove(name)
        removed = name not in self._mesh.members()
        return RemoveAnswer(name=name, removed=removed, asked_by=tuple(sorted(asked)), needed=self._needed)

    async def rotate_token(self) -> TokenAnswer:
        """A new token, and who is there to get it."""
        version = await self._mesh.rotate_token()
        there = [name for name, peer in self._mesh.peers().items() if peer.connected]
        return TokenAnswer(version=version, told=tuple(sorted(there)))

    async def invite(self, name: NodeName, addresses: tuple[Where, ...]) -> InvitationAnswer:
        """With the CA of this home. Raises Unsupported without one."""
        if name in self._mesh.members():
            raise bad_request(f"{name} is a member already", "choose another name, or remove it first")
        seeds = tuple(address for member in self._mesh.members().values() for address in member.addresses)
        if not seeds:
            raise unavailable("this node does not listen yet", "try again in a moment")
        bundle: str = await deferToThread(self._invitation, name, seeds)
        return InvitationAnswer(name=name, bundle=bundle)

    def _invitation(self, name: NodeName, seeds: tuple[str, ...]) -> str:
        """Blocks."""
        phrase = os.environ.get(PASSPHRASE_VARIABLE)
        try:
            key, certificate = read_private(self._ca / "ca.key"), (self._ca / "ca.pem").read_bytes()
        except OSError:
            raise RonError(
                ErrorCode.UNSUPPORTED,
                "this node has no CA to sign an invitation with",
                hint="ronctl balance invite NAME --ca-dir DIR --seed HOST:PORT",
            ) from None
        authority = x509.load_ca(certificate, key, phrase.encode() if phrase else None)
        return invitation(self._files, name, authority, seeds[:MAX_SEEDS])
