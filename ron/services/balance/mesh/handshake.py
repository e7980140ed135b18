"""How two nodes begin a link: who they are, which run, that they are alive now, whether they know the token. Sans-IO.

In: this node's own facts, the other's frames. Out: frames, and the other's `Claim` with its signature checked.

    dialler                                            listener
      Opening   cluster, name, key, nonce          -->
                <-- Said(Greeting  nonce, claim, proof of the token, signature)
      Reply     claim, proof of the token, signature -->
                <-- Said()  welcome    or at any time    Said(refusal)

Signatures and proofs cover all that was said before and a value of the TLS connection (RFC 9266), so none of it is of
use elsewhere. Whether to believe a claim is the door's business (`door.py`).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec
from blake3 import blake3
from msgspec import Meta
from nacl.signing import SigningKey

from ron.proto.balance import NodeName, Where
from ron.services.balance.mesh.codec import Unfit, decode_canonical, encode
from ron.services.balance.mesh.tokens import PROOF_BYTES, Role, Token, is_proved, prove
from ron.services.balance.mesh.wire import SIGNATURE_BYTES, Boot, Cluster, Key, Number, Reason, Refused, verified

# Frames before the link stands; a greeting with an X-Wing key has some 2 KiB.
MAX_HELLO_BYTES = 16 * 1024
BINDING_LABEL = b"EXPORTER-Channel-Binding"
BINDING_BYTES = 32
NONCE_BYTES = 32
_PREFIX = b"ron-mesh/1 hello\0"
_TWIN_PREFIX = b"ron-mesh/1 twin\0"

_Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Shape = TypeVar("Shape", bound=msgspec.Struct)
_Proof = Annotated[bytes, Meta(max_length=PROOF_BYTES)]


class _Said(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class Opening(_Said, frozen=True, array_like=True):
    """The dialler's first words."""

    version: Literal[1]
    cluster: Cluster
    name: NodeName
    key: Key
    nonce: Key


class Claim(_Said, frozen=True, array_like=True):
    """What a node says of itself. seq: its messages' numbers go on from there. seal_key: X-Wing, or empty."""

    name: NodeName
    key: Key
    run: Number
    boot: Boot
    seq: Number
    sent_ms: Number
    seal_key: Annotated[bytes, Meta(max_length=2048)]
    addresses: Annotated[tuple[Where, ...], Meta(max_length=8)]


class Greeting(_Said, frozen=True, array_like=True):
    """The listener's first words. proof: that it knows the token, or empty."""

    nonce: Key
    claim: Claim
    proof: _Proof
    signature: _Signature


class Reply(_Said, frozen=True, array_like=True):
    """The dialler's second words."""

    claim: Claim
    proof: _Proof
    signature: _Signature


class TwinProof(_Said, frozen=True, array_like=True):
    """Another run of the refused node is alive: its signature over the nonce that the refused one gave."""

    run: Number
    boot: Boot
    signature: _Signature


class Refusal(_Said, frozen=True, array_like=True):
    """Why there is no link."""

    reason: Reason
    detail: Annotated[str, Meta(max_length=300)] = ""
    twin: TwinProof | None = None


class Said(_Said, frozen=True, array_like=True):
    """From the listener: a greeting, a refusal, or neither, which is a welcome."""

    refusal: Refusal | None = None
    greeting: Greeting | None = None


@dataclass(frozen=True)
class Own:
    """This end. token: the present one, None when this node does not know it. binding: of the TLS connection."""

    cluster: bytes
    claim: Claim
    signing: SigningKey
    token: Token | None
    binding: bytes


@dataclass(frozen=True)
class Met:
    """The other end: all it claims is signed. proved: it knows the token. nonce: what it asked us to sign."""

    claim: Claim
    proved: bool
    nonce: bytes


class Dialling:
    """The dialler's side, one step after another. Raises `Refused`, fatal, at the first thing that is wrong."""

    def __init__(self, own: Own) -> None:
        self._own = own
        self.opening = Opening(1, own.cluster, own.claim.name, own.claim.key, secrets.token_bytes(NONCE_BYTES))

    def opened(self) -> bytes:
        """The first frame."""
        return encode(self.opening)

    def greeted(self, frame: bytes) -> tuple[bytes, Met]:
        """The listener's greeting: the answer, and who it is."""
        said = _decode(frame, Said)
        if said.refusal is not None:
            raise Turned(said.refusal, self.opening.nonce)
        greeting = said.greeting
        if greeting is None:
            raise Refused("malformed", "a welcome before a greeting", fatal=True)
        heard = _transcript(self._own.binding, self.opening, greeting.nonce, greeting.claim)
        met = _met(self._own, "listener", heard, greeting.claim, greeting, greeting.nonce)
        mine = _transcript(heard, self._own.claim)
        return encode(Reply(self._own.claim, _proof(self._own, "dialler", mine), _sign(self._own, mine))), met

    def answered(self, frame: bytes) -> None:
        """The listener's last word: nothing, if it is a welcome. Raises `Turned` for a refusal."""
        said = _decode(frame, Said)
        if said.refusal is not None:
            raise Turned(said.refusal, self.opening.nonce)
        if said.greeting is not None:
            raise Refused("malformed", "a second greeting", fatal=True)


class Listening:
    """The listener's side."""

    def __init__(self, own: Own) -> None:
        self._own = own
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._opening: Opening | None = None
        self._said = b""

    def opened(self, frame: bytes) -> bytes:
        """The dialler's opening: the greeting."""
        opening = _decode(frame, Opening)
        if opening.cluster != self._own.cluster:
            raise Refused("other_cluster", fatal=True)
        self._opening = opening
        own = self._own
        self._said = _transcript(own.binding, opening, self._nonce, own.claim)
        proof, signature = _proof(own, "listener", self._said), _sign(own, self._said)
        return encode(Said(greeting=Greeting(self._nonce, own.claim, proof, signature)))

    @property
    def has_greeted(self) -> bool:
        """Whether the opening has come, and the next frame is the reply."""
        return self._opening is not None

    def replied(self, frame: bytes) -> Met:
        """The dialler's reply: who it is."""
        opening = self._opening
        reply = _decode(frame, Reply)
        if opening is None:
            raise Refused("malformed", "a reply to nothing", fatal=True)
        if (reply.claim.name, reply.claim.key) != (opening.name, opening.key):
            raise Refused("stranger", "it changed its name on the way", fatal=True)
        heard = _transcript(self._said, reply.claim)
        return _met(self._own, "dialler", heard, reply.claim, reply, opening.nonce)


class Turned(Refused):
    """We were refused. refusal: in the listener's words. nonce: what we had asked to be signed."""

    def __init__(self, refusal: Refusal, nonce: bytes) -> None:
        super().__init__(refusal.reason, refusal.detail, fatal=True)
        self.refusal = refusal
        self.nonce = nonce


def welcome() -> bytes:
    """The listener's last frame."""
    return encode(Said())


def refuse(reason: Reason, detail: str = "", twin: TwinProof | None = None) -> bytes:
    """The same, when it is none."""
    return encode(Said(refusal=Refusal(reason, detail[:300], twin)))


def prove_run(signing: SigningKey, cluster: bytes, name: str, run: int, boot: bytes, nonce: bytes) -> TwinProof:
    """That this run of `name` is alive."""
    return TwinProof(run, boot, signing.sign(_twin(cluster, name, run, boot, nonce)).signature)


def is_run_proved(proof: TwinProof, key: bytes, cluster: bytes, name: str, nonce: bytes) -> bool:
    """Whether `proof` answers `nonce`, under the name's own `key`."""
    return verified(key, _twin(cluster, name, proof.run, proof.boot, nonce), proof.signature)


def _twin(cluster: bytes, name: str, run: int, boot: bytes, nonce: bytes) -> bytes:
    return _TWIN_PREFIX + msgspec.msgpack.encode((cluster, name, run, boot, nonce))


def _decode(frame: bytes, shape: type[Shape]) -> Shape:
    try:
        return decode_canonical(frame, shape)
    except Unfit as problem:
        raise Refused("malformed", str(problem), fatal=True) from None


def _transcript(*said: bytes | msgspec.Struct) -> bytes:
    """A digest of all of it in order."""
    return blake3(_PREFIX + msgspec.msgpack.encode(said)).digest()


def _sign(own: Own, transcript: bytes) -> bytes:
    return own.signing.sign(_PREFIX + transcript).signature


def _proof(own: Own, role: Role, transcript: bytes) -> bytes:
    return prove(own.token, role, transcript) if own.token is not None else b""


def _met(own: Own, role: Role, transcript: bytes, claim: Claim, said: Greeting | Reply, nonce: bytes) -> Met:
    if not verified(claim.key, _PREFIX + transcript, said.signature):
        raise Refused("bad_signature", claim.name, fatal=True)
    proved = own.token is not None and is_proved(own.token, role, transcript, said.proof)
    return Met(claim, proved, nonce)
