"""Mailbox cycles (send → recv → ack over HTTP, each message on disk) beside beanstalkd with fsync on every job.

Server on one core, clients on the other: 1 and 8 closed-loop clients on keep-alive connections, 256-byte payloads.
Also the disk's own limit: fdatasyncs a second. Needs beanstalkd (`make bench` installs it).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench import harness
from bench.harness import BIN, CLIENT_CPU, ROOT, free_port, scratch, wait_for_port

PAYLOAD = os.urandom(256)
SECONDS, ROUNDS = 5, 3
CLIENTS = (1, 8)
Cycle = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]]


def main() -> None:
    """Measure, interleaved, and save."""
    os.sched_setaffinity(0, {int(CLIENT_CPU)})
    runs: dict[str, list[dict[str, float]]] = {}
    try:
        for _ in range(ROUNDS):
            for count in CLIENTS:
                runs.setdefault(f"rustyonions, {count} clients", []).append(_ours(count))
                runs.setdefault(f"beanstalkd -f0, {count} clients", []).append(_beanstalkd(count))
        limit = _fdatasyncs_per_s()
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    best = {name: max(rounds, key=lambda r: r["cycles_per_s"]) for name, rounds in runs.items()}
    ratio = {
        f"{count} clients, of beanstalkd": round(
            best[f"rustyonions, {count} clients"]["cycles_per_s"]
            / best[f"beanstalkd -f0, {count} clients"]["cycles_per_s"],
            3,
        )
        for count in CLIENTS
    }
    setup = {"payload_bytes": len(PAYLOAD), "seconds": SECONDS, "target_p95_ms": 50}
    result = {"setup": setup, "best": best, "rounds": runs, "ratios": ratio, "disk_fdatasyncs_per_s": limit}
    harness.save("mailbox", result)
    rows = [[n, f"{b['cycles_per_s']:.0f}", b["p50_ms"], b["p95_ms"], b["p99_ms"]] for n, b in best.items()]
    harness.show(
        f"mailbox send→recv→ack (disk: {limit:.0f} fdatasync/s)",
        ["queue", "cycles/s", "p50 ms", "p95 ms", "p99 ms"],
        rows,
    )


def _ours(clients: int) -> dict[str, float]:
    with scratch() as folder:
        port = free_port()
        process = subprocess.Popen(
            [
                "taskset",
                "-c",
                harness.SERVER_CPU,
                str(BIN / "python"),
                "-m",
                "bench.serve",
                "mailbox",
                str(port),
                folder,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            capability = process.stdout.readline().decode().strip()
            wait_for_port(port, process)
            return asyncio.run(_load(port, clients, _http_cycle(capability)))
        finally:
            process.kill()
            process.wait()


def _beanstalkd(clients: int) -> dict[str, float]:
    program = shutil.which("beanstalkd") or "/usr/bin/beanstalkd"
    with scratch() as folder:
        port = free_port()
        (folder / "log").mkdir()
        command = [program, "-l", "127.0.0.1", "-p", str(port), "-b", folder / "log", "-f", "0"]
        with harness.running(command, port):
            return asyncio.run(_load(port, clients, _beanstalk_cycle))


async def _load(port: int, clients: int, cycle: Cycle) -> dict[str, float]:
    """`clients` closed loops for a while; the first half second does not count."""
    times: list[float] = []
    begin = time.perf_counter() + 0.5
    end = begin + SECONDS

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            await cycle(reader, writer, f"bench/{number}")
            if started >= begin:
                times.append((time.perf_counter() - started) * 1000)
        writer.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    figures = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}
    return {
        "cycles_per_s": round(len(times) / SECONDS, 1),
        **{name: round(harness.percentile(times, percent), 3) for name, percent in figures.items()},
    }


def _http_cycle(capability: str) -> Cycle:
    payload = base64.b64encode(PAYLOAD).decode()

    async def call(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: object
    ) -> dict[str, object]:
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer {capability}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
        header = await reader.readuntil(b"\r\n\r\n")
        length = int(header.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        answer = await reader.readexactly(length)
        if not header.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode())
        return dict(json.loads(answer))

    async def cycle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, topic: str) -> None:
        await call(reader, writer, "/v1/send", {"topic": topic, "payload_b64": payload})
        messages = (await call(reader, writer, "/v1/recv", {"topic": topic, "max": 1, "wait_s": 5}))["messages"]
        assert isinstance(messages, list) and len(messages) == 1, messages
        message = messages[0]
        await call(reader, writer, f"/v1/ack/{message['msg_id']}", {"receipt": message["receipt"]})

    return cycle


async def _beanstalk_cycle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _topic: str) -> None:
    writer.write(b"put 0 0 60 %d\r\n%s\r\n" % (len(PAYLOAD), PAYLOAD))
    await reader.readline()
    writer.write(b"reserve\r\n")
    words = (await reader.readline()).split()
    await reader.readexactly(int(words[2]) + 2)
    writer.write(b"delete %s\r\n" % words[1])
    await reader.readline()


def _fdatasyncs_per_s() -> float:
    """How often this disk makes a 4 KiB append durable, alone."""
    with scratch() as folder:
        handle = os.open(Path(folder) / "probe", os.O_WRONLY | os.O_CREAT)
        block, done, end = bytes(4096), 0, time.perf_counter() + 2
        while time.perf_counter() < end:
            os.write(handle, block)
            os.fdatasync(handle)
            done += 1
        os.close(handle)
    return done / 2


if __name__ == "__main__":
    sys.exit(main())
