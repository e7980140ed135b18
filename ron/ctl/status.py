"""`ronctl status`: the node at a glance."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from ron.ctl.node import cap_option, connect, json_option, node_option, print_json, run
from ron.ctl.plain import plain_text
from ron.ctl.service import Service, not_up, table


@click.command("status")
@node_option
@cap_option
@json_option
def status(node: str | None, cap: str | None, as_json: bool) -> None:
    """Show the node: readiness, config version, tors, onions, queues, packs; its services when not all are up. Of a
    key service: readiness, backend, keys, audit log, and where it listens.

    \b
    Examples:
      ronctl status
      ronctl status --json | jq .onions
    """
    found = run(lambda reactor: connect(reactor, node, cap).call("GET", "/v1/status", dict[str, Any]))
    if as_json:
        print_json(found)
    else:
        click.echo(kms_text(found) if found.get("service") == "ron-kms" else text(found))


def text(found: dict[str, Any]) -> str:
    """`/v1/status` for people. A part that did not answer is said not to; the rest is shown."""
    facts, tor = found["facts"], found["tor"]
    readiness = "ready" if found["ready"] else "NOT READY"
    lines = [
        f"node     {readiness}, up {found['uptime_s']:.0f} s, version {facts['version']}, "
        f"config version {found['config_version']}",
        f"         {facts['gateway_url']}  mailbox {facts['mailbox_url']}  SOCKS 127.0.0.1:{facts['socks_port']}",
    ]
    lines += [f"         {key}: {plain_text(reason)}" for key, reason in found["reasons"].items()]
    services = msgspec.convert(found["services"], list[Service])
    if not_up(services):
        lines += ["", *table(services).splitlines(), ""]
    lines += _tor(tor) if tor is not None else ["tor      oniond does not answer"]
    for onion in found["onions"]:
        state = "published" if onion["published"] else "not published"
        lines.append(f"onion    {onion['app']}  {onion['onion'] or '-'}  {state}")
    for name, queue in found["queues"].items():
        counts = ", ".join(f"{key} {value}" for key, value in (queue or {}).items())
        lines.append(f"queue    {name}: {counts or 'it does not answer'}")
    lines += [f"pack     {_pack(pack)}" for pack in found["packs"]]
    return "\n".join(lines)


def kms_text(found: dict[str, Any]) -> str:
    """`/v1/status` of ron-kms for people."""
    readiness = "ready" if found["ready"] else "NOT READY"
    if found["ready"] and found["degraded"]:
        readiness = "ready, degraded"
    lines = [
        f"ron-kms  {readiness}, up {found['uptime_s']:.0f} s, version {plain_text(found['version'])}, "
        f"config version {found['config_version']}",
        f"         {plain_text(found['kms_url'])}/v1/kms"
        + "".join(
            f"  {name} {plain_text(found[key])}"
            for name, key in (("gRPC", "grpc_addr"), ("OAP/1", "oap_addr"))
            if found[key]
        ),
    ]
    lines += [f"         {key}: {plain_text(reason)}" for key, reason in found["reasons"].items()]
    snapshot = found["snapshot"]
    if snapshot is None:
        return "\n".join([*lines, "log      the audit log is not open"])
    age_s = snapshot["audit_last_checkpoint_age_s"]
    signed = f"signed {age_s:.0f} s ago" if age_s is not None else "not signed yet"
    return "\n".join(
        [
            *lines,
            f"keys     {snapshot['keys']} in {snapshot['backend']}, verify mode {snapshot['pq_mode']}",
            f"log      {snapshot['audit_records']} records, {signed}",
        ]
    )


def _tor(tor: dict[str, Any]) -> list[str]:
    lines = [f"tor      network {tor['state']}"]
    for one in tor["tors"]:
        state = "up" if one["up"] else f"{one['percent']} %"
        restarts = f", restarted {one['restarts']}×" if one["restarts"] else ""
        lines.append(f"         {one['name']:<10} {one['role']:<10} {state:<6} pid {one['pid'] or '-'}{restarts}")
    return lines


def _pack(pack: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in pack.items() if isinstance(value, str | int))
