"""`ronctl hello`: what the Hello Map page does, from outside the node, through a client tor.

In: a running node. Out: a tile fetched through the onion, and a sealed ping through the mailbox onion and back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import msgspec

from ron.ctl.node import cap_option, connect, find_capability, json_option, node_option, print_json, run
from ron.e2e import KeyPair
from ron.proto.errors import unavailable
from ron.proto.facts import NodeFacts, PingResult, PingStep
from ron.sdk import Api, Mailbox, onion_http
from ron.sdk.ping import Device, ping

TILE = (2, 2, 1)
MAILBOX_PORT = 9410


class TileFetched(msgspec.Struct, frozen=True, kw_only=True):
    """A tile that came through the onion."""

    z: int
    x: int
    y: int
    bytes: int
    content_type: str
    ms: float


class Ping(msgspec.Struct, frozen=True, kw_only=True):
    """The sealed ping's figures."""

    suite: str
    sealed_bytes: int
    roundtrip_ms: float


class HelloResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints. bringup_ms: ADD_ONION to the first confirmed descriptor upload, as the node measured it."""

    ok: bool
    onion: str
    bringup_ms: float | None
    tile: TileFetched
    ping: Ping


class _Onion(msgspec.Struct):
    onion: str | None = None
    bringup_ms: float | None = None


class _Status(msgspec.Struct):
    facts: NodeFacts
    onions: list[_Onion]


@click.command("hello")
@node_option
@cap_option
@json_option
def hello(node: str | None, cap: str | None, as_json: bool) -> None:
    """Fetch a map tile and send a sealed message there and back, all through the node's onion address.

    \b
    Both devices of the ping live in this command, each on a tor of its own; the mailbox only ever sees
    ciphertext.

    \b
    Examples:
      ronctl hello
      ronctl hello --json | jq .ping.roundtrip_ms
      ronctl hello --node http://127.0.0.1:9080 --cap var/admin.cap
    """

    def step(text: str, ms: float | None = None) -> None:
        if not as_json:
            click.echo(f"  {text:<44}" + (f"{ms:9.1f} ms" if ms is not None else ""))

    result = run(lambda reactor: _hello(reactor, node, cap, step))
    if as_json:
        print_json(result)
    else:
        click.echo("  all well")


async def _hello(reactor: Any, node: str | None, cap: str | None, step: Callable[..., None]) -> HelloResult:
    status = await connect(reactor, node, cap).call("GET", "/v1/status", _Status)
    facts = status.facts
    if facts.onion is None:
        raise unavailable("the node has no onion address yet", hint="wait until it is ready: ronctl status")
    bringup_ms = next((o.bringup_ms for o in status.onions if o.onion == facts.onion), None)
    step(f"node at {node or facts.gateway_url}")
    step(f"onion {facts.onion[:16]}… published in", bringup_ms)
    tile = await _fetch_tile(reactor, facts)
    step(f"tile {tile.z}/{tile.x}/{tile.y} through the onion ({tile.bytes} bytes)", tile.ms)
    result = await _ping(reactor, facts, find_capability(cap), lambda lap: step(lap.name, lap.ms))
    step(f"ping, {result.suite}, {result.sealed_bytes} bytes sealed", result.roundtrip_ms)
    figures = Ping(suite=result.suite, sealed_bytes=result.sealed_bytes, roundtrip_ms=result.roundtrip_ms)
    return HelloResult(ok=True, onion=facts.onion, bringup_ms=bringup_ms, tile=tile, ping=figures)


async def _fetch_tile(reactor: Any, facts: NodeFacts) -> TileFetched:
    z, x, y = TILE
    api = Api(reactor, onion_http(reactor, facts.socks_port), f"http://{facts.onion}")
    started = reactor.seconds()
    answer = await api.fetch("GET", f"/tiles/{z}/{x}/{y}.png")
    ms = round((reactor.seconds() - started) * 1000, 1)
    content_type = answer.headers.get("content-type", "")
    if not content_type.startswith("image/") or not answer.body:
        raise unavailable(f"the onion answered with {content_type or 'nothing'} instead of a tile")
    return TileFetched(z=z, x=x, y=y, bytes=len(answer.body), content_type=content_type, ms=ms)


async def _ping(
    reactor: Any, facts: NodeFacts, capability: str | None, on_step: Callable[[PingStep], None]
) -> PingResult:
    socks = facts.device_socks_ports or (facts.socks_port, facts.socks_port)

    def device(socks_port: int) -> Device:
        http = onion_http(reactor, socks_port)
        box = Mailbox(Api(reactor, http, f"http://{facts.onion}:{MAILBOX_PORT}", capability))
        return Device(KeyPair.generate(), box, box)

    return await ping(reactor, device(socks[0]), device(socks[-1]), on_step)
