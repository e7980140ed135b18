"""`ronctl audit`: is an audit log whole, and what does it say. Asks a daemon only where its URL is given.

In: a log of the onion runtime, whose rotated files are found beside it, or one of the key service (`audit_kms`). Out:
how many records hold and the hash of the last, or the first that does not; the records as lines.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from ron.ctl import audit_kms
from ron.ctl.node import cap_option, home, json_option, print_json
from ron.ctl.plain import plain_text
from ron.proto.errors import ErrorCode, RonError, bad_request, unavailable
from ron.services.oniond.audit import MAX_LINE, Record, Verdict, audit_files
from ron.services.oniond.audit import verify as verify_log

LOG = "audit/oniond.jsonl"
_ROTATED = re.compile(r"\.[0-9]+\Z")
_HEAD = re.compile(r"[0-9a-f]{64}\Z")
_file = click.Path(path_type=Path)


@click.group("audit")
def audit() -> None:
    """The audit logs of the onion runtime, its federation and the key service: who did what that cannot be undone.

    \b
    Examples:
      ronctl audit verify
      ronctl audit show -n 20
      ronctl audit verify --head 9c1f…
      ronctl audit verify /var/lib/ron/kms-audit --key kms.vkeys
    """


@audit.command("verify")
@click.argument("places", nargs=-1, metavar="[FILE|DIR|URL]...")
@click.option("--head", metavar="HASH", help="A hash noted earlier, which must still be in the log FILE.")
@click.option("--key", "key", type=_file, metavar="FILE", help="Of DIR or URL: the verifier keys that are trusted.")
@click.option("--checkpoint", type=_file, metavar="FILE", help="Of DIR or URL: one noted earlier, which must hold.")
@click.option("--save", type=_file, metavar="FILE", help="Of a URL that is whole: note its checkpoint there.")
@click.option(
    "--witness", "witnesses", multiple=True, metavar="KEY", help="Of DIR or URL: who must have seen it. Repeat."
)
@click.option("--witness-quorum", type=click.IntRange(min=0), metavar="N", help="So many of them.  [all]")
@cap_option
@json_option
@click.pass_context
def verify(
    context: click.Context,
    places: tuple[str, ...],
    head: str | None,
    key: Path | None,
    checkpoint: Path | None,
    save: Path | None,
    witnesses: tuple[str, ...],
    witness_quorum: int | None,
    cap: str | None,
    as_json: bool,
) -> None:
    """Is every record there, in its place and as it was written? Exit code 1 when one is not.

    FILE is a log of the onion runtime, its older files (FILE.1 …) are read with it.  [$RON_HOME/audit/oniond.jsonl]
    Its chain has no key. Whoever can write the log can make all of it anew, or take its end away: note the head that
    this prints where they cannot write, and give it as --head later.

    DIR is a log of the key service, URL a key service that shows its own. Each record, each root and each checkpoint's
    signatures are checked against --key, a file of verifier keys, one a line; an empty line between two sets. Who
    holds those keys can still sign another history: note a checkpoint and give it as --checkpoint later, or ask for the
    cosignatures of witnesses: --witness is a verifier key (NAME+ID+KEY) or a file of them.

    \b
    Examples:
      ronctl audit verify && echo whole
      ronctl audit verify --json | jq -r '.logs[0].head' > /mnt/elsewhere/oniond.head
      ronctl audit verify --head "$(cat /mnt/elsewhere/oniond.head)"
      ronctl audit verify /var/lib/ron/kms-audit --key kms.vkeys
      ronctl audit verify https://kms.internal:9446 --key kms.vkeys --save today.note --checkpoint yesterday.note
      ronctl audit verify kms-audit --key kms.vkeys --witness b.vkey --witness c.vkey --witness-quorum 1
    """
    if any(map(audit_kms.is_meant, places)):
        if len(places) > 1 or head is not None:
            raise bad_request("a log of the key service is checked by itself, and has no --head", "--checkpoint FILE")
        wanted = audit_kms.Wanted(places[0], key, checkpoint, save, cap, witnesses, witness_quorum)
        context.exit(audit_kms.check(wanted, as_json=as_json))
    if key is not None or checkpoint is not None or save is not None or witnesses:
        hint = "name its DIR or URL"
        raise bad_request("--key, --checkpoint, --save and --witness are for a log of the key service", hint)
    logs = _logs(tuple(map(Path, places)))
    if head is not None and not _HEAD.match(head):
        raise bad_request("--head is 64 characters of 0-9 and a-f", "as `ronctl audit verify` prints it")
    if head is not None and len(logs) > 1:
        raise bad_request("--head is one log's", "name one FILE")
    verdicts = [(log, _verdict(log, head)) for log in logs]
    if as_json:
        print_json({"logs": [_view(log, verdict) for log, verdict in verdicts]})
    else:
        click.echo("\n".join(_text(log, verdict) for log, verdict in verdicts))
    context.exit(int(any(verdict.broken is not None for _log, verdict in verdicts)))


@audit.command("show")
@click.argument("file", required=False, type=_file)
@click.option("-n", "limit", type=click.IntRange(min=1), metavar="COUNT", help="The last so many only.")
@click.option("--event", "kinds", multiple=True, metavar="NAME", help="Records of this event only. Repeat.")
@click.option("--json", "as_json", is_flag=True, help="Print each record as it is in the log, a JSON object a line.")
@click.pass_context
def show(context: click.Context, file: Path | None, limit: int | None, kinds: tuple[str, ...], as_json: bool) -> None:
    """The records, oldest first. Lines that hold none are named on stderr; whether the rest is true `verify` says.

    \b
    Examples:
      ronctl audit show --event onion_exported
      ronctl audit show --json | jq -r 'select(.event | startswith("federation_")) | .fields.peer'
    """
    (log,) = _logs((file,) if file is not None else ())
    wanted: deque[Record] = deque(maxlen=limit)
    unread = 0
    for path, number, record in _records(log):
        if record is None:
            unread += 1
            click.echo(f"ronctl: {path.name}, line {number}: no record", err=True)
        elif not kinds or record.event in kinds:
            wanted.append(record)
    for record in wanted:
        if as_json:
            print_json(record)
        else:
            click.echo(_line(record))
    context.exit(int(unread > 0))


def _logs(files: Sequence[Path]) -> list[Path]:
    """The logs that are meant, each once; a rotated file stands for its log. Raises NotFound for what is none."""
    meant = [file.with_name(_ROTATED.sub("", file.name)) for file in files] or [home() / LOG]
    logs = list(dict.fromkeys(meant))
    for log in logs:
        if not _found(log):
            hint = "has anything been recorded? Else name the FILE, or set RON_HOME; amnesia keeps none on disk"
            raise RonError(ErrorCode.NOT_FOUND, f"there is no audit log {log}", hint=hint)
    return logs


def _found(log: Path) -> list[Path]:
    try:
        return audit_files(log)
    except OSError as error:
        raise _unreadable(log, error) from None


def _verdict(log: Path, head: str | None) -> Verdict:
    try:
        return verify_log(log, head=head)
    except OSError as error:
        raise _unreadable(log, error) from None


def _records(log: Path) -> Iterator[tuple[Path, int, Record | None]]:
    """Each line with its file and number, as a record if it is one."""
    try:
        for path in audit_files(log):
            with path.open("rb") as lines:
                for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE), b""), start=1):
                    yield path, number, _record(line)
    except OSError as error:
        raise _unreadable(log, error) from None


def _record(line: bytes) -> Record | None:
    try:
        return msgspec.json.decode(line, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _unreadable(log: Path, error: OSError) -> RonError:
    return unavailable(f"{log} cannot be read: {error.strerror}", hint="call ronctl as the daemon's user, or as root")


def _view(log: Path, verdict: Verdict) -> dict[str, Any]:
    broken = verdict.broken
    where = None if broken is None else {"file": str(broken.path), "line": broken.line, "why": broken.why}
    whole = broken is None
    return {"file": str(log), "whole": whole, "records": verdict.records, "head": verdict.head, "broken": where}


def _text(log: Path, verdict: Verdict) -> str:
    name, broken = plain_text(str(log)), verdict.broken
    if broken is None:
        return f"{name}: whole, {verdict.records} records, head {verdict.head}"
    where = f"{plain_text(str(broken.path))}, line {broken.line}" if broken.line else plain_text(str(broken.path))
    return f"{name}: broken at {where}: {broken.why}; {verdict.records} records before it hold"


def _line(record: Record) -> str:
    fields = " ".join(f"{name}={_value(value)}" for name, value in record.fields.items())
    return plain_text(f"{record.at}  {record.seq:>6}  {record.event:<20} {fields}").rstrip()


def _value(value: str | int | bool) -> str:
    bare = isinstance(value, str) and value != "" and not set(value) & {" ", "=", '"'}
    return str(value) if bare else msgspec.json.encode(value).decode()
