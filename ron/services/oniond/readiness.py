"""What readiness says of the onions: of the config's own each by its app, of all others together and without a name.

In: an onion that stands otherwise than before. Out: health keys `onion.<app>` and `onions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ron.kernel import HealthState
from ron.services.oniond.model import Onion
from ron.services.oniond.registry import Registry
from ron.services.oniond.standings import Standing

HEALTH_KEY = "onions"


class OnionReadiness:
    """Of one registry. own: ids of the config's onions by app. standing: how an onion stands at present."""

    def __init__(
        self,
        health: HealthState,
        registry: Registry,
        *,
        own: Mapping[str, str],
        standing: Callable[[Onion], Standing],
    ) -> None:
        self._health = health
        self._registry = registry
        self._own = own
        self._standing = standing
        # those of programs that are to be found and are not
        self._missed: set[str] = set()

    def tell(self) -> None:
        """From the beginning."""
        self._missed = {onion.id for onion in self._registry if self._is_missed(onion)}
        self._tell_others()
        for app, onion_id in self._own.items():
            self._tell_own(app, self._registry.get(onion_id))

    def tell_of(self, onion: Onion) -> None:
        """This one alone stands otherwise; it need not be there any more."""
        now = self._registry.get(onion.id)
        if onion.origin == "config":
            if self._own.get(onion.app) == onion.id:
                self._tell_own(onion.app, now)
        elif (now is not None and self._is_missed(now)) is not (onion.id in self._missed):
            self._missed ^= {onion.id}
            self._tell_others()

    def _is_missed(self, onion: Onion) -> bool:
        return onion.origin == "api" and onion.state == "active" and not self._standing(onion).ready

    def _tell_others(self) -> None:
        if self._missed:
            # neither names nor numbers: whoever may look at readiness may not know whose onions there are
            self._health.degraded(HEALTH_KEY, "some onions are not published")
        else:
            self._health.ok(HEALTH_KEY)

    def _tell_own(self, app: str, onion: Onion | None) -> None:
        standing = self._standing(onion) if onion is not None else None
        if standing is None or standing.ready:
            self._health.ok(f"onion.{app}")
        else:
            self._health.missing(f"onion.{app}", standing.reason or "")
