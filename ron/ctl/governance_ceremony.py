"""`ronctl governance keygen --threshold`: all who vote make a joint key, of which each of them keeps a share.

In: their public keys, one's own key, a folder of letters. Out: the share, sealed to one's own key, and the group.
Nobody deals: the key is born of all of them (docs/threshold.rst) and is nowhere, not even for a moment. Whoever breaks
the rules is named. What is secret in between is in this process only: all of them run it at the same time.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ron.crypto.frost import dkg
from ron.crypto.frost.ceremony import Ceremony
from ron.crypto.frost.errors import InvalidGroupError, Refused
from ron.crypto.frost.keys import KeyShare
from ron.ctl.governance_post import Postbox
from ron.kernel.files import read_private
from ron.proto.errors import RonError, bad_request, conflict
from ron.proto.governance import GroupHex, PublicHex
from ron.services.kms.governance.joint import numbered
from ron.services.kms.governance.signers import key_id

if TYPE_CHECKING:
    from nacl.signing import SigningKey

POLL_S = 0.2
_HELLO_BYTES = 32
_TOPIC = b"ron-kms/1 joint key"
_SHARE_MAGIC = b"ron-kms/governance/share/1\n"


class GroupFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What everybody may know of a joint key. members: the public keys of those who share it, in their order."""

    group: GroupHex
    members: tuple[PublicHex, ...]
    public: PublicHex
    key_id: str


class KeyCeremony:
    """One member's part. publics: of all of them, in hex. Call `step` until it is done.

    Raises `RonError` for a threshold or members that make no group, and for a folder with an earlier attempt in it.
    """

    def __init__(
        self,
        folder: Path,
        key: SigningKey,
        publics: Sequence[str],
        threshold: int,
        *,
        token_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._members = numbered(publics)
        self._numbers = {public: number for number, public in self._members.items()}
        self._threshold = threshold
        self._token_bytes = token_bytes
        own = bytes(key.verify_key).hex()
        if own not in self._numbers or len(set(publics)) < len(publics):
            raise bad_request("each member is named once, and you are one of them", "their .pub files, and your --key")
        self._me = self._numbers[own]
        named = "".join(self._members.values()).encode()
        topic = hashlib.sha256(b"\0".join((_TOPIC, str(threshold).encode(), named))).hexdigest()
        self._box = Postbox(folder, publics, topic, key)
        if self._box.is_begun():
            raise conflict("an attempt of yours lies in that folder", "all of you begin again in an empty one")
        self._hellos: dict[int, bytes] = {self._me: token_bytes(_HELLO_BYTES)}
        self._early: list[tuple[int, bytes]] = []
        self._ceremony: Ceremony | None = None
        self._box.put(self._hellos[self._me])

    @property
    def waits_for(self) -> list[str]:
        """The public keys of those who have to write something before it goes on."""
        missing = set(self._members) - set(self._hellos)
        if self._ceremony is not None:
            missing = set(self._ceremony.waiting_for)
        return [self._members[number] for number in sorted(missing)]

    def step(self) -> KeyShare | None:
        """Read what came and answer it. The share once all have confirmed that they have theirs.

        Raises `RonError` (Conflict) naming whoever broke the rules: then nobody has a key.
        """
        for post in self._box.new():
            number = self._numbers[post.sender]
            if post.number == 0:
                self._hellos.setdefault(number, post.body)
            else:
                self._early.append((number, post.body))
        if self._ceremony is None and len(self._hellos) == len(self._members):
            self._ceremony = self._begun()
        if self._ceremony is None:
            return None
        early, self._early = self._early, []
        for number, body in early:
            self._take(self._ceremony, number, body)
        self._send(self._ceremony)
        if self._ceremony.failure is not None:
            raise self._blamed(self._ceremony.failure)
        return self._ceremony.result

    def _begun(self) -> Ceremony:
        """Everybody's randomness names the session: no part of an earlier one fits into it."""
        nonce = hashlib.sha256(b"".join(self._hellos[number] for number in sorted(self._hellos))).digest()
        try:
            plan = dkg.keygen_plan(nonce, self._threshold, list(self._members))
        except InvalidGroupError as error:
            raise bad_request(f"these make no joint key: {error}", "2 of 3, 3 of 5; at most 16") from None
        return dkg.keygen(plan, self._me, token_bytes=self._token_bytes)

    def _take(self, ceremony: Ceremony, number: int, body: bytes) -> None:
        try:
            ceremony.receive(number, body)
        except Refused:
            # harmless, or complained of and answered by its dealer, or the end: `failure` says which
            self._send(ceremony)

    def _send(self, ceremony: Ceremony) -> None:
        for message in ceremony.outgoing():
            self._box.put(message.body, to=self._members[message.to] if message.to is not None else "")

    def _blamed(self, refused: Refused) -> RonError:
        names = ", ".join(key_id(self._members[number]) for number in refused.members)
        return conflict(
            f"no joint key was made: {refused.reason.value} by {names}",
            "find out what happened there, and begin again in an empty folder",
        )


def made(
    ceremony: KeyCeremony,
    wait_s: float,
    *,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> KeyShare:
    """Go on until it is done. Raises `RonError`: as `KeyCeremony.step`, and naming who kept silent for wait_s."""
    end = now() + wait_s
    while (share := ceremony.step()) is None:
        if now() >= end:
            names = ", ".join(map(key_id, ceremony.waits_for))
            raise conflict(f"nothing came from {names}", "all of you run it at the same time, with the same .pub files")
        sleep(POLL_S)
    return share


def group_file(share: KeyShare, publics: Sequence[str]) -> GroupFile:
    """What everybody may know of it."""
    public = share.group.public
    return GroupFile(
        group=share.group.encode().hex(),
        members=tuple(numbered(publics).values()),
        public=public.hex(),
        key_id=key_id(public),
    )


def sealed_share(share: KeyShare, key: SigningKey) -> bytes:
    """The file for one's own eyes: it opens with `key` and with nothing else."""
    from nacl.public import SealedBox

    return _SHARE_MAGIC + SealedBox(key.verify_key.to_curve25519_public_key()).encrypt(share.encode())


def read_share(path: Path, key: SigningKey) -> KeyShare:
    """The share in `path`. Raises `RonError` (BadRequest)."""
    from nacl.exceptions import CryptoError
    from nacl.public import SealedBox

    try:
        content = read_private(path)
    except OSError as error:
        raise bad_request(f"cannot read the share {path}: {error.strerror}", "--share FILE") from None
    try:
        if not content.startswith(_SHARE_MAGIC):
            raise ValueError
        opened = SealedBox(key.to_curve25519_private_key()).decrypt(content[len(_SHARE_MAGIC) :])
        return KeyShare.decode(opened)
    except (CryptoError, ValueError):
        raise bad_request(
            f"{path} is no share of this key's owner", "--key FILE names the key it was made with"
        ) from None
