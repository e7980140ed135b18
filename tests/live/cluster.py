"""A RustBalance cluster as its operators make it: `ronctl balance init`, `invite`, `join`, a process for each node.

In: how many nodes, how their keys are kept, more config. Out: running nodes on one private Tor network of this host,
asked over their sockets, killed and started again; a client tor that visits the addresses. All of it blocks: for plain
tests and for threads (`deferToThread`). A cluster is 3 n + 7 processes; of several, one at a time.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import socks

from tests.live.onionwork import UnixConnection, ask, op_id
from tests.live.sites import HTTP_PORT, Site
from tests.live.support import BIN, ROOT, Daemon, Reply, alive, free_port, process_tree, until

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta")
SERVICE = "main"
WHOLE_S = 120.0
ANSWER_S = 100.0
NETWORK_S = 120.0
GET_S = 20.0


class Node:
    """One `ron-balance` and its home. config: of `balance.toml`, as it will be started."""

    def __init__(self, name: str, home: Path, config: str, site: Site) -> None:
        self.name = name
        self.home = home
        self.site = site
        self.daemon = Daemon("ron-balance", config, "balance.json", home)
        self._lives = 0

    @property
    def pid(self) -> int:
        """The daemon's."""
        return self.daemon.pid

    @property
    def running(self) -> bool:
        """Is its daemon there?"""
        return self._lives > 0 and alive(self.daemon.pid)

    def tors(self) -> list[int]:
        """Pids of its tors, also of those that outlived the daemon."""
        return [pid for pid in process_tree(f"{self.home}/") if pid != self.daemon.pid]

    def start(self, *, wait: bool = True) -> None:
        """Begin, or begin again. With `wait`, return when its tors are up (it may not lead or serve yet)."""
        if self._lives:
            # what the last life left must not be taken for this one's
            (self.home / "balance.json").unlink(missing_ok=True)
            self.daemon.output.rename(self.daemon.output.with_suffix(f".{self._lives}"))
        self._lives += 1
        self.daemon.start(wait=wait)

    def wait_up(self, timeout_s: float = 150) -> None:
        """Until its facts are there. AssertionError with its output when it ends or takes longer."""
        try:
            until(self.daemon._facts_or_dead, timeout_s, f"{self.name} coming up")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.daemon.output.read_text()}") from None

    def kill(self, *, tors: bool = False) -> None:
        """`kill -9`, and with `tors` its tors in the same instant; returns when the daemon is gone."""
        pids = [self.daemon.pid, *(self.tors() if tors else [])]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.daemon.wait()

    def stop(self) -> int:
        """SIGTERM, as an operator ends it; its exit status."""
        return self.daemon.stop()

    def ronctl(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """`ronctl ARGUMENTS` against this node."""
        return self.daemon.ronctl(*arguments, timeout_s=timeout_s)

    def ok(self, *arguments: str, timeout_s: float = 120) -> str:
        """What `ronctl ARGUMENTS` printed. AssertionError unless it ended well."""
        done = self.ronctl(*arguments, timeout_s=timeout_s)
        if done.returncode:
            raise AssertionError(f"{self.name}: ronctl {arguments}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def call(self, method: str, path: str, body: Any = None, *, timeout_s: float = ANSWER_S) -> Reply:
        """Its operator's API, `path` below /v1/balance, without starting a ronctl. OSError when nobody answers."""
        with contextlib.closing(UnixConnection(self.home / "run" / "balance.sock", timeout_s)) as connection:
            return ask(connection, method, f"/v1/balance{path}", self.daemon.admin_cap(), body)

    def status(self, timeout_s: float = 10) -> dict[str, Any]:
        """The cluster as it sees it (`BalanceView`). OSError while nobody answers."""
        reply = self.call("GET", "", timeout_s=timeout_s)
        if reply.status != 200:
            raise OSError(f"{self.name}: {reply.status} {reply.body!r}")
        return dict(reply.json())

    def seen(self) -> dict[str, Any]:
        """As `status`, empty while nobody answers."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.status()
        return {}

    def metrics(self) -> str:
        """What Prometheus reads."""
        with contextlib.closing(UnixConnection(self.home / "run" / "balance.sock", 10)) as connection:
            return ask(connection, "GET", "/metrics", self.daemon.admin_cap()).body.decode()


class Client:
    """The network's client tor as its visitors use it."""

    def __init__(self, tornet: Path) -> None:
        self._tornet = tornet
        tors = json.loads((tornet / "tornet.json").read_text())["tors"]
        tor = next(tor for tor in tors if tor["socks_port"])
        self.name, self.socks_port, self.control_port = str(tor["name"]), int(tor["socks_port"]), tor["control_port"]

    def connect(self, onion: str, port: int = HTTP_PORT, timeout_s: float = GET_S) -> socket.socket:
        """A stream on a circuit of its own: tor keeps SOCKS logins apart. OSError when there is no way."""
        found = socks.socksocket()
        found.set_proxy(socks.SOCKS5, "127.0.0.1", self.socks_port, True, uuid.uuid4().hex, "x")
        found.settimeout(timeout_s)
        try:
            found.connect((onion, port))
        except BaseException:
            found.close()
            raise
        stream: socket.socket = found
        return stream

    def get(self, onion: str, path: str = "/", timeout_s: float = GET_S) -> bytes:
        """The body of a 200 on a new circuit. OSError or HTTPException for everything else."""
        # a time limit of the whole, not of each read
        deadline = time.monotonic() + timeout_s
        connection = http.client.HTTPConnection(onion, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.sock = self.connect(onion, HTTP_PORT, timeout_s)
            connection.sock.settimeout(max(0.01, deadline - time.monotonic()))
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        if answer.status != 200:
            raise OSError(f"{onion}: {answer.status}")
        return body

    def tell(self, line: str) -> str:
        """A line for tor's control port, and what it answers."""
        return tell(self._tornet / self.name, self.control_port, line)

    def forget(self) -> None:
        """New circuits for everybody, and no descriptor kept: from here on it is a client that was never there."""
        self.tell("SIGNAL NEWNYM")


class Cluster:
    """nodes: how many, or their names. threshold: `2-of-3`, or None: each node has the key. approval: as in the config.

    balance: more lines of `[balance]`; extra: more tables. listen: the mesh's IP address of a node, by name. network:
    a `ronctl tornet` folder that is up already; without it one is started, and ended with the cluster.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        nodes: int | Iterable[str] = 3,
        threshold: str | None = None,
        approval: str = "token",
        balance: str = "",
        extra: str = "",
        listen: Callable[[str], str] = lambda name: "127.0.0.1",
        network: Path | None = None,
    ) -> None:
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="ron-cluster-"))
        self.threshold = threshold
        self.onions: dict[str, str] = {}
        self.nodes: dict[str, Node] = {}
        self.tornet = network or self.folder / "net"
        self._own_network = network is None
        self._names = NAMES[:nodes] if isinstance(nodes, int) else tuple(nodes)
        self._options = ["--approval", approval, *(["--threshold", threshold] if threshold else [])]
        self._balance, self._extra, self._listen = balance, extra, listen
        atexit.register(self.stop)

    # Life

    def start(self) -> Cluster:
        """The network, then all nodes at once. Returns when each is up and hears all others."""
        if self._own_network:
            network_up(self.tornet)
        self.client = Client(self.tornet)
        for name in self._names:
            self.make(name)
        for node in self.nodes.values():
            node.start(wait=False)
        for node in self.nodes.values():
            node.wait_up()
        self.wait_meshed()
        return self

    def stop(self) -> None:
        """Everything ends, whatever state it is in, and nothing is left. May be called twice."""
        atexit.unregister(self.stop)
        for node in self.nodes.values():
            if node.running:
                node.daemon.send(signal.SIGCONT)
                node.daemon.send(signal.SIGTERM)
        for node in self.nodes.values():
            node.daemon.destroy()
            for pid in node.tors():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            node.site.close()
        self.nodes = {}
        if self._own_network:
            network_down(self.tornet)
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def make(self, name: str) -> Node:
        """The files of one more node, by an invitation of the first; it is not started."""
        home, site = self.folder / name, Site(name)
        home.mkdir(mode=0o700)
        where = f"{self._listen(name)}:{free_port()}"
        first = next(iter(self.nodes.values()), None)
        ports = [word for port in site.ports for word in ("--port", port)]
        words = ["--listen", where, *ports, "--torrc", str(self.tornet / "snippet.torrc"), *self._options]
        words += ["--admin", f"127.0.0.1:{free_port()}", "--out", str(home / "etc")]
        if first is None:
            self._seed = where
            _ronctl(home, "balance", "init", name, *words)
        else:
            bundle = self.folder / f"{name}.bundle"
            away = ["--ca-dir", str(first.home / "ca"), "--seed", self._seed]
            # the running node must know of it; before it runs nobody can be asked
            _ronctl(first.home, "balance", "invite", name, *([] if first.running else away), "--out", str(bundle))
            _ronctl(home, "balance", "join", str(bundle), *words)
            bundle.unlink()
        config = (home / "etc" / "balance.toml").read_text()
        config = config.replace("[balance]\n", f"[balance]\n{self._balance}\n", 1)
        self.nodes[name] = Node(name, home, f"{config}\n{self._extra}\n", site)
        return self.nodes[name]

    # How it stands

    def node(self, name: str) -> Node:
        """By its name."""
        return self.nodes[name]

    def alive(self) -> list[Node]:
        """Those whose daemon runs."""
        return [node for node in self.nodes.values() if node.running]

    def leader(self) -> Node | None:
        """Whom every running node takes for the leader; None while they do not agree, or know none."""
        views = [node.seen() for node in self.alive()]
        said = {view["leader"]["name"] if view else None for view in views}
        name = said.pop() if len(said) == 1 else None
        found = self.nodes.get(name) if name else None
        return found if found is not None and found.running else None

    def wait_leader(self, timeout_s: float = WHOLE_S) -> Node:
        """The leader, once all agree."""
        found: Node = until(self.leader, timeout_s, "agreeing on a leader")
        return found

    def wait_meshed(self, timeout_s: float = 60) -> None:
        """Until every running node hears every other."""
        names = {node.name for node in self.alive()}
        until(lambda: all(_hears(node.seen()) >= names for node in self.alive()), timeout_s, "all hearing all")

    def wait_whole(self, service: str = SERVICE, timeout_s: float = WHOLE_S) -> None:
        """Until all agree on a leader, whose descriptor of `service` lists every running node's head."""
        names = {node.name for node in self.alive()}
        try:
            until(lambda: self.heads(service) == names, timeout_s, f"{service} listing {sorted(names)}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {[node.seen() for node in self.alive()][:1]}") from None

    def heads(self, service: str = SERVICE) -> set[str]:
        """Whose heads are in the newest descriptor, as the leader sees it; empty while there is none."""
        leader = self.leader()
        services = leader.seen().get("services", ()) if leader is not None else ()
        return {head for one in services if one["name"] == service for head in one["heads"]}

    # What is done with it

    def add_service(self, name: str = SERVICE, *, threshold: str | None = None, wait: bool = True) -> str:
        """A new address; its onion. With `wait`, once its descriptor lists every head and a visitor got in."""
        t, n = map(int, (threshold or self.threshold or "0-of-0").split("-of-"))
        shares = {"mode": "threshold", "threshold": t, "members": n} if t else {"mode": "shared"}
        reply = self.wait_leader().call("POST", "/services", {"op_id": op_id(), "name": name, **shares})
        if reply.status != 200:
            raise AssertionError(f"no service: {reply.status} {reply.body!r}")
        self.onions[name] = str(reply.json()["onion"])
        if wait:
            self.wait_whole(name)
            until(lambda: self.reachable(self.onions[name]), 60, "a visitor getting in")
        return self.onions[name]

    def get(self, onion: str = "", timeout_s: float = GET_S) -> bytes:
        """The page at `onion` (of the first service) on a new circuit: `node NAME`. OSError, HTTPException."""
        return self.client.get(onion or next(iter(self.onions.values())), timeout_s=timeout_s)

    def reachable(self, onion: str = "", timeout_s: float = GET_S) -> bool:
        """Does a visitor get in?"""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get(onion, timeout_s).startswith(b"node ")
        return False


def tell(folder: Path, control_port: int, line: str) -> str:
    """A line for the control port of the tor in `folder`, and all it answers."""
    cookie = (folder / "control_auth_cookie").read_bytes()
    with socket.create_connection(("127.0.0.1", control_port), timeout=20) as control:
        control.sendall(f"AUTHENTICATE {cookie.hex()}\r\n{line}\r\nQUIT\r\n".encode())
        with control.makefile() as lines:
            return lines.read()


def network_up(folder: Path) -> None:
    """A private Tor network in `folder`, whole."""
    _ronctl(folder.parent, "tornet", "up", "--dir", str(folder), timeout_s=NETWORK_S)


def network_down(folder: Path) -> None:
    """It ends, if it is there."""
    if folder.exists():
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            _ronctl(folder.parent, "tornet", "down", "--dir", str(folder), timeout_s=60)


def _hears(view: dict[str, Any]) -> set[str]:
    return {one["name"] for one in view.get("members", ()) if one["state"] == "alive"}


def _ronctl(home: Path, *words: str, timeout_s: float = 60) -> str:
    done = subprocess.run(
        [str(BIN / "ronctl"), *words],
        cwd=ROOT,
        env={**os.environ, "RON_HOME": str(home), "RON_CAP": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"ronctl {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
