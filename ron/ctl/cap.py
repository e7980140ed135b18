"""`ronctl cap`: give out capabilities, narrow them, look into them, take them back.

In: what the capability may be used for, or a token. Out: the token alone on stdout's last line, explanations on stderr.
Works on `$RON_HOME/auth` where that is at hand (daemons notice within a second), else through the node's `/v1/caps`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from ron.auth import AUDIENCE, AuthFiles, Caveat, Inspected, Refused, attenuate, inspect
from ron.auth.caveats import expiry, requests_per_s
from ron.auth.rootkeys import GRACE_S
from ron.auth.wire import (
    MAX_TTL_S,
    CapLine,
    EpochsAnswer,
    ListAnswer,
    MintAnswer,
    MintRequest,
    RevokeAnswer,
    RevokeRequest,
    RotateRequest,
    cap_lines,
    epoch_lines,
    mint_answer,
)
from ron.ctl.node import cap_option, connect, home, json_option, node_option, print_json, run
from ron.kernel.files import read_private
from ron.kernel.units import parse_duration_s, parse_size
from ron.proto.clock import rfc3339
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.proto.exitcodes import Unreachable
from ron.proto.ids import uuid7

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_CAP_ID = re.compile(r"[0-9a-f]{32}")


def _narrowing(command: F) -> F:
    """The options that say what a capability is narrowed to."""
    command = click.option("--bytes-per-day", metavar="SIZE", help="At most so much a UTC day, e.g. 10MB.")(command)
    command = click.option("--rps", metavar="N", help="At most N requests a second, e.g. 5 or 0.1.")(command)
    command = click.option("--path", help="Only for this path and what lies below it.")(command)
    for name in ("method", "topic", "tenant", "app"):
        command = click.option(f"--{name}", help=f"Only for this {name}.")(command)
    return command


@click.group("cap")
def cap() -> None:
    """Capabilities: who may do what, for how long. A token is shown once and stored nowhere.

    \b
    Examples:
      ronctl cap mint --scope mailbox:send --topic notes/bob --ttl 24h --label "bob's phone"
      ronctl cap attenuate - --ttl 5m < phone.cap > guest.cap
      ronctl cap inspect - < guest.cap
      ronctl cap list
      ronctl cap revoke - < phone.cap
      ronctl cap rotate --grace 1h
    """


@cap.command("mint")
@click.option("--scope", "scopes", multiple=True, required=True, metavar="SCOPE", help="family:verb, family:* or *.")
@click.option("--ttl", default="24h", show_default=True, metavar="TIME", help="How long it holds: 250ms 5s 10m 24h 7d.")
@_narrowing
@click.option("--aud", default=AUDIENCE, show_default=True, help="Whom it is shown to.")
@click.option("--label", default="", help="For `ronctl cap list`; it is not in the token.")
@node_option
@cap_option
@json_option
def mint(
    scopes: tuple[str, ...],
    ttl: str,
    rps: str | None,
    bytes_per_day: str | None,
    aud: str,
    label: str,
    node: str | None,
    cap: str | None,
    as_json: bool,
    **only: str | None,
) -> None:
    """Give out a new capability: explanations on stderr, the token alone on the last line of stdout.

    \b
    Examples:
      ronctl cap mint --scope onion:read --app other --ttl 5m
      ronctl cap mint --scope mailbox:send,mailbox:recv --scope edge:* --rps 10 > app.cap
    """
    wanted = {
        "scope": ",".join(part.strip() for scope in scopes for part in scope.split(",")),
        "ttl_s": parse_duration_s(ttl),
        "rps": None if rps is None else _rps(rps),
        "bytes_per_day": None if bytes_per_day is None else _size(bytes_per_day),
        "label": label,
        **only,
    }
    try:
        request = msgspec.convert({k: v for k, v in wanted.items() if v is not None}, MintRequest, strict=True)
    except msgspec.ValidationError as error:
        hint = f"--ttl from 1s to {int(MAX_TTL_S // 86_400)}d, values of 1 to 256 characters"
        raise bad_request(f"cannot mint that: {error}", hint) from None
    files = _files(node)
    if files is not None:
        answer = _mint_here(files, request, aud)
    elif aud != AUDIENCE:
        raise bad_request("a node mints for itself only", f"leave out --aud, or use $RON_HOME/auth of {aud}")
    else:
        answer = _ask(node, cap, "POST", "/v1/caps/mint", MintAnswer, request)
    if as_json:
        print_json(answer)
        return
    _explain(f"capability {answer.cap_id}, key epoch {answer.kid}", answer.caveats)
    if "*" in request.scope.split(","):
        _say("it covers everything: keep it like a password")
    click.echo(answer.token)


@cap.command("attenuate")
@click.argument("token")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE", help="May be repeated: every one must then hold.")
@click.option("--ttl", metavar="TIME", help="From now: 250ms 5s 10m 24h 7d.")
@_narrowing
@click.option("--aud", help="Only for this audience.")
@json_option
def attenuate_command(
    token: str,
    scopes: tuple[str, ...],
    ttl: str | None,
    rps: str | None,
    bytes_per_day: str | None,
    as_json: bool,
    **only: str | None,
) -> None:
    """Narrow TOKEN (or - for standard input). Works offline; needs no key and tells nobody.

    \b
    Example:
      ronctl cap attenuate - --topic notes/bob --ttl 5m < phone.cap
    """
    caveats = [Caveat("scope", scope) for scope in scopes]
    caveats += [Caveat(name, value) for name, value in only.items() if value is not None]
    caveats += [] if rps is None else [Caveat("rps", rps)]
    caveats += [] if bytes_per_day is None else [Caveat("bytes_per_day", str(_size(bytes_per_day)))]
    caveats += [] if ttl is None else [expiry(time.time(), parse_duration_s(ttl))]
    if not caveats:
        raise bad_request("nothing to narrow by", "give --scope, --ttl, --topic …: ronctl cap attenuate --help")
    try:
        narrower = attenuate(_token(token), caveats)
    except ValueError:
        raise bad_request("one of these is no valid caveat", "no blanks around a value; --rps like 5 or 0.1") from None
    seen = inspect(narrower)
    if as_json:
        print_json({"token": narrower, "cap_id": seen.cap_id, "caveats": [str(caveat) for caveat in seen.caveats]})
        return
    _explain(f"capability {seen.cap_id}; revoking it revokes what it was made from, too", map(str, seen.caveats))
    click.echo(narrower)


@cap.command("inspect")
@click.argument("token")
@json_option
def inspect_command(token: str, as_json: bool) -> None:
    """Show what TOKEN (or - for standard input) says about itself. Offline: nothing is verified.

    \b
    Example:
      ronctl cap inspect - < phone.cap
    """
    seen = inspect(_token(token))
    expires_at = None if seen.expires_at_s is None else rfc3339(seen.expires_at_s)
    if as_json:
        texts = {"caveats": [str(caveat) for caveat in seen.caveats], "not_understood": seen.not_understood}
        times = {"expires_at": expires_at, "expired": _is_over(seen)}
        print_json({"verified": False, "cap_id": seen.cap_id, "kid": seen.kid, **texts, **times})
        return
    click.echo(f"cap_id  {seen.cap_id}")
    click.echo(f"epoch   {seen.kid}")
    click.echo(f"expires {expires_at or 'with its key epoch'}{' (it is over)' if _is_over(seen) else ''}")
    for caveat in seen.caveats:
        click.echo(f"only    {caveat}")
    for text in seen.not_understood:
        click.echo(f"unknown {text!r}: every node refuses it")
    _say("not verified: anybody could have written this; only a node can tell")


@cap.command("revoke")
@click.argument("token")
@node_option
@cap_option
@json_option
def revoke(token: str, node: str | None, cap: str | None, as_json: bool) -> None:
    """Void a capability: TOKEN, its cap_id, or - for standard input. Holds everywhere within 5 s.

    Goes for everything attenuated from the same capability, and for everything minted with it.

    \b
    Example:
      ronctl cap revoke 3f0c… --json
    """
    given = _token(token)
    files = _files(node)
    if files is not None:
        answer = RevokeAnswer(revoked=files.revoke(_cap_id(files, given)))
    else:
        by_id = bool(_CAP_ID.fullmatch(given))
        body = RevokeRequest(op_id=str(uuid7()), token=None if by_id else given, cap_id=given if by_id else None)
        meant = given if by_id else inspect(given).cap_id
        answer = _once(RevokeAnswer(revoked=(meant,)), node, cap, "/v1/caps/revoke", body)
    if as_json:
        print_json(answer)
        return
    for index, cap_id in enumerate(answer.revoked):
        click.echo(f"revoked {cap_id}{' (minted with it)' if index else ''}")


@cap.command("rotate")
@click.option("--grace", default="48h", show_default=True, metavar="TIME", help="How long older tokens still hold.")
@node_option
@cap_option
@json_option
def rotate(grace: str, node: str | None, cap: str | None, as_json: bool) -> None:
    """Mint with a new root key from now on. Nodes do it by themselves every 30 days.

    With --grace 0s every capability is void at once; a running node writes a new admin.cap.

    \b
    Example:
      ronctl cap rotate --grace 1h
    """
    grace_s = parse_duration_s(grace)
    if grace_s > GRACE_S:
        raise bad_request("a grace of over 48 hours", "old keys are kept for 48h at most")
    files = _files(node)
    if files is not None:
        files.rotate(grace_s=grace_s)
        answer = EpochsAnswer(epochs=epoch_lines(files.keys.epochs))
    else:
        body = RotateRequest(op_id=str(uuid7()), grace_s=grace_s)
        answer = _once(EpochsAnswer(epochs=()), node, cap, "/v1/caps/rotate", body)
    if as_json:
        print_json(answer)
        return
    _print_epochs(answer)


@cap.command("list")
@node_option
@cap_option
@json_option
def list_command(node: str | None, cap: str | None, as_json: bool) -> None:
    """Capabilities that were given out and have not ended, and the root-key epochs. Never shows a token.

    \b
    Example:
      ronctl cap list --json
    """
    files = _files(node)
    if files is not None:
        answer = ListAnswer(epochs=epoch_lines(files.keys.epochs), capabilities=cap_lines(files.listed()))
    else:
        answer = _ask(node, cap, "GET", "/v1/caps", ListAnswer)
    if as_json:
        print_json(answer)
        return
    _print_epochs(answer)
    for line in answer.capabilities:
        _print_line(line)


def _files(node: str | None) -> AuthFiles | None:
    """The operator's own files, unless another node was named or the one running here does not use them (amnesia)."""
    folder = home() / "auth"
    try:
        if node is not None or not (folder / "root.json").exists():
            return None
    except OSError as error:
        raise RonError(
            ErrorCode.STORE_UNAVAILABLE, f"{folder} cannot be read: {error.strerror}", hint="or name a node: --node URL"
        ) from None
    files = AuthFiles(folder, time.time)
    if (home() / "node.json").exists() and _is_strange(files, home() / "admin.cap"):
        _say(f"the node running here does not use {folder} (amnesia?): asking the node")
        return None
    return files


def _is_strange(files: AuthFiles, admin: Path) -> bool:
    """True when the admin capability was signed with another key than the one the files have under its number."""
    try:
        files.authority(AUDIENCE).recognise(read_private(admin).decode("ascii").strip())
    except Refused as refused:
        return refused.reason == "forged"
    except (RonError, OSError, UnicodeDecodeError):
        return False
    return False


def _mint_here(files: AuthFiles, request: MintRequest, audience: str) -> MintAnswer:
    try:
        issued = files.issue(files.authority(audience), request.caveats(time.time()), label=request.label)
    except ValueError:
        raise bad_request("one of these is no valid caveat", "no blanks around a value") from None
    return mint_answer(issued.token, issued.entry)


def _cap_id(files: AuthFiles, given: str) -> str:
    """The cap_id meant. A token must be ours: an altered one would name another, and the real one would live on."""
    if _CAP_ID.fullmatch(given):
        return given
    try:
        return files.authority(AUDIENCE).recognise(given).cap_id
    except Refused as refused:
        raise bad_request(f"nothing to revoke: {refused.message}", "give the token as minted, or its cap_id") from None


def _ask(
    node: str | None, cap: str | None, method: str, path: str, answer: type[T], body: msgspec.Struct | None = None
) -> T:
    try:
        return run(lambda reactor: connect(reactor, node, cap).call(method, path, answer, body))
    except Unreachable as error:
        if node is not None:
            raise
        raise Unreachable(
            f"neither {home()}/auth/root.json nor a running node: {error.message}",
            hint="set RON_HOME to the node's home, start the node, or name one with --node URL and --cap",
        ) from None


def _once(lost: T, node: str | None, cap: str | None, path: str, body: RevokeRequest | RotateRequest) -> T:
    """A call with a fresh op_id. If the node knows it already, our first try got through and its answer was lost."""
    try:
        return _ask(node, cap, "POST", path, type(lost), body)
    except RonError as error:
        if error.code is not ErrorCode.CONFLICT:
            raise
        _say("done; the node's answer was lost on the way")
        return lost


def _token(given: str) -> str:
    """The argument, or the first line of standard input for `-`."""
    token = sys.stdin.readline(65_536).strip() if given == "-" else given
    if not token:
        raise bad_request("no token", "give it as the argument, or on standard input with -")
    return token


def _rps(text: str) -> float:
    try:
        return requests_per_s(text)
    except ValueError:
        raise bad_request(f"--rps {text[:32]!r} is no rate", "a decimal number over 0, e.g. 5 or 0.1") from None


def _size(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else parse_size(text)


def _is_over(seen: Inspected) -> bool:
    return seen.expires_at_s is not None and time.time() >= seen.expires_at_s


def _explain(headline: str, caveats: Iterable[str]) -> None:
    _say(headline)
    for caveat in caveats:
        _say(f"  only {caveat}")


def _say(text: str) -> None:
    click.echo(text, err=True)


def _print_epochs(answer: EpochsAnswer | ListAnswer) -> None:
    for epoch in answer.epochs:
        until = "mints" if epoch.retires_at is None else f"holds until {epoch.retires_at}"
        click.echo(f"epoch {epoch.kid}: made {epoch.created_at}, {until}")


def _print_line(line: CapLine) -> None:
    state = "REVOKED" if line.revoked else f"until {line.expires_at or 'its epoch retires'}"
    minted_with = f", minted with {line.parent}" if line.parent else ""
    click.echo(f"{line.cap_id}  {state}  {line.label or '-'}{minted_with}")
    click.echo(f"    {'; '.join(line.caveats)}")
