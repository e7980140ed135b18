"""`ronctl` without the half second it takes to import itself: each call is a fork of one process that has done that.

`RONCTL` is a program to start like the real one: arguments, environment, folder, descriptors and signals are passed on,
and its end is that of the fork. What a fork cannot show, the start itself, `tests.ctl.test_ronctl` tests with the real.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

REAL = Path(sys.executable).parent / "ronctl"
_ROOM = 1 << 20
# What the commands import when they are called. None of it makes a reactor: that would be shared by all forks.
_AHEAD = (
    "rich.console",
    "rich.live",
    "rich.progress",
    "rich.table",
    "ron.crypto.x509",
    "ron.ctl.console",
    "ron.ctl.flamegraph",
    "ron.ctl.main",
    "ron.sdk",
    "ron.sdk.balance",
    "ron.sdk.events",
    "ron.sdk.governance",
    "ron.sdk.kms",
    "ron.sdk.onions",
    "ron.services.balance.mesh.files",
    "ron.services.configs",
    "ron.services.kms.governance.actions",
    "ron.services.kms.governance.canonical",
    "ron.services.kms.governance.signers",
    "treq",
    "twisted.internet.epollreactor",
    "twisted.internet.task",
    "twisted.internet.threads",
)
_MAKES_A_REACTOR = "tornet"
# Itself it imports next to nothing (-I -S), so that it is there at once.
_CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
server.connect({address!r})
said = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [b"%9d" % len(said)], [0, 1, 2])
server.sendall(said)
child = int(server.recv(16))
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGWINCH"):
    signal.signal(getattr(signal, name), lambda number, frame: os.kill(child, number))
server.sendall(b"go")
end = int(server.recv(16))
if end < 0:
    signal.signal(-end, signal.SIG_DFL)
    os.kill(os.getpid(), -end)
os._exit(end)
"""


def _start() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ron-fork-"))
    address = folder / "socket"
    command = [sys.executable, "-m", "tests.ctl.forkserver", str(address)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    if server.stdout.readline() != b"ready\n":
        raise RuntimeError("the fork server did not start; what it said is on stderr")
    client = folder / "ronctl"
    client.write_text(_CLIENT.format(python=sys.executable, address=str(address)))
    client.chmod(0o700)

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return client


def serve(address: str) -> None:
    """Fork for each caller until stdin ends."""
    for name in _AHEAD:
        __import__(name)
    for name, (module, *_) in sys.modules["ron.ctl.main"]._COMMANDS.items():
        if name != _MAKES_A_REACTOR:
            __import__(module)
    if "twisted.internet.reactor" in sys.modules:
        raise RuntimeError("a reactor was made: all forks would share it")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # a shell that runs the tests in the background has it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(address)
    listening.listen(64)
    if measuring := sys.modules["coverage"].Coverage.current() if "coverage" in sys.modules else None:
        # what these imports covered is told once, and not by each fork
        measuring.save()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if listening not in ready:
            return
        caller = listening.accept()[0]
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _look_after(caller)
        caller.close()


def _look_after(caller: socket.socket) -> None:
    """Of one call: fork it, tell its number, wait, tell its end. A caller that is killed takes it along."""
    head, descriptors, _, _ = socket.recv_fds(caller, 9, 3)
    said = b""
    while len(said) < int(head):
        said += caller.recv(_ROOM)
    child = os.fork()
    if child == 0:
        _tell(caller, os.getpid())
        caller.recv(2)  # it passes signals on from now on
        caller.close()
        _call(descriptors, *json.loads(said))
    for descriptor in descriptors:
        os.close(descriptor)
    ended = os.pidfd_open(child)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    waiting.register(caller, select.POLLHUP | select.POLLRDHUP)
    if any(descriptor != ended for descriptor, _ in waiting.poll()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    _tell(caller, os.waitstatus_to_exitcode(status))
    # at once: an orderly end saves the coverage of a process that only waited
    signal.raise_signal(signal.SIGKILL)


def _tell(caller: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        caller.sendall(b"%d" % number)


def _call(descriptors: list[int], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    from ron.ctl.main import main

    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["ronctl", *arguments]
    # as they are in a process that was started for it
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    code: object = 0
    try:
        main()
    except SystemExit as ending:
        code = ending.code
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    serve(sys.argv[1])
else:
    RONCTL = _start()
