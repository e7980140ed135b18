"""How `ronctl` finds the node and its capability, and runs async work.

In: --node/--cap, RON_HOME/RON_CAP, whom to trust over TLS. Out: an `Api`; `RonError` telling what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import LimitedHistoryLogObserver, globalLogBeginner
from twisted.python.failure import Failure

from ron.ctl.trust import Trust, given_trust
from ron.kernel.files import read_private
from ron.kernel.tls import ClientTls
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.proto.exitcodes import Unreachable
from ron.proto.facts import NodeFacts
from ron.sdk import Api, direct_http, tls_http
from ron.sdk.transport import PlainClient

T = TypeVar("T")

# What lone daemons leave in the home, and who they are.
_LONE = {"onions.json": "ron-oniond", "kms.json": "ron-kms"}

node_option = click.option("--node", metavar="URL", help="The node's gateway, e.g. http://127.0.0.1:9080.")
cap_option = click.option("--cap", metavar="TOKEN|FILE", help="A capability, or a file that holds one.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def home() -> Path:
    """`$RON_HOME`, by default `./var`."""
    return Path(os.environ.get("RON_HOME") or "var").absolute()


def read_facts(directory: Path | None = None) -> NodeFacts:
    """`node.json` of the running node. Raises `Unreachable` when there is none."""
    path = (directory or home()) / "node.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=NodeFacts)
    except FileNotFoundError:
        raise Unreachable(
            f"no node runs from {path.parent}: there is no {path.name}",
            hint="start one (make run), set RON_HOME, or name it with --node",
        ) from None
    except PermissionError:
        raise Unreachable(
            f"{path} may not be read", hint="call ronctl as the node's user or as root, or name it with --node"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise Unreachable(f"{path} cannot be used: {error}", hint="restart the node; it writes the file anew") from None


class RuntimeFacts(msgspec.Struct, frozen=True):
    """What we need of `onions.json` or `kms.json`, which a lone daemon writes instead of `node.json`."""

    admin_url: str


def own_url() -> str:
    """Where the daemon of this home answers its operator: a node's gateway, or the admin address of a lone onion
    runtime or key service. Raises `Unreachable` when none runs."""
    if _exists(home() / "node.json", hidden=True):
        return read_facts().gateway_url
    for name, daemon in _LONE.items():
        facts = home() / name
        if not facts.exists():
            continue
        try:
            return msgspec.json.decode(facts.read_bytes(), type=RuntimeFacts).admin_url
        except (OSError, msgspec.MsgspecError) as error:
            raise Unreachable(f"{facts} cannot be used: {error}", hint=f"restart {daemon}; it writes it anew") from None
    return read_facts().gateway_url


def find_capability(cap: str | None) -> str | None:
    """The token: `cap` or `$RON_CAP` (a token or a file's path), else `$RON_HOME/admin.cap`, else None."""
    given = _given_capability(cap)
    path = home() / "admin.cap"
    return _read(path) if given is None and _exists(path, hidden=False) else given


def _exists(path: Path, *, hidden: bool) -> bool:
    """Is it there? `hidden` when we may not look into its folder."""
    try:
        return path.exists()
    except PermissionError:
        return hidden


def connect(reactor: Any, node: str | None, cap: str | None, *, deadline_s: float = 20.0, tries: int = 2) -> Api:
    """An `Api` on `node`, or on what `own_url` finds: over loopback, or where it is an https URL over TLS with
    `given_trust`.

    Raises `Unreachable` when there is no node to be found, `RonError` (BadRequest) when URL and trust do not go
    together or a file cannot be used.
    """
    url = node or own_url()
    trust = given_trust()
    # another host's node has no business with the admin capability of ours
    capability = find_capability(cap) if trust.ca is None else _given_capability(cap)
    return Api(reactor, _http(reactor, url, trust), url, capability, deadline_s=deadline_s, tries=tries)


def _http(reactor: Any, url: str, trust: Trust) -> PlainClient:
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    except ValueError:
        raise bad_request(f"{url!r} is no URL", "write one like https://alpha.internal:9443") from None
    if scheme != "https":
        if any(trust):
            raise bad_request(f"--ca, --cert, --key and --identity are for https, {url} is not", "--node https://…")
        return direct_http(reactor)
    if trust.ca is None:
        raise bad_request(f"{url} needs a CA to trust", "ronctl --ca ca.pem …, before the command")
    return tls_http(reactor, ClientTls(trust.ca, trust.cert, trust.key, trust.identity or host or ""))


def run(work: Callable[[Any], Awaitable[T]]) -> T:
    """Run `work(reactor)` to its end and return its result; its exception is raised here."""
    from twisted.internet import reactor

    # Twisted's own log goes nowhere: what matters comes back as an exception
    globalLogBeginner.beginLoggingTo([LimitedHistoryLogObserver(size=1)], redirectStandardIO=False, discardBuffer=True)
    outcome: list[T | Failure] = []
    working: list[Deferred[Any]] = []

    def begin() -> None:
        async def whole() -> T:
            return await work(reactor)

        done = Deferred.fromCoroutine(whole())
        working.append(done)
        done.addBoth(outcome.append)
        done.addBoth(lambda _none: reactor.stop() if reactor.running else None)

    reactor.callWhenRunning(begin)
    reactor.run()
    if not outcome:
        # Ctrl-C: what it holds, a screen for example, it gives back
        for done in working:
            done.cancel()
        raise click.Abort
    result = outcome[0]
    if isinstance(result, Failure):
        result.raiseException()
    return result


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    click.echo(msgspec.json.encode(value).decode())


def _given_capability(cap: str | None) -> str | None:
    given = cap or os.environ.get("RON_CAP")
    if not given:
        return None
    path = Path(given)
    return _read(path) if "/" in given or path.is_file() else given


def _read(path: Path) -> str:
    try:
        return read_private(path).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RonError(
            ErrorCode.NO_CAPABILITY, f"the capability file {path} cannot be read: {error}", hint="name one with --cap"
        ) from None
