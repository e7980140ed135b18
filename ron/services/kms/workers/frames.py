"""What the owner and a worker say to each other over their pair: MessagePack frames, each checked as a whole. Pure.

In: bytes, or what is to be told. Out: one of the frames below, or its bytes. `link` puts them on the pair.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from ron.kernel.health import Readiness
from ron.kernel.limits import Refused
from ron.kernel.metrics import Family
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.proto.kms import Alg
from ron.services.kms.model import Caller
from ron.services.kms.ports import AuditEntry
from ron.services.kms.store import State

# All metrics of a worker, or a call with the largest body.
MAX_FRAME_BYTES = 16 * 1024 * 1024
# Of private halves at once: a key version is some 2.5 KB.
KEYS_PER_FRAME = 200
# Records of all workers together that wait for the disk. The log takes a few more, which are the owner's own.
MOST_IN_FLIGHT = 1536


class _Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Start(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first word to a worker, before any frame. name: of the process. workers: how many there are. config: as JSON,
    as the owner judged it. forward: the socket where the owner answers what a worker does not. oap: is its listener
    there, too? secret_bytes: of the master key, which follows by itself."""

    name: str
    workers: int
    config: bytes
    forward: str
    oap: bool = False
    secret_bytes: int = 32


class Trouble(_Frame, frozen=True):
    """A `RonError` on its way. reason: of a `Refused`, empty for any other."""

    code: ErrorCode
    message: str
    hint: str | None = None
    status: int | None = None
    retry_after_s: int | None = None
    reason: str = ""

    @classmethod
    def of(cls, error: RonError) -> Trouble:
        """`error`, to be sent."""
        reason = error.reason if isinstance(error, Refused) else ""
        return cls(error.code, error.message, error.hint, error.status, error.retry_after_s, reason)

    def error(self) -> RonError:
        """A fresh one, to be raised."""
        told = {"hint": self.hint, "status": self.status, "retry_after_s": self.retry_after_s}
        if self.reason:
            return Refused(self.reason, self.code, self.message, **told)  # type: ignore[arg-type]
        return RonError(self.code, self.message, **told)  # type: ignore[arg-type]


class Who(_Frame, frozen=True):
    """A caller whose capability the worker has checked already."""

    actor: str
    tenants: tuple[str, ...]
    corr_id: str

    @classmethod
    def of(cls, caller: Caller) -> Who:
        """`caller`, to be sent."""
        return cls(caller.actor, caller.tenants, caller.corr_id)

    def caller(self) -> Caller:
        """As the owner goes by it. What it is narrowed to was looked at over there."""
        return Caller(self.actor, self.tenants, self.corr_id)


# From a worker


class Batch(_Frame, frozen=True, tag="batch"):
    """What one turn of the reactor brought. entries: answers wait for them. notes: none does."""

    number: int
    entries: tuple[AuditEntry, ...]
    notes: tuple[AuditEntry, ...]


class Applied(_Frame, frozen=True, tag="applied"):
    """All that was said up to this generation is in force here."""

    generation: int


class Ask(_Frame, frozen=True, tag="ask"):
    """A call that is the owner's: its name in `OPERATIONS`, its request as JSON."""

    number: int
    operation: str
    who: Who
    body: bytes


class Counted(_Frame, frozen=True, tag="counted"):
    """The answer to `Count`."""

    number: int
    families: tuple[Family, ...]


class Feels(_Frame, frozen=True, tag="feels"):
    """How the worker's own process is: its promise, its capabilities' files."""

    readiness: Readiness


# From the owner


class KeyWord(_Frame, frozen=True):
    """A key version as it is from now on. blob: its sealed private halves, only while it may be used."""

    kid: str
    state: State
    halves: tuple[tuple[Alg, bytes], ...]
    attestation: str
    made: int = 0
    blob: bytes = b""


class Keys(_Frame, frozen=True, tag="keys"):
    """These have changed, or are all there are."""

    keys: tuple[KeyWord, ...]


class Standing(_Frame, frozen=True, tag="standing"):
    """How things stand. It is repeated each second, with the same generation while nothing has changed.

    freezes: scope → proposal. modes: scope → verify mode that a quorum gave it. troubles: readiness keys that are not
    satisfied, and why. fresh: what is known of keys was confirmed a moment ago. config: JSON, only where it is another.
    """

    generation: int
    freezes: dict[str, str]
    modes: dict[str, str]
    troubles: dict[str, str]
    fresh: bool
    config: bytes | None = None


class Go(_Frame, frozen=True, tag="go"):
    """Listen: from here on the owner waits for you when something changes."""


class Kept(_Frame, frozen=True, tag="kept"):
    """What came of `Batch` `number`: the index of each entry, -1 for those that `refused` has by their place."""

    number: int
    at: tuple[int, ...]
    refused: dict[int, Trouble]


class Answer(_Frame, frozen=True, tag="answer"):
    """What came of `Ask` `number`: JSON, or trouble."""

    number: int
    body: bytes
    trouble: Trouble | None = None


class Count(_Frame, frozen=True, tag="count"):
    """Tell what you have counted."""

    number: int


Upward: TypeAlias = Batch | Applied | Ask | Counted | Feels
Downward: TypeAlias = Keys | Standing | Go | Kept | Answer | Count
_encode = msgspec.msgpack.Encoder().encode
_upward = msgspec.msgpack.Decoder(Upward)
_downward = msgspec.msgpack.Decoder(Downward)


def encode_frame(frame: Upward | Downward) -> bytes:
    """`frame` for the pair, without its length. Raises `RonError` (BadRequest) for one that is too long."""
    raw = _encode(frame)
    if len(raw) > MAX_FRAME_BYTES:
        raise bad_request(f"{len(raw)} bytes do not fit between owner and worker")
    return raw


def decode_upward(raw: bytes) -> Upward:
    """What a worker said. Raises `RonError` (BadRequest)."""
    return _decoded(_upward, raw)  # type: ignore[no-any-return]


def decode_downward(raw: bytes) -> Downward:
    """What the owner said. Raises `RonError` (BadRequest)."""
    return _decoded(_downward, raw)  # type: ignore[no-any-return]


def _decoded(decoder: Any, raw: bytes) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise bad_request(f"not a frame of owner and worker: {type(error).__name__}") from None
