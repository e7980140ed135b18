"""Nobody is told of a change before every worker goes by it.

In: the owner's desk and endpoints, the wait for the workers. Out: the same, whose answers to what changes something
come after that wait.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from ron.proto.kms import (
    CreateKeyRequest,
    CreateKeyResponse,
    DestroyRequest,
    DestroyResponse,
    Kid,
    RotateRequest,
    RotateResponse,
)
from ron.services.kms.api import KmsDesk
from ron.services.kms.model import Caller
from ron.services.kms.ports import AuditLog
from ron.web import Call, Endpoint

Settled = Callable[[], Awaitable[None]]


class GatedDesk:
    """`KmsDesk`. settled: returns when every worker goes by what has changed."""

    def __init__(self, desk: KmsDesk, settled: Settled) -> None:
        self._desk = desk
        self._settled = settled
        self.sign, self.verify = desk.sign, desk.verify
        self.wrap, self.unwrap = desk.wrap, desk.unwrap
        self.get, self.list, self.attest = desk.get, desk.list, desk.attest
        # the log is the owner's alone: no worker signs its heads
        self.rotate_log_key = desk.rotate_log_key

    async def create(self, caller: Caller, body: CreateKeyRequest) -> CreateKeyResponse:
        """Whoever has the key's name can use it at once, whichever worker he meets."""
        answer = await self._desk.create(caller, body)
        await self._settled()
        return answer

    async def rotate(self, caller: Caller, kid: Kid, body: RotateRequest) -> RotateResponse:
        """No worker signs with the version before any more."""
        answer = await self._desk.rotate(caller, kid, body)
        await self._settled()
        return answer

    async def destroy(self, caller: Caller, kid: Kid, body: DestroyRequest) -> DestroyResponse:
        """No worker has the private halves any more."""
        answer = await self._desk.destroy(caller, kid, body)
        await self._settled()
        return answer

    @property
    def log(self) -> AuditLog:
        """The audit log."""
        return self._desk.log


def gated(endpoint: Endpoint, settled: Settled) -> Endpoint:
    """`endpoint`, which answers after the workers have heard, unless it only reads."""
    if endpoint.method == "GET":
        return endpoint
    handler = endpoint.handler

    async def handle(call: Call, *args: Any, **params: str) -> Any:
        found = handler(call, *args, **params)
        answer = await found if inspect.isawaitable(found) else found
        await settled()
        return answer

    return dataclasses.replace(endpoint, handler=handle)
