"""Calls of workers that are the owner's to do: those that change something, and those with an op_id.

In: `Ask` frames. Out: `Answer` frames, once every worker goes by what the call has changed. Workers are ours and have
asked for the caller's capability themselves; the request is judged as from any caller.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.services.kms.api import KmsDesk
from ron.services.kms.door import OPERATIONS
from ron.services.kms.workers.frames import Answer, Ask, Trouble

_OPERATIONS = {one.name: one for one in OPERATIONS}
_log = Logger(namespace="ron.kms.workers")


class Calls:
    """desk: of the owner; it answers after its workers have heard (`gate`)."""

    def __init__(self, desk: KmsDesk) -> None:
        self._desk = desk

    def ask(self, frame: Ask, tell: Callable[[Answer], None]) -> None:
        """Do it, and tell what came of it."""

        def failed(failure: Failure) -> None:
            error = failure.value
            if not isinstance(error, RonError):
                _log.failure("{call} failed", failure, event="internal_error", call=frame.operation)
                error = RonError(ErrorCode.INTERNAL, "internal error", hint="the node's log has it")
            tell(Answer(frame.number, b"", Trouble.of(error)))

        work = Deferred.fromCoroutine(self._done(frame))
        work.addCallbacks(lambda body: tell(Answer(frame.number, body)), failed)

    async def _done(self, frame: Ask) -> bytes:
        operation = _OPERATIONS.get(frame.operation)
        if operation is None:
            raise bad_request("there is no such call")
        try:
            body = msgspec.json.decode(frame.body, type=operation.body)
        except msgspec.MsgspecError:
            raise bad_request("the request is not JSON of this call") from None
        return msgspec.json.encode(await operation.run(self._desk, frame.who.caller(), body))
