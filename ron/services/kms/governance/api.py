"""Governance over HTTP: decode, call, encode. In: DTOs of `ron.proto.governance` behind `ron.web`. Out: `endpoints`.

A capability with scope `kms:governance` may bring what people signed, and may execute what they decided. It decides
nothing: that takes their keys. One that is narrowed to a tenant is refused here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast, get_args

import msgspec

from ron.proto.errors import bad_request, not_found
from ron.proto.governance import (
    PATH,
    ExecuteRequest,
    GovernanceView,
    LogAnswer,
    ProposalId,
    ProposalList,
    ProposalView,
    SignedObject,
    State,
)
from ron.services.kms.governance.quorum import Governance
from ron.services.kms.governance.views import log_page, proposal_list, proposal_view, standing
from ron.web import Call, Endpoint

SCOPE = "kms:governance"
_STATES = frozenset(get_args(State))


def endpoints(governance: Governance) -> list[Endpoint]:
    """The routes of `governance`."""
    api = _Api(governance)

    def endpoint(method: str, path: str, handler: Callable[..., Any], body: Any = None) -> Endpoint:
        return Endpoint(method=method, path=f"{PATH}{path}", scope=SCOPE, handler=handler, body=body)

    return [
        endpoint("GET", "", api.standing),
        endpoint("GET", "/proposals", api.list),
        endpoint("POST", "/proposals", api.propose, SignedObject),
        endpoint("GET", "/proposals/<proposal>", api.show),
        endpoint("POST", "/proposals/<proposal>/votes", api.vote, SignedObject),
        endpoint("POST", "/proposals/<proposal>/execute", api.execute, ExecuteRequest),
        endpoint("POST", "/disputes", api.dispute, SignedObject),
        endpoint("GET", "/log", api.log),
    ]


# What each call answers, for the OpenAPI file.
ANSWERS: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("GET", PATH): GovernanceView,
    ("GET", f"{PATH}/proposals"): ProposalList,
    ("POST", f"{PATH}/proposals"): ProposalView,
    ("GET", f"{PATH}/proposals/<proposal>"): ProposalView,
    ("POST", f"{PATH}/proposals/<proposal>/votes"): ProposalView,
    ("POST", f"{PATH}/proposals/<proposal>/execute"): ProposalView,
    ("POST", f"{PATH}/disputes"): GovernanceView,
    ("GET", f"{PATH}/log"): LogAnswer,
}


class _Api:
    def __init__(self, governance: Governance) -> None:
        self._governance = governance

    def standing(self, _call: Call) -> GovernanceView:
        return standing(self._governance)

    def list(self, call: Call) -> ProposalList:
        state = call.asked("state")
        if state is not None and state not in _STATES:
            raise bad_request("state is none that a proposal has", "|".join(sorted(_STATES)))
        return proposal_list(self._governance, cast(State | None, state), call.asked("before"))

    def show(self, _call: Call, proposal: str) -> ProposalView:
        return proposal_view(self._governance.ledger.case(_id(proposal)), self._governance)

    async def propose(self, call: Call, body: SignedObject) -> ProposalView:
        return proposal_view(await self._governance.propose(body, _actor(call)), self._governance)

    async def vote(self, call: Call, body: SignedObject, proposal: str) -> ProposalView:
        before = self._governance.ledger.case(_id(proposal))
        case = await self._governance.state(body, _actor(call), about=before.proposal.id)
        return proposal_view(case or before, self._governance)

    async def execute(self, call: Call, _body: ExecuteRequest, proposal: str) -> ProposalView:
        return proposal_view(await self._governance.execute(_id(proposal), _actor(call)), self._governance)

    async def dispute(self, call: Call, body: SignedObject) -> GovernanceView:
        await self._governance.state(body, _actor(call), about="")
        return standing(self._governance)

    def log(self, call: Call) -> LogAnswer:
        return log_page(self._governance.book, _number(call, "start"), _number(call, "since"))


def _id(text: str) -> str:
    """A proposal's id from a path. Raises NotFound for what none can have."""
    try:
        proposal: str = msgspec.convert(text, ProposalId)
    except msgspec.ValidationError:
        raise not_found("there is no such proposal") from None
    return proposal


def _number(call: Call, name: str) -> int:
    text = call.asked(name)
    if text is None:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise bad_request(f"{name} is a whole number")
    return int(text)


def _actor(call: Call) -> str:
    return call.capability.cap_id if call.capability is not None else ""
