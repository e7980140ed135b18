"""Onion bring-up on the private network: ADD_ONION to the first upload, and to the first GET through a second tor.

Ours (`ron.tor.onions.TorOnions`) and txtorcon's own `create_onion_service` in turn, 24 fresh keys each, on one network.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.logger import globalLogBeginner
from twisted.web.resource import Resource
from twisted.web.server import Site
from txtorcon import connect

from bench import harness
from ron.kernel import HealthState, Metrics
from ron.sdk import Api, onion_http
from ron.sdk.transport import connection_pool
from ron.tor.binary import find_tor
from ron.tor.onionkeys import new_key
from ron.tor.onions import OnionSpec, PortMap, TorOnions
from ron.tor.privnet import PrivateNetwork

ROUNDS = 24
TARGET_P95_MS = 5000


def main() -> None:
    """Measure and save."""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    outcome: list[Any] = []
    with harness.scratch() as folder:

        def begin() -> None:
            done = Deferred.fromCoroutine(_measure(folder))
            done.addBoth(outcome.append)
            done.addBoth(lambda _none: reactor.stop())

        reactor.callWhenRunning(begin)
        reactor.run()
    result = outcome[0]
    if not isinstance(result, dict):
        result.raiseException()
    harness.save("onion", result)
    rows = [[n, *(f[k] for k in ("n", "p50", "p95", "max"))] for n, f in result["figures_ms"].items()]
    harness.show(f"onion bring-up, ms (target p95 < {TARGET_P95_MS})", ["", "n", "p50", "p95", "max"], rows)


async def _measure(folder: Path) -> dict[str, Any]:
    network = PrivateNetwork(
        reactor, directory=folder, tor=find_tor(), clients=("host", "visitor"), health=HealthState(), metrics=Metrics()
    )
    page = Resource()
    page.render_GET = lambda _request: b"hello"
    page.isLeaf = True
    listening = reactor.listenTCP(0, Site(page), interface="127.0.0.1")
    local = f"127.0.0.1:{listening.getHost().port}"
    times: dict[str, list[float]] = {}
    try:
        await network.bring_up()
        ours, theirs = await _publishers(network, local)
        for _ in range(ROUNDS):
            for name, bring_up in (("rustyonions", ours), ("txtorcon", theirs)):
                started = reactor.seconds()
                onion, forget = await bring_up()
                uploaded = reactor.seconds()
                await _get(onion, network.socks_port("visitor"))
                reached = reactor.seconds()
                await forget()
                times.setdefault(f"{name}: first upload", []).append((uploaded - started) * 1000)
                times.setdefault(f"{name}: first GET", []).append((reached - started) * 1000)
    finally:
        await network.take_down()
        await listening.stopListening()
    figures = {name: harness.spread(values) for name, values in times.items()}
    met = figures["rustyonions: first GET"]["p95"] < TARGET_P95_MS
    ratio = figures["rustyonions: first GET"]["p50"] / figures["txtorcon: first GET"]["p50"]
    raw = {name: [round(v, 1) for v in values] for name, values in times.items()}
    return {
        "setup": {"rounds": ROUNDS, "target_p95_ms": TARGET_P95_MS},
        "figures_ms": figures,
        "target_met": met,
        "ratios": {"first GET p50, of txtorcon": round(ratio, 3)},
        "times_ms": raw,
    }


BringUp = Callable[[], Awaitable[tuple[str, Callable[[], Awaitable[None]]]]]


async def _publishers(network: PrivateNetwork, local: str) -> tuple[BringUp, BringUp]:
    host = network.tors["host"]
    port = next(t.control_port for t in network.facts().tors if t.name == "host")
    # txtorcon reads the whole configuration once; that is not part of a bring-up
    tor = await connect(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", port))
    await tor.get_config()

    onions = TorOnions(reactor, host.control)
    await onions.open()

    async def ours() -> tuple[str, Callable[[], Awaitable[None]]]:
        spec = OnionSpec(key=new_key(), ports=(PortMap(80, local),))
        await onions.publish(spec)
        return spec.address, lambda: onions.withdraw(spec.address)

    async def theirs() -> tuple[str, Callable[[], Awaitable[None]]]:
        service = await tor.create_onion_service([f"80 {local}"], version=3)

        async def forget() -> None:
            await service.remove()

        return service.hostname, forget

    return ours, theirs


async def _get(onion: str, socks_port: int) -> None:
    pool = connection_pool(reactor)
    answer = await Api(reactor, onion_http(reactor, socks_port, pool), f"http://{onion}", deadline_s=60).fetch(
        "GET", "/"
    )
    assert answer.body == b"hello"
    await pool.closeCachedConnections()
