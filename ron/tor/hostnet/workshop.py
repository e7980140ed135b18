"""Where a network over several hosts is made and changed: the operator's folder, which no host ever sees.

In: nodes to have, to add, to replace, certificates to renew. Out: bundles in `bundles/<generation>/`, only for those
who need one; `network.json`; `vault/<authority>/`. Nothing of an earlier generation is overwritten. All of it blocks.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec

from ron.kernel.files import DirectoryLock, private_dir, write_private
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict
from ron.tor.authkeys import relay_fingerprint
from ron.tor.binary import TorBinary
from ron.tor.hostnet import bundles, texts, vault
from ron.tor.hostnet.plan import (
    CLIENT,
    FORMAT,
    Manifest,
    Node,
    check_interval,
    check_nodes,
    grown,
    read_manifest,
    recertified,
)

MANIFEST = "network.json"
UNIT = "ron-tor-{name}.service"
_FIRST_GENERATION = 1


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was written. whole: it brings the node's keys and is for a new host; else it is an update."""

    name: str
    role: str
    whole: bool
    file: str
    sha256: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a change made: the network as it is now, and the bundles to carry."""

    directory: str
    manifest: Manifest
    bundles: tuple[Made, ...]


class Keyed(NamedTuple):
    """A node with its fingerprints, and its keys as bundle members."""

    node: Node
    keys: dict[str, bytes]


class Workshop:
    """The operator's folder. directory: `network.json`, `vault/` and `bundles/` live there, 0700."""

    def __init__(self, directory: Path, tor: TorBinary) -> None:
        self.directory = directory
        self._tor = tor

    def manifest(self) -> Manifest:
        """The network. Raises NotFound when there is none, BadRequest when its file is damaged."""
        return load_manifest(self.directory)

    def init(self, nodes: Sequence[Node], voting_interval_s: int, passphrase: bytes) -> Result:
        """A new network. Raises Conflict when the folder holds anything, BadRequest for nodes that make none."""
        check_nodes(nodes)
        check_interval(voting_interval_s)
        vault.check_passphrase(passphrase)
        if self.directory.exists() and any(entry.name != ".lock" for entry in self.directory.iterdir()):
            raise conflict(f"{self.directory} is not empty", "name a new folder with --out")
        with self._changing() as scratch:
            keyed = [self._key(node, scratch, passphrase) for node in nodes]
            manifest = Manifest(
                format=FORMAT,
                network_id=secrets.token_hex(8),
                generation=_FIRST_GENERATION,
                voting_interval_s=voting_interval_s,
                nodes=tuple(each.node for each in keyed),
            )
            return self._commit(None, manifest, {each.node.name: each.keys for each in keyed}, scratch)

    def add_relays(self, nodes: Sequence[Node]) -> Result:
        """More relays. Needs no passphrase: authorities learn of them through updated bundles."""
        manifest = self.manifest()
        grown(manifest, nodes)
        with self._changing() as scratch:
            keyed = [self._key(node, scratch, b"") for node in nodes]
            after = grown(manifest, [each.node for each in keyed])
            return self._commit(manifest, after, {each.node.name: each.keys for each in keyed}, scratch)

    def replace_authority(self, old: str, new: Node, passphrase: bytes) -> Result:
        """`new` in the place of the authority `old`, which is retired with its keys. Everybody gets an update."""
        manifest = self.manifest()
        retired = manifest.node(old)
        if retired.role != "authority":
            raise bad_request(f"{old} is a {retired.role}", "name an authority")
        grown(manifest, [new], [retired])
        vault.check_passphrase(passphrase)
        with self._changing() as scratch:
            keyed = self._key(new, scratch, passphrase)
            after = grown(manifest, [keyed.node], [retired])
            return self._commit(manifest, after, {new.name: keyed.keys}, scratch)

    def rotate_certificates(self, now: datetime, before: timedelta, passphrase: bytes, names: Sequence[str]) -> Result:
        """New signing keys and certificates for authorities whose certificate ends within `before` of `now`.

        names: only these, whenever theirs end. With none due nothing changes and no bundle is made.
        """
        manifest = self.manifest()
        due = [self._authority(manifest, name) for name in names] or due_for_renewal(manifest, now, before)
        if not due:
            return Result(directory=str(self.directory), manifest=manifest, bundles=())
        with self._changing() as scratch:
            made = {
                node.name: vault.certify(self._tor, self.directory / "vault" / node.name, node, passphrase)
                for node in due
            }
            after = recertified(manifest, {name: each.expires for name, each in made.items()})
            keys = {name: each.members() for name, each in made.items()}
            return self._commit(manifest, after, keys, scratch)

    # -- making -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Iterator[Path]:
        """One change at a time; a folder for what is not finished, gone afterwards with all that is in it."""
        lock = DirectoryLock(self.directory)
        try:
            with tempfile.TemporaryDirectory(dir=self.directory, prefix=".making-") as scratch:
                yield Path(scratch)
        finally:
            lock.release()

    @staticmethod
    def _authority(manifest: Manifest, name: str) -> Node:
        node = manifest.node(name)
        if node.role != "authority":
            raise bad_request(f"{name} is a {node.role} and has no certificate", "name an authority")
        return node

    def _key(self, node: Node, scratch: Path, passphrase: bytes) -> Keyed:
        """Relay keys by tor, and for an authority an identity in the vault's new part."""
        folder = private_dir(scratch / "keys" / node.name)
        fingerprint = relay_fingerprint(self._tor, folder, node.name)
        keys = {f"keys/{path.name}": path.read_bytes() for path in (folder / "keys").iterdir() if path.is_file()}
        node = msgspec.structs.replace(node, fingerprint=fingerprint)
        if node.role == "authority":
            made = vault.new_identity(self._tor, scratch / "vault" / node.name, node, passphrase)
            node = msgspec.structs.replace(node, v3ident=made.v3ident, certificate_expires=made.expires)
            keys.update(made.members())
        return Keyed(node, keys)

    def _commit(
        self, before: Manifest | None, after: Manifest, keys: Mapping[str, dict[str, bytes]], scratch: Path
    ) -> Result:
        """Bundles, then the vault, then the manifest: what is cut short has not happened, and is made anew."""
        folder = private_dir(private_dir(self.directory / "bundles") / f"{after.generation:04}")
        made = [
            self._bundle(folder, before, after, node, keys.get(node.name, {}))
            for node in after.nodes
            if node.name in keys or before is None or _needs_update(before, after, node)
        ]
        if before is None or texts.client_torrc(before) != texts.client_torrc(after):
            made.append(self._client_bundle(folder, after))
        self._store_identities(scratch)
        write_private(self.directory / MANIFEST, msgspec.json.format(msgspec.json.encode(after)) + b"\n")
        return Result(directory=str(self.directory), manifest=after, bundles=tuple(made))

    def _bundle(
        self, folder: Path, before: Manifest | None, after: Manifest, node: Node, keys: Mapping[str, bytes]
    ) -> Made:
        whole = before is None or all(node.name != old.name for old in before.nodes)
        ports = (node.or_port,) if node.dir_port is None else (node.or_port, node.dir_port)
        files = {
            **keys,
            "torrc": texts.node_torrc(after, node).encode(),
            UNIT.format(name=node.name): texts.unit(f"{node.role} {node.name}", ports).encode(),
            "README": texts.readme(after, node.name, node, secret=bool(keys)).encode(),
        }
        if node.role == "authority":
            files.update({name: text.encode() for name, text in texts.probe_units(after, node).items()})
        return _write(folder, after, node.name, node.role, files, whole=whole)

    @staticmethod
    def _client_bundle(folder: Path, after: Manifest) -> Made:
        files = {
            "torrc": texts.client_torrc(after).encode(),
            "snippet.torrc": texts.snippet(after).encode(),
            UNIT.format(name=CLIENT): texts.unit("Client", ()).encode(),
            "README": texts.readme(after, CLIENT, None, secret=False).encode(),
        }
        return _write(folder, after, CLIENT, CLIENT, files, whole=True)

    def _store_identities(self, scratch: Path) -> None:
        made = scratch / "vault"
        for identity in sorted(made.iterdir()) if made.is_dir() else ():
            place = private_dir(self.directory / "vault") / identity.name
            if place.exists():  # of a change that was cut short: the manifest knows no such node
                shutil.rmtree(place)
            identity.rename(place)


def load_manifest(directory: Path) -> Manifest:
    """The network whose operator's folder is `directory`. Raises NotFound, or BadRequest when it is damaged."""
    try:
        return read_manifest((directory / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise RonError(
            ErrorCode.NOT_FOUND, f"there is no {MANIFEST} in {directory}", hint="ronctl tornet init, or name it: --net"
        ) from None
    except OSError as error:
        raise bad_request(f"cannot read {directory / MANIFEST}: {error.strerror}", "name the folder: --net") from None


def due_for_renewal(manifest: Manifest, now: datetime, before: timedelta) -> list[Node]:
    """Authorities whose certificate ends within `before` of `now`, or has ended."""
    return [
        node
        for node in manifest.authorities()
        if node.certificate_expires is None or node.certificate_expires - now <= before
    ]


def _needs_update(before: Manifest, after: Manifest, node: Node) -> bool:
    """Authorities know every node; the others change when their torrc does."""
    if node.role == "authority" and before.members() != after.members():
        return True
    return texts.node_torrc(before, node) != texts.node_torrc(after, node)


def _write(folder: Path, manifest: Manifest, name: str, role: str, files: Mapping[str, bytes], *, whole: bool) -> Made:
    index = bundles.Index(
        format=FORMAT,
        network_id=manifest.network_id,
        generation=manifest.generation,
        name=name,
        role=role,
        whole=whole,
        members=manifest.members() if role == "authority" else (),
        sha256=bundles.digests(files),
    )
    content = bundles.pack(bundles.Bundle(index=index, files=dict(files)))
    path = folder / f"{name}.tar"
    write_private(path, content)
    return Made(name=name, role=role, whole=whole, file=str(path), sha256=bundles.digest(content))
