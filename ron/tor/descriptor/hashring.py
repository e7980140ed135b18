"""Which directories keep a descriptor: the ring of HSDirs (rend-spec-v3 §2.2.3).

In: a consensus and its microdescriptors, as tor's control port gives them. Out: the time it tells, and for a blinded
key the fingerprints to name in HSPOST SERVER=. Without that a tor knows directories for one of the two due descriptors
only. Reading blocks: seconds on the public network, so in a thread.
"""

from __future__ import annotations

import base64
import binascii
import bisect
import hashlib
import io
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from stem.descriptor.microdescriptor import Microdescriptor
from stem.descriptor.microdescriptor import _parse_file as parse_microdescriptors
from stem.descriptor.networkstatus import NetworkStatusDocumentV3

from ron.tor.descriptor.blinding import BlindedKey
from ron.tor.descriptor.periods import (
    MAX_LENGTH_MIN,
    MIN_LENGTH_MIN,
    PUBLIC_LENGTH_MIN,
    SRV_BYTES,
    Due,
    NetworkTime,
    TimePeriod,
)
from ron.tor.descriptor.refused import Reason, Refused

CONSENSUS_KEY = "dir/status-vote/current/consensus-microdesc"
MICRODESCRIPTORS_KEY = "md/all"
"""What to ask the control port for (GETINFO)."""
MAX_CONSENSUS_CHARS = 16 * 2**20
MAX_MICRODESCRIPTORS_CHARS = 64 * 2**20
REPLICAS, SPREAD_STORE, SPREAD_FETCH = 2, 4, 3
MAX_REPLICAS, MAX_SPREAD = 16, 128
_HSDIR_V3 = 2
_KEY_BYTES = 32


class HsDir(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory for v3 onions. fingerprint: 40 hex digits, upper case. identity: its Ed25519 key, 32 bytes."""

    fingerprint: str
    identity: bytes


class Ring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a consensus says to who stores and fetches descriptors.

    time: when and under which value. replicas: how often a descriptor is on the ring; spread_store, spread_fetch: how
    many directories from there on are given it, and are asked for it. relays: all of the network by fingerprint, with
    their Ed25519 identities, empty where the microdescriptor is not there yet; incomplete: directories left out for it.
    """

    time: NetworkTime
    directories: tuple[HsDir, ...]
    replicas: Annotated[int, Meta(ge=1, le=MAX_REPLICAS)] = REPLICAS
    spread_store: Annotated[int, Meta(ge=1, le=MAX_SPREAD)] = SPREAD_STORE
    spread_fetch: Annotated[int, Meta(ge=1, le=MAX_SPREAD)] = SPREAD_FETCH
    relays: Mapping[str, bytes] = {}
    incomplete: Annotated[int, Meta(ge=0)] = 0

    def to_store(self, key: BlindedKey, due: Due) -> tuple[HsDir, ...]:
        """Where the descriptor of `due` goes, without repetition, by replica and along the ring."""
        return self._chosen(key, due, self.spread_store)

    def to_fetch(self, key: BlindedKey) -> tuple[HsDir, ...]:
        """Where a client with this consensus may ask; it asks one of them at random."""
        return self._chosen(key, self.time.asked_for(), self.spread_fetch)

    def _chosen(self, key: BlindedKey, due: Due, spread: int) -> tuple[HsDir, ...]:
        by_place = {node_index(node.identity, due.srv, due.period): node for node in self.directories}
        places = sorted(by_place)
        chosen: dict[str, HsDir] = {}
        for replica in range(1, self.replicas + 1):
            first = bisect.bisect_left(places, service_index(key.public, replica, due.period))
            along = (by_place[place] for place in places[first:] + places[:first])
            # a directory that another replica has chosen already is passed over, and not counted
            new = [node for node in along if node.fingerprint not in chosen][:spread]
            chosen.update((node.fingerprint, node) for node in new)
        return tuple(chosen.values())


def node_index(identity: bytes, srv: bytes, period: TimePeriod) -> bytes:
    """The place of a directory on the ring of `period`, 32 bytes."""
    return hashlib.sha3_256(
        b"node-idx" + identity + srv + struct.pack(">QQ", period.number, period.length_min)
    ).digest()


def service_index(blinded: bytes, replica: int, period: TimePeriod) -> bytes:
    """The place of a descriptor, 32 bytes. replica: from 1 on."""
    numbers = struct.pack(">QQQ", replica, period.length_min, period.number)
    return hashlib.sha3_256(b"store-at-idx" + blinded + numbers).digest()


def read_ring(consensus: str, microdescriptors: str, *, testing: bool) -> Ring:
    """The ring of a consensus of the flavour `microdesc`. testing: its network runs with TestingTorNetwork.

    The text is tor's own, which has verified it: signatures are not looked at. A directory whose microdescriptor is
    missing is left out, as tor leaves it out. Raises `Refused`.
    """
    if len(consensus) > MAX_CONSENSUS_CHARS or len(microdescriptors) > MAX_MICRODESCRIPTORS_CHARS:
        raise Refused(Reason.TOO_LONG, "a consensus longer than any network's")
    ring: Ring = _attempt(lambda: _read(consensus, microdescriptors, testing))
    return ring


def read_time(consensus: str, *, testing: bool) -> NetworkTime:
    """Only the time, which is all a network needs whose directories are fewer than the spread. Raises `Refused`."""
    time: NetworkTime = _attempt(lambda: _time(_document(consensus), testing))
    return time


def _attempt(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Refused:
        raise
    except Exception:  # noqa: BLE001 - stem raises whatever its parsing does
        raise Refused(Reason.MALFORMED, "not a consensus, or not of the flavour microdesc") from None


def _read(consensus: str, microdescriptors: str, testing: bool) -> Ring:
    document = _document(consensus)
    identities = _identities(microdescriptors)
    relays = {name: identities.get(router.microdescriptor_digest, b"") for name, router in document.routers.items()}
    able = [
        fingerprint
        for fingerprint, router in document.routers.items()
        if "HSDir" in router.flags and _HSDIR_V3 in router.protocols.get("HSDir", ())
    ]
    directories = tuple(HsDir(fingerprint=name, identity=relays[name]) for name in sorted(able) if relays[name])
    return Ring(
        time=_time(document, testing),
        directories=directories,
        relays=relays,
        incomplete=len(able) - len(directories),
        replicas=_parameter(document, "hsdir_n_replicas", REPLICAS, 1, MAX_REPLICAS),
        spread_store=_parameter(document, "hsdir_spread_store", SPREAD_STORE, 1, MAX_SPREAD),
        spread_fetch=_parameter(document, "hsdir_spread_fetch", SPREAD_FETCH, 1, MAX_SPREAD),
    )


def _document(consensus: str) -> NetworkStatusDocumentV3:
    document = NetworkStatusDocumentV3(consensus.encode("ascii"), validate=False)
    if not document.is_consensus or not document.is_microdescriptor:
        raise Refused(Reason.MALFORMED, "not a consensus of the flavour microdesc")
    return document


def _time(document: NetworkStatusDocumentV3, testing: bool) -> NetworkTime:
    valid_after, fresh_until = (
        int(moment.replace(tzinfo=UTC).timestamp()) for moment in (document.valid_after, document.fresh_until)
    )
    if valid_after < datetime(2000, 1, 1, tzinfo=UTC).timestamp() or not 3 <= fresh_until - valid_after <= 86_400:
        raise Refused(Reason.MALFORMED, "a consensus of no possible time")
    return NetworkTime(
        valid_after_s=valid_after,
        interval_s=fresh_until - valid_after,
        testing=testing,
        length_min=_parameter(document, "hsdir_interval", PUBLIC_LENGTH_MIN, MIN_LENGTH_MIN, MAX_LENGTH_MIN),
        srv_current=_srv(document.shared_randomness_current_value),
        srv_previous=_srv(document.shared_randomness_previous_value),
    )


def _srv(text: str | None) -> bytes | None:
    if text is None:
        return None
    value = base64.b64decode(text, validate=True)
    if len(value) != SRV_BYTES:
        raise Refused(Reason.MALFORMED, "a shared random value of another length")
    return value


def _parameter(document: NetworkStatusDocumentV3, name: str, usual: int, least: int, most: int) -> int:
    """As tor takes it: what is out of bounds counts as the bound."""
    return min(max(int(document.params.get(name, usual)), least), most)


def _identities(microdescriptors: str) -> dict[str, bytes]:
    """Ed25519 identities by the digest that a consensus names a microdescriptor with."""
    found: dict[str, bytes] = {}
    # a control connection hands on the text without its last line end, which the last digest is also of
    text = microdescriptors.strip("\n") + "\n"
    for microdescriptor in parse_microdescriptors(io.BytesIO(text.encode("utf-8", "replace"))):
        identity = _identity(microdescriptor)
        if identity is not None:
            found[microdescriptor.digest()] = identity
    return found


def _identity(microdescriptor: Microdescriptor) -> bytes | None:
    try:
        identity = base64.b64decode(microdescriptor.identifiers.get("ed25519", "") + "=", validate=True)
    except binascii.Error:
        return None
    return identity if len(identity) == _KEY_BYTES else None
