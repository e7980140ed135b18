"""`ronctl tail`: what happens on the node's bus, as it happens.

In: a topic, how far back, the node's gateway and a capability (bus:read). Out: one line an event. A node that restarts
is waited for, and nothing it still remembers is shown twice or left out.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from ron.ctl.node import cap_option, connect, json_option, node_option, print_json, run
from ron.ctl.plain import plain_text
from ron.kernel.backoff import Backoff
from ron.kernel.units import UnitError, parse_duration_s
from ron.proto.errors import RonError, bad_request
from ron.sdk import Api

WAIT_S = 20.0
# Longer than the node holds a call back.
DEADLINE_S = 30.0
# Asked for again after a break: clocks and the bus between processes are not exact. What was shown is not shown again.
OVERLAP_S = 2.0
REMEMBERED = 4096
MAX_SINCE_S = 7 * 86_400.0
# A node that has nothing and does not wait is going down.
PAUSE_S = 1.0
# The node answers with at most so many.
PORTION = 1000


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/bus/tail`; see `ron.web.admin`."""

    topic: str
    since_s: float
    wait_s: float
    after: int = 0
    stream: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the bus. ts: Unix seconds. origin: the process it comes from."""

    ts: float
    topic: str
    origin: str
    corr_id: str
    body: Any

    def key(self) -> bytes:
        """The same for the same event, whichever process tells it."""
        return msgspec.json.encode((self.ts, self.topic, self.origin, self.corr_id, self.body))


class Events(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /v1/bus/tail`."""

    messages: list[Event]
    last: int
    stream: str


class Tail:
    """The events of `topic` from `since_s` seconds ago on.

    connect: a fresh client for the node, wherever it is by now. show: takes each event. complain: takes a sentence when
    the node stops answering.
    """

    def __init__(
        self,
        reactor: Any,
        connect: Callable[[], Api],
        *,
        topic: str,
        since_s: float,
        show: Callable[[Event], None],
        complain: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._connect = connect
        self._topic = topic
        self._since_s = since_s
        self._show = show
        self._complain = complain
        self._api: Api | None = None
        self._answer = Events(messages=[], last=0, stream="")
        self._answered_s: float | None = None
        self._waiting = False
        self._shown: OrderedDict[bytes, None] = OrderedDict()
        self.count = 0

    async def kept(self, limit: int | None) -> None:
        """Show what the node has kept, at most `limit`. Raises `RonError`."""
        full = True
        while full and self._wants_more(limit):
            answer = await self._ask(0.0)
            self._present(answer, limit)
            full = len(answer.messages) == PORTION

    async def follow(self, limit: int | None) -> None:
        """Show what is kept and what comes, until `limit` were shown. Raises `RonError`, but waits for a node that
        answered before and does not any more."""
        backoff = Backoff(base_s=0.1, ceiling_s=5.0)
        while self._wants_more(limit):
            asked_s = self._reactor.seconds()
            try:
                answer = await self._ask(WAIT_S)
            except RonError as error:
                if self._answered_s is None or not error.retryable:
                    raise
                self._lost(error)
                await deferLater(self._reactor, backoff.next_delay_s())
                continue
            backoff.reset()
            self._waiting = False
            self._present(answer, limit)
            if not answer.messages and self._reactor.seconds() - asked_s < PAUSE_S:
                await deferLater(self._reactor, PAUSE_S)

    async def _ask(self, wait_s: float) -> Events:
        if self._api is None:
            self._api = self._connect()
        known = self._answer
        body = Request(
            topic=self._topic, since_s=self._look_back_s(), wait_s=wait_s, after=known.last, stream=known.stream
        )
        answer = await self._api.call("POST", "/v1/bus/tail", Events, body)
        self._answer, self._answered_s = answer, self._reactor.seconds()
        return answer

    def _look_back_s(self) -> float:
        if self._answered_s is None:
            return self._since_s
        # only for another process than the one that answered last
        return float(min(self._reactor.seconds() - self._answered_s + OVERLAP_S, MAX_SINCE_S))

    def _lost(self, error: RonError) -> None:
        if not self._waiting:
            self._waiting = True
            self._complain(f"{error.message}; waiting for the node")
        # it may come back on another port, with another capability
        self._api = None

    def _present(self, answer: Events, limit: int | None) -> None:
        for event in answer.messages:
            if self._wants_more(limit) and self._is_new(event):
                self.count += 1
                self._show(event)

    def _is_new(self, event: Event) -> bool:
        key = event.key()
        if key in self._shown:
            return False
        self._shown[key] = None
        if len(self._shown) > REMEMBERED:
            self._shown.popitem(last=False)
        return True

    def _wants_more(self, limit: int | None) -> bool:
        return limit is None or self.count < limit


@click.command("tail")
@click.option("--topic", default="*", show_default=True, help="A topic, a family (`name.*`) or *.")
@click.option("--since", metavar="TIME", help="Begin so far back: 30s 10m 24h. [now; with --no-follow: all kept]")
@click.option("-n", "limit", type=click.IntRange(min=1), metavar="COUNT", help="End after so many events.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Wait for more, or end with what is kept.")
@node_option
@cap_option
@json_option
def tail(
    topic: str, since: str | None, limit: int | None, follow: bool, node: str | None, cap: str | None, as_json: bool
) -> None:
    """Show the events of the node's bus, oldest first; Ctrl-C ends it.

    With --json each line is one JSON object: ts, topic, origin, corr_id, body.

    \b
    Examples:
      ronctl tail
      ronctl tail --topic kernel --since 10m
      ronctl tail --topic kernel --no-follow --json | jq -r 'select(.body.event == "ServiceCrashed") | .body.reason'
      ronctl tail --topic readiness -n 1
    """
    since_s = _since_s(since, follow)

    async def work(reactor: Any) -> None:
        events = Tail(
            reactor,
            lambda: _connect(reactor, node, cap),
            topic=topic,
            since_s=since_s,
            show=print_json if as_json else lambda event: click.echo(line(event)),
            complain=lambda sentence: click.echo(f"ronctl: {plain_text(sentence)}", err=True),
        )
        showing = Deferred.fromCoroutine(events.follow(limit) if follow else events.kept(limit))
        # otherwise the connections that end with the reactor would look like a node that went away
        reactor.addSystemEventTrigger("before", "shutdown", showing.cancel)
        await showing

    try:
        run(work)
    except (click.Abort, CancelledError):
        sys.exit(0)  # Ctrl-C is how one ends it


def line(event: Event) -> str:
    """An event for people: when (UTC), from where, which topic, what."""
    when = datetime.fromtimestamp(event.ts, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{when}  {plain_text(event.origin):<10} {plain_text(event.topic):<10} {_words(event.body)}"


def _words(body: Any) -> str:
    if not isinstance(body, dict):
        return _value(body)
    named = dict(body)
    kind = named.pop("event", None)
    words = [f"{plain_text(str(name))}={_value(value)}" for name, value in named.items()]
    return " ".join([_value(kind), *words] if kind is not None else words)


def _value(value: Any) -> str:
    if isinstance(value, str):
        bare = value != "" and " " not in value and "=" not in value and value.isprintable()
        return value if bare else plain_text(msgspec.json.encode(value).decode())
    return plain_text(msgspec.json.encode(value).decode())


def _since_s(since: str | None, follow: bool) -> float:
    if since is None:
        return 0.0 if follow else MAX_SINCE_S
    try:
        since_s = parse_duration_s(since)
    except UnitError as error:
        raise bad_request(f"--since: {error.one_line()}") from None
    if since_s > MAX_SINCE_S:
        raise bad_request(f"--since {since} is over a week", "the node keeps some thousand events only")
    return since_s


def _connect(reactor: Any, node: str | None, cap: str | None) -> Api:
    """As `ron.ctl.node.connect`, but for calls that are held back, and tried again by ourselves."""
    return connect(reactor, node, cap, deadline_s=DEADLINE_S, tries=1)
