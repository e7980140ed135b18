"""`ronctl tornet init|join|…`: a private Tor network over three hosts, with real tor. Needs tor, curl, namespaces."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.live.netns import Hosts, address, in_user_namespace, mapped_root, why_not
from tests.live.support import BIN, NO_TOR, ROOT, until

VOTING = 15
NODES = {"a1": 1, "a2": 2, "a3": 3, "r1": 1, "r2": 2, "r3": 3}
PAGE = "a page on another host"


class Control:
    """A tor's control socket, spoken to in lines."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(directory / "data" / "control"))
        self._file = self._socket.makefile("rw", newline="")
        self.ask("AUTHENTICATE " + (directory / "data" / "control_auth_cookie").read_bytes().hex())

    def ask(self, line: str) -> str:
        """The answer to `line`, which must be a success."""
        answer = self.lines(line)
        if not answer[-1].startswith("250"):
            raise AssertionError(f"{line.split()[0]}: {answer[-1]}")
        return "\n".join(answer)

    def lines(self, line: str) -> list[str]:
        """The answer to `line`, whatever it is."""
        self._file.write(line + "\r\n")
        self._file.flush()
        answer, in_data = [], False
        while True:
            got = self._file.readline().rstrip("\r\n")
            answer.append(got)
            if in_data:
                in_data = got != "."
            elif got[3:4] == "+":
                in_data = True
            elif got[3:4] == " ":
                return answer

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class HostnetTests(SynchronousTestCase):
    """One network, from its bundles to the loss and the replacement of an authority."""

    skip = NO_TOR or why_not()
    timeout = 300

    def test_three_hosts_lose_an_authority_and_get_another(self) -> None:
        if os.getuid() != 0:
            done = in_user_namespace(self.id())
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            return
        self.prepare()
        self.from_bundles()
        self.reach_a_new_onion()
        self.kill_an_authority()
        self.reach_a_new_onion()
        self.replace_it()
        self.reach_a_new_onion()

    # -- the steps

    def prepare(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ron-hn-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.folder.chmod(0o711)
        self.net = self.folder / "net"
        self.hosts = Hosts(3)
        self.addCleanup(self.hosts.destroy)
        self.user = None if mapped_root() else "debian-tor"
        self.began = time.monotonic()
        self.authorities = ["a1", "a2", "a3"]
        self.report: dict[str, Any] = {}

    def from_bundles(self) -> None:
        nodes = [f"--{'authority' if n[0] == 'a' else 'relay'}={n}={address(host)}" for n, host in NODES.items()]
        made = self.tornet("init", "--out", str(self.net), *nodes, "--voting-interval", f"{VOTING}s")
        for bundle in made["bundles"]:
            if bundle["role"] != "client":
                self.join(bundle)
                self.start(bundle["name"], NODES[bundle["name"]])
        self.until_whole()
        self.tell("whole")
        client = next(b for b in made["bundles"] if b["role"] == "client")
        for host in (1, 3):
            self.join(client, f"client{host}", "--socks-port", "9050")
            self.start(f"client{host}", host, unit="client")
        for host in (1, 3):
            until(lambda host=host: self.bootstrapped(f"client{host}"), 60, f"the client on host {host} coming up")
        (self.folder / "www").mkdir()
        (self.folder / "www" / "index.html").write_text(PAGE)
        python = [str(BIN / "python"), "-m", "http.server", "--bind", "127.0.0.1", "8080"]
        self.hosts.start(1, "www", [*python, "--directory", str(self.folder / "www")], self.folder / "www.log")
        self.tell("clients up")

    def reach_a_new_onion(self) -> None:
        """A service behind the client of host 1, fetched from host 3."""
        control = Control(self.folder / "client1")
        self.addCleanup(control.close)
        answer = control.ask("ADD_ONION NEW:ED25519-V3 Port=80,127.0.0.1:8080")
        found = re.search(r"ServiceID=(\w{56})", answer)
        assert found is not None
        curl = ["curl", "-sS", "--max-time", "20", "--socks5-hostname", "127.0.0.1:9050", f"http://{found[1]}.onion/"]
        self.until(lambda: self.hosts.run(3, *curl).stdout == PAGE, 60, f"{found[1]} being reached from host 3")
        self.tell("a new onion reached")

    def kill_an_authority(self) -> None:
        self.hosts.process("a3").send_signal(signal.SIGKILL)
        self.hosts.process("a3").wait()
        killed = time.time()
        self.authorities.remove("a3")
        for authority in self.authorities:
            self.assertEqual(self.probe(authority)["down"], ["a3"])

        def went_on() -> bool:
            """Agreed upon after its end by the other two, and without it: nobody waits for it any more."""
            for authority in self.authorities:
                self.probe(authority)
            self.report = self.check()
            signed = {node["name"] for node in self.report["nodes"] if node["signed"]}
            listed = {node["name"] for node in self.report["nodes"] if node["listed"]}
            agreed = _unix(self.report["consensus_valid_after"])
            return agreed > killed and signed == {"a1", "a2"} and listed == set(NODES) - {"a3"}

        self.until(went_on, 4 * VOTING, "two of three authorities agreeing")
        self.assertIn(f"a3: nothing answers at {address(3)}:9001", self.check()["problems"])
        self.tell("consensus of two")
        lost = next(
            n["fingerprint"] for n in json.loads((self.net / "network.json").read_text())["nodes"] if n["name"] == "a3"
        )
        for client in ("client1", "client3"):
            self.until(lambda client=client: not self.sees(client, lost), 90, f"{client} hearing of it")
        self.tell("clients have heard of it")

    def replace_it(self) -> None:
        """An authority for the dead one, and a relay more: the bundles of both changes reach everybody they are for."""
        made = self.tornet("replace-authority", "a3", f"a4={address(3)}:9002:9031", "--net", str(self.net))
        news = {(b["name"], b["whole"]) for b in made["bundles"]}
        self.assertEqual(
            news, {(name, name in ("a4", "client")) for name in ("a1", "a2", "a4", "r1", "r2", "r3", "client")}
        )
        more = self.tornet("add-relay", f"r4={address(2)}:9102", "--net", str(self.net))
        news = {(b["name"], b["whole"]) for b in more["bundles"]}
        self.assertEqual(news, {(name, name == "r4") for name in ("a1", "a2", "a4", "r4")})
        for bundle in made["bundles"] + more["bundles"]:
            for folder in ("client1", "client3") if bundle["role"] == "client" else (bundle["name"],):
                self.join(bundle, folder)
        for name, host in (("a4", 3), ("r4", 2)):
            self.start(name, host)
        for name in ("a1", "a2", "r1", "r2", "r3", "client1", "client3"):
            self.hosts.process(name).send_signal(signal.SIGHUP)
        self.authorities.append("a4")
        report = self.until_whole()
        self.assertEqual(
            {node["name"]: node["signed"] for node in report["nodes"]},
            {"a1": True, "a2": True, "a4": True, "r1": None, "r2": None, "r3": None, "r4": None},
        )
        self.tell("replaced, and a relay more")

    # -- tools

    def tornet(self, verb: str, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [str(BIN / "ronctl"), "tornet", verb, *arguments, "--json"],
            cwd=ROOT,
            env={**os.environ, "RON_TORNET_PASSPHRASE": "the test's own passphrase"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return dict(json.loads(done.stdout))

    def join(self, bundle: dict[str, Any], folder: str = "", *options: str) -> None:
        where = self.folder / (folder or bundle["name"])
        user = ["--user", self.user] if self.user else []
        given = ["--bundle", bundle["file"], "--sha256", bundle["sha256"], "--dir", str(where), *user]
        self.tornet("join", *given, *options)

    def start(self, name: str, host: int, unit: str = "") -> None:
        """As systemd would: the unit's user and command."""
        folder = self.folder / name
        text = (folder / f"ron-tor-{unit or name}.service").read_text()
        command = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)["ExecStart"].split()
        if self.user is not None:
            user = pwd.getpwnam(self.user)
            command = [
                *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--pdeathsig"),
                *("KILL", "--"),
                *command,
            ]
        self.hosts.start(host, name, command, self.folder / f"{name}.log")

    def bootstrapped(self, name: str) -> bool:
        try:
            control = Control(self.folder / name)
        except OSError:
            return False
        try:
            return "PROGRESS=100" in control.ask("GETINFO status/bootstrap-phase")
        finally:
            control.close()

    def sees(self, name: str, fingerprint: str) -> bool:
        """Whether the consensus of the tor in folder `name` lists that relay."""
        control = Control(self.folder / name)
        try:
            return any(line.startswith("r ") for line in control.lines(f"GETINFO ns/id/{fingerprint}"))
        finally:
            control.close()

    def check(self) -> dict[str, Any]:
        done = self.hosts.run(
            1, str(BIN / "ronctl"), "tornet", "check", "--net", str(self.net), "--timeout", "2s", "--json"
        )
        self.assertIn(done.returncode, (0, 8), done.stderr)
        report = dict(json.loads(done.stdout))
        self.assertEqual(done.returncode == 0, not report["problems"])
        return report

    def probe(self, authority: str) -> dict[str, Any]:
        """What the authority's timer does on its host."""
        ronctl = [str(BIN / "ronctl"), "tornet", "probe", "--dir", str(self.folder / authority), "--json"]
        done = self.hosts.run(NODES.get(authority, 3), *ronctl)
        self.assertEqual(done.returncode, 0, done.stderr)
        return dict(json.loads(done.stdout))

    def until_whole(self) -> dict[str, Any]:
        """Every node is listed, and every authority has signed."""

        def whole() -> bool:
            for authority in self.authorities:
                self.probe(authority)
            self.report = self.check()
            return self.report["whole"] and not self.report["problems"]

        self.until(whole, 6 * VOTING, "the network being whole")
        return self.report

    def until(self, condition: Callable[[], Any], timeout_s: float, what: str) -> None:
        """Wait for `condition`; tell all there is to know when it does not come."""
        try:
            until(condition, timeout_s, what)
        except AssertionError as error:
            logs = "\n".join(f"{p.name}:\n{p.read_text()[-1500:]}" for p in sorted(self.folder.glob("*.log")))
            raise AssertionError(f"{error}\n{self.report}\n{logs}") from None

    def tell(self, what: str) -> None:
        """How long it took, for whoever reads the log of a slow run."""
        (self.folder / "times").open("a").write(f"{time.monotonic() - self.began:6.1f} s {what}\n")


def _unix(rfc3339: str | None) -> float:
    return 0.0 if rfc3339 is None else datetime.fromisoformat(rfc3339).timestamp()
