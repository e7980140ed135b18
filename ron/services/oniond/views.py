"""How an onion looks from outside: to its owner, and in the node's status.

In: an onion, and how it stands on its tor. Out: `OnionView`, `OnionStatus`; no key, ever.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ron.proto.clock import rfc3339
from ron.proto.onions import OnionView, Previous
from ron.services.oniond.hosting import Hosting
from ron.services.oniond.model import Onion, address_of_blob


class OnionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One of the config's onions as the node's status shows it. bringup_ms: None for one that was found published."""

    app: str
    onion: str | None
    ports: tuple[int, ...]
    published: bool
    bringup_ms: float | None = None


def view_of(onion: Onion, hosting: Hosting) -> OnionView:
    """As its owner sees it, with the app's own way out."""
    view = _view(onion, hosting, hosting.visitors(onion))
    return msgspec.structs.replace(view, socks=hosting.socks(onion))


def views_of(onions: Iterable[Onion], hosting: Hosting) -> tuple[OnionView, ...]:
    """Many of them, the oldest first."""
    oldest_first = sorted(onions, key=lambda onion: (onion.created_s, onion.id))
    visitors = hosting.visitors_of(oldest_first)
    return tuple(_view(onion, hosting, visitors[onion.id]) for onion in oldest_first)


def status_of(app: str, ports: tuple[int, ...], onion: Onion | None, hosting: Hosting) -> OnionStatus:
    """One of the config's."""
    if onion is None:
        return OnionStatus(app=app, onion=None, ports=ports, published=False)
    standing = hosting.standing(onion)
    return OnionStatus(
        app=app, onion=onion.address, ports=ports, published=standing.ready, bringup_ms=standing.bringup_ms
    )


def _view(onion: Onion, hosting: Hosting, visitors: int) -> OnionView:
    standing = hosting.standing(onion)
    return OnionView(
        id=onion.id,
        app=onion.app,
        onion=onion.address,
        state=onion.state,
        ready=standing.ready,
        reason=standing.reason if onion.state == "active" else f"it is {onion.state}",
        ports=onion.ports,
        persistence=onion.persistence,
        isolation=onion.isolation,
        clients=onion.clients,
        created_at=rfc3339(onion.created_s),
        hints=onion.hints,
        limits=onion.limits,
        pow=onion.pow,
        previous=_previous(onion, hosting),
        bringup_ms=standing.bringup_ms,
        uploads=standing.uploads,
        circuits=visitors,
    )


def _previous(onion: Onion, hosting: Hosting) -> Previous | None:
    if onion.previous is None:
        return None
    address = address_of_blob(onion.previous.key)
    ready = hosting.standing(onion, address).ready
    return Previous(onion=address, until=rfc3339(onion.previous.until_s), ready=ready)
