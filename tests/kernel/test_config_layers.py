"""defaults < file < environment < flags, and every complaint says which of them it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import ConfigError, Layers, Resolved, keys_of, variable_of
from ron.kernel.units import Seconds


class Box(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_inflight: Annotated[int, Meta(ge=1, le=100)] = 10
    max: int = 1
    wait_ms: Annotated[int, Meta(ge=0, extra={"unit": "ms"})] = 5
    size: Annotated[int, Meta(extra={"unit": "bytes"})] | None = None
    pauses: tuple[Seconds, ...] = ()
    drain_s: Annotated[float, Meta(extra={"unit": "s"})] = 1.0


class Papers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    certificate: str = ""
    key: str = ""


class Door(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    width: int = 1


class Gate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    open: bool = False
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    colour: Literal["red", "green"] = "red"
    names: tuple[str, ...] = ("a",)
    doors: tuple[Door, ...] = ()
    tls: Papers | None = None


class House(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    box: Box = Box()
    gate: Gate = Gate()


def check(house: House) -> None:
    """A rule across keys."""
    if house.box.max > house.box.max_inflight:
        raise ConfigError("is over box.max_inflight", key="box.max", hint="lower it")


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp() + ".toml")

    def layers(self, text: str | None = None, environ: Any = None, flags: Any = None) -> Layers[House]:
        if text is not None:
            self.path.write_text(text)
        return Layers(House, check, self.path if text is not None else None, environ or {}, flags or {})

    def refused(self, text: str | None = None, environ: Any = None, flags: Any = None) -> ConfigError:
        error: ConfigError = self.assertRaises(ConfigError, self.layers(text, environ, flags).resolve)
        self.assertTrue(error.hint)
        return error


class WrongVariables(Case):
    """A variable that means nothing is refused, whoever set it."""

    def test_a_misspelt_key_of_a_known_section(self) -> None:
        error = self.refused(environ={"RON_BOX_MAX_INFLGHT": "3"})
        self.assertEqual(error.source, "RON_BOX_MAX_INFLGHT")
        self.assertIn("RON_BOX_MAX_INFLGHT", error.message)
        self.assertEqual(error.hint, "did you mean 'RON_BOX_MAX_INFLIGHT'?")

    def test_a_key_like_no_other_gets_the_list_of_its_section(self) -> None:
        hint = str(self.refused(environ={"RON_GATE_QQQQQQQQQQQ": "3"}).hint)
        self.assertIn("RON_GATE_OPEN", hint)
        self.assertNotIn("RON_BOX", hint)

    def test_no_section(self) -> None:
        self.assertIn("RON_BOX_MAX", str(self.refused(environ={"RON_BOKS_MAX": "3"}).hint))
        self.assertIn("RON_HOME", str(self.refused(environ={"RON_HOMER": "3"}).hint))
        self.assertIn("unset it", str(self.refused(environ={"RON_ZZZZZZZZZZZZZZ": "3"}).hint))

    def test_a_section_is_no_key_and_letters_are_capital(self) -> None:
        for name in ("RON_BOX", "RON_", "RON_GATE_TLS", "RON_box_max", "RON_BOX__MAX", "RON_BOX_MAX_"):
            self.assertEqual(self.refused(environ={name: "1"}).source, name)

    def test_what_is_not_config_is_left_alone(self) -> None:
        environ = {
            "RON_HOME": "x",
            "RON_CAP": "y",
            "RON_NODE": "z",
            "RON_PROCESS_NAME": "p",
            "PATH": "/",
            "RONBOX": "1",
        }
        self.assertEqual(self.layers(environ=environ).resolve(), House())

    def test_values_that_do_not_fit_name_variable_and_key(self) -> None:
        for name, text, key in (
            ("RON_BOX_MAX_INFLIGHT", "many", "box.max_inflight"),
            ("RON_BOX_MAX_INFLIGHT", "", "box.max_inflight"),
            ("RON_BOX_MAX_INFLIGHT", "1_0", "box.max_inflight"),
            ("RON_BOX_MAX_INFLIGHT", "٣", "box.max_inflight"),
            ("RON_BOX_MAX_INFLIGHT", "9" * 5000, "box.max_inflight"),
            ("RON_BOX_MAX_INFLIGHT", "101", "box.max_inflight"),
            ("RON_BOX_MAX_INFLIGHT", "5.0", "box.max_inflight"),
            ("RON_BOX_WAIT_MS", "5 s", "box.wait_ms"),
            ("RON_BOX_WAIT_MS", "5MiB", "box.wait_ms"),
            ("RON_BOX_SIZE", "5s", "box.size"),
            ("RON_BOX_PAUSES", "5s,x", "box.pauses[1]"),
            ("RON_BOX_PAUSES", "500ms", "box.pauses[0]"),
            ("RON_GATE_OPEN", "yes", "gate.open"),
            ("RON_GATE_OPEN", "", "gate.open"),
            ("RON_GATE_SHARE", "nan", "gate.share"),
            ("RON_GATE_SHARE", "1.5", "gate.share"),
            ("RON_GATE_COLOUR", "blue", "gate.colour"),
            ("RON_GATE_DOORS", "hall", "gate.doors[0]"),
            ("RON_GATE_DOORS", "[{", "gate.doors"),
            ("RON_GATE_DOORS", '[{"name":"a"},{"nam":"b"}]', "gate.doors[1].nam"),
            ("RON_GATE_NAMES", "x" * 100_000, "gate.names"),
        ):
            error = self.refused(environ={name: text})
            self.assertEqual((error.key, error.source), (key, name), text[:20])
            self.assertTrue(error.message.startswith(f"{key}: "), error.message)
            self.assertTrue(error.message.endswith(f"(from {name})"), error.message)

    def test_a_refused_value_is_not_repeated(self) -> None:
        """It may have been a secret, put into the wrong variable."""
        for name in ("RON_BOX_MAX", "RON_GATE_OPEN", "RON_GATE_SHARE"):
            self.assertNotIn("hunter2", self.refused(environ={name: "hunter2"}).one_line())


class WrongFlagsAndFiles(Case):
    def test_an_unknown_flag(self) -> None:
        for key, meant in (("box.max_inflght", "box.max_inflight"), ("gate.opn", "gate.open"), ("bx.max", "box.max")):
            error = self.refused(flags={key: "1"})
            self.assertEqual((error.key, error.source), (key, f"--set {key}"))
            self.assertEqual(error.hint, f"did you mean {meant!r}?")
        self.assertIn("sections here: box, gate", str(self.refused(flags={"zzzz": "1"}).hint))
        self.refused(flags={"box": "{}"})
        self.refused(flags={"": "1"})

    def test_a_flag_that_does_not_fit(self) -> None:
        error = self.refused(flags={"box.max_inflight": "0"})
        self.assertEqual((error.key, error.source), ("box.max_inflight", "--set box.max_inflight"))

    def test_the_file_is_named(self) -> None:
        for text, key in (
            ("[box]\nmax_inflght = 1", "box.max_inflght"),
            ("[box]\nwait_ms = '5'", "box.wait_ms"),
            ("[[gate.doors]]\nname = 'a'\nwidth = 'b'", "gate.doors[0].width"),
            ("box = 5", "box"),
            ("[box]\nmax = 50", "box.max"),
        ):
            error = self.refused(text)
            self.assertEqual((error.key, error.source), (key, str(self.path)))
        self.assertEqual(self.refused("= 1").source, str(self.path))

    def test_a_rule_broken_between_layers_names_the_keys_own(self) -> None:
        self.assertEqual(self.refused("[box]\nmax = 9", {"RON_BOX_MAX_INFLIGHT": "8"}).source, str(self.path))
        self.assertEqual(self.refused("[box]\nmax_inflight = 9", {"RON_BOX_MAX": "10"}).source, "RON_BOX_MAX")

    def test_a_variable_below_something_that_is_no_section(self) -> None:
        error = self.refused("box = 5", {"RON_BOX_MAX": "3"})
        self.assertEqual((error.key, error.source), ("box", str(self.path)))


class Precedence(Case):
    """Each layer covers only what it says."""

    def test_each_over_the_one_before(self) -> None:
        text, environ, flags = "[box]\nmax_inflight = 20", {"RON_BOX_MAX_INFLIGHT": "30"}, {"box.max_inflight": "40"}
        for layers, value in (
            (self.layers(), 10),
            (self.layers(text), 20),
            (self.layers(text, environ), 30),
            (self.layers(text, environ, flags), 40),
            (self.layers(None, {}, flags), 40),
        ):
            self.assertEqual(layers.resolve().box.max_inflight, value)

    def test_the_source_of_every_value(self) -> None:
        layers = self.layers(
            "[box]\nmax_inflight = 20\nmax = 2\n[[gate.doors]]\nname = 'a'", {"RON_BOX_MAX": "3"}, {"gate.open": "1"}
        )
        resolved: Resolved[House] = layers.judge(layers.inputs())
        file = str(self.path)
        for key, source in (
            ("box.max_inflight", file),
            ("box.max", "RON_BOX_MAX"),
            ("box.wait_ms", "default"),
            ("gate.open", "--set gate.open"),
            ("gate.doors[0].name", file),
            ("gate.tls", "default"),
        ):
            self.assertEqual(resolved.source(key), source)

    def test_values_of_every_type(self) -> None:
        environ = {
            "RON_BOX_MAX": "-7",
            "RON_BOX_WAIT_MS": "2s",
            "RON_BOX_SIZE": "1KiB",
            "RON_BOX_PAUSES": "1, 2m,3h",
            "RON_BOX_DRAIN_S": "250ms",
            "RON_GATE_OPEN": "TRUE",
            "RON_GATE_SHARE": "1e-3",
            "RON_GATE_COLOUR": "green",
            "RON_GATE_NAMES": "x,y",
            "RON_GATE_DOORS": '[{"name": "front", "width": 2}]',
            "RON_GATE_TLS_KEY": "a,b.pem",
        }
        house = self.layers(environ=environ).resolve()
        self.assertEqual(house.box, Box(max=-7, wait_ms=2000, size=1024, pauses=(1, 120, 10800), drain_s=0.25))
        self.assertEqual(
            house.gate,
            Gate(
                open=True,
                share=0.001,
                colour="green",
                names=("x", "y"),
                doors=(Door(name="front", width=2),),
                tls=Papers(key="a,b.pem"),
            ),
        )

    def test_lists(self) -> None:
        for text, names in (
            ("", ()),
            (" ", ()),
            ("a", ("a",)),
            ('["a,b"]', ("a,b",)),
            ("[]", ()),
            (" a , b ", ("a", "b")),
        ):
            self.assertEqual(self.layers(environ={"RON_GATE_NAMES": text}).resolve().gate.names, names)

    def test_the_longest_key_is_meant(self) -> None:
        house = self.layers(environ={"RON_BOX_MAX_INFLIGHT": "5", "RON_BOX_MAX": "4"}).resolve()
        self.assertEqual((house.box.max_inflight, house.box.max), (5, 4))

    @settings(max_examples=60, deadline=None)
    @given(st.dictionaries(st.sampled_from(keys_of(House)), st.sampled_from(["file", "env", "flag"]), max_size=4))
    def test_any_mix(self, chosen: dict[str, str]) -> None:
        """Numbers 11, 12, 13 in the three layers: the highest layer that speaks wins, key by key."""
        numbers = {k: v for k, v in chosen.items() if k in {"box.max_inflight", "box.wait_ms", "box.size"}}
        rank = {"file": 1, "env": 2, "flag": 3}
        file = "".join(f"{k} = 11\n" for k, v in numbers.items())
        environ = {variable_of(k): "12" for k, v in numbers.items() if rank[v] >= 2}
        flags = {k: "13" for k, v in numbers.items() if rank[v] >= 3}
        house = self.layers(file, environ, flags).resolve()
        for key, layer in numbers.items():
            self.assertEqual(getattr(house.box, key.split(".")[1]), 10 + rank[layer])
