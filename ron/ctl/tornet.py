"""`ronctl tornet`: a private Tor network of its own, in the background, watched until it is taken down.

In: a folder. Out: the network's state in `tornet.json` there, shown as text or JSON.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from ron.ctl.console import StageConsole
from ron.ctl.node import home, json_option, print_json
from ron.ctl.tornet_check import check, probe
from ron.ctl.tornet_hosts import add_relay, init, join, replace_authority, rotate_certs
from ron.kernel.files import private_dir
from ron.proto.errors import ErrorCode, RonError, conflict, unavailable
from ron.proto.exitcodes import Unreachable
from ron.tor.fleet import BRING_UP_TIMEOUT_S, FACTS_FILE, NetworkFacts

POLL_S = 0.2
DOWN_TIMEOUT_S = 30.0

_dir_option = click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Where its keys and state live. [$RON_HOME/tornet]"
)


@click.group("tornet")
def tornet() -> None:
    """A private Tor network: on this host alone (up, status, down), or over several hosts (the other commands).

    On this host: 3 authorities, 2 relays, and a client with a SOCKS port. Over several: init makes a bundle per host,
    which takes it with join; the network can then be changed, and checked.

    \b
    Examples:
      ronctl tornet up --dir /tmp/net
      ronctl tornet status --dir /tmp/net --json
      ronctl tornet down --dir /tmp/net
      ronctl tornet init --out net --authority a1=10.0.0.1 … --relay r1=10.0.0.4 …
      sudo ronctl tornet join --bundle a1.tar --dir /var/lib/ron-tor/a1 --user debian-tor
    """


@tornet.command("up")
@_dir_option
@json_option
def up(directory: Path | None, as_json: bool) -> None:
    """Start the network and wait until it is whole (about 15 seconds). Does nothing when it is up."""
    folder = _folder(directory)
    facts = _facts(folder)
    if facts is None or not _alive(facts):
        # what the last run left must not be mistaken for this one's
        (folder / FACTS_FILE).unlink(missing_ok=True)
        _start(folder)
    with StageConsole(sys.stderr) as console:
        facts = _wait(folder, lambda f: f.state in {"up", "failed"}, BRING_UP_TIMEOUT_S + 10, console)
    if facts.state == "failed":
        raise unavailable(facts.stage, hint=f"see {folder}/tornet.log")
    _show(facts, as_json)


@tornet.command("status")
@_dir_option
@json_option
def status(directory: Path | None, as_json: bool) -> None:
    """Show the network's tors. Exit code 4 when it is not running."""
    folder = _folder(directory)
    facts = _facts(folder)
    if facts is None or not _alive(facts):
        raise Unreachable(f"no network runs in {folder}", hint=f"start it: ronctl tornet up --dir {folder}")
    _show(facts, as_json)


@tornet.command("down")
@_dir_option
@json_option
def down(directory: Path | None, as_json: bool) -> None:
    """Stop the network; its keys stay, so that the next start is quick. Fine when it is down already."""
    folder = _folder(directory)
    facts = _facts(folder)
    if facts is not None and _alive(facts):
        if b"ron-tornet" not in _command_line(facts.supervisor_pid):
            raise conflict(
                f"the network in {folder} belongs to the node with pid {facts.supervisor_pid}", "stop the node"
            )
        os.kill(facts.supervisor_pid, signal.SIGTERM)
        deadline = time.monotonic() + DOWN_TIMEOUT_S
        while _alive(facts):
            if time.monotonic() > deadline:
                raise RonError(ErrorCode.TIMEOUT, f"process {facts.supervisor_pid} does not end")
            time.sleep(POLL_S)
    if as_json:
        print_json({"directory": str(folder), "state": "down"})
    else:
        click.echo(f"{folder}: down")


def _folder(directory: Path | None) -> Path:
    return (directory or home() / "tornet").absolute()


def _facts(folder: Path) -> NetworkFacts | None:
    try:
        return msgspec.json.decode((folder / FACTS_FILE).read_bytes(), type=NetworkFacts)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _alive(facts: NetworkFacts) -> bool:
    return b"ron-" in _command_line(facts.supervisor_pid)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _start(folder: Path) -> None:
    private_dir(folder)
    log, pidfile = folder / "tornet.log", folder / "tornet.pid"
    pidfile.unlink(missing_ok=True)
    twistd = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
    options = ["--pidfile", str(pidfile), "--logfile", str(log), "ron-tornet", "--dir", str(folder)]
    done = subprocess.run([*twistd, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise unavailable(done.stderr.strip() or "the network's supervisor did not start", hint=f"see {log}")


def _wait(folder: Path, done: Callable[[NetworkFacts], bool], timeout_s: float, console: StageConsole) -> NetworkFacts:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        facts = _facts(folder)
        if facts is not None:
            _show_stage(facts, console)
            if done(facts):
                return facts
            if not _alive(facts):
                raise unavailable("the network's supervisor ended", hint=f"see {folder}/tornet.log")
        time.sleep(POLL_S)
    raise RonError(ErrorCode.TIMEOUT, f"the network in {folder} is not up", hint=f"see {folder}/tornet.log")


def _show_stage(facts: NetworkFacts, console: StageConsole) -> None:
    name, _, rest = facts.stage.partition(" ")
    progress, _, detail = rest.partition(" ")
    done, _, total = progress.partition("/")
    if done.isdigit() and total.isdigit():
        console.show(name, int(done), int(total), detail)


def _show(facts: NetworkFacts, as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    click.echo(f"network in {facts.directory}: {facts.state}")
    for tor in facts.tors:
        state = "up" if tor.up else f"{tor.percent} %"
        socks = f"  SOCKS 127.0.0.1:{tor.socks_port}" if tor.socks_port else ""
        restarts = f"  restarted {tor.restarts}×" if tor.restarts else ""
        click.echo(f"  {tor.name:<8} {tor.role:<10} {state:<6} pid {tor.pid or '-'}{socks}{restarts}")


for _command in (init, join, add_relay, rotate_certs, replace_authority, check, probe):
    tornet.add_command(_command)
