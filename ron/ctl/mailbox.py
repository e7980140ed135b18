"""`ronctl mailbox`: send and receive payloads from the command line, over loopback or through the onion."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from ron.ctl.node import cap_option, find_capability, json_option, print_json, read_facts, run
from ron.proto.errors import bad_request, not_found, unavailable
from ron.sdk import Api, Mailbox, Message, direct_http, onion_http

MAILBOX_PORT = 9410

_mailbox_option = click.option("--mailbox", "url", metavar="URL", help="The mailbox, e.g. http://127.0.0.1:9410.")
_onion_option = click.option("--onion", is_flag=True, help="Go through the node's onion address instead of loopback.")


class Received(msgspec.Struct, frozen=True):
    """One message as `recv --json` prints it."""

    msg_id: str
    payload_b64: str
    attempt: int
    acked: bool


@click.group("mailbox")
def mailbox() -> None:
    """Send and receive messages. The mailbox keeps bytes; seal them first with `ronctl e2e seal`.

    \b
    Examples:
      ronctl mailbox send notes/bob note.sealed
      ronctl mailbox recv notes/bob --wait 20 --out note.sealed
      ronctl mailbox recv notes/bob --json --onion
    """


@mailbox.command("send")
@click.argument("topic")
@click.argument("file", type=click.Path(path_type=Path), default="-")
@click.option("--priority", type=click.Choice(["low", "normal", "high"]), default="normal", show_default=True)
@_onion_option
@_mailbox_option
@cap_option
@json_option
def send(topic: str, file: Path, priority: str, onion: bool, url: str | None, cap: str | None, as_json: bool) -> None:
    """Store FILE (or standard input) for whoever receives on TOPIC; returns once it is on disk."""
    payload = sys.stdin.buffer.read() if str(file) == "-" else _read(file)
    sent = run(lambda reactor: _connect(reactor, onion, url, cap).send(topic, payload, priority=priority))
    if as_json:
        print_json({"msg_id": sent, "bytes": len(payload)})
    else:
        click.echo(f"{sent}: {len(payload)} bytes on {topic}")


@mailbox.command("recv")
@click.argument("topic")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the payload. [standard output]")
@click.option("--wait", "wait_s", type=click.FloatRange(0, 25), default=0, help="Seconds to wait for a message.")
@click.option("--ack/--no-ack", default=True, help="Acknowledge it once it is written; else it comes again.")
@_onion_option
@_mailbox_option
@cap_option
@json_option
def recv(
    topic: str, out: Path | None, wait_s: float, ack: bool, onion: bool, url: str | None, cap: str | None, as_json: bool
) -> None:
    """Take the next message of TOPIC. Exit code 7 when there is none."""

    async def work(reactor: Any) -> Message:
        box = _connect(reactor, onion, url, cap)
        messages = await box.recv(topic, wait_s=wait_s)
        if not messages:
            raise not_found(f"no message on {topic}")
        _write(messages[0], out, as_json, ack)
        if ack:
            await box.ack(messages[0])
        return messages[0]

    run(work)


def _connect(reactor: Any, onion: bool, url: str | None, cap: str | None) -> Mailbox:
    capability = find_capability(cap)
    if url is not None and not onion:
        return Mailbox(Api(reactor, direct_http(reactor), url, capability))
    facts = read_facts()
    if not onion:
        return Mailbox(Api(reactor, direct_http(reactor), facts.mailbox_url, capability))
    if facts.onion is None:
        raise unavailable("the node has no onion address yet", hint="wait until it is ready: ronctl status")
    through = onion_http(reactor, facts.socks_port)
    return Mailbox(Api(reactor, through, f"http://{facts.onion}:{MAILBOX_PORT}", capability))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise bad_request(f"cannot read {file}: {error.strerror}") from None


def _write(message: Message, out: Path | None, as_json: bool, ack: bool) -> None:
    """The payload to where it was asked for; only then may it be acknowledged."""
    if out is not None:
        try:
            with out.open("wb") as file:
                file.write(message.payload)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unavailable(f"cannot write {out}: {error.strerror}", hint="the message comes again") from None
    if as_json:
        text = base64.b64encode(message.payload).decode()
        print_json(Received(message.msg_id, text, message.attempt, ack))
    elif out is None:
        _to_stdout(message.payload)
    else:
        click.echo(f"{message.msg_id}: {len(message.payload)} bytes to {out}", err=True)


def _to_stdout(payload: bytes) -> None:
    if sys.stdout.isatty() and not payload.isascii():
        raise bad_request("the payload is binary and this is a terminal", "use --out FILE, or a pipe")
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()
