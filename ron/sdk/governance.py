"""A key service's governance as a program uses it: proposals and votes that people signed, and how they stand.

In: an `Api` on the service's control socket (`governance_at`) or any other transport. Out: views of
`ron.proto.governance`. What is sent twice is one act: the service knows it by what was signed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from ron.proto.governance import (
    PATH,
    ExecuteRequest,
    GovernanceView,
    LogAnswer,
    ProposalList,
    ProposalView,
    RecordView,
    SignedObject,
    State,
)
from ron.sdk.client import Api
from ron.sdk.transport import unix_http

DEADLINE_S = 35.0


def governance_at(reactor: Any, socket: Path, capability: str | None, *, tries: int = 5) -> Api:
    """An `Api` on the key service that listens on the Unix socket `socket`, for `Governance`."""
    return Api(reactor, unix_http(reactor, socket), "http://kms", capability, deadline_s=DEADLINE_S, tries=tries)


class Governance:
    """Calls of one service; each raises `RonError` and needs scope `kms:governance`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def standing(self) -> GovernanceView:
        """Who decides, what is frozen, decided and disputed."""
        return await self._api.call("GET", PATH, GovernanceView)

    async def proposals(self, state: State | None = None) -> tuple[ProposalView, ...]:
        """All of them, newest first; or those in one state."""
        found: list[ProposalView] = []
        before = None
        while True:
            asked = {key: value for key, value in (("state", state), ("before", before)) if value is not None}
            page = await self._api.call("GET", _with(f"{PATH}/proposals", asked), ProposalList)
            found += page.proposals
            # a page that names one seen already would go round for ever
            if page.next is None or page.next == before:
                return tuple(found)
            before = page.next

    async def proposal(self, proposal: str) -> ProposalView:
        """One of them. Raises NotFound."""
        return await self._api.call("GET", _path(proposal), ProposalView)

    async def propose(self, signed: SignedObject) -> ProposalView:
        """A `Proposal` that its author signed."""
        return await self._api.call("POST", f"{PATH}/proposals", ProposalView, signed)

    async def vote(self, proposal: str, signed: SignedObject) -> ProposalView:
        """A `Statement` on it: submit, approve, reject, tiebreak."""
        return await self._api.call("POST", f"{_path(proposal)}/votes", ProposalView, signed)

    async def execute(self, proposal: str) -> ProposalView:
        """Carry out what was approved, or have its permission ready."""
        return await self._api.call("POST", f"{_path(proposal)}/execute", ProposalView, ExecuteRequest())

    async def dispute(self, signed: SignedObject) -> GovernanceView:
        """An auditor's `Statement`: dispute, resolve."""
        return await self._api.call("POST", f"{PATH}/disputes", GovernanceView, signed)

    async def log(self, since: int = 0) -> tuple[RecordView, ...]:
        """The book from `since` (Unix seconds) on, oldest first."""
        found: list[RecordView] = []
        start = 0
        while True:
            page = await self._api.call("GET", _with(f"{PATH}/log", {"start": start, "since": since}), LogAnswer)
            found += page.records
            if page.next is None or page.next <= start:
                return tuple(found)
            start = page.next


def _path(proposal: str) -> str:
    return f"{PATH}/proposals/{quote(proposal, safe='')}"


def _with(path: str, asked: dict[str, Any]) -> str:
    return f"{path}?{urlencode(asked)}" if asked else path
