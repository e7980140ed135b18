"""The config of each daemon: the examples hold, every misspelling is named, what is not built is told."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import ConfigError, convert, json_schema, keys_of, variable_of
from ron.kernel.config.schema import leaves
from ron.services.configs import SCHEMAS, NodeConfig, daemon_of, home_directory, not_built
from tests.services.configtables import (
    APPS,
    ETC,
    FULL,
    SKETCHES,
    at,
    check,
    daemon_by_name,
    examples,
    keys_of_tables,
    misspelt,
)


class Examples(SynchronousTestCase):
    """The files people start from."""

    def test_each_is_valid_for_its_daemon(self) -> None:
        found = examples()
        wanted = {"micronode.toml", "micronode-amnesia.toml", "macronode.toml", "oniond.toml", "balance.toml"}
        self.assertLessEqual(wanted, set(found))
        for name, tables in found.items():
            self.assertEqual(daemon_of(tables), daemon_by_name(name))
            check(daemon_of(tables), tables)

    def test_none_is_valid_for_another_daemon(self) -> None:
        for name, tables in examples().items():
            # the one about amnesia says nothing that the onion runtime alone would not understand
            alike = {"ron-oniond"} if set(tables) == {"onion", "log"} else set()
            for other in set(SCHEMAS) - {daemon_of(tables)} - alike:
                with self.assertRaises(ConfigError, msg=f"{name} for {other}"):
                    check(other, tables)

    def test_only_the_omnigates_asks_for_what_is_not_built(self) -> None:
        for name, tables in examples().items():
            config = convert(tables, SCHEMAS[daemon_of(tables)][0])
            self.assertEqual(bool(not_built(config)), name == "omnigate.toml", name)

    def test_the_macronodes_says_so(self) -> None:
        config = convert(examples()["macronode.toml"], NodeConfig)
        self.assertEqual((config.node.profile, config.gateway.workers), ("macronode", 2))

    def test_the_micronodes_shows_every_default(self) -> None:
        """A reader of the file sees every key of the sections that are meant to be set, or a comment with it."""
        text = (ETC / "micronode.toml").read_text(encoding="utf-8")
        for section in ("api", "dos", "limits", "slo", "observability", "shutdown", "profiling", "log", "onion"):
            for key in keys_of(NodeConfig):
                if key.startswith(f"{section}.") and key != "onion.federate_peers":
                    self.assertIn(f"{key.split('.')[-1]} = ", text, key)

    def test_the_micronodes_shows_the_defaults(self) -> None:
        """It says so in its first lines."""
        self.assertEqual(convert(examples()["micronode.toml"], NodeConfig), NodeConfig())

    def test_nothing_at_all_is_a_valid_micronode(self) -> None:
        check("ron-node", {})

    def test_an_oniond_needs_no_app(self) -> None:
        """Programs ask for their onions themselves."""
        for tables in ({}, {"apps": []}):
            check("ron-oniond", tables)


class Misspellings(SynchronousTestCase):
    """No key may be written wrongly without being told."""

    def named(self, daemon: str, tables: dict[str, Any]) -> int:
        count = 0
        for path, steps in keys_of_tables(tables):
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

    def test_in_the_specifications_sketches(self) -> None:
        for daemon, tables in SKETCHES.values():
            convert(tables, SCHEMAS[daemon][0])
            self.assertGreater(self.named(daemon, tables), 14)

    def test_in_a_config_with_every_key(self) -> None:
        for daemon, tables in FULL.items():
            check(daemon, tables)
            self.assertGreaterEqual(self.named(daemon, tables), len(keys_of(SCHEMAS[daemon][0])))

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_wrong_types_anywhere_name_the_key(self, data: st.DataObject) -> None:
        daemon = data.draw(st.sampled_from(sorted(FULL)))
        path, steps = data.draw(st.sampled_from(list(keys_of_tables(FULL[daemon]))))
        tables = copy.deepcopy(FULL[daemon])
        old = at(tables, steps)
        wrong = [5.5, {"x": 1}, ["x"], "\0", True, -1, None]
        fine = {"tls": None, "autoscale": None, "enabled": True}
        new = data.draw(
            st.sampled_from([w for w in wrong if type(w) is not type(old) and w is not fine.get(str(steps[-1]), ...)])
        )
        at(tables, steps[:-1])[steps[-1]] = new
        error = self.assertRaises(ConfigError, check, daemon, tables)
        self.assertTrue(error.key.startswith(path), (error.key, path))


class NotBuilt(SynchronousTestCase):
    """What is accepted and does nothing is told."""

    def told(self, daemon: str, tables: dict[str, Any]) -> dict[str, str]:
        return dict(not_built(convert(tables, SCHEMAS[daemon][0])))

    def test_defaults_ask_for_nothing(self) -> None:
        self.assertEqual(self.told("ron-node", {}), {})
        self.assertEqual(self.told("ron-oniond", {"apps": APPS}), {})
        self.assertEqual(set(self.told("omnigate", {})), {"oniond"})

    def test_each_key_of_the_sketches_that_does_nothing(self) -> None:
        told = [set(self.told(daemon, tables)) for daemon, tables in SKETCHES.values()]
        self.assertEqual(
            told[0],
            {"mailbox.ack_deadline_ms", "mailbox.dead_letter_dir"}
            | {
                f"edge.{name}" for name in ("mode", "allow", "cache_dir", "integrity_sri", "adaptive_cache", "prefetch")
            },
        )
        self.assertEqual(told[1], {"mailbox.ws_listen"})
        self.assertLessEqual({"oniond", "oniond.autoscale", "edge.rate_limit_rps", "edge.cache_ttl_default"}, told[2])

    def test_other_ways_to_ask(self) -> None:
        for key, sections in (
            ("mailbox.priority_levels", {"mailbox": {"priority_levels": 5}}),
            ("edge.mode", {"edge": {"mode": "hybrid"}}),
            ("federation.allow", {"federation": {"allow": ["x.onion"]}}),
            ("onion.federate_peers", {"onion": {"federate_peers": ["x.onion"]}}),
            (
                "observability.otel_endpoint",
                {"onion": {"amnesia": True}, "observability": {"otel_endpoint": "http://a/"}},
            ),
        ):
            self.assertEqual(set(self.told("ron-node", sections)), {key})


class Schemas(SynchronousTestCase):
    """What `ronctl config schema` prints agrees with the daemons."""

    def test_examples_fit_and_misspellings_do_not(self) -> None:
        for daemon, (schema, _rules) in SCHEMAS.items():
            wire = msgspec.json.decode(msgspec.json.encode(json_schema(schema, title=daemon)))
            Draft202012Validator.check_schema(wire)
            validator = Draft202012Validator(wire)
            fitting = [FULL[daemon], *(t for t in examples().values() if daemon_of(t) == daemon)]
            for tables in [*fitting, *(t for d, t in SKETCHES.values() if d == daemon)]:
                self.assertEqual([error.message for error in validator.iter_errors(tables)], [])
            for _path, steps in keys_of_tables(FULL[daemon]):
                self.assertFalse(validator.is_valid(misspelt(FULL[daemon], steps, f"{steps[-1]}x")), steps)

    def test_no_two_keys_share_a_variable(self) -> None:
        for schema, _rules in SCHEMAS.values():
            names = [variable_of(key) for key in keys_of(schema)]
            self.assertEqual(len(names), len(set(names)))
            self.assertFalse({"RON_HOME", "RON_CAP", "RON_NODE"} & set(names))
            self.assertFalse([name for name in names if name.startswith("RON_PROCESS_")])

    def test_every_key_stands_in_the_docs(self) -> None:
        pages = [
            (ETC.parent / "docs" / name).read_text(encoding="utf-8")
            for name in ("configuration.rst", "mailbox.rst", "kms/configuration.rst")
        ]
        for schema, _rules in SCHEMAS.values():
            for key in keys_of(schema):
                there = f"``{key}``" in pages[0] or f"``{key.removeprefix('mailbox.')}``" in pages[1]
                self.assertTrue(there or f"``{key.removeprefix('kms.')}``" in pages[2], key)

    def test_keys_that_need_no_restart_are_marked_in_the_docs(self) -> None:
        page = (ETC.parent / "docs" / "configuration.rst").read_text(encoding="utf-8")
        for key, leaf in leaves(NodeConfig).items():
            if f"``{key}``" in page:
                self.assertEqual(f"``{key}`` ●" in page, leaf.live, key)


class Whose(SynchronousTestCase):
    def test_the_sections_tell(self) -> None:
        for tables, daemon in (
            ({}, "ron-node"),
            ({"node": {}}, "ron-node"),
            ({"apps": []}, "ron-oniond"),
            ({"admin": {}}, "ron-oniond"),
            ({"oniond": {}}, "omnigate"),
            ({"tenancy": {}, "admin": {}}, "omnigate"),
        ):
            self.assertEqual(daemon_of(tables), daemon)


class Home(SynchronousTestCase):
    def test_from_the_environment_or_var_here(self) -> None:
        self.patch(os, "environ", {"RON_HOME": "some/where"})
        self.assertEqual(home_directory(), Path.cwd() / "some" / "where")
        for empty in ({}, {"RON_HOME": ""}):
            self.patch(os, "environ", empty)
            self.assertEqual(home_directory(), Path.cwd() / "var")
