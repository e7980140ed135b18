"""Every span of time the cluster's decisions stand on, in one place, with what it is for.

In: the `[balance]` section. Out: seconds.
"""

from __future__ import annotations

import msgspec

from ron.services.balance.config import BalanceConfig


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """beat_s: how often nodes tell how they are. suspect_s: silence after which a node counts as dead.

    gone_s: the same for a node whose link broke: a killed process is noticed at once, a broken link has time to return.
    listen_s: a node that has just started leads nobody before it has listened so long.
    steady_s: a node that was dead and is heard again is not followed before it has been heard for so long.
    publish_every_s: a descriptor is at most so old. publish_grace_s: a publication that is due has so long to succeed.
    drift_s: a node whose clock is off by more does not lead.
    siege_per_s: introductions a second from which a head is under siege, 0 is never. quiet_s: when it comes back.
    gap_s: between publications for changes that can wait. change_s: a head that changes all the time gets one
    publication for it so often. lifetime_s: directories forget a descriptor after it (rend-spec-v3: 180 minutes).
    roulette_s: the roulette's pace where the order does not say. prove_s, prove_most_s: pauses between the tries of a
    node that could not publish. retry_s, retry_most_s: pauses of a leader whose publication failed.
    """

    beat_s: float = 0.5
    suspect_s: float = 2.5
    gone_s: float = 1.0
    listen_s: float = 2.5
    steady_s: float = 2.5
    publish_every_s: float = 600.0
    publish_grace_s: float = 30.0
    drift_s: float = 30.0
    siege_per_s: float = 30.0
    quiet_s: float = 120.0
    gap_s: float = 2.0
    change_s: float = 30.0
    lifetime_s: float = 10_800.0
    roulette_s: float = 600.0
    prove_s: float = 30.0
    prove_most_s: float = 600.0
    retry_s: float = 1.0
    retry_most_s: float = 15.0

    @classmethod
    def of(cls, config: BalanceConfig) -> Timing:
        """As the operator set it. What is not in the section follows from what is."""
        beat_s, suspect_s = config.beat_ms / 1000, config.suspect_ms / 1000
        return cls(
            beat_s=beat_s,
            suspect_s=suspect_s,
            gone_s=min(suspect_s, 2 * beat_s),
            listen_s=suspect_s,
            steady_s=suspect_s,
            publish_every_s=float(config.publish_every_s),
            drift_s=config.drift_s,
            siege_per_s=config.siege_introductions_per_s,
            quiet_s=float(config.quiet_s),
            roulette_s=float(config.roulette_s),
        )

    @property
    def lease_s(self) -> float:
        """For how long after its last publication a leader is trusted by others. More than it allows itself, so that an
        honest one has stood down before anybody passes it over, and all agree."""
        return self.publish_every_s + 2 * self.publish_grace_s

    @property
    def first_chance_s(self) -> float:
        """For how long others wait for a new leader's first publication."""
        return 2 * self.publish_grace_s
