"""When descriptors are due: time periods and shared random values (rend-spec-v3 §2.2.1–§2.2.4, srv-spec).

In: what a consensus says of time and randomness. Out: the two descriptors that a service has to keep published, each
with its period and the value that places it on the ring. Pure; reckons as tor does, rounding included.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Annotated

import msgspec
from msgspec import Meta

PUBLIC_LENGTH_MIN = 1440
MIN_LENGTH_MIN = 30
MAX_LENGTH_MIN = 14_400
SRV_BYTES = 32
# A shared random value takes two phases of 12 votes each.
PHASE_ROUNDS = 12
RUN_ROUNDS = 2 * PHASE_ROUNDS
_MAX_UINT64 = 2**64 - 1
_MINUTE_S = 60
_DISASTER = b"shared-random-disaster"

Srv = Annotated[bytes, Meta(min_length=SRV_BYTES, max_length=SRV_BYTES)]


class TimePeriod(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, order=True):
    """So many minutes in which an address has one blinded key. start_s: Unix time of its beginning."""

    number: Annotated[int, Meta(ge=1, le=_MAX_UINT64)]
    length_min: Annotated[int, Meta(ge=1, le=MAX_LENGTH_MIN)]
    start_s: Annotated[int, Meta(ge=0)]

    @property
    def end_s(self) -> int:
        """Unix time of the end, which is the start of the next one."""
        return self.start_s + self.length_min * _MINUTE_S

    def shifted(self, by: int) -> TimePeriod:
        """So many periods later, earlier when negative."""
        start_s = self.start_s + by * self.length_min * _MINUTE_S
        return TimePeriod(number=self.number + by, length_min=self.length_min, start_s=start_s)


class Due(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A descriptor to keep published: of which period, and under which shared random value it is stored."""

    period: TimePeriod
    srv: Srv


class NetworkTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a consensus says of time and randomness.

    valid_after_s: Unix time. interval_s: from its valid-after to its fresh-until, the voting interval. testing: its
    tors run with TestingTorNetwork, and derive periods from the interval. length_min: the parameter `hsdir_interval`,
    meaningless when testing. A shared random value that is missing is None.
    """

    valid_after_s: Annotated[int, Meta(ge=0)]
    interval_s: Annotated[int, Meta(ge=3, le=86_400)]
    testing: bool
    length_min: Annotated[int, Meta(ge=MIN_LENGTH_MIN, le=MAX_LENGTH_MIN)] = PUBLIC_LENGTH_MIN
    srv_current: Srv | None = None
    srv_previous: Srv | None = None

    @property
    def period_length_min(self) -> int:
        """As tor reckons it: a testing network's is a run of the shared randomness, rounded down to minutes."""
        return RUN_ROUNDS * self.interval_s // _MINUTE_S if self.testing else self.length_min

    @property
    def phase_s(self) -> int:
        """Half a run, in seconds. Periods begin so much after midnight, or what stands for it in a testing network."""
        return PHASE_ROUNDS * self.interval_s

    def period_at(self, at_s: int) -> TimePeriod:
        """The period at the Unix time `at_s`."""
        length_min = self.period_length_min
        number = (at_s // _MINUTE_S - self.phase_s // _MINUTE_S) // length_min
        # tor reckons numbers in whole minutes and starts in seconds; so do we, or we would differ where it matters
        return TimePeriod(number=number, length_min=length_min, start_s=number * length_min * _MINUTE_S + self.phase_s)

    @property
    def period(self) -> TimePeriod:
        """The one that clients ask for now: it goes by the consensus, not by anybody's clock."""
        return self.period_at(self.valid_after_s)

    @property
    def run_start_s(self) -> int:
        """Unix time at which the shared random value that is now the current one appeared."""
        return self.valid_after_s - self.valid_after_s // self.interval_s % RUN_ROUNDS * self.interval_s

    @property
    def awaits_srv(self) -> bool:
        """True from the start of a time period to the next shared random value, false from there to the next period."""
        return self.valid_after_s >= self.period_at(self.run_start_s).end_s

    def due(self) -> tuple[Due, Due]:
        """The descriptors a service keeps published, the older period first.

        Clients ask for one of the two: the second while a shared random value is awaited, else the first. The other is
        for clients whose consensus is of the segment before or after.
        """
        older = self.period.shifted(-1) if self.awaits_srv else self.period
        newer = older.shifted(1)
        return (
            Due(period=older, srv=self.srv_previous or disaster_srv(older)),
            Due(period=newer, srv=self.srv_current or disaster_srv(newer)),
        )

    def asked_for(self) -> Due:
        """The one of `due` that a client with this very consensus asks for."""
        return self.due()[1 if self.awaits_srv else 0]


def disaster_srv(period: TimePeriod) -> bytes:
    """What everybody uses instead of a shared random value that the authorities could not agree on (srv-spec)."""
    return hashlib.sha3_256(_DISASTER + struct.pack(">QQ", period.length_min, period.number)).digest()
