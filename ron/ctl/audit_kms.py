"""`ronctl audit verify` of a key service's log: a directory, or a service that shows its own over HTTP.

In: where it is, the keys that are trusted, the witnesses that must have seen it. Out: how far it holds, as text or one
JSON object, and the first bad record.
"""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from ron.crypto.merkle import CompactRange, Peaks, leaf_hash, verify_consistency
from ron.crypto.notes import BadNoteError, Head, KeySet, open_by, parse_head, parse_note
from ron.ctl.audit_kms_witness import Cosigned, cosigned_of, head_of, seen_at, seen_in, witnesses_of
from ron.ctl.console import StageConsole
from ron.ctl.node import connect, print_json, run
from ron.ctl.plain import plain_text
from ron.kernel.files import write_private
from ron.proto.errors import ErrorCode, RonError, bad_request, unavailable
from ron.proto.kmsaudit import AuditPage, AuditProof
from ron.sdk import Api
from ron.services.kms.audit.verify import (
    BrokenLogError,
    Claim,
    Verdict,
    Verification,
    is_log,
    read_keys,
    verify_directory,
)

PATH = "/v1/kms/audit"
PAGE = 1000
_MAX_FILE = 1024 * 1024
Show = Callable[[int, int], None]


class Wanted(NamedTuple):
    """place: a directory or an http(s) URL. key, earlier: files of verifier keys and of a checkpoint. save: where to
    note a URL's checkpoint. cap: a capability or its file. witnesses: verifier keys, or files of them. quorum: so many
    of these must have cosigned; None for all."""

    place: str
    key: Path | None
    earlier: Path | None
    save: Path | None
    cap: str | None
    witnesses: tuple[str, ...] = ()
    quorum: int | None = None


class _Checked(NamedTuple):
    """note: the checkpoint that was checked against, where one was fetched. seen: the one that witnesses saw."""

    verdict: Verdict
    note: bytes | None = None
    seen: bytes | None = None


def is_meant(place: str) -> bool:
    """Is that a URL, or the directory of such a log?"""
    return _is_url(place) or is_log(Path(place))


def check(wanted: Wanted, *, as_json: bool) -> int:
    """Prints what is found; the exit code. Raises `RonError` for what cannot be read or asked."""
    if wanted.key is None:
        hint = "--key FILE, verifier keys one a line, which you have from somebody you trust"
        raise bad_request("whose signatures? Without keys nothing can be said of a log", hint)
    keys, earlier = _keys(wanted.key), None
    if wanted.earlier is not None:
        earlier = _earlier(wanted.earlier, keys)
    if wanted.save is not None and not _is_url(wanted.place):
        raise bad_request("--save notes the checkpoint of a URL", "a directory keeps all of its own")
    witnesses = witnesses_of(wanted.witnesses, wanted.quorum)
    noted = [earlier] if earlier is not None else []
    checked = _url(wanted, keys, noted) if _is_url(wanted.place) else _directory(wanted, keys, noted)
    verdict, cosigned = checked.verdict, cosigned_of(checked.seen, witnesses, wanted.quorum)
    if wanted.save is not None and checked.note is not None and verdict.broken is None:
        write_private(wanted.save, checked.note)
    if as_json:
        print_json(_view(wanted.place, verdict, cosigned))
    else:
        click.echo(_text(wanted.place, verdict, cosigned))
    return int(verdict.broken is not None or not cosigned.enough)


def _directory(wanted: Wanted, keys: Sequence[KeySet], noted: Sequence[Head]) -> _Checked:
    directory = Path(wanted.place)
    with _Bar() as bar:
        try:
            seen = seen_in(directory) if wanted.witnesses else None
            for step in verify_directory(directory, keys, [*noted, *head_of(seen)]):
                bar.show(step.records, step.of)
                if step.verdict is not None:
                    return _Checked(step.verdict, seen=seen)
        except OSError as error:
            hint = "call ronctl as the daemon's user, or as root"
            raise unavailable(f"{directory} cannot be read: {error.strerror}", hint=hint) from None
    raise AssertionError("unreachable: the last step has a verdict")


# Over HTTP


def _url(wanted: Wanted, keys: Sequence[KeySet], noted: Sequence[Head]) -> _Checked:
    base = wanted.place.rstrip("/").removesuffix(PATH)

    async def whole(reactor: Any) -> _Checked:
        api = connect(reactor, base, wanted.cap)
        with _Bar() as bar:
            # before the newest one: it is of no more records than that
            seen = await seen_at(api) if wanted.witnesses else None
            checked = await _Remote(api, keys, [*noted, *head_of(seen)], bar.show).checked()
            return checked._replace(seen=seen)

    return run(whole)


class _Remote:
    """A service's log, read page by page; after each the service has to prove that its checkpoint goes on from it."""

    def __init__(self, api: Api, keys: Sequence[KeySet], noted: Sequence[Head], show: Show) -> None:
        self._api = api
        self._verification = Verification(keys, noted=noted)
        self._show = show

    async def checked(self) -> _Checked:
        note = (await self._api.fetch("GET", f"{PATH}/checkpoint")).body
        try:
            head = self._head(note)
            while self._verification.tree.size < head.size:
                await self._page(head)
                self._show(self._verification.tree.size, head.size)
            # by now the records have told of new keys, where there are any
            if self._verification.opened(note) is None:
                raise BrokenLogError(None, "its checkpoint is not by keys that are trusted")
            self._verification.reached(head)
            self._verification.finish()
            for claim in self._verification.claims:
                await self._prove(claim, head)
        except BrokenLogError as error:
            return _Checked(self._verification.verdict(error), note)
        return _Checked(self._verification.verdict(), note)

    def _head(self, note: bytes) -> Head:
        """What the checkpoint says, if no key that is trusted says that it is forged."""
        self._verification.opened(note)
        try:
            return parse_head(parse_note(note).text)
        except BadNoteError as error:
            raise BrokenLogError(None, f"its checkpoint is none: {error}") from None

    async def _page(self, head: Head) -> None:
        tree = self._verification.tree
        start, before = tree.size, tree.peaks()
        leaves = await self._leaves(start, min(PAGE, head.size - start))
        try:
            for leaf in leaves:
                self._verification.add(leaf)
        except BrokenLogError:
            # a record before it may have been changed in a way that only the root shows
            await self._name_bad(before, leaves[: tree.size - start], head)
            raise
        if not await self._holds(tree, head):
            await self._name_bad(before, leaves, head)
            raise BrokenLogError(None, f"a record from {start} to {tree.size - 1} is not the one that was signed")

    async def _prove(self, claim: Claim, head: Head) -> None:
        """That a continuity record was made in this log, and not in another one that the old keys signed."""
        said = claim.head
        path = f"{PATH}/proof?old={said.size}&size={head.size}"
        answer = await self._api.call("GET", path, AuditProof)
        if not verify_consistency(said.size, head.size, said.root, head.root, _decoded(answer.hashes)):
            raise BrokenLogError(claim.record, "its continuity record is of another history")

    async def _leaves(self, start: int, count: int) -> list[bytes]:
        path = f"{PATH}/entries?start={start}&count={count}"
        answer = await self._api.call("GET", path, AuditPage)
        leaves = _decoded(answer.entries)[:count]
        if answer.start != start or not leaves:
            raise BrokenLogError(start, "the service does not show it")
        return leaves

    async def _holds(self, tree: CompactRange, head: Head) -> bool:
        """Does the signed tree begin with this one, by the service's own proof?"""
        if tree.size in (0, head.size):
            return tree.size == 0 or tree.root() == head.root
        path = f"{PATH}/proof?old={tree.size}&size={head.size}"
        answer = await self._api.call("GET", path, AuditProof)
        return verify_consistency(tree.size, head.size, tree.root(), head.root, _decoded(answer.hashes))

    async def _name_bad(self, before: Peaks, leaves: Sequence[bytes], head: Head) -> None:
        """Raises BrokenLogError with the first record of `leaves` that the signed tree has not, if there is one."""

        async def good(count: int) -> bool:
            tree = CompactRange(before)
            for leaf in leaves[:count]:
                tree.append(leaf_hash(leaf))
            return await self._holds(tree, head)

        if not leaves or await good(len(leaves)):
            return
        first, last = 0, len(leaves)
        while last - first > 1:
            middle = (first + last) // 2
            first, last = (middle, last) if await good(middle) else (first, middle)
        raise BrokenLogError(before.size + first, "it is not the one that was signed")


def _decoded(values: Sequence[str]) -> list[bytes]:
    """Nothing at all when one is no base64."""
    try:
        return [base64.b64decode(value, validate=True) for value in values]
    except binascii.Error:
        return []


# Words


def _view(place: str, verdict: Verdict, cosigned: Cosigned) -> dict[str, Any]:
    broken = verdict.broken
    return {
        "log": place,
        "whole": broken is None,
        "records": verdict.records,
        "root": verdict.root.hex(),
        "checkpoints": verdict.checkpoints,
        "other_checkpoints": verdict.others,
        "signed": verdict.signed,
        "broken": None if broken is None else {"record": broken.index, "why": broken.why},
        **cosigned.view(),
    }


def _text(place: str, verdict: Verdict, cosigned: Cosigned) -> str:
    name, broken = plain_text(place), verdict.broken
    if broken is not None:
        where = f"broken at record {broken.index}" if broken.index is not None else "broken"
        return f"{name}: {where}: {plain_text(broken.why)}; {verdict.signed} records are signed and hold"
    others = f", {verdict.others} more by keys that are not trusted" if verdict.others else ""
    unsigned = verdict.records - verdict.signed
    tail = f", {unsigned} of them not signed yet" if unsigned else ""
    root = verdict.root.hex()
    whole = f"{name}: whole, {verdict.records} records{tail}, {verdict.checkpoints} checkpoints{others}, root {root}"
    return "\n".join([whole, *cosigned.lines()])


class _Bar:
    """Progress on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        self._console = StageConsole(sys.stderr) if sys.stderr.isatty() else None

    def show(self, records: int, of: int) -> None:
        """So many are checked."""
        if self._console is not None:
            self._console.show("records", records, max(of, 1), f"{records} of {of}")

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._console is not None:
            self._console.close()


# Files


def _is_url(place: str) -> bool:
    return place.lower().startswith(("http://", "https://"))


def _keys(path: Path) -> list[KeySet]:
    try:
        return read_keys(_read(path).decode())
    except (BadNoteError, UnicodeDecodeError) as error:
        raise bad_request(f"{path}: {error}", "a verifier key a line: NAME+ID+KEY") from None


def _earlier(path: Path, keys: Sequence[KeySet]) -> Head:
    try:
        return parse_head(open_by(_read(path), keys)[0])
    except BadNoteError as error:
        hint = "a checkpoint as --save noted it, or GET /v1/kms/audit/checkpoint answers it"
        raise bad_request(f"{path} is no checkpoint by keys that are trusted: {error}", hint) from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE)
    except OSError as error:
        raise RonError(ErrorCode.NOT_FOUND, f"{path} cannot be read: {error.strerror}", hint="name another") from None
