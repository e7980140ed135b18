"""`ronctl config reload|rollback` as real processes against a node's endpoints."""

from __future__ import annotations

import json
from typing import Any

from ron.kernel.commands import Command
from ron.kernel.config import ConfigError
from tests.ctl.with_node import WithNode

CHANGED = {
    "version": 3,
    "changes": [
        {"key": "mailbox.max_inflight", "old": "128", "new": "64"},
        {"key": "log.level", "old": "x", "new": "y"},
    ],
    "restart_needed": ["mailbox.max_inflight"],
}


class ConfigOfANode(WithNode):
    def serve(self, name: str, answer: Any) -> None:
        def handler(_command: Command) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.bus.serve("node", {name: handler})

    async def test_what_changed_and_what_needs_a_restart(self) -> None:
        self.serve("reload", CHANGED)
        ronctl = await self.done("config", "reload")
        self.assertEqual(ronctl.code, 0, ronctl.err)
        self.assertEqual(
            ronctl.out.decode().splitlines(),
            ["config version 3", "  mailbox.max_inflight: 128 → 64  (restart)", "  log.level: x → y"],
        )

    async def test_as_json(self) -> None:
        self.serve("rollback", CHANGED)
        ronctl = await self.done("config", "rollback", "--json")
        self.assertEqual(json.loads(ronctl.out), CHANGED)

    async def test_nothing(self) -> None:
        self.serve("reload", {"version": 1, "changes": [], "restart_needed": []})
        self.assertIn(b"nothing has changed", (await self.done("config", "reload")).out)

    async def test_a_config_that_is_wrong(self) -> None:
        self.serve("reload", ConfigError("unknown key", key="edge.pack", hint="did you mean 'packs'?"))
        ronctl = await self.done("config", "reload")
        self.assertEqual(ronctl.code, 3, ronctl.err)
        self.assertIn(b"edge.pack: unknown key; fix: did you mean 'packs'?", ronctl.err)
