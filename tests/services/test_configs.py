"""The config of each daemon: the examples hold, every misspelling is named, unsafe combinations are refused."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import ConfigError, convert, parse
from ron.services.configs import SCHEMAS, NodeConfig, OniondConfig, daemon_of, home_directory

ETC = Path(__file__).parents[2] / "etc"
EXPOSE = [{"local": "127.0.0.1:9080", "onion_port": 80}, {"local": "127.0.0.1:9410", "onion_port": 9410}]
APPS = [{"name": "wiki", "expose": EXPOSE}, {"name": "chat", "expose": EXPOSE[:1]}]


def full(schema: type[Any], **sections: Any) -> dict[str, Any]:
    """Tables with every key the schema knows."""
    tables: dict[str, Any] = msgspec.to_builtins(convert(sections, schema), str_keys=True)
    return msgspec.json.decode(msgspec.json.encode(tables))  # type: ignore[no-any-return]


FULL = {
    "ron-node": full(NodeConfig, gateway={"expose": EXPOSE}),
    "ron-oniond": full(OniondConfig, apps=APPS),
}


def keys_of(tables: Any, path: str = "") -> Iterator[tuple[str, list[str | int]]]:
    """Every key at every depth: its dotted path, and the steps that lead to it."""
    if isinstance(tables, dict):
        for key, value in tables.items():
            here = f"{path}.{key}".lstrip(".")
            yield here, [key]
            for below, steps in keys_of(value, here):
                yield below, [key, *steps]
    elif isinstance(tables, list):
        for index, item in enumerate(tables):
            for below, steps in keys_of(item, f"{path}[{index}]"):
                yield below, [index, *steps]


def at(tables: Any, steps: list[Any]) -> Any:
    for step in steps:
        tables = tables[step]
    return tables


def misspelt(tables: dict[str, Any], steps: list[Any], wrong: str) -> dict[str, Any]:
    """A copy of `tables` in which the key at the end of `steps` is written `wrong`, in its old place."""
    changed = copy.deepcopy(tables)
    holder = at(changed, steps[:-1])
    renamed = {wrong if key == steps[-1] else key: value for key, value in holder.items()}
    holder.clear()
    holder.update(renamed)
    return changed


def check(daemon: str, tables: dict[str, Any]) -> None:
    """What `ronctl validate` and the daemons do."""
    schema, rules = SCHEMAS[daemon]
    rules(convert(tables, schema))


def examples() -> dict[str, dict[str, Any]]:
    return {path.name: parse(path) for path in sorted(ETC.glob("*.toml"))}


class Examples(SynchronousTestCase):
    """The files people start from."""

    def test_each_is_valid_for_its_daemon(self) -> None:
        found = examples()
        self.assertLessEqual({"micronode.toml", "micronode-amnesia.toml", "oniond.toml"}, set(found))
        for name, tables in found.items():
            self.assertEqual(daemon_of(tables), "ron-oniond" if name.startswith("oniond") else "ron-node")
            check(daemon_of(tables), tables)

    def test_none_is_valid_for_the_other_daemon(self) -> None:
        for name, tables in examples().items():
            other = "ron-node" if daemon_of(tables) == "ron-oniond" else "ron-oniond"
            with self.assertRaises(ConfigError, msg=name):
                check(other, tables)

    def test_the_micronodes_shows_the_defaults(self) -> None:
        """It says so in its first lines."""
        self.assertEqual(convert(examples()["micronode.toml"], NodeConfig), NodeConfig())

    def test_nothing_at_all_is_a_valid_micronode(self) -> None:
        check("ron-node", {})

    def test_an_oniond_needs_an_app(self) -> None:
        for tables in ({}, {"apps": []}):
            error = self.assertRaises(ConfigError, check, "ron-oniond", tables)
            self.assertIn("apps", error.message)


class Misspellings(SynchronousTestCase):
    """No key may be written wrongly without being told."""

    def named(self, daemon: str, tables: dict[str, Any]) -> int:
        count = 0
        for path, steps in keys_of(tables):
            wrong = f"{steps[-1]}s" if len(path) % 2 else f"{steps[-1]}"[:-1] + "_"
            error = self.assertRaises(ConfigError, check, daemon, misspelt(tables, steps, wrong))
            self.assertEqual(error.key, path[: len(path) - len(str(steps[-1]))] + wrong)
            self.assertIn("unknown key", error.message)
            self.assertIn(str(steps[-1]), str(error.hint))
            count += 1
        return count

    def test_in_every_example(self) -> None:
        for tables in examples().values():
            self.assertGreater(self.named(daemon_of(tables), tables), 2)

    def test_in_a_config_with_every_key(self) -> None:
        for daemon, tables in FULL.items():
            check(daemon, tables)
            self.assertGreater(self.named(daemon, tables), 15)

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_wrong_types_anywhere_name_the_key(self, data: st.DataObject) -> None:
        daemon = data.draw(st.sampled_from(sorted(FULL)))
        path, steps = data.draw(st.sampled_from(list(keys_of(FULL[daemon]))))
        tables = copy.deepcopy(FULL[daemon])
        old = at(tables, steps)
        wrong = [5.5, {"x": 1}, ["x"], "\0", True, -1, None]
        new = data.draw(st.sampled_from([w for w in wrong if type(w) is not type(old)]))
        at(tables, steps[:-1])[steps[-1]] = new
        error = self.assertRaises(ConfigError, check, daemon, tables)
        self.assertTrue(error.key.startswith(path), (error.key, path))


class Rules(SynchronousTestCase):
    """What no single key can know."""

    def refused(self, key: str, daemon: str = "ron-node", **sections: Any) -> ConfigError:
        tables: dict[str, Any] = {} if daemon == "ron-node" else {"apps": APPS}
        error: ConfigError = self.assertRaises(ConfigError, check, daemon, {**tables, **sections})
        self.assertEqual(error.key, key, error.message)
        self.assertTrue(error.hint)
        return error

    def test_listeners_are_on_loopback(self) -> None:
        for host in ("0.0.0.0", "192.168.1.1", "[::]", "8.8.8.8"):  # noqa: S104
            address = f"{host}:9000"
            for key, daemon, sections in (
                ("gateway.bind", "ron-node", {"gateway": {"bind": address}}),
                ("mailbox.listen", "ron-node", {"mailbox": {"listen": address}}),
                ("admin.bind", "ron-oniond", {"admin": {"bind": address}}),
            ):
                self.assertIn("not a loopback address", self.refused(key, daemon, **sections).message)

    def test_listeners_are_addresses(self) -> None:
        for text in ("9080", "localhost:9080", "127.0.0.1:99999", "127.0.0.1:9080\n", ""):
            self.refused("gateway.bind", gateway={"bind": text})
            self.refused("admin.bind", "ron-oniond", admin={"bind": text})
        for text in ("localhost:9410", "127.0.0.1:99999", "x"):
            self.refused("mailbox.listen", mailbox={"listen": text})

    def test_loopback_of_either_family_and_a_port_of_the_systems_choice(self) -> None:
        check("ron-node", {"gateway": {"bind": "[::1]:9080"}, "mailbox": {"listen": "[::1]:9410"}})
        check("ron-node", {"gateway": {"bind": "127.0.0.1:0"}, "mailbox": {"listen": "127.0.0.1:0"}})

    def test_two_listeners_cannot_share_an_address(self) -> None:
        self.refused("mailbox.listen", gateway={"bind": "127.0.0.1:7"}, mailbox={"listen": "127.0.0.1:7"})
        self.refused("mailbox.listen", gateway={"bind": "[::1]:7"}, mailbox={"listen": "[0::1]:7"})
        check("ron-node", {"gateway": {"bind": "127.0.0.1:7"}, "mailbox": {"listen": "127.0.0.2:7"}})

    def test_a_micronode_embeds_its_onions(self) -> None:
        self.refused("onion.embedded", onion={"embedded": False})

    def test_amnesia_writes_no_log_file(self) -> None:
        for daemon in ("ron-node", "ron-oniond"):
            self.refused("log.to", daemon, onion={"amnesia": True})
            self.refused("log.to", daemon, onion={"amnesia": True}, log={"to": "file"})
            for to in ("memory", "stderr"):
                tables: dict[str, Any] = {"onion": {"amnesia": True}, "log": {"to": to}}
                check(daemon, tables if daemon == "ron-node" else {**tables, "apps": APPS})

    def test_an_onion_port_is_exposed_once(self) -> None:
        twice = [EXPOSE[0], EXPOSE[1], EXPOSE[0]]
        self.refused("gateway.expose[2].onion_port", gateway={"expose": twice})
        self.refused("apps[0].expose[2].onion_port", "ron-oniond", apps=[{"name": "wiki", "expose": twice}])

    def test_only_this_machine_is_exposed(self) -> None:
        for local in ("0.0.0.0:80", "example.com:80", "10.0.0.1:80", "127.0.0.1", "127.0.0.1:80 x", "127.0.0.1:80\n"):
            expose = [{"local": local, "onion_port": 80}]
            self.refused("gateway.expose[0].local", gateway={"expose": expose})
            self.refused("apps[0].expose[0].local", "ron-oniond", apps=[{"name": "wiki", "expose": expose}])

    def test_an_exposed_port_exists(self) -> None:
        for port in ("0", "00000", "65536", "99999"):
            self.refused(
                "gateway.expose[0].local", gateway={"expose": [{"local": f"127.0.0.1:{port}", "onion_port": 80}]}
            )
        for port in (0, 65536, -1):
            self.refused(
                "gateway.expose[0].onion_port",
                gateway={"expose": [{"local": "127.0.0.1:80", "onion_port": port}]},
            )

    def test_an_app_is_there_once(self) -> None:
        error = self.refused("apps[2].name", "ron-oniond", apps=[*APPS, APPS[0]])
        self.assertIn("'wiki'", error.message)

    def test_an_apps_name_is_a_file_name(self) -> None:
        for name in ("", "Wiki", "a/b", "..", "-a", "a_b", "a" * 64, "ä"):
            self.refused("apps[0].name", "ron-oniond", apps=[{"name": name, "expose": EXPOSE}])
            self.refused("onion.app", onion={"app": name})


class Whose(SynchronousTestCase):
    def test_apps_or_admin_mean_oniond(self) -> None:
        for tables, daemon in (
            ({}, "ron-node"),
            ({"node": {}}, "ron-node"),
            ({"apps": []}, "ron-oniond"),
            ({"admin": {}}, "ron-oniond"),
        ):
            self.assertEqual(daemon_of(tables), daemon)


class Home(SynchronousTestCase):
    def test_from_the_environment_or_var_here(self) -> None:
        self.patch(os, "environ", {"RON_HOME": "some/where"})
        self.assertEqual(home_directory(), Path.cwd() / "some" / "where")
        for empty in ({}, {"RON_HOME": ""}):
            self.patch(os, "environ", empty)
            self.assertEqual(home_directory(), Path.cwd() / "var")
