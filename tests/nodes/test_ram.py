"""Under amnesia nothing touches the disk, every process of a node goes by the same keys, and little outlives a kill."""

from __future__ import annotations

import stat
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import Caveat, Wanted, inspect
from ron.kernel import Config
from ron.kernel.config import Layers
from ron.nodes.ram import RAM_DIRECTORY, ram_directory
from ron.nodes.runtime import Runtime
from ron.proto.errors import RonError
from ron.services.configs import SCHEMAS
from tests.nodes.with_runtime import WithRuntime

FLAGS = {"onion.amnesia": "true", "log.to": "memory"}
LOOK = Wanted("node:read", "GET", "/v1/status")


class RamDirectoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.parent = Path(self.mktemp())
        self.parent.mkdir()

    def test_private_and_empty(self) -> None:
        made = ram_directory(Path("/a"), parent=self.parent)
        self.assertEqual(stat.S_IMODE(made.stat().st_mode), 0o700)
        self.assertEqual(list(made.iterdir()), [])

    def test_leftovers_of_the_same_home_go_and_nothing_else(self) -> None:
        ours, others = (ram_directory(Path(home), parent=self.parent) for home in ("/a", "/b"))
        (ours / "root.json").write_text("secret")
        outside = self.parent / "outside"
        outside.mkdir()
        (self.parent / (ours.name + "x")).symlink_to(outside)
        again = ram_directory(Path("/a"), parent=self.parent)
        self.assertNotEqual(again, ours)
        self.assertFalse(ours.exists())
        self.assertTrue(others.is_dir() and outside.is_dir())


class AmnesiaTests(WithRuntime):
    """A node and the process of one of its services."""

    def make_runtime(self) -> Runtime:
        return self.amnesic(name="node", shared=True)

    def amnesic(self, *, name: str, owner: bool = True, ram: Path | None = None, shared: bool = False) -> Runtime:
        config = Config(Layers(*SCHEMAS["ron-node"], None, {}, FLAGS))
        return Runtime(reactor, name=name, config=config, owner=owner, ram=ram, shared=shared)

    async def test_capabilities_hold_in_every_process(self) -> None:
        self.start()
        child = self.amnesic(name="gateway", owner=False, ram=self.runtime.ram)
        child.start()
        try:
            token = self.runtime.write_admin_capability().read_text().strip()
            child.authority.admit(token, LOOK)
            # whoever mints it, and whoever revokes it
            minted = child.auth.issue(child.authority, [Caveat("scope", "node:read")]).token
            self.runtime.authority.admit(minted, LOOK)
            child.auth.revoke(inspect(minted).cap_id)

            def refused() -> bool:
                try:
                    self.runtime.authority.admit(minted, LOOK)
                except RonError:
                    return True
                return False

            await self.until(refused, "the revocation")
        finally:
            child.stop()
        ram = self.runtime.ram
        assert ram is not None
        self.assertTrue(ram.is_dir(), "a child that ends takes nothing with it")
        self.assertTrue(ram.is_relative_to(RAM_DIRECTORY))
        self.assertEqual({path.name for path in self.home.iterdir()}, {".lock", "admin.cap"})

    def test_nothing_is_left_in_memory_and_one_process_keeps_its_keys_to_itself(self) -> None:
        ram = self.runtime.ram
        assert ram is not None
        self.assertTrue((ram / "auth" / "root.json").is_file())
        self.runtime.stop()
        self.assertFalse(ram.exists())
        alone = self.amnesic(name="node")
        assert alone.ram is not None
        self.assertEqual(list(alone.ram.iterdir()), [])
        alone.stop()
