"""`ronctl governance`: what nobody may do alone to a key service: proposed, decided by a quorum, carried out once.

In: changes, a signer's own key file. Out: what the service says, as text or JSON. What is signed is put together and
signed in `governance_signing`; the commands that make keys are in `governance_keys`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from ron.ctl.control import ControlApi, is_asked, yes_option
from ron.ctl.governance_keys import keygen, passphrase_option, role_choice, signers, signing_key
from ron.ctl.governance_signing import parse_changes, proposed, said, vote
from ron.ctl.governance_text import proposal_line, proposal_text, record_line, standing_text
from ron.ctl.node import print_json
from ron.kernel.units import parse_quantity
from ron.proto.governance import Action, GovernanceView, ProposalView, Role, State, Verb

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from ron.sdk.governance import Governance

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
NODE = ControlApi(
    what="the key service",
    socket="run/kms.sock",
    system=Path("/run/ron/kms.sock"),
    start="twistd -n ron-kms --config etc/ron-kms.toml",
    sdk="ron.sdk.governance",
    at="governance_at",
)
_file = click.Path(path_type=Path, dir_okay=False)
_key_option = click.option(
    "--key", "key_path", type=_file, help="Your key.  [$RON_GOVERNANCE_KEY, else $RON_HOME/governance.key]"
)
_role_option = click.option("--role", type=role_choice, help="Sign only if this is what the key decides as.")
_reason_option = click.option("--reason", default="", metavar="TEXT", help="Why; it is signed and kept.")
_scope_option = click.option("--scope", required=True, metavar="global|tenant:NAME", help="For whom.")
_rationale_option = click.option("--rationale", required=True, metavar="TEXT", help="Why; it is signed and kept.")


def together_options(command: F) -> F:
    """Of a joint approval."""
    folder = click.option(
        "--folder", type=click.Path(path_type=Path, file_okay=False), help="Sign with others: the folder for letters."
    )
    share = click.option("--share", type=_file, help="Your share of the joint key, as keygen --threshold wrote it.")
    others = click.option(
        "--with", "with_", multiple=True, metavar="ROLE|KEY-ID", help="Begin it, with these. Repeat.  [join another's]"
    )
    wait = click.option("--wait", default="10m", show_default=True, metavar="TIME", help="For the others.")
    return folder(share(others(wait(command))))


def _signing(command: F) -> F:
    return _key_option(passphrase_option(command))


@click.group("governance")
def governance() -> None:
    """What takes a quorum at a key service: PQ modes, destroyed keys, other backends, freezes, other signers.

    \b
    Examples:
      ronctl governance keygen --role policy-owner --out owner.key --encrypt
      ronctl governance propose --scope tenant:ACME --change pq_mode=and --rationale 'hybrid AND cutover' --expires 24h
      ronctl governance approve PROPOSAL --role security-officer --key officer.key
      ronctl governance execute PROPOSAL
      ronctl governance freeze --scope tenant:ACME --rationale 'key leaked' --key owner.key
      ronctl governance log --since 7d
    """


@governance.command("propose")
@_scope_option
@click.option("--change", "changes", required=True, multiple=True, metavar="KEY=VALUE", help="Repeat for several.")
@_rationale_option
@click.option("--action", type=click.Choice(get_args(Action)), help="What it is.  [what the change means]")
@click.option("--risk", default="", metavar="TEXT", help="What may go wrong.")
@click.option("--rollback", default="", metavar="TEXT", help="How to undo it.")
@click.option("--attach", "attachments", multiple=True, metavar="URL", help="Evidence: CI runs, measurements. Repeat.")
@click.option("--expires", default="24h", show_default=True, metavar="TIME", help="Until then it is decided and used.")
@click.option("--draft", is_flag=True, help="Nobody votes before you submit it.")
@_signing
@NODE.reach
def propose(
    scope: str,
    changes: tuple[str, ...],
    rationale: str,
    action: Action | None,
    risk: str,
    rollback: str,
    attachments: tuple[str, ...],
    expires: str,
    draft: bool,
    key_path: Path | None,
    passphrase_file: Path | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Propose a change, and print the proposal's id. To propose is not yet to approve.

    \b
    Examples:
      ronctl governance propose --scope tenant:ACME --change pq_mode=and --rationale 'hybrid AND cutover'
      ronctl governance propose --scope tenant:ACME --change kid=ACME/sign/hybrid/0b2e… --rationale 'end of life'
      ronctl governance propose --scope global --change backend=pkcs11 --change slot=RON-KMS --rationale 'HSM' --draft
    """
    from ron.services.kms.governance.actions import check_action, meant

    change = parse_changes(changes)
    named = action or meant(change)
    check_action(named, scope, change)
    fields = {
        "action": named,
        "scope": scope,
        "change": change,
        "rationale": rationale,
        "risk": risk,
        "rollback": rollback,
        "attachments": attachments,
        "draft": draft,
    }
    for_s = int(parse_quantity(expires, "s"))
    key = signing_key(key_path, passphrase_file)

    async def work(service: Governance) -> ProposalView:
        return await service.propose(proposed(await service.standing(), key, fields, for_s))

    _report(_ask(control, cap, work), as_json)


@governance.command("list")
@click.option("--state", type=click.Choice(get_args(State)), help="Only those.")
@click.option("--signers", "standing", is_flag=True, help="How it stands instead: signers, freezes, modes, disputes.")
@NODE.reach
def list_command(state: State | None, standing: bool, control: str | None, cap: str | None, as_json: bool) -> None:
    """Proposals, newest first.

    \b
    Examples:
      ronctl governance list --state pending
      ronctl governance list --signers
      ronctl governance list --json | jq '.proposals[] | select(.disputed)'
    """
    if standing:
        view = _ask(control, cap, lambda service: service.standing())
        print_json(view) if as_json else click.echo(standing_text(view))
        return
    found = _ask(control, cap, lambda service: service.proposals(state))
    if as_json:
        print_json({"proposals": found})
    elif found:
        click.echo("\n".join(map(proposal_line, found)))
    else:
        click.echo("no proposals", err=True)


@governance.command("show")
@click.argument("proposal")
@NODE.reach
def show(proposal: str, control: str | None, cap: str | None, as_json: bool) -> None:
    """One proposal: what it would change, who has signed, what became of it.

    \b
    Examples:
      ronctl governance show 0192…
      ronctl governance show 0192… --json | jq -r .object | sha256sum
    """
    view = _ask(control, cap, lambda service: service.proposal(proposal))
    print_json(view) if as_json else click.echo(proposal_text(view))


def _voting(verb: Verb, what: str, example: str) -> click.Command:
    """The command that says `verb` of a proposal."""

    @click.argument("proposal")
    @_role_option
    @_reason_option
    @yes_option
    @_signing
    @NODE.reach
    def command(
        proposal: str,
        role: Role | None,
        reason: str,
        yes: bool,
        key_path: Path | None,
        passphrase_file: Path | None,
        control: str | None,
        cap: str | None,
        as_json: bool,
        **together: Any,
    ) -> None:
        key = signing_key(key_path, passphrase_file)
        if together.get("folder") is not None:
            _report(_approve_together(control, cap, proposal, key, together, reason, is_asked(yes)), as_json)
            return

        async def work(service: Governance) -> ProposalView:
            return await vote(service, verb, proposal, key, role=role, reason=reason, ask_first=is_asked(yes))

        _report(_ask(control, cap, work), as_json)

    if verb == "approve":
        command = together_options(command)
    command.__doc__ = f"{what}\n\nOn a terminal it shows what is signed, and asks.\n\n\b\nExample:\n  {example}\n"
    return governance.command(verb)(command)


_voting(
    "approve",
    "Approve a proposal with your key: exactly what `show` shows, and nothing else.",
    "ronctl governance approve 0192… --role security-officer --key officer.key\n"
    "  ronctl governance approve 0192… --folder /mnt/us --share owner.share --with custodian    (the owner begins)\n"
    "  ronctl governance approve 0192… --folder /mnt/us --share custodian.share                 (the custodian joins)",
)
_voting(
    "reject",
    "Vote against a proposal; its author takes it back so.",
    "ronctl governance reject 0192… --reason 'not before the audit'",
)
_voting("submit", "Open your own draft to votes.", "ronctl governance submit 0192…")
_voting(
    "tiebreak",
    "An auditor's vote on a deadlock: after a day without a decision, and it counts two days later.",
    "ronctl governance tiebreak 0192… --key audit.key",
)


@governance.command("aggregate")
@click.argument("proposal")
@click.option(
    "--folder", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where the letters lie."
)
@NODE.reach
def aggregate_command(proposal: str, folder: Path, control: str | None, cap: str | None, as_json: bool) -> None:
    """Put a joint approval together and hand it in, where whoever began it could not. It takes no key.

    Somebody whose share does not fit is named.

    \b
    Example:
      ronctl governance aggregate 0192… --folder /mnt/us
    """
    from ron.ctl.governance_together import aggregate

    _report(_ask(control, cap, lambda service: aggregate(service, proposal, folder)), as_json)


@governance.command("execute")
@click.argument("proposal")
@NODE.reach
def execute(proposal: str, control: str | None, cap: str | None, as_json: bool) -> None:
    """Carry out what was approved. A permission (to destroy a key, say) is then good for one use.

    \b
    Example:
      ronctl governance execute 0192…
    """
    _report(_ask(control, cap, lambda service: service.execute(proposal)), as_json)


@governance.command("freeze")
@_scope_option
@_rationale_option
@click.option("--off", is_flag=True, help="End a freeze before it ends by itself.")
@_signing
@NODE.reach
def freeze(
    scope: str,
    rationale: str,
    off: bool,
    key_path: Path | None,
    passphrase_file: Path | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Have nothing signed for a tenant, or for anybody: proposed and approved by you in one go.

    It holds with the last approval that is needed, and ends by itself after 60 minutes (30 on a micronode).

    \b
    Examples:
      ronctl governance freeze --scope tenant:ACME --rationale 'key leaked' --key owner.key
      ronctl governance approve PROPOSAL --key officer.key
    """
    key = signing_key(key_path, passphrase_file)
    fields = {"action": "freeze", "scope": scope, "change": {"freeze": "off" if off else "on"}, "rationale": rationale}

    async def work(service: Governance) -> ProposalView:
        made = await service.propose(proposed(await service.standing(), key, fields, 24 * 3600))
        return await vote(service, "approve", made.id, key)

    _report(_ask(control, cap, work), as_json)


@governance.command("dispute")
@click.argument("subject", metavar="request:ID|cap:ID|proposal:ID|kid:KID|audit:INDEX")
@click.option("--reason", required=True, metavar="TEXT", help="Why; or what was found, with --resolve.")
@click.option("--resolve", "verb", flag_value="resolve", help="Publish what came of it.")
@click.option("--acknowledge", "verb", flag_value="acknowledge", help="It was heard; any signer, within an hour.")
@click.option("--triage", "verb", flag_value="triage", help="It was sorted; any signer, within a day.")
@click.option("--extend", "verb", flag_value="extend", help="A day more for the decision; any signer.")
@_signing
@NODE.reach
def dispute(
    subject: str,
    reason: str,
    verb: Verb | None,
    key_path: Path | None,
    passphrase_file: Path | None,
    control: str | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Mark something as disputed, as an auditor. Nothing is rolled back by it.

    \b
    Examples:
      ronctl governance dispute proposal:0192… --reason 'evidence missing' --key audit.key
      ronctl governance dispute proposal:0192… --acknowledge --reason 'we look into it' --key owner.key
      ronctl governance dispute proposal:0192… --resolve --reason 'evidence was late, and is whole' --key audit.key
    """
    key = signing_key(key_path, passphrase_file)

    async def work(service: Governance) -> GovernanceView:
        standing = await service.standing()
        return await service.dispute(said(standing, key, verb or "dispute", subject=subject, reason=reason))

    view = _ask(control, cap, work)
    print_json(view) if as_json else click.echo(standing_text(view))


@governance.command("log")
@click.option("--since", metavar="TIME", help="So long ago, e.g. 7d.  [everything]")
@NODE.reach
def log(since: str | None, control: str | None, cap: str | None, as_json: bool) -> None:
    """The book of everything that was said and done, oldest first.

    \b
    Examples:
      ronctl governance log --since 7d
      ronctl governance log --json | jq -r '.records[-1].hash'
    """
    start = int(time.time() - parse_quantity(since, "s")) if since is not None else 0
    records = _ask(control, cap, lambda service: service.log(max(0, start)))
    if as_json:
        print_json({"records": records})
    else:
        click.echo("\n".join(map(record_line, records)))


governance.add_command(keygen)
governance.add_command(signers)


def _ask(control: str | None, cap: str | None, work: Callable[[Governance], Awaitable[T]]) -> T:
    from ron.sdk.governance import Governance

    return NODE.ask(control, cap, lambda _reactor, api: work(Governance(api)))


def _approve_together(
    control: str | None,
    cap: str | None,
    proposal: str,
    key: SigningKey,
    options: dict[str, Any],
    reason: str,
    ask_first: bool,
) -> ProposalView:
    from ron.ctl.governance_together import Together, approve_together
    from ron.sdk.governance import Governance

    if options["share"] is None:
        raise click.UsageError("--folder goes with --share")
    wait_s = parse_quantity(options["wait"], "s")
    how = Together(options["folder"], options["share"], options["with_"], wait_s, reason, ask_first)
    return NODE.ask(control, cap, lambda reactor, api: approve_together(reactor, Governance(api), proposal, key, how))


def _report(view: ProposalView, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    click.echo(proposal_line(view), err=True)
    click.echo(view.id)
