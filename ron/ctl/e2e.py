"""`ronctl e2e`: make keys, seal and open, at a prompt or in a pipe.

In: key files, bytes from a file or stdin. Out: bytes to a file or stdout, facts as text or `--json`. Errors go up as
`RonError`; `ron.ctl.main` gives them an exit code. Heavy imports wait inside the commands, so that `ronctl` starts
fast.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ron.proto.errors import ErrorCode, RonError, bad_request

if TYPE_CHECKING:
    from ron.e2e import PublicKey

_STREAM = "-"
_IN = click.option(
    "--in", "source", metavar="FILE|-", default=_STREAM, show_default=True, help="Read from here; - is stdin."
)
_OUT = click.option(
    "--out", "target", metavar="FILE|-", default=_STREAM, show_default=True, help="Write here; - is stdout."
)
_AAD = click.option(
    "--aad",
    default="",
    metavar="TEXT",
    help="Context both sides know (a topic, a message id). Authenticated, not stored: opening needs the same text.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


@click.group("e2e")
def e2e() -> None:
    """End-to-end encryption: keys, sealing, opening.

    \b
    Examples:
      ronctl e2e keygen --out alice.key
      echo hello | ronctl e2e seal --to alice.key.pub --out hello.sealed
      ronctl e2e open --key alice.key --in hello.sealed
    """


@e2e.command()
@click.option("--out", "target", required=True, type=click.Path(path_type=Path), help="Private key file to create.")
@click.option(
    "--suite",
    type=click.Choice(["pq", "classical"]),
    default="pq",
    show_default=True,
    help="pq: ML-KEM-768 + X25519. classical: X25519 only, with small envelopes.",
)
@_JSON
def keygen(target: Path, suite: str, as_json: bool) -> None:
    """Make a key: FILE (keep it secret, 0600) and FILE.pub (give it to everyone who may write to you).

    Neither file is ever overwritten. Whoever receives FILE.pub should compare its key id with you over another way.

    \b
    Examples:
      ronctl e2e keygen --out alice.key
      ronctl e2e keygen --out small.key --suite classical --json
    """
    from ron.e2e import KeyPair, Suite

    keypair = KeyPair.generate(Suite[suite.upper()])
    public_path = target.with_name(target.name + ".pub")
    with ExitStack() as undo:
        keypair.save(target)
        undo.callback(target.unlink)
        keypair.public.save(public_path)
        undo.pop_all()
    _report(
        as_json,
        {
            "suite": suite,
            "kid": keypair.public.kid.hex(),
            "public": keypair.public.to_line(),
            "private_file": str(target),
            "public_file": str(public_path),
        },
    )


@e2e.command()
@click.option(
    "--to",
    "recipients",
    required=True,
    multiple=True,
    metavar="PUBFILE|LINE",
    help="A recipient: a .pub file, or the line in it. Repeat for several (at most 64, all of one suite).",
)
@_AAD
@_IN
@_OUT
@_JSON
def seal(recipients: tuple[str, ...], aad: str, source: str, target: str, as_json: bool) -> None:
    """Seal up to 1 MiB to one or several public keys.

    Each recipient can open the whole; nobody else can, not even you unless you name your own key. The envelope shows
    its size and the key ids, and does not prove who sealed it. With --json and no --out it is in the object, as base64.

    \b
    Examples:
      echo hello | ronctl e2e seal --to alice.key.pub --out hello.sealed
      ronctl e2e seal --to alice.key.pub --to bob.key.pub --aad orders/7 --in order.pdf --out order.sealed
    """
    from ron import e2e as library

    _refuse_terminal(target, as_json)
    keys = [_recipient(text) for text in recipients]
    envelope = library.seal(keys, _read(source, library.MAX_PLAINTEXT_BYTES), aad.encode())
    if target != _STREAM or not as_json:
        _write(target, envelope)
    if as_json:
        _report(True, _sealing_facts(keys, envelope, target))
    elif target != _STREAM:
        click.echo(f"{len(envelope)} bytes to {target}, for {len(keys)} recipient(s)", err=True)


@e2e.command("open")
@click.option("--key", "key_path", required=True, type=click.Path(path_type=Path), help="Your private key file.")
@_AAD
@_IN
@_OUT
def open_(key_path: Path, aad: str, source: str, target: str) -> None:
    """Open an envelope with your private key, and write the plaintext.

    Nothing is written unless the whole envelope is intact. A new --out file is readable by you only.

    \b
    Examples:
      ronctl e2e open --key alice.key --in hello.sealed
      ronctl e2e open --key alice.key --aad orders/7 --in order.sealed --out order.pdf
    """
    from ron import e2e as library

    keypair = library.KeyPair.load(key_path)
    plaintext = library.open(keypair, _read(source, library.MAX_ENVELOPE_BYTES), aad.encode())
    if not _is_printable(plaintext):
        _refuse_terminal(target)
    _write(target, plaintext)


def _recipient(text: str) -> PublicKey:
    """A public key given as its line or as the name of a file with it."""
    from ron.e2e import PublicKey
    from ron.e2e.keys import PUBLIC_LINE_PREFIX

    if text.startswith(PUBLIC_LINE_PREFIX + ":"):
        return PublicKey.from_line(text)
    return PublicKey.load(Path(text))


def _sealing_facts(keys: list[PublicKey], envelope: bytes, target: str) -> dict[str, Any]:
    facts = {
        "suite": keys[0].suite.label,
        "recipients": [key.kid.hex() for key in keys],
        "envelope_bytes": len(envelope),
    }
    return facts | ({"envelope": envelope} if target == _STREAM else {"file": target})


def _report(as_json: bool, facts: dict[str, Any]) -> None:
    if as_json:
        click.echo(msgspec.json.encode(facts))
        return
    for name, value in facts.items():
        click.echo(f"{name:12}  {value}")


def _read(source: str, limit_bytes: int) -> bytes:
    """At most one byte more than the limit, so that too much is noticed and never held."""
    if source == _STREAM:
        return sys.stdin.buffer.read(limit_bytes + 1)
    try:
        with Path(source).open("rb") as file:
            return file.read(limit_bytes + 1)
    except OSError as error:
        raise _file_error("read", source, error) from None


def _write(target: str, octets: bytes) -> None:
    """To stdout, or to a file that, when new, is its owner's alone."""
    if target == _STREAM:
        click.echo(octets, nl=False)
        return
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(octets)
    except OSError as error:
        raise _file_error("write", target, error) from None


def _refuse_terminal(target: str, as_json: bool = False) -> None:
    """Binary on a terminal helps nobody and may be taken for control sequences."""
    if target == _STREAM and not as_json and sys.stdout.isatty():
        raise bad_request("binary output is not written to a terminal", hint="add --out FILE, or pipe it on")


def _is_printable(plaintext: bytes) -> bool:
    """True for UTF-8 text without control characters other than line ends and tabs."""
    try:
        text = plaintext.decode()
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\n\t" for character in text)


def _file_error(verb: str, name: str, error: OSError) -> RonError:
    code = ErrorCode.NOT_FOUND if isinstance(error, FileNotFoundError) else ErrorCode.BAD_REQUEST
    return RonError(code, f"cannot {verb} {name}: {error.strerror}")
