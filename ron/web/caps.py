"""Capabilities over HTTP: mint, revoke, rotate, list; for nodes whose files nobody can reach (amnesia, another host).

In: the node's authority, its `AuthFiles`, a replay guard. Out: endpoints for a private listener. Nobody mints more than
they hold: whatever narrows the caller's capability narrows what is minted with it, and revoking it revokes that too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from ron.auth import AuthFiles, Authority, Capability, Caveat, Refused, ReplayGuard
from ron.auth.caveats import ALLOWANCES, RESOURCE, scope_allows, scope_parts
from ron.auth.files import Issued
from ron.auth.wire import (
    EpochsAnswer,
    ListAnswer,
    MintAnswer,
    MintRequest,
    RevokeAnswer,
    RevokeRequest,
    RotateRequest,
    cap_lines,
    epoch_lines,
    mint_answer,
)
from ron.kernel.threads import BoundedPool
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.web.endpoint import Call, Endpoint

P = ParamSpec("P")
T = TypeVar("T")


class Replay(Protocol):
    """Remembers operations; in one process, or for all workers of a listener."""

    async def claim(self, cap_id: str, op_id: str) -> None:
        """Raises `RonError`: Conflict on a repeat, Backpressure when too many are remembered, StoreUnavailable."""
        ...

    async def release(self, cap_id: str, op_id: str) -> None:
        """It did not happen: it may be tried again."""
        ...


class OwnReplay:
    """A guard of this process."""

    def __init__(self, guard: ReplayGuard) -> None:
        self._guard = guard

    async def claim(self, cap_id: str, op_id: str) -> None:
        """See `ReplayGuard.claim`."""
        self._guard.claim(cap_id, op_id)

    async def release(self, cap_id: str, op_id: str) -> None:
        """See `ReplayGuard.release`."""
        self._guard.release(cap_id, op_id)


def cap_endpoints(
    authority: Authority, files: AuthFiles, replay: Replay, *, pool: BoundedPool | None = None
) -> list[Endpoint]:
    """`/v1/caps`, `/v1/caps/mint`, `/v1/caps/revoke`, `/v1/caps/rotate`.

    pool: where files are written; None when they are in memory only. Revoking and rotating are never shed under load.
    """
    caps = _Caps(authority, files, replay, pool)
    return [
        Endpoint(
            method="POST",
            path="/v1/caps/mint",
            handler=caps.mint,
            scope="cap:mint",
            body=MintRequest,
            # what is minted carries the caller's own resource caveats: that is how they are enforced here
            enforces=RESOURCE,
            writes=True,
        ),
        Endpoint(
            method="POST",
            path="/v1/caps/revoke",
            handler=caps.revoke,
            scope="cap:revoke",
            body=RevokeRequest,
            vital=True,
        ),
        Endpoint(
            method="POST",
            path="/v1/caps/rotate",
            handler=caps.rotate,
            scope="cap:rotate",
            body=RotateRequest,
            vital=True,
        ),
        Endpoint(method="GET", path="/v1/caps", handler=caps.show, scope="cap:read"),
    ]


class _Caps:
    def __init__(self, authority: Authority, files: AuthFiles, replay: Replay, pool: BoundedPool | None) -> None:
        self._authority = authority
        self._files = files
        self._replay = replay
        self._pool = pool

    async def mint(self, call: Call, body: MintRequest) -> MintAnswer:
        caller = _caller(call)
        for name in sorted(RESOURCE):
            if getattr(body, name) is not None:
                caller.require(name, getattr(body, name))
        caveats = [*_inherited(caller, body.scope), *body.caveats(self._files.now())]
        try:
            issued = await self._run(self._issue, caveats, body.label, caller.cap_id)
        except ValueError:
            raise bad_request("a field is no valid caveat", "no blanks around it") from None
        return mint_answer(issued.token, issued.entry)

    async def revoke(self, call: Call, body: RevokeRequest) -> RevokeAnswer:
        cap_id = self._meant(body)
        return RevokeAnswer(revoked=await self._once(call, body.op_id, self._files.revoke, cap_id))

    async def rotate(self, call: Call, body: RotateRequest) -> EpochsAnswer:
        await self._once(call, body.op_id, self._files.rotate, grace_s=body.grace_s)
        return EpochsAnswer(epochs=epoch_lines(self._files.keys.epochs))

    async def show(self, _call: Call) -> ListAnswer:
        entries = await self._run(self._files.listed)
        return ListAnswer(epochs=epoch_lines(self._files.keys.epochs), capabilities=cap_lines(entries))

    def _issue(self, caveats: list[Caveat], label: str, parent: str) -> Issued:
        return self._files.issue(self._authority, caveats, label=label, parent=parent)

    def _meant(self, body: RevokeRequest) -> str:
        """The cap_id to revoke. A token must be one of ours: one that was altered would name somebody else's."""
        if (body.token is None) == (body.cap_id is None):
            raise bad_request("give a token or a cap_id", "exactly one of the two")
        if body.cap_id is not None:
            return body.cap_id
        try:
            return self._authority.recognise(body.token or "").cap_id
        except Refused as refused:
            raise bad_request(f"nothing to revoke: {refused.message}", "or give its cap_id") from None

    async def _once(self, call: Call, op_id: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work` under an op_id that has not been used. One that failed changed nothing and may be tried again."""
        cap_id = _caller(call).cap_id
        await self._replay.claim(cap_id, op_id)
        try:
            return await self._run(work, *args, **kwargs)
        except RonError:
            await self._replay.release(cap_id, op_id)
            raise

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._pool is None:
            return work(*args, **kwargs)
        return await self._pool.run(work, *args, **kwargs)


def _caller(call: Call) -> Capability:
    if call.capability is None:
        raise RonError(ErrorCode.NO_CAPABILITY, "no capability", status=401)
    return call.capability


def _inherited(caller: Capability, scope: str) -> list[Caveat]:
    """The caller's own caveats, for the new capability to carry. Refuses (403) what they would make useless or void."""
    for caveat in caller.caveats:
        if caveat.name in ALLOWANCES:
            # each new capability would come with a fresh allowance of its own: together more than the caller has
            raise RonError(
                ErrorCode.NO_CAPABILITY,
                f"a capability with {caveat.name} cannot mint",
                hint="attenuate it instead (no call needed): what is attenuated shares its allowance",
            )
        if caveat.name == "scope" and not all(scope_allows(caveat.value, part) for part in scope_parts(scope)):
            raise RonError(
                ErrorCode.NO_CAPABILITY, f"the caller's scope does not cover {scope}", hint=f"it has: {caveat.value}"
            )
    return [caveat for caveat in caller.caveats if caveat.name != "aud"]
