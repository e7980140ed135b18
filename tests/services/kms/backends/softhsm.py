"""A SoftHSM token of a test's own: its directory, its configuration; and the same behind a process one can kill."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ron.crypto.secrets import SecretBuffer

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PROXY = "/usr/lib/x86_64-linux-gnu/libp11-kit.so.0"
CLIENT = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so"
LABEL = "RON-KMS"
PIN = "271828"
NO_SOFTHSM = None if Path(MODULE).exists() and shutil.which("softhsm2-util") else "softhsm2 is not installed"
NO_P11KIT = None if Path(CLIENT).exists() and shutil.which("p11-kit") else "p11-kit is not installed"


def pin(text: str = PIN) -> SecretBuffer:
    """The PIN, where backends want it."""
    return SecretBuffer.taking(bytearray(text.encode()), allow_unlocked=True)


@contextmanager
def environment(**names: str) -> Iterator[None]:
    """These variables, until the block ends: the modules read them in our own process."""
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class SoftToken:
    """home: everything it keeps. tokens: the directory that can be taken away."""

    def __init__(self, stack: ExitStack) -> None:
        self.home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="softhsm-")))
        self.tokens = self.home / "tokens"
        self.tokens.mkdir()
        conf = self.home / "softhsm2.conf"
        conf.write_text(f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
        stack.enter_context(environment(SOFTHSM2_CONF=str(conf)))
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", "31415926"],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    @contextmanager
    def away(self) -> Iterator[None]:
        """The token is not there until the block ends."""
        elsewhere = self.home / "elsewhere"
        self.tokens.rename(elsewhere)
        try:
            yield
        finally:
            elsewhere.rename(self.tokens)


def answers(path: Path) -> bool:
    """Does anybody accept there?"""
    with socket.socket(socket.AF_UNIX) as visitor:
        return visitor.connect_ex(str(path)) == 0


@functools.cache
def _server_socket() -> Path:
    """One for this process: p11-kit's client reads the variable when it is loaded, and never again."""
    home = tempfile.mkdtemp(prefix="p11-kit-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return Path(home) / "socket"


class TokenServer:
    """The token in a process of its own, behind p11-kit's socket, as an HSM's daemon is. `kill` is SIGKILL."""

    def __init__(self, token: SoftToken, stack: ExitStack) -> None:
        self._socket = _server_socket()
        self._process: subprocess.Popen[bytes] | None = None
        stack.enter_context(environment(P11_KIT_SERVER_ADDRESS=f"unix:path={self._socket}"))
        stack.callback(self.kill)
        self.start()

    def start(self) -> None:
        """It listens when this returns."""
        self._socket.unlink(missing_ok=True)
        command = ["p11-kit", "server", "-f", "--provider", MODULE, "-n", str(self._socket), f"pkcs11:token={LABEL}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + 30
        while not answers(self._socket):
            if time.monotonic() > deadline:
                raise AssertionError("p11-kit server did not start")
            time.sleep(0.02)

    def pause(self, *, on: bool) -> None:
        """It hears, and says nothing."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGSTOP if on else signal.SIGCONT)

    def kill(self) -> None:
        """With the processes it made for its connections."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
