"""What this node says: its messages in envelopes, numbered and signed; its claims at the beginning of a link.

In: kinds and bodies. Out: frames' payloads. One per run of the node.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from nacl.signing import SigningKey

from ron.services.balance.mesh.handshake import Claim, TwinProof, prove_run
from ron.services.balance.mesh.wire import BOOT_BYTES, Envelope, seal, unseal


class Voice:
    """One run of one node. now: Unix seconds by our clock. seal_key: public, X-Wing, or empty."""

    def __init__(
        self,
        *,
        cluster: bytes,
        name: str,
        signing: SigningKey,
        run: int,
        now: Callable[[], float],
        seal_key: bytes = b"",
        addresses: tuple[str, ...] = (),
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.signing = signing
        self.key = bytes(signing.verify_key)
        self.run = run
        self.boot = secrets.token_bytes(BOOT_BYTES)
        self.now = now
        self.seal_key = seal_key
        self.addresses = addresses
        self._seq = 0

    def claim(self) -> Claim:
        """Who we are, at this moment."""
        sent_ms = max(0, int(self.now() * 1000))
        return Claim(self.name, self.key, self.run, self.boot, self._seq, sent_ms, self.seal_key, self.addresses)

    def seal(self, to: str, kind: str, corr: int, body: bytes) -> bytes:
        """A message to `to`. It is to be sent now: whatever is numbered later overtakes it otherwise."""
        self._seq += 1
        sent_ms = max(0, int(self.now() * 1000))
        envelope = Envelope(self.cluster, self.name, to, self.run, self.boot, self._seq, sent_ms, kind, corr, body)
        return seal(envelope, self.signing)

    def unseal(self, sender: str, key: bytes, payload: bytes) -> Envelope:
        """A message to us. Raises `Refused`."""
        return unseal(payload, cluster=self.cluster, sender=sender, to=self.name, key=key)

    def prove_run(self, nonce: bytes) -> TwinProof:
        """That this run is alive, to who asks with `nonce`."""
        return prove_run(self.signing, self.cluster, self.name, self.run, self.boot, nonce)
