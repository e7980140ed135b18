"""Keys with a unit: a plain number, or a text with a unit; and the same said as JSON Schema."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from msgspec import Meta
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import ConfigError, convert, json_schema
from ron.kernel.units import Bytes, Milliseconds, Seconds


class Well(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    wait_ms: Annotated[Milliseconds, Meta(ge=10, le=60_000)] = 1000
    depth_bytes: Bytes | None = None
    pauses: tuple[Seconds, ...] = ()
    drain_s: Annotated[float, Meta(ge=0, extra={"unit": "s"})] = 1.5
    label: str = "5s"


class Village(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    main: Well = Well()
    spare: Well | None = None
    wells: tuple[Well, ...] = ()
    name: Annotated[str, Meta(pattern=r"^[a-z]*\Z")] = "a"


QUANTITIES = st.one_of(
    st.integers(-5, 100_000),
    st.floats(0, 10).filter(lambda number: not number.is_integer()),  # to a schema 1.0 is whole
    st.none(),
    st.booleans(),
    st.from_regex(r"[0-9]{0,6}(ms|s|m|h|d|B|KB|KiB|x)?", fullmatch=True),
)


class Quantities(SynchronousTestCase):
    def refused(self, tables: dict[str, Any]) -> ConfigError:
        error: ConfigError = self.assertRaises(ConfigError, convert, tables, Village)
        self.assertTrue(error.hint)
        return error

    def test_what_does_not_fit_names_its_path(self) -> None:
        for value in ("", "5", "5 s", "1MiB", "5x", "1.5s", "\0", 5.5, True, [], {}, None):
            self.assertEqual(self.refused({"main": {"wait_ms": value}}).key, "main.wait_ms")
        self.assertEqual(self.refused({"wells": [{}, {"depth_bytes": "5s"}]}).key, "wells[1].depth_bytes")
        self.assertEqual(self.refused({"spare": {"pauses": [1, "2s", "500ms"]}}).key, "spare.pauses[2]")

    def test_the_range_holds_for_texts_too(self) -> None:
        for value, bound in ((9, ">= 10"), ("9ms", ">= 10"), (60_001, "<= 60000"), ("2m", "<= 60000")):
            error = self.refused({"main": {"wait_ms": value}})
            self.assertEqual(error.key, "main.wait_ms")
            self.assertIn(bound, error.message)

    def test_texts_become_plain_numbers(self) -> None:
        well = {"wait_ms": "5s", "depth_bytes": "1KiB", "pauses": [1, "2m"], "drain_s": "250ms", "label": "7d"}
        wanted = Well(wait_ms=5000, depth_bytes=1024, pauses=(1, 120), drain_s=0.25, label="7d")
        village = convert({"main": well, "spare": well, "wells": [well]}, Village)
        self.assertEqual(village, Village(main=wanted, spare=wanted, wells=(wanted,)))
        self.assertIs(type(village.main.wait_ms), int)

    def test_what_was_given_is_not_changed(self) -> None:
        tables = {"wells": [{"pauses": ["2m"]}]}
        convert(tables, Village)
        self.assertEqual(tables, {"wells": [{"pauses": ["2m"]}]})


class Schemas(SynchronousTestCase):
    def setUp(self) -> None:
        self.schema = json.loads(msgspec.json.encode(json_schema(Village, title="village")))
        Draft202012Validator.check_schema(self.schema)
        self.validator = Draft202012Validator(self.schema)

    def test_units_are_in_it(self) -> None:
        wait = self.schema["$defs"]["Well"]["properties"]["wait_ms"]
        self.assertEqual(wait["default"], 1000)
        self.assertEqual(wait["anyOf"][0], {"type": "integer", "minimum": 10, "maximum": 60_000})
        self.assertEqual(wait["anyOf"][1]["type"], "string")
        self.assertEqual(self.schema["$defs"]["Well"]["properties"]["label"]["type"], "string")
        self.assertEqual(self.schema["title"], "village")

    def test_patterns_are_portable(self) -> None:
        self.assertNotIn("\\Z", json.dumps(self.schema))

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(["wait_ms", "depth_bytes", "drain_s", "pauses", "label", "labels"]), QUANTITIES)
    def test_what_it_refuses_is_refused(self, key: str, value: Any) -> None:
        """And what it takes is taken, but for ranges of texts, which a schema cannot say."""
        wire = [value] if key == "pauses" else value
        tables = {"main": {key: wire}, "wells": [{key: wire}]}
        taken = self.validator.is_valid(tables)
        try:
            convert(tables, Village)
        except ConfigError as error:
            if not isinstance(value, str):
                self.assertFalse(taken, error)
        else:
            self.assertTrue(taken)
