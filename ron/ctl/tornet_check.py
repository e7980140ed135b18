"""`ronctl tornet check|probe`: how a private network over several hosts stands, seen from here; have relays tested now.

In: the operator's `network.json`; no vault, no keys. Out: a table or JSON; exit code 8 when something is wrong.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ron.ctl.node import json_option, print_json, run
from ron.ctl.plain import plain_text
from ron.ctl.tornet_hosts import network_folder
from ron.kernel.units import parse_duration_s
from ron.proto.errors import bad_request
from ron.proto.exitcodes import Exit

if TYPE_CHECKING:
    from ron.tor.hostnet.check import NodeReport, Report


@click.command("check")
@click.option("--net", type=click.Path(path_type=Path), help="The operator's folder.  [$RON_HOME/network]")
@click.option("--before", default="30d", show_default=True, help="Complain of certificates that end within this time.")
@click.option("--timeout", "timeout", default="5s", show_default=True, help="How long a node may take to answer.")
@json_option
def check(net: Path | None, before: str, timeout: str, as_json: bool) -> None:
    """Are the nodes reachable, does the consensus list them, do certificates last? Exit code 8 when not.

    Run it on a host that reaches the nodes. It needs network.json alone; the vault can stay offline.

    \b
    Examples:
      ronctl tornet check --net net
      ronctl tornet check --net net --json | jq .whole
      ronctl tornet check --net net --before 60d --timeout 2s
    """
    from ron.tor.hostnet.check import judge
    from ron.tor.hostnet.look import look
    from ron.tor.hostnet.workshop import load_manifest

    ahead, timeout_s = timedelta(seconds=parse_duration_s(before)), parse_duration_s(timeout)
    if timeout_s <= 0:
        raise bad_request("nothing answers in no time", "--timeout 5s")
    manifest = load_manifest(network_folder(net))
    report = judge(manifest, look(manifest, timeout_s), datetime.now(UTC), ahead)
    if as_json:
        print_json(report)
    else:
        _show(report)
    if report.problems:
        sys.exit(int(Exit.UNAVAILABLE))


@click.command("probe")
@click.option("--dir", "directory", required=True, type=click.Path(path_type=Path), help="Where the authority lives.")
@json_option
def probe(directory: Path, as_json: bool) -> None:
    """On an authority's host: look at every relay now, and leave those that do not answer out of the next vote.

    The timer in an authority's bundle does this all the time. tor alone would list a dead relay for 45 minutes.

    \b
    Examples:
      sudo ronctl tornet probe --dir /var/lib/ron-tor/a1
      sudo ronctl tornet probe --dir /var/lib/ron-tor/a1 --json | jq .down
    """
    from ron.tor.hostnet.probe import probe as probe_relays

    probed = run(lambda reactor: probe_relays(reactor, directory.absolute()))
    if as_json:
        print_json(probed)
        return
    click.echo(f"{probed.relays} others; down: {', '.join(map(plain_text, probed.down)) or 'none'}")
    for fingerprint in probed.strangers:
        click.echo(f"  {fingerprint} is not of this network and is refused")
    if probed.changed:
        click.echo("the next vote is another")


def _show(report: Report) -> None:
    state = "whole" if report.whole else "not whole"
    agreed = f"consensus of {report.consensus_valid_after:%H:%M:%S} UTC" if report.consensus_valid_after else "none"
    click.echo(f"network {report.network_id}, generation {report.generation}: {state}, {agreed}")
    for node in report.nodes:
        click.echo(f"  {node.name:<19} {node.role:<9} {node.address:<15} {_words(node)}")
    for problem in report.problems:
        click.echo(f"  problem: {problem}")


def _words(node: NodeReport) -> str:
    words = ["reachable" if node.or_port_open else "UNREACHABLE", "listed" if node.listed else "NOT LISTED"]
    if node.signed is not None:
        words.append("signed" if node.signed else "NOT SIGNED")
    if node.certificate_days_left is not None:
        words.append(f"certificate {node.certificate_days_left} days")
    if node.region:
        words.append(node.region)
    return ", ".join(words)
