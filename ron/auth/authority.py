"""Mints capabilities and decides whether one covers a call.

In: a token and what the call wants. Out: a `Capability`, or `RonError(NoCapability)` with 401 (no usable token) or 403
(a good token that does not cover the call). Anything not understood is refused.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pymacaroons import MACAROON_V2, Macaroon, Verifier

from ron.auth.caveats import RESOURCE, Caveat, expired, parse_caveat, path_allows, scope_allows
from ron.auth.rootkeys import RootKeys
from ron.proto.errors import ErrorCode, RonError

MAX_TOKEN_CHARS = 4096
VERIFIED_CACHE = 4096
_LOCATION = "ron"


class Wanted(NamedTuple):
    """What a call asks for. `enforces`: the resource caveats its endpoint promises to check itself."""

    scope: str
    method: str
    path: str
    enforces: frozenset[str] = frozenset()


class Capability(NamedTuple):
    """A token whose signature holds: its id (128 bits, hex), the root-key epoch it stands on, and its caveats."""

    cap_id: str
    kid: int
    caveats: tuple[Caveat, ...]

    def require(self, name: str, value: str) -> None:
        """Refuse (403) unless every `name` caveat equals `value`. Endpoints call it for what they enforce."""
        for caveat in self.caveats:
            if caveat.name == name and not secrets.compare_digest(caveat.value.encode(), value.encode()):
                raise _forbidden(f"the capability is for another {name}")


class Authority:
    """Mints with the newest root key; admits tokens of every epoch it still knows.

    `now` gives Unix seconds. Signatures that held are remembered by digest, at most `VERIFIED_CACHE` of them;
    caveats are judged anew on each call, so that an expiry is never outlived.
    """

    def __init__(self, keys: RootKeys, *, audience: str, now: Callable[[], float]) -> None:
        self._keys = keys
        self._audience = audience
        self._now = now
        self._verified: OrderedDict[bytes, Capability] = OrderedDict()

    def mint(self, caveats: Iterable[Caveat]) -> str:
        """A new token for this audience, narrowed by `caveats`: libmacaroons v2 binary, base64url without padding."""
        kid, key = self._keys.current
        identifier = f"ron1 {kid} {secrets.token_hex(16)}"
        macaroon = Macaroon(location=_LOCATION, identifier=identifier, key=key, version=MACAROON_V2)
        for caveat in (Caveat("aud", self._audience), *caveats):
            macaroon.add_first_party_caveat(str(parse_caveat(str(caveat))))
        return str(macaroon.serialize()).rstrip("=")

    def admit(self, token: str | None, wanted: Wanted) -> Capability:
        """The capability behind `token` when it covers `wanted`; else `RonError` 401 or 403."""
        if not token:
            raise _unauthorized("no capability", f"send a macaroon with scope {wanted.scope} as Authorization: Bearer")
        capability = self._verify(token)
        for caveat in capability.caveats:
            self._judge(caveat, wanted)
        return capability

    def _judge(self, caveat: Caveat, wanted: Wanted) -> None:
        name, value = caveat
        if name == "exp":
            if expired(value, self._now()):
                raise _unauthorized("the capability has expired", "mint a new one")
        elif name == "aud":
            if value != self._audience:
                raise _forbidden("the capability is for another audience")
        elif name == "scope":
            if not scope_allows(value, wanted.scope):
                raise _forbidden(f"the capability lacks scope {wanted.scope}")
        elif name == "method":
            if value != wanted.method:
                raise _forbidden("the capability is for another method")
        elif name == "path":
            if not path_allows(value, wanted.path):
                raise _forbidden("the capability is for another path")
        elif name not in RESOURCE or name not in wanted.enforces:
            raise _forbidden(f"a caveat on {name} cannot be honoured here")

    def _verify(self, token: str) -> Capability:
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._verified.get(digest)
        if known is not None and self._keys.get(known.kid) is not None:
            self._verified.move_to_end(digest)
            return known
        capability = self._check_signature(token)
        self._verified[digest] = capability
        if len(self._verified) > VERIFIED_CACHE:
            self._verified.popitem(last=False)
        return capability

    def _check_signature(self, token: str) -> Capability:
        macaroon = _decode(token)
        kid, cap_id = _identifier(macaroon)
        key = self._keys.get(kid)
        if key is None:
            raise _unauthorized("the capability stands on a retired key", "mint a new one")
        caveats: list[Caveat] = []

        def collect(text: str) -> bool:
            caveats.append(parse_caveat(text))
            return True

        verifier = Verifier()
        verifier.satisfy_general(collect)
        # pymacaroons signals every refusal by its own or a built-in exception, and none of them may become a 500
        try:
            held = verifier.verify(macaroon, key)
        except Exception:  # noqa: BLE001
            held = False
        if not held:
            raise _unauthorized("the capability does not verify", "use one minted by this node, unaltered")
        return Capability(cap_id, kid, tuple(caveats))


def _decode(token: str) -> Macaroon:
    if len(token) > MAX_TOKEN_CHARS:
        raise _unauthorized("the capability is too long", f"at most {MAX_TOKEN_CHARS} characters")
    try:
        macaroon = Macaroon.deserialize(token)
        # one spelling each: no trailing bytes, no v1 packets, no other location (which no signature covers)
        one_of_ours = macaroon.version == MACAROON_V2 and macaroon.location == _LOCATION
        if one_of_ours and str(macaroon.serialize()).rstrip("=") == token:
            return macaroon
    except Exception:  # noqa: BLE001, S110 - the library raises built-in and struct errors on hostile bytes
        pass
    raise _unauthorized("the capability is malformed", "send the token exactly as it was minted")


def _identifier(macaroon: Macaroon) -> tuple[int, str]:
    parts = macaroon.identifier_bytes.decode("utf-8", "replace").split(" ")
    if len(parts) != 3 or parts[0] != "ron1" or not parts[1].isdecimal() or len(parts[2]) != 32:
        raise _unauthorized("the capability is not one of ours", "use one minted by this node")
    return int(parts[1]), parts[2]


def _unauthorized(message: str, hint: str) -> RonError:
    return RonError(
        ErrorCode.NO_CAPABILITY, message, hint=hint, status=401, headers={"WWW-Authenticate": 'Bearer realm="ron"'}
    )


def _forbidden(message: str) -> RonError:
    return RonError(ErrorCode.NO_CAPABILITY, message, hint="mint a capability that covers this call", status=403)
