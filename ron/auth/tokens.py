"""The token itself: a libmacaroons v2 macaroon in base64url, one spelling each. Only `seal` is given a root key.

In: token text, caveats. Out: the macaroon behind a token; a narrower token; what a token says about itself, unverified.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import NamedTuple

from pymacaroons import MACAROON_V2, Macaroon

from ron.auth.caveats import Caveat, instant_s, parse_caveat
from ron.auth.refusals import unauthorized
from ron.proto.errors import too_large

MAX_TOKEN_CHARS = 4096
_LOCATION = "ron"
_IDENTIFIER = re.compile(rb"ron1 (0|[1-9][0-9]{0,9}) ([0-9a-f]{32})")


class Inspected(NamedTuple):
    """What a token says about itself. Nobody has checked it: never decide by this.

    cap_id: 128 bits in hex. kid: the root-key epoch. expires_at_s: Unix time of the earliest `exp`, None without one.
    not_understood: caveats that will get the token refused everywhere.
    """

    cap_id: str
    kid: int
    caveats: tuple[Caveat, ...]
    not_understood: tuple[str, ...]
    expires_at_s: float | None


def seal(kid: int, key: bytes, caveats: Iterable[Caveat]) -> str:
    """A new token with a fresh cap_id under `key`. Raises ValueError on a caveat nobody would understand, `RonError`
    TooLarge over `MAX_TOKEN_CHARS`."""
    identifier = f"ron1 {kid} {secrets.token_hex(16)}"
    return _with(Macaroon(location=_LOCATION, identifier=identifier, key=key, version=MACAROON_V2), caveats)


def attenuate(token: str, caveats: Iterable[Caveat]) -> str:
    """`token`, narrowed by `caveats`; needs no key and no network. Several caveats of one name must all hold.

    Raises `RonError` (401) when `token` is not one of ours, ValueError on a caveat nobody would understand.
    """
    return _with(decode(token), caveats)


def inspect(token: str) -> Inspected:
    """What `token` says, without any verification. Raises `RonError` (401) when it is not one of ours."""
    macaroon = decode(token)
    kid, cap_id = identity(macaroon)
    caveats, strange = [], []
    for raw in macaroon.caveats:
        text = bytes(raw.caveat_id_bytes).decode("utf-8", "replace")
        try:
            if not raw.first_party():
                raise ValueError("third party")
            caveats.append(parse_caveat(text))
        except ValueError:
            strange.append(text)
    ends = [instant_s(caveat.value) for caveat in caveats if caveat.name == "exp"]
    return Inspected(cap_id, kid, tuple(caveats), tuple(strange), min(ends, default=None))


def decode(token: str) -> Macaroon:
    """The macaroon behind `token`. Raises `Refused` (401) on anything but our own spelling."""
    if len(token) > MAX_TOKEN_CHARS:
        raise unauthorized("too_long", "the capability is too long", f"at most {MAX_TOKEN_CHARS} characters")
    try:
        macaroon = Macaroon.deserialize(token)
        # one spelling each: no trailing bytes, no v1 packets, no other location (which no signature covers)
        one_of_ours = macaroon.version == MACAROON_V2 and macaroon.location == _LOCATION
        if one_of_ours and _text(macaroon) == token:
            return macaroon
    except Exception:  # noqa: BLE001, S110 - the library raises built-in and struct errors on hostile bytes
        pass
    raise unauthorized("malformed", "the capability is malformed", "send the token exactly as it was minted")


def identity(macaroon: Macaroon) -> tuple[int, str]:
    """(kid, cap_id). Raises `Refused` (401) when the identifier is not of our form."""
    found = _IDENTIFIER.fullmatch(macaroon.identifier_bytes)
    if found is None:
        raise unauthorized("malformed", "the capability is not one of ours", "use one minted by this node")
    return int(found[1]), found[2].decode()


def _with(macaroon: Macaroon, caveats: Iterable[Caveat]) -> str:
    for caveat in caveats:
        macaroon.add_first_party_caveat(str(parse_caveat(str(caveat))))
    token = _text(macaroon)
    if len(token) > MAX_TOKEN_CHARS:
        raise too_large("the capability has too many caveats", f"at most {MAX_TOKEN_CHARS} characters in all")
    return token


def _text(macaroon: Macaroon) -> str:
    return str(macaroon.serialize()).rstrip("=")
