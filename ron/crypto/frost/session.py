"""One threshold signature over a network: a coordinator, at least t signers, two rounds of messages.

In: a request everybody has (`Request`), raw messages with the sender the channel vouches for. Out: raw messages, at the
end an Ed25519 signature or `Refused` with the names. Sans-IO: deadlines, retries and encryption are the caller's.
A session's name is the hash of the group's epoch, the message and a fresh nonce, so nothing fits into another session.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Callable, Sequence

import msgspec

from ron.crypto import group
from ron.crypto.frost import shamir, signing, wire
from ron.crypto.frost.errors import InvalidGroupError, Reason, Refused
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.crypto.frost.signing import Commitment
from ron.crypto.frost.wire import Kind

NONCE_BYTES = 32
MAX_MESSAGE_BYTES = 65_536
_DIGEST_BYTES = 32
_LABEL = b"ron-frost/1 signing session"
_PACKAGE_LABEL = b"ron-frost/1 package"
_ENTRY = struct.Struct(">H32s32s")


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be signed. `nonce` is 32 fresh random bytes of the coordinator's, never used twice."""

    message: bytes
    nonce: bytes

    def session(self, key: GroupKey) -> bytes:
        """The session's 32-byte name. Raises `InvalidGroupError` for a nonce or message of a length we do not sign."""
        if len(self.nonce) != NONCE_BYTES or len(self.message) > MAX_MESSAGE_BYTES:
            raise InvalidGroupError(
                f"a request has a nonce of {NONCE_BYTES} bytes and at most {MAX_MESSAGE_BYTES} to sign"
            )
        return hashlib.sha512(_LABEL + key.digest + self.nonce + self.message).digest()[: wire.SESSION_BYTES]


class Signer:
    """One member's part in one session. It signs at most once; what it signs is for the caller to judge beforehand."""

    def __init__(
        self,
        share: KeyShare,
        request: Request,
        coordinator: int,
        *,
        token_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`coordinator` is the member that asked, as the channel has it; only its package is listened to."""
        self._share = share
        self._request = request
        self._coordinator = coordinator
        self._session = request.session(share.group)
        self._nonces = signing.commit(share, token_bytes=token_bytes)

    def commitment(self) -> bytes:
        """Round one: the message for the coordinator."""
        own = self._nonces.commitment
        return wire.frame(Kind.COMMITMENT, self._session, self._share.identifier, own.hiding + own.binding)

    def sign(self, sender: int, raw: bytes) -> bytes:
        """Round two: the answer to the coordinator's package.

        Raises `Refused` for a package that is not right, which leaves the nonces unused, and `NoncesUsedError` for a
        second one.
        """
        if sender != self._coordinator:
            raise Refused(Reason.STRANGER, [sender], "a package from somebody else than the coordinator")
        message = wire.unframe(raw, session=self._session, sender=sender)
        commitments = _package_in(message)
        try:
            made = signing.sign_share(self._share, self._nonces, commitments, self._request.message)
        except (InvalidGroupError, Refused) as error:
            # Whoever made a bad commitment, the coordinator had to refuse it.
            raise Refused(Reason.MALFORMED, [sender], str(error)) from None
        body = _package_digest(message.body) + made
        return wire.frame(Kind.SIGNATURE_SHARE, self._session, self._share.identifier, body)

    def drop(self) -> None:
        """Wipe the nonces of a session that came to nothing."""
        self._nonces.drop()


class Coordinator:
    """Gathers commitments, then shares. It holds no secret: any member, or none, can coordinate."""

    def __init__(self, key: GroupKey, request: Request, identifier: int, signers: Sequence[int]) -> None:
        """`identifier` names the coordinator in its package. Raises `InvalidGroupError` for fewer signers than t."""
        if (
            len(signers) < key.threshold
            or sorted(set(signers)) != sorted(signers)
            or not set(signers) <= set(key.members)
        ):
            raise InvalidGroupError("a signature needs a threshold of different members")
        self._key = key
        self._request = request
        self._identifier = identifier
        self._session = request.session(key)
        self._signers = frozenset(signers)
        self._commitments: dict[int, Commitment] = {}
        self._shares: dict[int, bytes] = {}
        self._package = b""

    @property
    def waiting_for(self) -> frozenset[int]:
        """Whose commitment is missing or, once the package is made, whose share."""
        return self._signers - set(self._shares if self._package else self._commitments)

    def receive(self, sender: int, raw: bytes) -> None:
        """A message of a signer. Raises `Refused`; a refused message changes nothing."""
        if sender not in self._signers:
            raise Refused(Reason.STRANGER, [sender], "not one of this session's signers")
        message = wire.unframe(raw, session=self._session, sender=sender)
        if message.kind is Kind.COMMITMENT:
            self._commitment(message)
        elif message.kind is Kind.SIGNATURE_SHARE and self._package:
            self._share(message)
        else:
            raise Refused(Reason.OUT_OF_PLACE, [sender], "a message that the coordinator does not wait for")

    def package(self) -> bytes:
        """Round two's message for every signer. Raises `InvalidGroupError` while commitments are missing."""
        if not self._package:
            if self.waiting_for:
                raise InvalidGroupError("commitments are missing")
            self._package = _package(self._commitments)
        return wire.frame(Kind.PACKAGE, self._session, self._identifier, self._package)

    def signature(self) -> bytes:
        """The 64-byte signature. Raises `InvalidGroupError` while shares are missing, `Refused` naming the liars."""
        if not self._package or self.waiting_for:
            raise InvalidGroupError("signature shares are missing")
        commitments = [self._commitments[signer] for signer in sorted(self._signers)]
        return signing.aggregate(self._key, self._shares, commitments, self._request.message)

    def _commitment(self, message: wire.Frame) -> None:
        wire.check_length(message, 2 * group.ELEMENT_BYTES)
        hiding, binding = message.body[: group.ELEMENT_BYTES], message.body[group.ELEMENT_BYTES :]
        made = Commitment(identifier=message.sender, hiding=hiding, binding=binding)
        made.check()
        _refuse_second(self._commitments.get(message.sender), made, message.sender)
        self._commitments[message.sender] = made

    def _share(self, message: wire.Frame) -> None:
        wire.check_length(message, _DIGEST_BYTES + group.SCALAR_BYTES)
        if message.body[:_DIGEST_BYTES] != _package_digest(self._package):
            raise Refused(Reason.BAD_SHARE, [message.sender], "a signature share for another package")
        share = wire.scalar_in(message, message.body[_DIGEST_BYTES:])
        _refuse_second(self._shares.get(message.sender), share, message.sender)
        self._shares[message.sender] = share


def package_signers(raw: bytes, session: bytes, coordinator: int) -> tuple[int, ...]:
    """Whose commitments a package has, in its order: a signer who agreed to sign with certain others compares.

    Raises `Refused` for what is no package of `coordinator` in `session`.
    """
    message = wire.unframe(raw, session=session, sender=coordinator)
    return tuple(one.identifier for one in _package_in(message))


def _refuse_second(first: object, second: object, sender: int) -> None:
    if first is not None:
        reason = Reason.REPEATED if first == second else Reason.EQUIVOCATED
        raise Refused(reason, [sender], "a second message in the place of the first")


def _package(commitments: dict[int, Commitment]) -> bytes:
    ordered = (commitments[signer] for signer in sorted(commitments))
    return b"".join(_ENTRY.pack(one.identifier, one.hiding, one.binding) for one in ordered)


def _package_in(message: wire.Frame) -> list[Commitment]:
    """Order, membership and group of the entries are `signing.check_commitments`'s to look at."""
    if message.kind is not Kind.PACKAGE:
        raise Refused(Reason.OUT_OF_PLACE, [message.sender], "a signer waits for a package only")
    if len(message.body) % _ENTRY.size or len(message.body) > shamir.MAX_MEMBERS * _ENTRY.size:
        raise Refused(Reason.MALFORMED, [message.sender], "a package of a length that none has")
    return [
        Commitment(identifier=identifier, hiding=hiding, binding=binding)
        for identifier, hiding, binding in _ENTRY.iter_unpack(message.body)
    ]


def _package_digest(package: bytes) -> bytes:
    return hashlib.sha512(_PACKAGE_LABEL + package).digest()[:_DIGEST_BYTES]
