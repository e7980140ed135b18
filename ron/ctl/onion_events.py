"""`ronctl onion events`: what happens to onions, as it happens.

In: the runtime's address and a capability (onion:events). Out: one line an event, and one where events are missing. A
runtime that restarts is waited for, and asked for what came meanwhile.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

import click
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater

from ron.ctl.node import find_capability, home, print_json, run
from ron.ctl.onion_reach import place, reach
from ron.ctl.plain import plain_text
from ron.ctl.tail import Event, line
from ron.ctl.trust import given_trust
from ron.kernel.backoff import Backoff
from ron.kernel.tls import ClientTls
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.proto.onionevents import EventKind, EventView, Lagged
from ron.sdk.events import Told, connect

if TYPE_CHECKING:
    from ron.sdk.events import EventStream

Connect = Callable[[int | None], Awaitable["EventStream"]]
_PORTS = {"http": 80, "https": 443}


class Following:
    """Events of one stream after another, each once.

    connect: opens a stream after a number, wherever the runtime is by now. show: takes an event, or that some are
    missing. complain: takes a sentence when the runtime goes away.
    """

    def __init__(
        self,
        reactor: Any,
        connect: Connect,
        *,
        after: int | None,
        wanted: Callable[[EventView], bool],
        show: Callable[[Told], None],
        complain: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._connect = connect
        self._after = after
        self._wanted = wanted
        self._show = show
        self._complain = complain
        self._answered = False
        self._waiting = False
        self.count = 0

    async def follow(self, limit: int | None) -> None:
        """Show what comes, until `limit` events were shown. Raises `RonError`, but waits for a runtime that answered
        before and does not any more."""
        backoff = Backoff(base_s=0.2, ceiling_s=5.0)
        while self._wants_more(limit):
            try:
                stream = await self._connect(self._after)
                self._answered, self._waiting = True, False
                backoff.reset()
                await self._heed(stream, limit)
            except RonError as error:
                if not (self._answered and error.retryable):
                    raise
                self._lost(error)
                await deferLater(self._reactor, backoff.next_delay_s())

    async def _heed(self, stream: EventStream, limit: int | None) -> None:
        try:
            while self._wants_more(limit):
                told = await stream.next()
                if isinstance(told, Lagged):
                    self._show(told)
                    continue
                self._after = told.seq
                if self._wanted(told):
                    self.count += 1
                    self._show(told)
        finally:
            stream.close()

    def _lost(self, error: RonError) -> None:
        if not self._waiting:
            self._waiting = True
            self._complain(f"{error.message}; waiting for the onion runtime")

    def _wants_more(self, limit: int | None) -> bool:
        return limit is None or self.count < limit


@click.command("events")
@click.option("--app", metavar="NAME", help="Those of this app only.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(get_args(EventKind)), help="This kind only. Repeat.")
@click.option("--after", type=click.IntRange(min=0), metavar="SEQ", help="First those since number SEQ that are kept.")
@click.option("-n", "limit", type=click.IntRange(min=1), metavar="COUNT", help="End after so many events.")
@reach
def events(
    app: str | None,
    kinds: tuple[str, ...],
    after: int | None,
    limit: int | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Show what happens to onions: descriptors, circuits, visitors, tors that go, onions ready or not; Ctrl-C ends it.

    With --json each line is one JSON object: seq, kind, app, at, detail; or lagged, with how many events are missing at
    that place. --after 0 begins with all that is kept.

    \b
    Examples:
      ronctl onion events
      ronctl onion events --app wiki --kind introduction --kind rendezvous
      ronctl onion events --kind ready -n 1 && echo "an onion is ready, or has ceased to be"
      ronctl onion events --json | jq -r 'select(.kind == "descriptor") | .detail.result'
    """

    async def work(reactor: Any) -> None:
        following = Following(
            reactor,
            lambda seq: _open(reactor, control, cap, seq),
            after=after,
            wanted=lambda event: app in (None, event.app) and (not kinds or event.kind in kinds),
            show=print_json if as_json else lambda told: click.echo(words(told)),
            complain=lambda sentence: click.echo(f"ronctl: {plain_text(sentence)}", err=True),
        )
        showing = Deferred.fromCoroutine(following.follow(limit))
        # otherwise the stream that ends with the reactor would look like a runtime that went away
        reactor.addSystemEventTrigger("before", "shutdown", showing.cancel)
        await showing

    try:
        run(work)
    except (click.Abort, CancelledError):
        sys.exit(0)  # Ctrl-C is how one ends it


def words(told: Told) -> str:
    """A line for people: when (UTC), whose, which kind, what; or that some are missing."""
    if isinstance(told, Lagged):
        return f"… {told.lagged} events are missing here: they came too fast, or are kept no more"
    return line(Event(ts=told.at, topic=told.kind, origin=told.app, corr_id="", body=told.detail)).rstrip()


async def _open(reactor: Any, control: str | None, cap: str | None, after: int | None) -> EventStream:
    where = place(control)
    capability = _capability(cap)
    if isinstance(where, Path):
        return await connect(reactor, UNIXClientEndpoint(reactor, str(where)), capability, after=after)
    endpoint, host = _remote(reactor, where)
    return await connect(reactor, endpoint, capability, after=after, host=host)


def _capability(cap: str | None) -> str:
    # another host's runtime has no business with the admin capability of ours
    own = given_trust().ca is None or cap or os.environ.get("RON_CAP")
    capability = find_capability(cap) if own else None
    if capability is None:
        raise RonError(
            ErrorCode.NO_CAPABILITY,
            "no capability to show to the onion runtime",
            hint=f"--cap TOKEN|FILE or RON_CAP; admin.cap is in the daemon's RON_HOME (not in {home()})",
        )
    return capability


def _remote(reactor: Any, url: str) -> tuple[IStreamClientEndpoint, str]:
    """The endpoint of a URL, and its host as a request names it. Raises `RonError` (BadRequest)."""
    trust = given_trust()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        host, port = "", 0
    if not host or not host.isascii():
        raise bad_request(f"{url!r} is no URL", "write one like https://alpha.internal:9443")
    endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, host, port)
    if parts.scheme == "http":
        if any(trust):
            raise bad_request(f"--ca, --cert, --key and --identity are for https, {url} is not", "--control https://…")
        return endpoint, parts.netloc
    if trust.ca is None:
        raise bad_request(f"{url} needs a CA to trust", "ronctl --ca ca.pem …, before the command")
    tls = ClientTls(trust.ca, trust.cert, trust.key, trust.identity or host)
    return wrapClientTLS(tls, endpoint), parts.netloc
