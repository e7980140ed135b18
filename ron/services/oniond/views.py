"""How an onion looks from outside: to its owner, and in the node's status.

In: an onion, and how it stands on its tor. Out: `OnionView`, `OnionStatus`; no key, ever.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ron.proto.clock import rfc3339
from ron.proto.onions import OnionView, Previous
from ron.services.oniond.hosting import Hosting
from ron.services.oniond.model import Onion
from ron.services.oniond.registry import Registry


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
    oldest_first = sorted(onions, key=_age)
    visitors = hosting.visitors_of(oldest_first)
    return tuple(_view(onion, hosting, visitors[onion.id]) for onion in oldest_first)


class _ListBody(msgspec.Struct, frozen=True):
    """`ListAnswer` of views that are JSON already."""

    onions: tuple[msgspec.Raw, ...]


class Listing:
    """Answers about onions, of the list and of each, kept as JSON: nothing is made twice before it has changed.

    An app's own is made from its own onions alone: what happens to others does not make it slower or faster.
    """

    def __init__(self, registry: Registry, hosting: Hosting) -> None:
        self._registry = registry
        self._hosting = hosting
        self._views: dict[str, msgspec.Raw] = {}
        self._shown: dict[str, bytes] = {}
        self._answers: dict[str | None, bytes] = {}

    def changed(self, onion: Onion | None) -> None:
        """A view of `onion` shows something else now, or is to be shown no more; None: of any."""
        if onion is None:
            self._views.clear()
            self._shown.clear()
            self._answers.clear()
        else:
            self._views.pop(onion.id, None)
            self._shown.pop(onion.id, None)
            self._answers.pop(onion.app, None)
            self._answers.pop(None, None)

    def one(self, onion: Onion) -> bytes:
        """`onion`, which is there, with the app's own way out."""
        kept = self._shown.get(onion.id)
        if kept is None:
            kept = self._shown[onion.id] = msgspec.json.encode(view_of(onion, self._hosting))
        return kept

    def answer(self, may: str | None) -> bytes:
        """For an operator (None), or for the app that the caller is narrowed to."""
        kept = self._answers.get(may)
        return self._made(may) if kept is None else kept

    def _made(self, may: str | None) -> bytes:
        onions = sorted((one for one in self._registry if may is None or one.app == may), key=_age)
        new = [onion for onion in onions if onion.id not in self._views]
        visitors = self._hosting.visitors_of(new)
        for onion in new:
            self._views[onion.id] = msgspec.Raw(msgspec.json.encode(_view(onion, self._hosting, visitors[onion.id])))
        answer = msgspec.json.encode(_ListBody(tuple(self._views[onion.id] for onion in onions)))
        if onions or may is None:
            self._answers[may] = answer  # of apps that have none there is no end
        return answer


def _age(onion: Onion) -> tuple[float, str]:
    return onion.created_s, onion.id


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
    address = onion.previous.address
    ready = hosting.standing(onion, address).ready
    return Previous(onion=address, until=rfc3339(onion.previous.until_s), ready=ready)
