"""Who holds a capability for federation, and the list of holder keys that follows from it. Pure.

In: the register of what was minted. Out: holder keys; the next version of the list. A list is never empty: where there
is no holder, one key stands there whose secret nobody has ever known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ron.auth import AUDIENCE
from ron.auth.caveats import Caveat, holder_key, parse_caveat, scope_allows
from ron.auth.register import Minted
from ron.crypto.group import InvalidElementError, check_element
from ron.crypto.schnorr import MAX_KEYS, HolderKey
from ron.proto.errors import RonError, bad_request

SCOPE = "federation:peer"
# Whatever else a capability is narrowed by says that it is meant for something else.
_CAVEATS = frozenset({"aud", "scope", "holder", "exp"})


class Listed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A version of our list as it is kept. nobody: the key that stands there when there is no holder."""

    version: int
    keys: tuple[bytes, ...]
    nobody: bytes


def parse_public(text: str) -> bytes:
    """A public holder key in hex. Raises `RonError` BadRequest for anything else."""
    try:
        public = holder_key(text)
        check_element(public)
    except (ValueError, InvalidElementError):
        raise bad_request("not a public holder key", "64 hex digits: ronctl federation new-holder") from None
    return public


def holders(minted: Iterable[tuple[Minted, bool]]) -> tuple[bytes, ...]:
    """Holder keys of the capabilities that are good for federation, the oldest first. minted: with whether revoked."""
    found = (_holder(entry.caveats) for entry, revoked in minted if not revoked)
    return tuple(dict.fromkeys(key for key in found if key is not None))


def first_list(now_s: float) -> Listed:
    """Of a node that has none yet. Its version is the time: should the file be lost, the next list is newer still."""
    nobody = HolderKey.generate().public
    return Listed(version=max(1, int(now_s)), keys=(nobody,), nobody=nobody)


def next_list(listed: Listed, granted: Sequence[bytes]) -> Listed:
    """`listed` with exactly the keys `granted`, in their old order, new ones last; a change counts the version up.

    The first `MAX_KEYS` of them only: who comes too late is not let in, who is revoked always goes.
    """
    wanted = tuple(granted[:MAX_KEYS]) or (listed.nobody,)
    kept = [key for key in listed.keys if key in wanted]
    keys = (*kept, *(key for key in wanted if key not in kept))
    if keys == listed.keys:
        return listed
    return Listed(version=listed.version + 1, keys=keys, nobody=listed.nobody)


def _holder(texts: Iterable[str]) -> bytes | None:
    """The key, when these caveats make a capability for federation and nothing else."""
    try:
        caveats = [parse_caveat(text) for text in texts]
        named = {caveat.value for caveat in caveats if caveat.name == "holder"}
        if not _covers(caveats) or len(named) != 1:
            return None
        return parse_public(named.pop())
    except (ValueError, RonError):
        return None


def _covers(caveats: Sequence[Caveat]) -> bool:
    scopes = [caveat.value for caveat in caveats if caveat.name == "scope"]
    ours = all(caveat.value == AUDIENCE for caveat in caveats if caveat.name == "aud")
    known = all(caveat.name in _CAVEATS for caveat in caveats)
    return bool(scopes) and ours and known and all(scope_allows(pattern, SCOPE) for pattern in scopes)
