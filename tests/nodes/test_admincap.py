"""The node's own capability is there as long as the node runs, and no trouble with it makes the node deaf."""

from __future__ import annotations

import stat
import time

from ron.auth import Caveat, Wanted, inspect
from ron.auth.files import AuthFiles
from ron.nodes.admincap import AdminCapability
from ron.proto.errors import RonError
from tests.nodes.with_runtime import WithRuntime

LOOK = Wanted("node:read", "GET", "/v1/status")


class AdminCapabilityTests(WithRuntime):
    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(lambda: self.runtime.lock and self.runtime.lock.release())
        self.path = self.home / "admin.cap"
        self.admin = AdminCapability(self.path, self.runtime.auth, self.runtime.authority)

    def kid(self) -> int:
        return inspect(self.path.read_text().strip()).kid

    def test_private_and_kept_while_it_verifies(self) -> None:
        self.assertEqual(self.admin.write(), self.path)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        first = self.path.read_text()
        self.admin.write()
        self.admin.keep_up(keys_changed=True)
        self.assertEqual(self.path.read_text(), first)

    def test_what_does_not_verify_is_minted_anew(self) -> None:
        for bad in (b"", b"garbage\n", b"\xff\xfe", b"x" * 100_000):
            self.path.write_bytes(bad)
            self.path.chmod(0o600)
            self.admin.write()
            self.runtime.authority.admit(self.path.read_text().strip(), LOOK)

    def test_after_a_rotation_it_stands_on_the_new_key(self) -> None:
        self.admin.write()
        old = self.kid()
        self.runtime.auth.rotate(grace_s=0)
        self.admin.keep_up(keys_changed=True)
        self.assertGreater(self.kid(), old)
        self.runtime.authority.admit(self.path.read_text().strip(), LOOK)

    def test_one_that_was_removed_or_damaged_is_written_at_the_next_rotation(self) -> None:
        for spoil in (self.path.unlink, lambda: self.path.write_bytes(b"\x00garbage"), lambda: self.path.chmod(0o644)):
            self.admin.write()
            spoil()
            self.runtime.auth.rotate(grace_s=0)
            self.admin.keep_up(keys_changed=True)
            self.runtime.authority.admit(self.path.read_text().strip(), LOOK)

    def test_what_could_not_be_written_is_tried_again(self) -> None:
        self.admin.write()
        self.path.unlink()
        self.path.mkdir()
        with self.assertRaises(OSError):
            self.admin.keep_up(keys_changed=True)
        self.path.rmdir()
        self.admin.keep_up(keys_changed=False)
        self.runtime.authority.admit(self.path.read_text().strip(), LOOK)


class DeafNodeTests(WithRuntime):
    """Keys and revocations that others write are heard of, whatever becomes of `admin.cap`."""

    async def test_a_spoiled_admin_capability_does_not_end_the_rounds(self) -> None:
        self.runtime.write_admin_capability()
        path, authority = self.home / "admin.cap", self.runtime.authority
        other = AuthFiles(self.home / "auth", time.time)  # ronctl, which is another process
        self.start()
        path.unlink()
        path.mkdir()
        other.rotate()
        await self.until(lambda: self.runtime.auth.keys.current.kid == other.keys.current.kid, "the rotation")
        token = authority.mint([Caveat("scope", "node:read")])
        authority.admit(token, LOOK)
        other.revoke(inspect(token).cap_id)

        def refused() -> bool:
            try:
                authority.admit(token, LOOK)
            except RonError:
                return True
            return False

        await self.until(refused, "the revocation")
        path.rmdir()
        await self.until(path.is_file, "the admin capability being written after all")
        self.flushLoggedErrors(OSError)
