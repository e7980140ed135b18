"""`ronctl kms audit`: the audit log of the key service, as its operator changes it. `ronctl audit verify` checks it.

In: a proposal, where a quorum governs the service. Out: the verifier keys that auditors and witnesses need from now on.
"""

from __future__ import annotations

import click

from ron.ctl.kms_reach import NODE, ask
from ron.ctl.node import print_json


@click.group("audit")
def audit() -> None:
    """The audit log of the key service.

    \b
    Examples:
      ronctl kms audit rotate-key
      ronctl audit verify /var/lib/ron/kms-audit --key log.vkeys
    """


@audit.command("rotate-key")
@click.option("--proposal", metavar="ID", help="What the quorum has decided.  [the one that fits]")
@NODE.reach
def rotate_key(proposal: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """Another key for the log. Old and new key say so in the log itself: whoever trusts the old one can go on.

    Where a quorum governs the service it has to decide (action root_rotation, change root=audit-log).

    \b
    Examples:
      ronctl governance propose --action root_rotation --scope global --change root=audit-log --rationale quarterly
      ronctl kms audit rotate-key
    """
    made = ask(control, cap, lambda k: k.rotate_log_key(proposal))
    if as_json:
        print_json(made)
        return
    click.echo(f"{made.kid}  signs the log from now on, {made.previous} no more")
    click.echo("for auditors and witnesses:")
    for vkey in made.vkeys:
        click.echo(vkey)
