"""What is refused in a threshold protocol, and whom it names.

In: nothing. Out: `Refused` with a `Reason` to count and the members it concerns; `NoncesUsedError`;
`InvalidGroupError`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Reason(enum.StrEnum):
    """Why a message was refused: a metric's label, and the difference between a liar and somebody who is late."""

    MALFORMED = "malformed"
    """Not the one spelling of its message: length, order, a scalar or a point outside the prime-order group."""
    STRANGER = "stranger"
    """From somebody who has no part in this session."""
    OTHER_SESSION = "other_session"
    """Made for another session, other members, another epoch of the shares: a replay, or a message that came late."""
    OUT_OF_PLACE = "out_of_place"
    """Its kind is not for this receiver or not for this moment."""
    REPEATED = "repeated"
    """The very message that is here already."""
    EQUIVOCATED = "equivocated"
    """Something else than the same member said before in the same place."""
    DISPUTED = "disputed"
    """Two members say different things about what one of them broadcast; whose signature is on it decides."""
    BAD_PROOF = "bad_proof"
    """Its sender does not prove to know what it committed to, or it committed to something else than it had to."""
    BAD_SHARE = "bad_share"
    """A share that does not fit what its maker has committed to."""
    UNJUSTIFIED = "unjustified"
    """The public answer to a complaint does not fit either."""
    SILENT = "silent"
    """Nothing came before the caller's deadline."""


_HARMLESS = frozenset({Reason.STRANGER, Reason.OTHER_SESSION, Reason.OUT_OF_PLACE, Reason.REPEATED})


class FrostError(Exception):
    """Anything a threshold protocol gives up on."""


class Refused(FrostError):
    """A message, or a set of them, that a protocol does not go on with. `members` are in ascending order."""

    def __init__(self, reason: Reason, members: Iterable[int], message: str) -> None:
        self.members = tuple(sorted(set(members)))
        super().__init__(f"{message} (member {', '.join(map(str, self.members))})")
        self.reason = reason

    @property
    def harmless(self) -> bool:
        """True when the message is to be dropped and everything goes on as if it had not come."""
        return self.reason in _HARMLESS

    @property
    def blames(self) -> bool:
        """True when an honest member on an authenticated channel could not have caused it: leave `members` out."""
        return not self.harmless and self.reason not in (Reason.DISPUTED, Reason.SILENT)


class NoncesUsedError(FrostError):
    """These nonces have signed before, or another process has a copy: a second signature would give the share away."""


class InvalidGroupError(ValueError):
    """Not a group, a share or a plan one can work with: sizes, identifiers, or values that do not belong together."""
