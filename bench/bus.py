"""The bus: events to 100 subscribers, commands in one process and to a child over its Unix socket.

Beside it, in the same run: the same fan-out over `asyncio.Queue`s, and the round trip of as many bytes through a bare
Unix socket between two processes with blocking calls, which is what the machine can do. Each role in a fresh process
on one core; hub and child on different cores.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from bench import harness, roles
from bench.harness import CLIENT_CPU, ROOT, SERVER_CPU, percentile, scratch

SUBSCRIBERS, ROUNDS = 100, 3
# Events are published in bursts that no queue overflows at; one at a time, with pauses, where their way is timed.
BURSTS, BURST = 60, 100
TIMED, PAUSE_S = 400, 0.004
COMMANDS, WARM_UP = 5000, 500
MODULE = "bench.bus"
BODY = {"key": "k" * 40, "payload": b"p" * 256}
EVENT = {"stage": "consensus", "percent": 42}


def main() -> None:
    """Measure, interleaved, and save."""
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for name, measured in _round().items():
            runs.setdefault(name, []).append(measured)
    best = {name: _best(rounds) for name, rounds in runs.items()}
    bus, peer = best["bus, 100 subscribers"], best["asyncio.Queue, 100 subscribers"]
    here, there = best["command, in process"], best["command, to a child"]
    raw = best["bare Unix socket echo"]
    ratios = {
        "events/s, of asyncio.Queue": round(bus["events_per_s"] / peer["events_per_s"], 3),
        "event p99, of asyncio.Queue": round(bus["p99_us"] / peer["p99_us"], 3),
        "command to a child p50, of a bare socket": round(there["p50_us"] / raw["p50_us"], 2),
        "command to a child p50, of one in process": round(there["p50_us"] / here["p50_us"], 2),
    }
    setup = {"subscribers": SUBSCRIBERS, "commands": COMMANDS, "rounds": ROUNDS, "body_bytes": 256}
    harness.save("bus", {"setup": setup, "best": best, "rounds": runs, "ratios": ratios})
    rows = [[n, f"{b['events_per_s']:.0f}", b["p50_us"], b["p99_us"]] for n, b in best.items() if "events_per_s" in b]
    harness.show("bus: publish → received by 100", ["fan-out", "events/s", "p50 µs", "p99 µs"], rows)
    rows = [[n, b["p50_us"], b["p99_us"]] for n, b in best.items() if "events_per_s" not in b]
    harness.show("bus: there and back", ["round trip", "p50 µs", "p99 µs"], rows)


def _round() -> dict[str, dict[str, float]]:
    with scratch() as folder:
        return {
            "bus, 100 subscribers": _run("fanout"),
            "asyncio.Queue, 100 subscribers": _run("queues"),
            "command, in process": _run("commands"),
            "command, to a child": _run("hub", folder / "run" / "bus.sock"),
            "bare Unix socket echo": _run("raw", folder / "raw.sock"),
        }


def _best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Figure by figure: the most events, the shortest times."""
    return {key: (max if key == "events_per_s" else min)(run[key] for run in rounds) for key in rounds[0]}


def _run(role: str, *arguments: Path) -> dict[str, float]:
    return roles.run(MODULE, role, *arguments, cpu=SERVER_CPU)


def _partner(role: str, path: Path) -> subprocess.Popen[bytes]:
    """The other end, on the other core."""
    return subprocess.Popen(roles.command(MODULE, role, path, cpu=CLIENT_CPU), cwd=ROOT)


def _times(seconds: list[float]) -> dict[str, float]:
    micros = [each * 1e6 for each in seconds]
    return {"p50_us": round(percentile(micros, 50), 1), "p99_us": round(percentile(micros, 99), 1)}


# Fan-out


def fanout() -> None:
    """Ours."""
    from twisted.internet import reactor
    from twisted.internet.task import deferLater

    from ron.kernel import Bus, Metrics

    bus = Bus(reactor, Metrics())
    taken = _Taken()
    for number in range(SUBSCRIBERS):
        bus.observe(lambda message: taken.one(message.body), "t", name=f"s{number}")

    async def pause(seconds: float) -> None:
        await deferLater(reactor, seconds)

    roles.in_reactor(lambda: _fan(lambda event: bus.publish(event, topic="t"), pause, taken))


def queues() -> None:
    """The same over bare queues, which have no topics, history, correlation ids or counters."""
    queues: list[asyncio.Queue[Any]] = []
    taken = _Taken()

    async def receive(queue: asyncio.Queue[Any]) -> None:
        while True:
            taken.one(await queue.get())

    def publish(event: Any) -> None:
        for queue in queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    async def whole() -> dict[str, float]:
        queues.extend(asyncio.Queue(4096) for _ in range(SUBSCRIBERS))
        tasks = [asyncio.create_task(receive(queue)) for queue in queues]
        await asyncio.sleep(0)
        result = await _fan(publish, asyncio.sleep, taken)
        for task in tasks:
            task.cancel()
        return result

    roles.tell(asyncio.run(whole()))


class _Taken:
    """What the subscribers got, and when."""

    def __init__(self) -> None:
        self.count = 0
        self.times: list[float] | None = None

    def one(self, event: dict[str, Any]) -> None:
        """One subscriber has one event."""
        self.count += 1
        if self.times is not None:
            self.times.append(time.perf_counter() - event["at"])


async def _fan(
    publish: Callable[[dict[str, Any]], object], pause: Callable[[float], Coroutine[Any, Any, None]], taken: _Taken
) -> dict[str, float]:
    for _ in range(5):
        await _burst(publish, pause, taken)
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    for _ in range(BURSTS):
        await _burst(publish, pause, taken)
    rate = BURSTS * BURST / (time.perf_counter() - started)
    taken.times = []
    for _ in range(TIMED):
        publish({**EVENT, "at": time.perf_counter()})
        await pause(PAUSE_S)
    if len(taken.times) != TIMED * SUBSCRIBERS:
        raise RuntimeError(f"{TIMED * SUBSCRIBERS - len(taken.times)} events were not received")
    return {"events_per_s": round(rate), **_times(taken.times)}


async def _burst(
    publish: Callable[[dict[str, Any]], object], pause: Callable[[float], Coroutine[Any, Any, None]], taken: _Taken
) -> None:
    taken.count = 0
    for _ in range(BURST):
        publish(EVENT)
    while taken.count < BURST * SUBSCRIBERS:
        await pause(0)


# Commands


def commands() -> None:
    """Caller and service in one process."""
    from twisted.internet import reactor

    from ron.kernel import Bus, Metrics

    bus = Bus(reactor, Metrics())
    bus.serve("echo", {"say": lambda command: command.body})
    roles.in_reactor(lambda: _ask(bus))


def hub(path: Path) -> None:
    """The caller, with the hub; its child joins."""
    from twisted.internet import reactor

    from ron.kernel import Bus, Metrics
    from ron.kernel.ipc import BusHub

    bus = Bus(reactor, Metrics())
    there = BusHub(reactor, bus, path, admit=lambda hello: None)
    there.listen()
    child = _partner("child", path)

    async def whole() -> dict[str, float]:
        try:
            await bus.arrival("echo")
            return await _ask(bus)
        finally:
            child.kill()
            child.wait()
            await there.close()

    roles.in_reactor(whole)


def child(path: Path) -> None:
    """The service."""
    from twisted.internet import reactor

    from ron.kernel import Bus, Metrics
    from ron.kernel.ipc import BusLink

    bus = Bus(reactor, Metrics(), origin="echo")
    bus.serve("echo", {"say": lambda command: command.body})
    link = BusLink(reactor, bus, path, name="echo", word=lambda: "")
    reactor.callWhenRunning(link.start)
    reactor.callLater(1, lambda: (gc.collect(), gc.freeze()))
    reactor.run()


async def _ask(bus: Any) -> dict[str, float]:
    times = []
    for number in range(WARM_UP + COMMANDS):
        if number == WARM_UP:
            gc.collect()
            gc.freeze()
        started = time.perf_counter()
        await bus.call("echo", "say", BODY)
        times.append(time.perf_counter() - started)
    return _times(times[WARM_UP:])


def raw(path: Path) -> None:
    """As many bytes there and back, and nothing else."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    partner = _partner("echo", path)
    peer, _address = listener.accept()
    payload = os.urandom(400)
    times = []
    for _ in range(WARM_UP + COMMANDS):
        started = time.perf_counter()
        peer.sendall(payload)
        _exactly(peer, len(payload))
        times.append(time.perf_counter() - started)
    peer.close()
    partner.wait(10)
    roles.tell(_times(times[WARM_UP:]))


def echo(path: Path) -> None:
    """Say what you hear."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        while said := peer.recv(65536):
            peer.sendall(said)


def _exactly(peer: socket.socket, count: int) -> None:
    while count:
        count -= len(peer.recv(count))


ROLES: dict[str, Callable[..., None]] = {
    "fanout": fanout,
    "queues": queues,
    "commands": commands,
    "hub": hub,
    "child": child,
    "raw": raw,
    "echo": echo,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*map(Path, sys.argv[2:]))
