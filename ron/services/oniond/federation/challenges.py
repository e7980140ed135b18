"""Challenges that cost their issuer no memory until somebody answers one.

In: the time on a clock that does not go back. Out: nonces that are recognised by a tag, each with a one-time channel
key that is derived again when it is needed. Only used nonces are remembered, until they would have expired anyway: so
asking for challenges fills no table, and nobody can crowd out a peer's.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable
from typing import NamedTuple

from ron.crypto import hpke
from ron.services.oniond.federation.messages import CHANNEL_SUITE
from ron.services.oniond.federation.refusals import Refused

CHALLENGE_LIFE_S = 60
# After two of these a one-time channel key cannot be derived any more, not even by us.
MASTER_LIFE_S = 600
CAPACITY = 4096
_MASTER_BYTES = 32
_HEAD = struct.Struct(">I12s")
_RANDOM_BYTES = 12
_TAG_BYTES = 16


class Issued(NamedTuple):
    """expires_s: on the clock it was issued by."""

    nonce: bytes
    channel_key: bytes
    expires_s: int


class Challenges:
    """Nonces of this process: `expiry, seconds u32 ‖ 12 random bytes ‖ 16 bytes of HMAC-SHA256`."""

    def __init__(self, *, capacity: int = CAPACITY, token_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._capacity = capacity
        self._token_bytes = token_bytes
        self._masters: list[bytes] = []
        self._renew_s = 0.0
        self._spent: dict[bytes, int] = {}

    def issue(self, now_s: float) -> Issued:
        """A fresh challenge, good for `CHALLENGE_LIFE_S` seconds."""
        self.renew(now_s)
        master, expires_s = self._masters[0], int(now_s) + CHALLENGE_LIFE_S
        head = _HEAD.pack(expires_s, self._token_bytes(_RANDOM_BYTES))
        nonce = head + _tag(master, head)
        return Issued(nonce, _channel(master, nonce).public.raw, expires_s)

    def spend(self, nonce: bytes, now_s: float) -> hpke.PrivateKey:
        """The channel key of a challenge of ours, once. Raises `Refused`: foreign, expired, used, too many in use."""
        self.renew(now_s)
        head, tag = nonce[: _HEAD.size], nonce[_HEAD.size :]
        master = next((key for key in self._masters if hmac.compare_digest(_tag(key, head), tag)), None)
        if master is None or nonce in self._spent:
            raise Refused("nonce")
        expires_s = _HEAD.unpack(head)[0]
        if now_s >= expires_s:
            raise Refused("nonce")
        self._forget(now_s)
        if len(self._spent) >= self._capacity:
            raise Refused("busy")
        self._spent[nonce] = expires_s
        return _channel(master, nonce)

    def renew(self, now_s: float) -> None:
        """Replace the secret that challenges grow from when it is old. Call it now and then also when nobody asks."""
        if now_s >= self._renew_s or not self._masters:
            # one that nobody has used for two lives is of no use to an honest peer either
            kept = self._masters[:1] if now_s < self._renew_s + MASTER_LIFE_S else []
            self._masters = [self._token_bytes(_MASTER_BYTES), *kept]
            self._renew_s = now_s + MASTER_LIFE_S

    def _forget(self, now_s: float) -> None:
        if len(self._spent) >= self._capacity:
            self._spent = {nonce: expires_s for nonce, expires_s in self._spent.items() if now_s < expires_s}


def _tag(master: bytes, head: bytes) -> bytes:
    return hmac.digest(master, b"ron-federation/1 nonce" + head, "sha256")[:_TAG_BYTES]


def _channel(master: bytes, nonce: bytes) -> hpke.PrivateKey:
    seed = hmac.digest(master, b"ron-federation/1 channel" + nonce, "sha256")
    return hpke.PrivateKey(CHANNEL_SUITE, seed)
