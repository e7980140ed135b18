"""Vaults over the real mesh: TLS, files, the reactor. What a node leaves on its disk is searched for secrets."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from twisted.internet import reactor

from ron.crypto.hpke import PrivateKey, Suite
from ron.services.balance.vault.service import KeyVault
from ron.tor.descriptor.blinding import blind, identity_of, verify
from ron.tor.descriptor.certs import Certificate, Purpose, expiry_h
from ron.tor.descriptor.periods import TimePeriod
from tests.crypto.test_frost_support import secret_from
from tests.services.balance.mesh.cluster import ClusterTest, Running
from tests.services.balance.vault.support import spellings

_NUMBER = int(time.time()) // 86_400
NOW = TimePeriod(number=_NUMBER, length_min=1440, start_s=_NUMBER * 86_400)


class OverTls(ClusterTest):
    """Three nodes, one seed."""

    def setUp(self) -> None:
        super().setUp()
        self.vaults: dict[str, KeyVault] = {}
        # cleanups run last in, first out: vaults stop before the mesh does
        self.addCleanup(lambda: [vault.stopService() for vault in self.vaults.values() if vault.running])

    def vault(self, node: Running, seal: PrivateKey) -> KeyVault:
        made = KeyVault(
            reactor,
            node.mesh,
            seal=seal,
            cluster=node.files.cluster,
            approval="operator",
            periods=lambda: (NOW.shifted(-1), NOW, NOW.shifted(1)),
            health=node.health,
            metrics=node.metrics,
        )
        made.startService()
        self.vaults[node.mesh.name] = made
        return made

    async def test_keys_and_shares_go_round_and_none_is_on_a_disk(self) -> None:
        seals = [PrivateKey.generate(Suite.PQ) for _ in range(3)]
        a = self.founder(seal_key=seals[0].public.raw)
        b, c = (self.join(a, name, seal_key=seal.public.raw) for name, seal in zip("bc", seals[1:], strict=True))
        await self.until(lambda: self.meshed(a, b, c), "a full mesh")
        vaults = [self.vault(node, seal) for node, seal in zip((a, b, c), seals, strict=True)]
        for name in "bc":
            vaults[0].approve(name)
        await self.until(lambda: all(n.mesh.book.keys("approved/") == ("approved/b", "approved/c") for n in (a, b, c)))
        born = await vaults[0].share("born", threshold=2, among=["a", "b", "c"])
        whole = vaults[0].found("whole")
        await self.until(lambda: all(vault.holds() == {"born", "whole"} for vault in vaults), "the key everywhere")
        refreshed = await vaults[2].refresh("born")
        self.assertEqual((refreshed.onion, refreshed.group == born.group), (born.onion, False))
        for vault, (service, onion) in itertools.product(vaults, (("born", born.onion), ("whole", whole.onion))):
            await self.signs(vault, service, onion)
        secrets = list(self.secrets(vaults))
        for vault in vaults:
            vault.stopService()
            self.assertEqual(vault.holds(), frozenset())
        await self.stop_all()
        self.search(secrets, born.onion)

    async def signs(self, vault: KeyVault, service: str, onion: str) -> None:
        key = blind(identity_of(onion), NOW).public
        message = Certificate(
            Purpose.SIGN_DESCRIPTOR, bytes(range(32)), by=key, expires_h=expiry_h(time.time())
        ).message
        self.assertTrue(verify(key, message, await vault.signer(service).sign(NOW, message)))

    def secrets(self, vaults: list[KeyVault]) -> Iterator[bytes]:
        """Everything that must be nowhere: the keys, and the shares of the epoch in use."""
        shares = [epoch.share for vault in vaults if (epoch := vault._ring.current("born"))]
        yield from (share.secret for share in shares)
        yield secret_from(shares[:2]).to_bytes(32, "little")
        key = vaults[0]._ring.whole["whole"]
        expanded = bytes(key.copy())
        yield from (expanded[:32], expanded[32:], key.scalar())

    def search(self, secrets: list[bytes], onion: str) -> None:
        texts = {path: path.read_bytes() for path in Path(self.directory).rglob("*") if path.is_file()}
        self.assertEqual(len(secrets), 7)
        self.assertTrue([text for path, text in texts.items() if path.name.startswith("book")])
        # the search finds what is there: the address's public key, in the record of its group
        public = identity_of(onion)
        self.assertTrue(any(spelling in text for spelling in spellings(public) for text in texts.values()))
        for secret, (path, text) in itertools.product(secrets, texts.items()):
            for spelling in spellings(secret):
                self.assertNotIn(spelling, text, str(path))
