"""OAP/1: frames encoded and decoded, and request round trips over a Unix socket, one at a time and 64 under way.

Beside it, in the same run: the same round trips over a bare length-prefixed echo in Twisted, which has no HELLO, no
conversations, no limits, no deadlines, no correlation ids. Client and server each in a fresh process on its own core.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from bench import harness, roles
from bench.harness import CLIENT_CPU, ROOT, SERVER_CPU, percentile, scratch

MODULE = "bench.oap"
ROUNDS = 3
FRAMES, FED_BYTES = 40_000, 64 * 1024
CALLS, WARM_UP, AT_A_TIME = 4000, 400, 64
PAYLOAD = os.urandom(256)
LARGE, LARGE_CALLS = os.urandom(1_000_000), 60
PROTO = 0x0201


def main() -> None:
    """Measure, interleaved, and save."""
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for name, measured in _round().items():
            runs.setdefault(name, []).append(measured)
    best = {name: _best(rounds) for name, rounds in runs.items()}
    oap, bare = best["OAP/1"], best["bare echo"]
    ratios = {
        "round trip p50, of a bare echo": round(oap["p50_us"] / bare["p50_us"], 2),
        "requests/s with 64 under way, of a bare echo": round(oap["per_s"] / bare["per_s"], 3),
        "MB/s of 1 MB payloads, of a bare echo": round(oap["mb_per_s"] / bare["mb_per_s"], 3),
    }
    setup = {"payload_bytes": len(PAYLOAD), "calls": CALLS, "at_a_time": AT_A_TIME, "rounds": ROUNDS}
    harness.save("oap", {"setup": setup, "best": best, "rounds": runs, "ratios": ratios})
    rows = [[name, f"{value:.0f}"] for name, value in best["codec"].items()]
    harness.show("OAP/1: frames of 256 bytes", ["codec", "a second"], rows)
    columns = ["Unix socket, two processes", "p50 µs", "p99 µs", "requests/s, 64 at a time", "MB/s there and back"]
    measured = [best[name] for name in ("OAP/1", "bare echo")]
    rows = [
        [n, m["p50_us"], m["p99_us"], f"{m['per_s']:.0f}", m["mb_per_s"]] for n, m in zip(best, measured, strict=False)
    ]
    harness.show("OAP/1: there and back", columns, rows)


def _round() -> dict[str, dict[str, float]]:
    with scratch() as folder:
        return {
            "OAP/1": _pair("oap", folder / "oap.sock"),
            "bare echo": _pair("bare", folder / "bare.sock"),
            "codec": _run("codec"),
        }


def _best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Figure by figure: the most of what is per second, the shortest times."""
    return {key: (min if key.endswith("_us") else max)(run[key] for run in rounds) for key in rounds[0]}


def _run(role: str, *arguments: Path) -> dict[str, float]:
    return roles.run(MODULE, role, *arguments, cpu=CLIENT_CPU)


def _pair(name: str, path: Path) -> dict[str, float]:
    server = subprocess.Popen(roles.command(MODULE, f"{name}-server", path, cpu=SERVER_CPU), cwd=ROOT)
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server of {name} did not come up")
            time.sleep(0.05)
        return _run(f"{name}-client", path)
    finally:
        server.kill()
        server.wait()


# The codec


def codec() -> None:
    """Frames a second, each way, fed as a socket would."""
    from ron.oap.frames import Decoder, Flags, Frame, encode

    frame = Frame(flags=Flags.REQ | Flags.START | Flags.END, app_proto_id=PROTO, corr_id=7, payload=PAYLOAD)
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    raw = b"".join([encode(frame) for _ in range(FRAMES)])
    encoded_s = time.perf_counter() - started
    decoder, found = Decoder(), 0
    started = time.perf_counter()
    for at in range(0, len(raw), FED_BYTES):
        for _frame in decoder.feed(raw[at : at + FED_BYTES]):
            found += 1
    decoded_s = time.perf_counter() - started
    if found != FRAMES:
        raise RuntimeError(f"{FRAMES - found} frames were lost")
    roles.tell({"encoded": round(FRAMES / encoded_s), "decoded": round(FRAMES / decoded_s)})


# Round trips


async def _measure(call: Callable[[bytes], Coroutine[Any, Any, bytes]]) -> dict[str, float]:
    from twisted.internet.defer import Deferred, gatherResults

    times = []
    for number in range(WARM_UP + CALLS):
        if number == WARM_UP:
            gc.collect()
            gc.freeze()
        started = time.perf_counter()
        if await call(PAYLOAD) != PAYLOAD:
            raise RuntimeError("the echo is wrong")
        times.append((time.perf_counter() - started) * 1e6)
    left = CALLS

    async def one_of_many() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(PAYLOAD)

    started = time.perf_counter()
    await gatherResults([Deferred.fromCoroutine(one_of_many()) for _ in range(AT_A_TIME)])
    per_s = CALLS / (time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(LARGE_CALLS):
        if len(await call(LARGE)) != len(LARGE):
            raise RuntimeError("the echo is cut short")
    moved_mb = 2 * LARGE_CALLS * len(LARGE) / 1e6
    measured = times[WARM_UP:]
    return {
        "p50_us": round(percentile(measured, 50), 1),
        "p99_us": round(percentile(measured, 99), 1),
        "per_s": round(per_s),
        "mb_per_s": round(moved_mb / (time.perf_counter() - started), 1),
    }


def oap_server(path: Path) -> None:
    """Ours."""
    from twisted.internet import reactor

    from ron.kernel import Metrics
    from ron.oap import OapServer, Request, Response

    async def echo(request: Request) -> Response:
        return Response(payload=request.payload)

    _serve(reactor, path, OapServer(reactor, echo, metrics=Metrics()))


def oap_client(path: Path) -> None:
    """Ours."""
    from twisted.internet import reactor
    from twisted.internet.endpoints import UNIXClientEndpoint

    from ron.oap import OapClient

    async def whole() -> dict[str, float]:
        client = await OapClient.connect(reactor, UNIXClientEndpoint(reactor, str(path)))

        async def call(payload: bytes) -> bytes:
            return (await client.call(PROTO, 1, payload)).payload

        return await _measure(call)

    roles.in_reactor(whole)


def bare_server(path: Path) -> None:
    """Says every string back."""
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory
    from twisted.protocols.basic import Int32StringReceiver

    class Echo(Int32StringReceiver):
        MAX_LENGTH = 2**24

        def stringReceived(self, string: bytes) -> None:
            self.sendString(string)

    _serve(reactor, path, Factory.forProtocol(Echo))


def bare_client(path: Path) -> None:
    """Answers come in the order of the questions."""
    from collections import deque

    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.endpoints import UNIXClientEndpoint
    from twisted.internet.protocol import Factory
    from twisted.protocols.basic import Int32StringReceiver

    class Asker(Int32StringReceiver):
        MAX_LENGTH = 2**24

        def __init__(self) -> None:
            self.waiting: deque[Deferred[bytes]] = deque()

        def stringReceived(self, string: bytes) -> None:
            self.waiting.popleft().callback(string)

    async def whole() -> dict[str, float]:
        factory = Factory.forProtocol(Asker)
        asker: Any = await UNIXClientEndpoint(reactor, str(path)).connect(factory)

        async def call(payload: bytes) -> bytes:
            answer: Deferred[bytes] = Deferred()
            asker.waiting.append(answer)
            asker.sendString(payload)
            return await answer

        return await _measure(call)

    roles.in_reactor(whole)


def _serve(reactor: Any, path: Path, factory: Any) -> None:
    reactor.listenUNIX(str(path), factory)
    reactor.callLater(1, lambda: (gc.collect(), gc.freeze()))
    reactor.run()


ROLES: dict[str, Callable[..., None]] = {
    "codec": codec,
    "oap-server": oap_server,
    "oap-client": oap_client,
    "bare-server": bare_server,
    "bare-client": bare_client,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*map(Path, sys.argv[2:]))
