"""The operator's page names every command, every key and every scope, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import click
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.balance import balance
from ron.services.balance.api import endpoints
from ron.services.balance.config import BalanceConfig, BalancedService
from tests.services.balance.desk import World

PAGE = Path(__file__).parents[3] / "docs" / "rustbalance.rst"


def commands(group: click.Group, before: str = "") -> set[str]:
    """Of `group`, those below its groups too."""
    found: set[str] = set()
    for name, command in group.commands.items():
        words = f"{before}{name}"
        found |= commands(command, f"{words} ") if isinstance(command, click.Group) else {words}
    return found


def section(title: str) -> str:
    """The text below a heading, up to the next of its kind."""
    return re.split(r"\n\S[^\n]*\n-{4,}\n", PAGE.read_text(encoding="utf-8").split(f"\n{title}\n----")[1])[0]


class Page(SynchronousTestCase):
    def test_every_command_and_no_other(self) -> None:
        written = re.findall(r"^``ronctl balance ((?:service |token )?[a-z]+)", section("Commands"), re.MULTILINE)
        self.assertEqual(set(written), commands(balance))
        for used in re.findall(r"ronctl balance ((?:service |token )?[a-z]+)", PAGE.read_text(encoding="utf-8")):
            self.assertIn(used, commands(balance))

    def test_every_option_that_it_uses(self) -> None:
        known: set[str] = {"--help", "--scope", "--config"}
        stack: list[click.Command] = [balance]
        while stack:
            command = stack.pop()
            known |= {option for param in command.params for option in param.opts}
            stack += command.commands.values() if isinstance(command, click.Group) else []
        self.assertLessEqual(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE.read_text(encoding="utf-8"))), known)

    def test_every_key(self) -> None:
        table = section("Config")
        for field in (*BalanceConfig.__struct_fields__, *BalancedService.__struct_fields__):
            self.assertIn(f"``{field}``", table)

    def test_every_scope(self) -> None:
        world = World()
        scopes = {str(endpoint.scope) for endpoint in endpoints(world.desk, world.clock)}
        self.assertEqual(set(re.findall(r"^``(balance:[a-z]+)``", section("Commands"), re.MULTILINE)), scopes)
