"""Lists of holder keys: one's own, against which peers prove, and the peers', against which one proves oneself.

In: keys, or listings from issuers. Out: rosters. Anonymity is among the keys of the list, so a holder has to make sure
that everybody was given the same one: a list that goes back, changes under its version or is too short is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ron.crypto.schnorr import InvalidKeysError, KeyList
from ron.proto.errors import bad_request, conflict
from ron.services.oniond.federation.messages import PROTOCOL, RosterListing, RosterRef


class Roster:
    """One version of an issuer's list. Whoever changes the keys or their order counts the version up."""

    __slots__ = ("keys", "ref")

    def __init__(self, version: int, keys: Sequence[bytes]) -> None:
        """Raises `RonError` BadRequest for what is no list: see `KeyList`."""
        try:
            self.keys = KeyList(keys)
        except InvalidKeysError as error:
            raise bad_request(str(error)) from None
        self.ref = RosterRef(version=version, digest=self.keys.digest, size=len(self.keys))

    @classmethod
    def read(cls, listing: RosterListing, issuer: str) -> Roster:
        """The list in `listing`, which came from `issuer`'s onion or its operator. 0.07 ms a key.

        Raises `RonError`: BadRequest for what is no list, Conflict when it is another issuer's.
        """
        if listing.onion != issuer:
            raise conflict("the list of holder keys is another onion's", "fetch it from its issuer's own onion")
        return cls(listing.version, listing.keys)

    def listing(self, onion: str) -> RosterListing:
        """What the issuer at `onion` gives to its holders."""
        return RosterListing(protocol=PROTOCOL, onion=onion, version=self.ref.version, keys=self.keys.keys)

    def lost_since(self, earlier: Roster) -> bool:
        """True when a key of `earlier` is not on this list: somebody's capability was revoked."""
        return not self.keys.covers(earlier.keys)


class Pin(NamedTuple):
    """The newest version seen of an issuer's list, and its digest. Worth keeping across restarts."""

    version: int
    digest: bytes


class RosterBook:
    """The newest list of each issuer. min_size: a shorter list would tell the issuer too much about who proves."""

    def __init__(self, *, min_size: int = 1, pins: Mapping[str, Pin] | None = None) -> None:
        self._min_size = min_size
        self._pins = dict(pins or {})
        self._rosters: dict[str, Roster] = {}

    def admit(self, onion: str, roster: Roster) -> None:
        """Take over the list of the issuer at `onion`. Raises `RonError` Conflict when it contradicts what was seen."""
        self._check(onion, roster)
        self._pins[onion] = Pin(roster.ref.version, roster.ref.digest)
        self._rosters[onion] = roster

    def newest(self, issuer: str) -> Roster | None:
        """What `admit` took last from `issuer`."""
        return self._rosters.get(issuer)

    def pins(self) -> dict[str, Pin]:
        """What to hand to the constructor next time."""
        return dict(self._pins)

    def _check(self, onion: str, roster: Roster) -> None:
        if len(roster.keys) < self._min_size:
            raise conflict(
                f"the list of {onion} has fewer than {self._min_size} holder keys",
                "ask its operator to issue more capabilities, or lower the minimum and be less hidden",
            )
        pin = self._pins.get(onion)
        if pin is None or roster.ref.version > pin.version:
            return
        if roster.ref.version < pin.version:
            raise conflict(f"the list of {onion} is older than one seen before", "fetch the newest from its operator")
        if roster.ref.digest != pin.digest:
            raise conflict(
                f"two lists of {onion} carry one version",
                "compare the digest with other holders: an issuer that tells them different lists can tell them apart",
            )
