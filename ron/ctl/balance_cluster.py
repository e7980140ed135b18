"""`ronctl balance invite|approve|remove|leave|token`: who belongs to a cluster.

In: names, addresses. Out: what the running node did. A bundle is a secret and goes to a file of its owner's alone, or
to stdout when it was asked for there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ron.ctl.balance_node import DIRECTORY, load_ca
from ron.ctl.balance_reach import ask, op_id_option, reach
from ron.ctl.balance_text import member_line
from ron.ctl.control import confirm, is_asked, yes_option
from ron.ctl.node import home, print_json
from ron.ctl.onion_clients import write_new
from ron.ctl.plain import plain_text
from ron.proto.errors import bad_request

if TYPE_CHECKING:
    from ron.proto.balanceviews import InvitationAnswer
    from ron.sdk.balance import Balance


@click.command("invite")
@click.argument("name")
@click.option("--address", "addresses", multiple=True, metavar="HOST:PORT", help="Where NAME is reached. Repeat.")
@click.option("--out", type=click.Path(path_type=Path), help="A new file for the bundle, its owner's alone.  [stdout]")
@click.option("--ca-dir", type=click.Path(path_type=Path), metavar="DIR", help="Make it here, with the CA in DIR.")
@click.option("--seed", "seeds", multiple=True, metavar="HOST:PORT", help="With --ca-dir: where a member is. Repeat.")
@op_id_option
@reach
def invite(
    name: str,
    addresses: tuple[str, ...],
    out: Path | None,
    ca_dir: Path | None,
    seeds: tuple[str, ...],
    op_id: str | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Make a bundle with which a node called NAME can join: its certificate and key, the CA, the cluster's token.

    It is a secret: bring it to that node and nowhere else, and delete it here. Rotating the token voids it.
    The running node makes it with the CA in its home; with --ca-dir it is made here, from the files of the node in
    $RON_HOME, so that the CA's key need not stay on the node.

    \b
    Examples:
      ronctl balance invite beta --ca-dir /mnt/stick/ca --seed 10.7.0.1:9470 --out beta.bundle
      ronctl balance invite beta --address 10.7.0.2:9470 --out beta.bundle
      ronctl balance invite beta | ssh beta 'umask 077; cat > beta.bundle'
    """
    if out is not None and out.exists():
        raise bad_request(f"{out} exists", "name a file that does not")
    if (ca_dir is None) == bool(seeds):
        raise click.UsageError("--ca-dir and --seed go together")
    if ca_dir is not None:
        made = _made_here(name, ca_dir, seeds)
    else:
        made = ask(control, cap, lambda balance: balance.invite(name, addresses, op_id=op_id))
    if out is not None:
        write_new(out, made.bundle)
    if as_json:
        print_json(made if out is None else {"name": made.name, "file": str(out)})
    elif out is None:
        click.echo(made.bundle, nl=not made.bundle.endswith("\n"))
    else:
        click.echo(
            f"{out}: bring it to {name}; there, ronctl balance join {out.name} --listen HOST:PORT --port 80:8080"
        )


@click.command("approve")
@click.argument("name")
@reach
def approve(name: str, control: str | None, cap: str | None, as_json: bool) -> None:
    """Let node NAME have the key, or a share, in the run that it is in now. Restarted, it asks again.

    Make sure that it is the node you mean, and that nobody else has it in his hands.

    \b
    Examples:
      ronctl balance status --json | jq -r '.members[] | select(.waiting) | .name'
      ronctl balance approve beta
    """
    shown = ask(control, cap, lambda balance: balance.approve(name))
    if as_json:
        print_json(shown)
    else:
        click.echo(member_line(shown))


@click.command("remove")
@click.argument("name")
@yes_option
@reach
def remove(name: str, yes: bool, control: str | None, cap: str | None, as_json: bool) -> None:
    """Cut node NAME off everywhere, and rotate the cluster's token. On a terminal it asks first.

    Where `balance.remove_by` says so, other nodes have to ask for it too: give the command at each of them.

    What it had in memory it still has: in mode threshold, `reshare` without it makes its share worthless; in mode
    shared it knows the key, and only another address ends that.

    \b
    Example:
      ronctl balance remove gamma --yes
    """
    if is_asked(yes):
        confirm(f"Remove {name} from the cluster for good?")
    answer = ask(control, cap, lambda balance: balance.remove(name))
    if as_json:
        print_json(answer)
    elif not answer.removed:
        asked = ", ".join(map(plain_text, answer.asked_by))
        click.echo(f"{name}: NOT removed yet: {asked} of the {answer.needed} nodes that have to ask for it")
        click.echo("give the same command at another node")
    else:
        click.echo(f"{name}: removed; if somebody else has it, see the runbook in docs/rustbalance.rst")


@click.command("leave")
@yes_option
@reach
def leave(yes: bool, control: str | None, cap: str | None, as_json: bool) -> None:
    """Take this node out of its cluster for good; it forgets key and shares. On a terminal it asks first.

    \b
    Example:
      ronctl balance leave --yes
    """

    async def holds_alone(balance: Balance) -> tuple[str, ...]:
        view = await balance.status()
        others = {name for one in view.members if one.name != view.node for name in one.holds}
        mine = {name for one in view.members if one.name == view.node for name in one.holds}
        return tuple(sorted(mine - others))

    if is_asked(yes):
        alone = ask(control, cap, holds_alone)
        click.echo(f"no other node holds {', '.join(alone)}: lost for good!" if alone else "others go on", err=True)
        confirm("Leave?")
    left = ask(control, cap, lambda balance: balance.leave())
    if as_json:
        print_json(left)
    else:
        click.echo(f"{left.node}: has left")


@click.group("token")
def token() -> None:
    """The secret with which nodes join.

    \b
    Example:
      ronctl balance token rotate
    """


@token.command("rotate")
@op_id_option
@reach
def rotate(op_id: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """Make a new one. Members get it by themselves; bundles that were made before are void.

    \b
    Example:
      ronctl balance token rotate
    """
    answer = ask(control, cap, lambda balance: balance.rotate_token(op_id=op_id))
    if as_json:
        print_json(answer)
    else:
        click.echo(f"version {answer.version}, with {', '.join(answer.told) or 'no other node'}")


def _made_here(name: str, ca_dir: Path, seeds: tuple[str, ...]) -> InvitationAnswer:
    from ron.proto.balanceviews import InvitationAnswer
    from ron.services.balance.mesh.files import NodeFiles, invitation

    files = NodeFiles.open(home() / DIRECTORY)
    return InvitationAnswer(name=name, bundle=invitation(files, name, load_ca(ca_dir), seeds))
