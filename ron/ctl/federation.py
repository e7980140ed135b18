"""`ronctl federation`: give a peer a capability, hold one of its, federate with it, see who is federated.

In: keys, onions, files. Out: what was made or done, as text or JSON. Keys are files of this host; who is federated is
asked of the running onion runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ron.ctl.node import cap_option, connect, find_capability, home, json_option, node_option, print_json, run
from ron.ctl.onion_reach import place, reach
from ron.proto.errors import conflict, unavailable

if TYPE_CHECKING:
    from ron.sdk import Api
    from ron.services.oniond.federation.routes import FederationView, SessionView

T = TypeVar("T")
# Longer than the runtime takes: challenge, list, proof and the peer's call back through tor.
CONNECT_S = 185.0
_path = click.Path(path_type=Path, dir_okay=False)


@click.group("federation")
def federation() -> None:
    """Nodes of two operators that allow each other, and prove it without showing by which capability.

    \b
    Examples, for both operators alike:
      ronctl federation new-holder --out bert.key             # its public part goes to Bert
      ronctl federation grant 5866…                           # Bert's public part
      ronctl federation hold bert….onion bert.key
      ronctl federation connect bert….onion
      ronctl federation sessions
    """


@federation.command("new-holder")
@click.option("--out", type=_path, required=True, help="A new file for the key, its owner's alone.")
@json_option
def new_holder(out: Path, as_json: bool) -> None:
    """Make the key that a capability of one peer is to name. One for each peer, never the same for two.

    The public part, on stdout, is for that peer's operator. The file stays here.

    \b
    Example:
      ronctl federation new-holder --out bert.key
    """
    from ron.crypto.schnorr import HolderKey
    from ron.services.oniond.federation.shelf import write_holder

    if out.exists():
        raise conflict(f"{out} is there already", "choose another name, so that no key is lost")
    key = HolderKey.generate()
    try:
        write_holder(out, key)
    except OSError as error:
        raise unavailable(f"{out} cannot be written: {error.strerror}") from None
    if as_json:
        print_json({"public": key.public.hex(), "file": str(out.absolute())})
        return
    click.echo(f"{out} holds the key; this is its public part:", err=True)
    click.echo(key.public.hex())


@federation.command("grant")
@click.argument("public")
@click.option("--label", default="", help="Whose it is, for `ronctl cap list`; it is not in the capability.")
@click.option("--ttl", default="30d", show_default=True, metavar="TIME", help="How long it holds.")
@node_option
@cap_option
@json_option
@click.pass_context
def grant(
    context: click.Context, public: str, label: str, ttl: str, node: str | None, cap: str | None, as_json: bool
) -> None:
    """Give the holder of the key PUBLIC the capability to federate with this node.

    It puts PUBLIC on this node's list of holder keys for as long as the capability is good; the node need not be told.
    `ronctl cap revoke` takes it back. Granted again before it ends, it goes on without a break.

    \b
    Example:
      ronctl federation grant 5866… --label bert
    """
    from ron.auth import AUDIENCE
    from ron.ctl.cap import mint
    from ron.services.oniond.federation.grants import SCOPE, parse_public

    context.invoke(
        mint,
        scopes=(SCOPE,),
        ttl=ttl,
        rps=None,
        bytes_per_day=None,
        aud=AUDIENCE,
        label=label,
        node=node,
        cap=cap,
        as_json=as_json,
        holder=parse_public(public).hex(),
    )


@federation.command("hold")
@click.argument("issuer_onion")
@click.argument("file", type=_path)
@json_option
def hold(issuer_onion: str, file: Path, as_json: bool) -> None:
    """Use the key in FILE, which the peer at ISSUER_ONION has granted a capability. A running node notices it.

    \b
    Example:
      ronctl federation hold bert….onion bert.key
    """
    from ron.services.oniond.federation.shelf import Shelf, read_holder

    key = read_holder(file)
    path = Shelf(home() / "federation").hold(issuer_onion, key)
    if as_json:
        print_json({"issuer": issuer_onion, "public": key.public.hex(), "file": str(path)})
    else:
        click.echo(f"{path}: key {key.public.hex()} for {issuer_onion}")


@federation.command("connect")
@click.argument("peer_onion")
@reach
def connect_command(peer_onion: str, control: str | None, cap: str | None, as_json: bool) -> None:
    """Federate with PEER_ONION now, and exchange transport facts.

    \b
    Example:
      ronctl federation connect bert….onion
    """
    from ron.services.oniond.federation.messages import check_onion
    from ron.services.oniond.federation.routes import ConnectRequest, SessionView

    body = ConnectRequest(peer=check_onion(peer_onion))
    session = _ask(control, cap, "POST", "/v1/federation/connect", SessionView, body)
    if as_json:
        print_json(session)
    else:
        click.echo(_line(session))


@federation.command("sessions")
@reach
def sessions(control: str | None, cap: str | None, as_json: bool) -> None:
    """Who is federated with this node, its own address for peers, and its list of holder keys.

    Compare the digest of the list with the one that other holders see.

    \b
    Examples:
      ronctl federation sessions
      ronctl federation sessions --json | jq -r '.sessions[].peer'
    """
    from ron.services.oniond.federation.routes import FederationView

    view = _ask(control, cap, "GET", "/v1/federation", FederationView)
    if as_json:
        print_json(view)
    else:
        click.echo(_text(view))


def _ask(control: str | None, cap: str | None, method: str, path: str, answer: type[T], body: Any = None) -> T:
    where = place(control)
    return run(lambda reactor: _api(reactor, where, cap).call(method, path, answer, body))


def _api(reactor: Any, where: Path | str, cap: str | None) -> Api:
    if isinstance(where, str):
        return connect(reactor, where, cap, deadline_s=CONNECT_S, tries=1)
    from ron.sdk import Api
    from ron.sdk.transport import unix_http

    http = unix_http(reactor, where)
    return Api(reactor, http, "http://oniond", find_capability(cap), deadline_s=CONNECT_S, tries=1)


def _text(view: FederationView) -> str:
    listed = view.list
    lines = [
        f"onion    {view.onion}",
        f"list     version {listed.version}, {listed.holders} holders, digest {listed.digest.hex()}",
        f"allowed  {', '.join(view.allow) or 'nobody'}",
        f"holds    {', '.join(view.issuers) or 'nothing'}",
        *(f"trouble  {one}" for one in view.trouble),
        *map(_line, view.sessions),
    ]
    return "\n".join(lines)


def _line(session: SessionView) -> str:
    facts = session.facts
    told = "no facts yet" if facts is None else f"load {facts.load}, {', '.join(facts.regions) or 'no regions'}"
    return f"session  {session.peer}  {session.role}, {session.expires_in_s} s left, {told}"
