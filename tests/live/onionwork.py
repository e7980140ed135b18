"""Work with the onion runtime from outside: its control API, the tors behind it, and whoever visits the onions.

In: a running daemon or node. Out: what it answers, what its tors really have, whether an onion can be reached. The
tors are asked by a control connection of our own, so that what the runtime says of them can be compared.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.live.support import Daemon, Reply, until

APP = "wiki"
BACK_S = 60.0
BODY = b"behind an onion"


class Answerer(http.server.BaseHTTPRequestHandler):
    """Somebody's app, which knows nothing of onions."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_words: object) -> None:
        """Quiet."""


def local_app() -> str:
    """`127.0.0.1:PORT` of an app that answers `BODY` until the tests end."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answerer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"127.0.0.1:{server.server_address[1]}"


def op_id() -> str:
    """One of a new act."""
    return str(uuid.uuid4())


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, kept open."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("oniond", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(connection: http.client.HTTPConnection, method: str, path: str, cap: str, body: Any = None) -> Reply:
    """A request; `body` goes as JSON, or as it is when bytes."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {cap}"}
    if raw is not None:
        headers["Content-Type"] = "application/json"
    connection.request(method, path, raw, headers)
    answer = connection.getresponse()
    return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


class OnionWork:
    """A daemon with an onion runtime in it. tornet: the folder of its tors, the one in its home unless said."""

    def __init__(self, daemon: Daemon, local: str, tornet: Path | None = None) -> None:
        self.daemon = daemon
        self.local = local
        self.tornet = tornet or daemon.home / "tornet"
        self.socket = daemon.home / "run" / "oniond.sock"
        self._at_end: list[tuple[str, ...]] = []
        atexit.register(self.end)

    def at_end(self, *command: str) -> None:
        """Run this when it has ended, whatever comes of it."""
        self._at_end.append(command)

    def end(self) -> None:
        """End the daemon, and what was to follow."""
        self.daemon.destroy()
        commands, self._at_end = self._at_end, []
        for command in commands:
            subprocess.run(command, capture_output=True, check=False)

    # The control API

    def headers(self) -> dict[str, str]:
        """Of a request with a body by the operator."""
        return {"Authorization": f"Bearer {self.daemon.admin_cap()}", "Content-Type": "application/json"}

    def connection(self, timeout_s: float = 70) -> UnixConnection:
        """A new one to the control API."""
        return UnixConnection(self.socket, timeout_s)

    def call(self, method: str, path: str, body: Any = None, *, cap: str | None = None) -> Reply:
        """A request of its own."""
        with contextlib.closing(self.connection()) as connection:
            return ask(connection, method, path, cap or self.daemon.admin_cap(), body)

    def creation(self, app: str = "chat", **more: Any) -> dict[str, Any]:
        """A body for CREATE."""
        ports = [{"onion_port": 80, "local": self.local}]
        return {"op_id": op_id(), "app": app, "ports": ports, **more}

    def create(self, app: str = "chat", **more: Any) -> dict[str, Any]:
        """A new onion that is ready."""
        reply = self.call("POST", "/v1/onions", self.creation(app, wait_s=60, **more))
        view = dict(reply.json())
        if reply.status != 200 or not view["ready"]:
            raise AssertionError(f"no onion: {reply.status} {reply.body!r}")
        return view

    def answers(self) -> bool:
        """Is there somebody behind the socket?"""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.call("GET", "/v1/onions").status == 200
        return False

    def listed(self) -> dict[str, dict[str, Any]]:
        """Every onion there is, by id."""
        return {view["id"]: view for view in self.call("GET", "/v1/onions").json()["onions"]}

    def show(self, onion_id: str) -> dict[str, Any]:
        """One of them."""
        return dict(self.call("GET", f"/v1/onions/{onion_id}").json())

    def readiness(self) -> dict[str, Any]:
        """The body of `/readyz`."""
        return dict(self.call("GET", "/readyz").json())

    def reason(self, key: str) -> str:
        """What readiness has to say of `key`; empty while all is well."""
        return str(self.readiness().get("reasons", {}).get(key, ""))

    def is_well(self) -> bool:
        """Ready, nothing degraded, every onion published."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            said = self.readiness()
            return bool(said["ready"] and not said["degraded"] and all(v["ready"] for v in self.listed().values()))
        return False

    # The tors

    def tors(self) -> dict[str, dict[str, Any]]:
        """Every tor by name, as `tornet.json` has it."""
        return {tor["name"]: tor for tor in json.loads((self.tornet / "tornet.json").read_text())["tors"]}

    def pid(self, tor: str = "onion") -> int:
        """Its process."""
        return int(until(lambda: self.tors()[tor]["pid"], BACK_S, f"tor {tor} running"))

    def signal(self, how: signal.Signals, *names: str) -> None:
        """Send it to these tors."""
        for name in names:
            os.kill(self.pid(name), how)

    def detached(self, tor: str = "onion") -> set[str]:
        """The addresses that `tor` itself says it has."""
        words = self.ask_tor(tor, "onions/detached").replace("250-onions/detached=", "").split()
        return {f"{word}.onion" for word in words if len(word) == 56}

    def ask_tor(self, tor: str, key: str) -> str:
        """What `tor` says to GETINFO, as it says it."""
        cookie = (self.tornet / tor / "control_auth_cookie").read_bytes()
        with socket.create_connection(("127.0.0.1", self.tors()[tor]["control_port"]), timeout=20) as control:
            control.sendall(f"AUTHENTICATE {cookie.hex()}\r\nGETINFO {key}\r\nQUIT\r\n".encode())
            with control.makefile() as lines:
                return lines.read()

    def nothing_leaks(self) -> bool:
        """Does the onion tor have exactly what the API lists?"""
        shared = [view for view in self.listed().values() if view["isolation"] == "shared"]
        addresses = {view["onion"] for view in shared if view["state"] == "active"}
        addresses |= {view["previous"]["onion"] for view in shared if view["previous"]}
        return self.detached() == addresses

    # Visitors

    def socks_port(self, client: str = "client") -> int:
        """Where the client tor takes SOCKS."""
        return int(self.tors()[client]["socks_port"])

    def reachable(self, onion: str, client: str = "client") -> bool:
        """Does a new circuit of the client tor lead to our app?"""
        proxy = f"socks5h://{uuid.uuid4().hex}:x@127.0.0.1:{self.socks_port(client)}"
        asked = ["curl", "-s", "--max-time", "20", "--proxy", proxy, f"http://{onion}/"]
        return subprocess.run(asked, capture_output=True, check=False).stdout == BODY

    def comes_back(self, *onions: str, client: str = "client") -> float:
        """Seconds until all is well and each of `onions` is reachable at its address; and nothing leaked."""
        began = time.monotonic()
        try:
            until(self.is_well, BACK_S, "all being well")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.readiness()} {self.listed()}") from None
        for onion in onions:
            until(lambda onion=onion: self.reachable(onion, client), BACK_S, f"{onion} being reachable")
        until(self.nothing_leaks, 10, "tor having what the API lists")
        return time.monotonic() - began


def oniond(extra: str = "", onion: str = "", home: Path | None = None, local: str | None = None) -> OnionWork:
    """A `ron-oniond` with one app of its own, not started yet. onion: more of that section."""
    local = local or local_app()
    config = (
        f'[admin]\nbind = "127.0.0.1:0"\n[onion]\n{onion}\n{extra}\n'
        f'[[apps]]\nname = "{APP}"\nexpose = [{{ local = "{local}", onion_port = 80 }}]\n'
    )
    return OnionWork(Daemon("ron-oniond", config, "onions.json", home), local)


_shared: dict[str, OnionWork] = {}


def once(name: str, make: Callable[[], OnionWork]) -> OnionWork:
    """What `make` gave the first time; another one ends it, for each has seven tors."""
    if name not in _shared:
        end_shared()
        _shared[name] = make()
    return _shared[name]


def end_shared() -> None:
    """End what was started."""
    while _shared:
        _shared.popitem()[1].end()


@contextlib.contextmanager
def frozen(work: OnionWork, *names: str) -> Iterator[None]:
    """These tors stopped within (SIGSTOP), those that are left go on after it."""
    pids = [work.pid(name) for name in names]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
