"""`ronctl status`: the node at a glance."""

from __future__ import annotations

from typing import Any

import click

from ron.ctl.node import cap_option, connect, json_option, node_option, print_json, run


@click.command("status")
@node_option
@cap_option
@json_option
def status(node: str | None, cap: str | None, as_json: bool) -> None:
    """Show the node: readiness, tors, onions, queues, packs.

    \b
    Examples:
      ronctl status
      ronctl status --json | jq .onions
    """
    found = run(lambda reactor: connect(reactor, node, cap).call("GET", "/v1/status", dict[str, Any]))
    if as_json:
        print_json(found)
    else:
        click.echo(_text(found))


def _text(found: dict[str, Any]) -> str:
    facts, tor = found["facts"], found["tor"]
    readiness = "ready" if found["ready"] else "NOT READY"
    lines = [
        f"node     {readiness}, up {found['uptime_s']:.0f} s, version {facts['version']}",
        f"         {facts['gateway_url']}  mailbox {facts['mailbox_url']}  SOCKS 127.0.0.1:{facts['socks_port']}",
    ]
    lines += [f"         {key}: {reason}" for key, reason in found["reasons"].items()]
    lines.append(f"tor      network {tor['state']}")
    for one in tor["tors"]:
        state = "up" if one["up"] else f"{one['percent']} %"
        restarts = f", restarted {one['restarts']}×" if one["restarts"] else ""
        lines.append(f"         {one['name']:<10} {one['role']:<10} {state:<6} pid {one['pid'] or '-'}{restarts}")
    for onion in found["onions"]:
        state = "published" if onion["published"] else "not published"
        lines.append(f"onion    {onion['app']}  {onion['onion'] or '-'}  {state}")
    for name, queue in found["queues"].items():
        counts = ", ".join(f"{key} {value}" for key, value in queue.items())
        lines.append(f"queue    {name}: {counts}")
    lines += [f"pack     {_pack(pack)}" for pack in found["packs"]]
    return "\n".join(lines)


def _pack(pack: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in pack.items() if isinstance(value, str | int))
