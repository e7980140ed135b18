"""Introduction points of a backend, read from its own descriptor and certified anew for ours (rend-spec-v3 §2.5.2.2).

In: the text of a descriptor as a directory gave it, and whose it should be. Out: its introduction points, or `Refused`;
and each point as text of a descriptor of ours. Reading blocks for some 10 ms.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey
from stem.client.datatype import LinkByEd25519, LinkByFingerprint, LinkSpecifier
from stem.descriptor.hidden_service import HiddenServiceDescriptorV3, InnerLayer, IntroductionPointV3

from ron.tor.descriptor.blinding import KEY_BYTES, BlindedKey, blind, identity_of
from ron.tor.descriptor.certs import Certificate, Purpose, checked, signer_of
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.descriptor.refused import Reason, Refused

MAX_DESCRIPTOR_BYTES = 50_000
MAX_INTRO_POINTS = 20
MAX_LINK_SPECIFIERS = 8
MAX_REVISION = 2**64 - 1
_VERSION = 3
_NTOR = 2
_POINT = "\nintroduction-point "
_FLOW_CONTROL = re.compile(r"[0-9,-]{1,32} [0-9]{1,3}")
_POW_PARAMS = re.compile(r"v1 [A-Za-z0-9+/]{43}=? [0-9]{1,10} \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


class IntroPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A relay at which a backend waits, and the keys that tell it there.

    link_specifiers: how to reach the relay, with their count. onion_key: the relay's ntor key. auth_key, enc_key: the
    backend's Ed25519 and x25519 keys there; enc_certified is the latter's Ed25519 form. Hours since 1970, when each
    certificate ends.
    """

    link_specifiers: bytes
    onion_key: bytes
    auth_key: bytes
    enc_key: bytes
    enc_certified: bytes
    auth_expires_h: int
    enc_expires_h: int


def relay_of(point: IntroPoint) -> tuple[str, bytes]:
    """Fingerprint (40 hex digits, upper case) and Ed25519 identity (empty when it does not say) of its relay.

    Raises `Refused` for a point that names no relay, or two.
    """
    links = _parsed(Reason.MALFORMED, "link specifiers are not of tor's form", lambda: _links(point.link_specifiers))
    prints = [bytes(link.value) for link in links if isinstance(link, LinkByFingerprint)]
    identities = [bytes(link.value) for link in links if isinstance(link, LinkByEd25519)]
    if len(prints) != 1 or len(identities) > 1:
        raise Refused(Reason.MALFORMED, "an introduction point names no relay, or two")
    return prints[0].hex().upper(), identities[0] if identities else b""


def _links(raw: bytes) -> list[LinkSpecifier]:
    count, left = raw[0], raw[1:]
    links = []
    for _ in range(count):
        link, left = LinkSpecifier.pop(left)
        links.append(link)
    if left:
        raise ValueError("more than the count says")
    return links


class Extras(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What else a descriptor's inner layer says: the values of its lines `flow-control`, `pow-params` (None: no such
    line) and whether it has `single-onion-service`. Raises `Refused` for a value that would not be one line."""

    flow_control: str | None = None
    pow_params: str | None = None
    single_onion: bool = False

    def __post_init__(self) -> None:
        for value, form in ((self.flow_control, _FLOW_CONTROL), (self.pow_params, _POW_PARAMS)):
            if value is not None and not form.fullmatch(value):
                raise Refused(Reason.MALFORMED, "flow-control or pow-params is not of tor's form")

    def lines(self) -> list[str]:
        """In tor's order."""
        said = {"flow-control": self.flow_control, "pow-params": self.pow_params}
        flags = ["single-onion-service"] if self.single_onion else []
        return flags + [f"{keyword} {value}" for keyword, value in said.items() if value is not None]


class Backend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backend's descriptor said. onion: `<56 characters>.onion`."""

    onion: str
    period: TimePeriod
    revision: int
    points: tuple[IntroPoint, ...]
    extras: Extras = Extras()


def read_backend(
    text: str, onion: str, periods: Sequence[TimePeriod], now_s: float, *, newer_than: int = -1
) -> Backend:
    """The descriptor `text` of `onion`, for one of `periods`, with a revision counter above `newer_than`.

    Raises `Refused`, and for an `onion` that is no address `RonError`. Every signature in it is verified.
    """
    key, outer, signing = _checked(text, onion, periods, now_s)
    if not newer_than < outer.revision_counter <= MAX_REVISION:
        raise Refused(Reason.OLD_REVISION, "the revision counter is not above the last one")
    inner: InnerLayer = _parsed(Reason.SEALED, "the descriptor does not open", lambda: outer.decrypt(onion))
    return Backend(
        onion=onion,
        period=key.period,
        revision=outer.revision_counter,
        points=_read_points(inner, signing, now_s),
        extras=_parsed(Reason.MALFORMED, "the inner layer is not of tor's form", lambda: _read_extras(inner)),
    )


def read_revision(text: str, onion: str, periods: Sequence[TimePeriod], now_s: float) -> tuple[TimePeriod, int]:
    """Of which of `periods` the descriptor `text` of `onion` is, and its revision counter: what a directory sees of it.

    Raises as `read_backend`; restricted descriptors can be looked at too.
    """
    key, outer, _signing = _checked(text, onion, periods, now_s)
    if not 0 <= outer.revision_counter <= MAX_REVISION:
        raise Refused(Reason.MALFORMED, "no revision counter")
    return key.period, int(outer.revision_counter)


def _checked(
    text: str, onion: str, periods: Sequence[TimePeriod], now_s: float
) -> tuple[BlindedKey, HiddenServiceDescriptorV3, bytes]:
    """The address's key, the outer layer and the key that signs it, with signatures and dates verified."""
    if len(text) > MAX_DESCRIPTOR_BYTES:
        raise Refused(Reason.TOO_LONG, f"a descriptor has at most {MAX_DESCRIPTOR_BYTES} bytes")
    identity = identity_of(onion)
    outer = _parsed(Reason.MALFORMED, "not a v3 descriptor", lambda: _outer(text))
    by = signer_of(outer.signing_cert)
    key = next((known for known in (blind(identity, period) for period in periods) if known.public == by), None)
    if key is None:
        raise Refused(Reason.STRANGER, "the descriptor is not of that address in these time periods")
    signing, _expires_h = checked(outer.signing_cert, Purpose.SIGN_DESCRIPTOR, by=key.public, now_s=now_s)
    _parsed(Reason.BAD_SIGNATURE, "the descriptor's signature does not verify", lambda: _verified(outer))
    # each line once and in its place; lazily read above, so that a stranger's costs us little
    _parsed(Reason.MALFORMED, "not a v3 descriptor", lambda: HiddenServiceDescriptorV3.from_str(text, validate=True))
    return key, outer, signing


def certified(point: IntroPoint, signing: SigningKey) -> str:
    """The lines of `point` in a descriptor that `signing` signs; no line end after the last."""
    by = bytes(signing.verify_key)
    auth = Certificate(Purpose.INTRO_AUTH, point.auth_key, by=by, expires_h=point.auth_expires_h)
    enc = Certificate(Purpose.INTRO_ENCRYPT, point.enc_certified, by=by, expires_h=point.enc_expires_h)
    return "\n".join(
        (
            f"introduction-point {_base64(point.link_specifiers)}",
            f"onion-key ntor {_base64(point.onion_key)}",
            f"auth-key\n{auth.pem(signing.sign(auth.message).signature)}",
            f"enc-key ntor {_base64(point.enc_key)}",
            f"enc-key-cert\n{enc.pem(signing.sign(enc.message).signature)}",
        )
    )


def common_extras(backends: Sequence[Backend]) -> Extras:
    """What one descriptor can say of all of `backends`: only what each of them says.

    Never `pow-params`: a backend verifies a solution under its own seed and its own blinded key, so that one made for
    the master address would be refused, and with it the visitor (docs/descriptor.rst).
    """
    if not backends:
        return Extras()
    flow_controls = {backend.extras.flow_control for backend in backends}
    return Extras(
        flow_control=flow_controls.pop() if len(flow_controls) == 1 else None,
        single_onion=all(backend.extras.single_onion for backend in backends),
    )


def _parsed(reason: Reason, message: str, parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except Refused:
        raise
    except Exception:  # noqa: BLE001 - stem raises whatever its parsing and the cryptography below it do
        raise Refused(reason, message) from None


def _outer(text: str) -> HiddenServiceDescriptorV3:
    if not text.isascii():
        raise Refused(Reason.MALFORMED, "a descriptor is ASCII")
    outer = HiddenServiceDescriptorV3.from_str(text, validate=False)
    # fields are read when first touched: now, so that it is here that what is wrong with them shows
    fields = (outer.lifetime, outer.signing_cert, outer.revision_counter, outer.superencrypted, outer.signature)
    if outer.version != _VERSION or None in fields:
        raise Refused(Reason.MALFORMED, "a part of the descriptor is missing")
    return outer


def _verified(outer: HiddenServiceDescriptorV3) -> None:
    outer.signing_cert.validate(outer)


def _read_points(inner: InnerLayer, signing: bytes, now_s: float) -> tuple[IntroPoint, ...]:
    points: list[IntroductionPointV3] = inner.introduction_points
    if len(points) > MAX_INTRO_POINTS:
        raise Refused(Reason.TOO_LONG, f"a descriptor has at most {MAX_INTRO_POINTS} introduction points")
    if any(point.legacy_key_raw or point.legacy_key_cert for point in points):
        # no tor since 0.4.1 makes them, and we could not certify such a key anew
        raise Refused(Reason.MALFORMED, "an introduction point of the legacy kind")
    return tuple(_read_point(point, signing, now_s) for point in points)


def _read_point(point: IntroductionPointV3, signing: bytes, now_s: float) -> IntroPoint:
    auth_key, auth_expires_h = checked(point.auth_key_cert, Purpose.INTRO_AUTH, by=signing, now_s=now_s)
    enc_certified, enc_expires_h = checked(point.enc_key_cert, Purpose.INTRO_ENCRYPT, by=signing, now_s=now_s)
    enc_key = _key(point.enc_key_raw)
    if not _is_form_of(enc_certified, enc_key):
        raise Refused(Reason.STRANGER, "an introduction point's encryption key is not the certified one")
    return IntroPoint(
        link_specifiers=_link_specifiers(point),
        onion_key=_key(point.onion_key_raw),
        auth_key=auth_key,
        enc_key=enc_key,
        enc_certified=enc_certified,
        auth_expires_h=auth_expires_h,
        enc_expires_h=enc_expires_h,
    )


def _link_specifiers(point: IntroductionPointV3) -> bytes:
    links = point.link_specifiers
    if not 1 <= len(links) <= MAX_LINK_SPECIFIERS or not any(isinstance(link, LinkByFingerprint) for link in links):
        raise Refused(Reason.MALFORMED, "an introduction point does not say which relay it is")
    return bytes([len(links)]) + b"".join(link.pack() for link in links)


def _key(text: str | None) -> bytes:
    """32 bytes; tor writes both with padding and without."""
    try:
        key = base64.b64decode((text or "").rstrip("=") + "=", validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise Refused(Reason.MALFORMED, "an introduction point has no proper key")
    return key


def _is_form_of(ed25519: bytes, x25519: bytes) -> bool:
    try:
        return bindings.crypto_sign_ed25519_pk_to_curve25519(ed25519) == x25519
    except (CryptoError, RuntimeError):
        return False


def _read_extras(inner: InnerLayer) -> Extras:
    if _NTOR not in inner.formats:
        raise Refused(Reason.MALFORMED, "an inner layer without ntor")
    head = str(inner).partition(_POINT)[0]
    said = dict(line.partition(" ")[::2] for line in head.splitlines())
    return Extras(
        flow_control=said.get("flow-control"),
        pow_params=said.get("pow-params"),
        single_onion="single-onion-service" in said,
    )


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
