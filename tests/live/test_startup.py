"""What an operator reads when the node cannot start: one line naming the key or program, the fix, an exit code."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.live.support import NO_TOR, Daemon, micronode_config


class RefusalTests(SynchronousTestCase):
    """Each trouble by itself, seen through `twistd -n ron-node`."""

    def start(self, config: str, *, path: str | None = None) -> tuple[int, str]:
        daemon = Daemon("ron-node", config, "node.json")
        self.addCleanup(daemon.destroy)
        if path is not None:
            environment = {**daemon.environment(), "PATH": path}
            daemon.environment = lambda: environment  # type: ignore[method-assign]
        daemon.start(wait=False)
        code = daemon.wait()
        text = daemon.output.read_text()
        self.assertNotIn("Traceback", text)
        return code, text

    def test_unknown_key(self) -> None:
        code, text = self.start("[mailbox]\nlistne = '127.0.0.1:0'\n")
        self.assertEqual(code, 3)
        self.assertIn("mailbox.listne: unknown key", text)
        self.assertIn("did you mean 'listen'?", text)

    def test_wrong_type(self) -> None:
        code, text = self.start("[mailbox]\nmax_inflight = 'many'\n")
        self.assertEqual(code, 3)
        self.assertIn("mailbox.max_inflight", text)

    def test_missing_file(self) -> None:
        daemon = Daemon("ron-node", "", "node.json")
        self.addCleanup(daemon.destroy)
        daemon.config.unlink()
        daemon.start(wait=False)
        self.assertEqual(daemon.wait(), 3)
        self.assertIn("cannot read", daemon.output.read_text())

    def test_port_taken(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            code, text = self.start(micronode_config(gateway=port))
        self.assertEqual(code, 8)
        self.assertIn(f"gateway.bind: cannot listen on 127.0.0.1:{port}", text)
        self.assertIn("ss -ltnp", text)

    test_port_taken.skip = NO_TOR  # type: ignore[attr-defined]

    def test_not_loopback(self) -> None:
        code, text = self.start('[gateway]\nbind = "0.0.0.0:9080"\n')
        self.assertEqual(code, 3)
        self.assertIn("gateway.bind: 0.0.0.0:9080 is not a loopback address", text)

    def test_tor_missing(self) -> None:
        code, text = self.start(micronode_config(onion='tor_binary = "no-such-tor"'))
        self.assertEqual(code, 8)
        self.assertIn("tor is missing", text)
        self.assertIn("apt-get install tor", text)

    def test_tor_too_old(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        old = folder / "tor"
        old.write_text("#!/bin/sh\necho 'Tor version 0.4.7.16.'\n")
        old.chmod(0o755)
        code, text = self.start(micronode_config(onion=f'tor_binary = "{old.absolute()}"'))
        self.assertEqual(code, 8)
        self.assertIn("tor 0.4.7.16 is too old: 0.4.8 or newer is needed", text)

    def test_exposed_root_keys(self) -> None:
        daemon = Daemon("ron-node", micronode_config(), "node.json")
        self.addCleanup(daemon.destroy)
        (daemon.home / "auth").mkdir(mode=0o700)
        keys = daemon.home / "auth" / "root.json"
        keys.write_text("{}")
        keys.chmod(0o644)
        daemon.start(wait=False)
        self.assertEqual(daemon.wait(), 8)
        self.assertIn(f"chmod 600 {os.fspath(keys)}", daemon.output.read_text())

    test_exposed_root_keys.skip = NO_TOR  # type: ignore[attr-defined]
