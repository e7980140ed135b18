"""Starts daemons the way operators do, waits until they are ready, and leaves nothing behind whatever a test does.

In: a config. Out: a running process with its home and facts. Needs tor (Debian's), and Chromium for the browser tests.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from blake3 import blake3

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 150
STOP_TIMEOUT_S = 30

NO_TOR = None if shutil.which("tor") else "tor is not installed; make test installs it"
NO_CHROMIUM = (
    None
    if shutil.which("chromium") and shutil.which("chromedriver")
    else "chromium or chromedriver is not installed; make test installs them"
)


def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The first true value of `condition`, asked ten times a second."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"{what} did not happen within {timeout_s} s")


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """True when something accepts connections on loopback `port`."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def alive(pid: int) -> bool:
    """True while `pid` runs (a zombie does not)."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def process_tree(token: str) -> list[int]:
    """Processes whose command line or RON_HOME mentions `token`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if token.encode() in (entry / "cmdline").read_bytes() and alive(int(entry.name)):
                    found.append(int(entry.name))
    return found


class Daemon:
    """One `twistd -n PLUGIN` with a home of its own. `facts` is the file it writes when it is up."""

    def __init__(self, plugin: str, config: str, facts_file: str, home: Path | None = None) -> None:
        self.plugin = plugin
        self._own_home = home is None
        self.home = home or Path(tempfile.mkdtemp(prefix="ron-live-"))
        self._beside = Path(tempfile.mkdtemp(prefix="ron-beside-"))
        self.config = self._beside / "config.toml"
        self.config.write_text(config)
        self._facts_file = self.home / facts_file
        self._process: subprocess.Popen[bytes] | None = None
        self.output = self._beside / "output"
        atexit.register(self.destroy)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def environment(self) -> dict[str, str]:
        return {**os.environ, "RON_HOME": str(self.home), "RON_CAP": ""}

    def start(self, *, wait: bool = True) -> None:
        """Start it; with `wait`, return when its facts are there."""
        with self.output.open("wb") as sink:
            self._process = subprocess.Popen(
                # a shell's background job ignores SIGINT, and so would what we start; and the tests' own death must not
                # leave a node behind
                [
                    "env",
                    "--default-signal=INT",
                    "setpriv",
                    "--pdeathsig",
                    "TERM",
                    "--",
                    str(BIN / "twistd"),
                    "--pidfile=",
                    "-n",
                    self.plugin,
                ]
                + ["--config", str(self.config)],
                cwd=ROOT,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        if wait:
            try:
                until(self._facts_or_dead, START_TIMEOUT_S, f"{self.plugin} coming up")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.output.read_text()}") from None

    def _facts_or_dead(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"{self.plugin} ended with {self._process.returncode}:\n{self.output.read_text()}")
        return self._facts_file.exists()

    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self._facts_file.read_text()))

    def wait(self) -> int:
        """Its exit status; it must end by itself."""
        assert self._process is not None
        return self._process.wait(timeout=STOP_TIMEOUT_S)

    def send(self, how: signal.Signals) -> None:
        """Send `how` and go on."""
        assert self._process is not None
        self._process.send_signal(how)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for the end."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(how)
        return self._process.wait(timeout=STOP_TIMEOUT_S)

    def destroy(self) -> None:
        """End it in any way, and remove its files."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        for folder in [self._beside, *([self.home] if self._own_home else [])]:
            shutil.rmtree(folder, ignore_errors=True)

    def admin_cap(self) -> str:
        return (self.home / "admin.cap").read_text().strip()

    def ronctl(self, *arguments: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        """`ronctl ARGUMENTS` against this home."""
        return subprocess.run(
            [str(BIN / "ronctl"), *arguments],
            cwd=ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def micronode_config(extra: str = "", *, gateway: int = 0, mailbox: int = 0, onion: str = "") -> str:
    """A Micronode's config on ports the system chooses."""
    return (
        f'[gateway]\nbind = "127.0.0.1:{gateway}"\n[mailbox]\nlisten = "127.0.0.1:{mailbox}"\n[onion]\n{onion}\n{extra}'
    )


def new_node(extra: str = "", onion: str = "", home: Path | None = None) -> Daemon:
    """A node, not started yet; a Micronode unless `extra` says otherwise."""
    return Daemon("ron-node", micronode_config(extra, onion=onion), "node.json", home)


def build_pack(home: Path, max_zoom: int = 3) -> Path:
    """The world map in `home`, down to `max_zoom`. It is drawn once, and then again when what draws it has changed."""
    out = home / "packs" / "world.pmtiles"
    drawn = ROOT / "build" / "test-packs" / f"{_drawing()}-{max_zoom}.pmtiles"
    drawn.parent.mkdir(parents=True, exist_ok=True)
    with (drawn.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not drawn.exists():
            subprocess.run(
                [str(BIN / "ronctl"), "pack", "build", "--out", str(drawn), "--max-zoom", str(max_zoom)],
                cwd=ROOT,
                check=True,
                capture_output=True,
                timeout=120,
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", ".b3"):
        shutil.copyfile(f"{drawn}{suffix}", f"{out}{suffix}")
    return out


def _drawing() -> str:
    """The digest of the code and the data that packs are made of."""
    made_of = blake3()
    for folder in ("worldmap", "naturalearth"):
        for path in sorted((ROOT / "ron" / "ctl" / folder).iterdir()):
            if path.is_file():
                made_of.update(path.read_bytes())
    return made_of.hexdigest()[:16]


MACRONODE = '[node]\nprofile = "macronode"\n'


@cache
def shared_node() -> Daemon:
    """A running Micronode with a map, started once for all tests that leave it as they found it."""
    node = new_node()
    build_pack(node.home)
    node.start()
    return node


class Reply:
    """An HTTP answer: status, headers (lower case), body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


def http(
    method: str,
    url: str,
    *,
    cap: str | None = None,
    body: Any = None,
    headers: dict[str, str] | None = None,
    timeout_s: float = 40,
) -> Reply:
    """A request over loopback; `body` goes as JSON, or as it is when bytes."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=raw, method=method, headers=headers or {})
    if cap:
        request.add_header("Authorization", f"Bearer {cap}")
    if raw is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return _reply(answer)
    except urllib.error.HTTPError as error:
        with error:
            return _reply(error)


def _reply(answer: Any) -> Reply:
    return Reply(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())


@contextlib.contextmanager
def chromium(socks_port: int, *, size: tuple[int, int] = (1280, 800)) -> Iterator[Any]:
    """Headless Chromium whose only way out is the tor at `socks_port`; nothing is resolved locally."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    profile = tempfile.mkdtemp(prefix="ron-chromium-")
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        f"--window-size={size[0]},{size[1]}",
        f"--proxy-server=socks5://127.0.0.1:{socks_port}",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options=options, service=Service(executable_path=shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()
        shutil.rmtree(profile, ignore_errors=True)
