"""What a node has on disk: 0600 in a 0700 directory. No key of a master address is among it.

In: a directory; an invitation's text. Out: `NodeFiles`.
Layout: `node.json` (who it is), `node.pem`, `node.key`, `ca.pem` (TLS), `mesh.key` (signs messages; it never leaves
the node), `token.json`, `run`, `book.json`.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from blake3 import blake3
from msgspec import Meta
from nacl.signing import SigningKey

from ron.crypto import x509
from ron.kernel.files import private_dir, read_private, write_private
from ron.proto.addresses import IDENTITY_PREFIX
from ron.proto.balance import NodeName, Where
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, not_found
from ron.services.balance.mesh.entries import Entry
from ron.services.balance.mesh.tokens import Token, new_token
from ron.services.balance.mesh.wire import CLUSTER_BYTES, INT_MAX, Cluster

NODE_DAYS = 365
_INVITATION = "ron-balance-invitation/1"
_PEM = Annotated[str, Meta(max_length=65_536)]
_Seeds = Annotated[tuple[Where, ...], Meta(max_length=64)]
T = TypeVar("T")


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`node.json`. founder: it writes the first page of the book; others join."""

    name: NodeName
    cluster: Cluster
    founder: bool = False
    seeds: _Seeds = ()


class Invitation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a new node needs, a private key among it: keep it as one, use it once, delete it."""

    format: Literal["ron-balance-invitation/1"]
    name: NodeName
    cluster: Cluster
    seeds: _Seeds
    token: Token
    certificate: _PEM
    key: _PEM
    ca: _PEM


class _BookFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal[1] = 1
    digest: str
    entries: tuple[Entry, ...]


class NodeFiles:
    """The files of one node. `open`, `found` or `accept` one. token: as it is on disk."""

    def __init__(self, directory: Path, facts: NodeFacts, signing: SigningKey, token: Token) -> None:
        self.directory = directory
        self.name = facts.name
        self.cluster = facts.cluster
        self.founder = facts.founder
        self.seeds = facts.seeds
        self.signing = signing
        self.token = token

    @classmethod
    def open(cls, directory: Path) -> NodeFiles:
        """Those of a node that is there. Raises `RonError`: NotFound, Conflict for files that are damaged."""
        if not (directory / "node.json").exists():
            raise RonError(
                ErrorCode.NOT_FOUND,
                f"{directory} holds no node of a cluster",
                hint="ronctl balance init makes a cluster, ronctl balance join enters one",
            )
        facts = _json(directory / "node.json", NodeFacts)
        token = _json(directory / "token.json", Token)
        return cls(directory, facts, _signing(directory / "mesh.key"), token)

    @property
    def certificate(self) -> Path:
        """Our TLS certificate."""
        return self.directory / "node.pem"

    @property
    def key(self) -> Path:
        """Its key."""
        return self.directory / "node.key"

    @property
    def ca(self) -> Path:
        """The CA that all nodes' certificates are from."""
        return self.directory / "ca.pem"

    def next_run(self, now_ms: int) -> int:
        """A number above those of all runs before, kept. The clock's, unless that was set back."""
        path = self.directory / "run"
        last = int(_whole_number(path)) if path.exists() else 0
        run = min(max(last + 1, now_ms), INT_MAX)
        write_private(path, b"%d\n" % run)
        return run

    def founded(self) -> None:
        """The book's first page is written: should the book be lost, this node takes the others'."""
        if self.founder:
            self.founder = False
            facts = NodeFacts(name=self.name, cluster=self.cluster, seeds=self.seeds)
            write_private(self.directory / "node.json", msgspec.json.encode(facts))

    def keep_token(self, token: Token) -> None:
        """`token` is the present one. Blocks."""
        write_private(self.directory / "token.json", msgspec.json.encode(token))
        self.token = token

    def read_book(self) -> tuple[Entry, ...]:
        """The book as it was kept; empty if there is none. Raises `RonError` (Conflict) for a damaged file."""
        path = self.directory / "book.json"
        if not path.exists():
            return ()
        found = _json(path, _BookFile, hint="remove it: the other nodes have it too")
        if found.digest != _digest(found.entries):
            raise _damaged(path, "remove it: the other nodes have it too")
        return found.entries

    def keep_book(self, entries: tuple[Entry, ...]) -> None:
        """Replace the file. Blocks."""
        book = _BookFile(digest=_digest(entries), entries=entries)
        write_private(self.directory / "book.json", msgspec.json.encode(book))


def found(directory: Path, name: str, ca: x509.Keyed, *, valid_days: int = NODE_DAYS) -> NodeFiles:
    """The first node of a new cluster: a new cluster id, token and keys, a certificate of `ca`.

    Raises `RonError`: Conflict where a node is already, BadRequest for a name that is none.
    """
    keyed = x509.issue(ca, name, valid_days=valid_days)
    cluster = secrets.token_bytes(CLUSTER_BYTES)
    facts = NodeFacts(name=name, cluster=cluster, founder=True)
    return _make(directory, facts, new_token(), keyed_pems(keyed, ca))


def invitation(
    files: NodeFiles, name: str, ca: x509.Keyed, seeds: tuple[str, ...], *, valid_days: int = NODE_DAYS
) -> str:
    """The text with which node `name` joins the cluster of `files` through `seeds` (`host:port` of members).

    It is good until the token is rotated. Raises `RonError` (BadRequest) for a bad name, no seed, or another CA's node.
    """
    if not seeds:
        raise bad_request("an invitation without a seed leads nowhere", hint="name a member's address, host:port")
    if x509.load_certificate(read_private(files.ca)) != ca.certificate:
        raise bad_request("this CA is not the cluster's", hint="name the directory of the CA that init used")
    certificate, key, authority = keyed_pems(x509.issue(ca, name, valid_days=valid_days), ca)
    made = Invitation(
        format="ron-balance-invitation/1",
        name=name,
        cluster=files.cluster,
        seeds=seeds,
        token=files.token,
        certificate=certificate,
        key=key,
        ca=authority,
    )
    text = msgspec.json.format(msgspec.json.encode(made), indent=1).decode() + "\n"
    _read_invitation(text)
    return text


def accept(directory: Path, text: str) -> NodeFiles:
    """The files of the node that the invitation `text` is for; its mesh key is made here.

    Raises `RonError`: BadRequest for a text that is none or damaged, Conflict where a node is already.
    """
    invited = _read_invitation(text)
    certificate = x509.load_certificate(invited.certificate.encode())
    authority = x509.load_certificate(invited.ca.encode())
    named = x509.node_identity(certificate) == IDENTITY_PREFIX + invited.name
    if not named or not x509.issued_by(authority, certificate):
        raise bad_request("the invitation's certificate is not for this node", hint="make a new invitation")
    facts = NodeFacts(name=invited.name, cluster=invited.cluster, seeds=invited.seeds)
    return _make(directory, facts, invited.token, (invited.certificate, invited.key, invited.ca))


def keyed_pems(keyed: x509.Keyed, ca: x509.Keyed) -> tuple[str, str, str]:
    """Certificate, key and the CA's certificate as PEM."""
    pems = (x509.certificate_pem(keyed.certificate), x509.key_pem(keyed.key), x509.certificate_pem(ca.certificate))
    certificate, key, authority = (pem.decode() for pem in pems)
    return certificate, key, authority


def _make(directory: Path, facts: NodeFacts, token: Token, pems: tuple[str, str, str]) -> NodeFiles:
    if (directory / "node.json").exists():
        raise conflict(f"{directory} holds a node already", hint="choose another directory, or remove this one")
    private_dir(directory)
    files = NodeFiles(directory, facts, SigningKey.generate(), token)
    for path, pem in zip((files.certificate, files.key, files.ca), pems, strict=True):
        write_private(path, pem.encode())
    write_private(directory / "mesh.key", files.signing.encode().hex().encode() + b"\n")
    files.keep_token(token)
    # the last one: what is half made is not taken for a node
    write_private(directory / "node.json", msgspec.json.encode(facts))
    return files


def _read_invitation(text: str) -> Invitation:
    try:
        return msgspec.json.decode(text, type=Invitation)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise bad_request(
            f"this is no invitation ({_INVITATION})", hint="give the whole file that ronctl balance wrote"
        ) from None


def _json(path: Path, shape: type[T], *, hint: str = "restore it from a backup, or join anew") -> T:
    try:
        return msgspec.json.decode(read_private(path), type=shape)
    except FileNotFoundError:
        raise not_found(f"{path} is missing") from None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _damaged(path, hint) from None


def _signing(path: Path) -> SigningKey:
    try:
        return SigningKey(bytes.fromhex(read_private(path).decode("ascii").strip()))
    except FileNotFoundError:
        raise not_found(f"{path} is missing") from None
    except (ValueError, TypeError):
        raise _damaged(path, "join anew") from None


def _whole_number(path: Path) -> int:
    text = read_private(path).strip()
    if not text.isdigit() or len(text) > 19:
        raise _damaged(path, f"write a number into it that is above any before: date +%s000 > {path}")
    return int(text)


def _damaged(path: Path, hint: str) -> RonError:
    return conflict(f"{path} is damaged", hint=hint)


def _digest(entries: tuple[Entry, ...]) -> str:
    return blake3(msgspec.msgpack.encode(entries)).hexdigest()
