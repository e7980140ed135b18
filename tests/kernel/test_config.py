"""A config file becomes one strict struct, or one complaint that names the key and the fix."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import MAX_CONFIG_BYTES, ConfigError, convert, load, parse
from ron.proto.errors import ErrorCode


class Door(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    width_cm: Annotated[int, msgspec.Meta(ge=1, le=300)] = 90
    colour: Literal["red", "green"] = "red"


class Room(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    doors: tuple[Door, ...] = ()
    exit_door: Door | None = None


class House(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    street: str = "Main Street"
    heated: bool = True
    front: Door = Door()
    rooms: tuple[Room, ...] = ()


TOML = """
street = "Elm Street"
[front]
width_cm = 110
[[rooms]]
name = "hall"
doors = [{ colour = "green" }]
"""
YAML = """
street: Elm Street
front: {width_cm: 110}
rooms:
  - name: hall
    doors:
      - colour: green
"""
WANTED = House(street="Elm Street", front=Door(width_cm=110), rooms=(Room(name="hall", doors=(Door(colour="green"),)),))


KEYS = st.sampled_from(["street", "heated", "front", "rooms", "name", "doors", "width_cm"])
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
ROOMS = st.dictionaries(KEYS, SCALARS, max_size=2)


class Refusals(SynchronousTestCase):
    """What is wrong is named by its path, with the way out."""

    def refused(self, tables: dict[str, Any]) -> ConfigError:
        error: ConfigError = self.assertRaises(ConfigError, convert, tables, House)
        self.assertIs(error.code, ErrorCode.BAD_REQUEST)
        return error

    def test_unknown_keys_name_their_path_and_a_suggestion(self) -> None:
        for tables, key, meant in (
            ({"stret": "x"}, "stret", "street"),
            ({"front": {"width_mm": 3}}, "front.width_mm", "width_cm"),
            ({"rooms": [{"nam": "hall"}]}, "rooms[0].nam", "name"),
            ({"rooms": [{"name": "a"}, {"name": "b", "dors": []}]}, "rooms[1].dors", "doors"),
            ({"rooms": [{"name": "a", "doors": [{}, {"color": "red"}]}]}, "rooms[0].doors[1].color", "colour"),
            ({"rooms": [{"name": "a", "exit_door": {"widthcm": 1}}]}, "rooms[0].exit_door.widthcm", "width_cm"),
        ):
            error = self.refused(tables)
            self.assertEqual(error.key, key)
            self.assertEqual(error.message, f"{key}: unknown key")
            self.assertEqual(error.hint, f"did you mean {meant!r}?")

    def test_a_key_like_no_other_gets_the_list_of_what_is_known(self) -> None:
        self.assertEqual(self.refused({"qqqq": 1}).hint, "known keys here: street, heated, front, rooms")
        self.assertEqual(self.refused({"front": {"qqqq": 1}}).hint, "known keys here: width_cm, colour")

    def test_wrong_types_name_their_path(self) -> None:
        """Strict: no text for a number, no number for a truth value."""
        for tables, key in (
            ({"street": 5}, "street"),
            ({"heated": 1}, "heated"),
            ({"heated": "yes"}, "heated"),
            ({"front": []}, "front"),
            ({"front": {"width_cm": "90"}}, "front.width_cm"),
            ({"front": {"width_cm": 90.5}}, "front.width_cm"),
            ({"rooms": {"name": "hall"}}, "rooms"),
            ({"rooms": [{"name": "hall"}, "cellar"]}, "rooms[1]"),
        ):
            error = self.refused(tables)
            self.assertEqual(error.key, key)
            self.assertIn("expected", error.message)

    def test_out_of_range_names_path_and_bound(self) -> None:
        for width, bound in ((0, ">= 1"), (301, "<= 300")):
            error = self.refused({"rooms": [{"name": "a", "doors": [{"width_cm": width}]}]})
            self.assertEqual(error.key, "rooms[0].doors[0].width_cm")
            self.assertIn(bound, error.message)

    def test_not_one_of_the_choices(self) -> None:
        error = self.refused({"front": {"colour": "blue"}})
        self.assertEqual(error.key, "front.colour")
        self.assertIn("'blue'", error.message)

    def test_a_missing_key_is_named(self) -> None:
        error = self.refused({"rooms": [{"doors": []}]})
        self.assertEqual(error.key, "rooms[0]")
        self.assertIn("name", error.message)

    def test_a_key_that_is_not_text(self) -> None:
        """YAML has such keys; the section they stand in is named."""
        error = self.refused({"front": {5: 1}})
        self.assertEqual(error.key, "front")
        self.assertIn("a key here is no name", error.message)

    def test_a_complaint_quotes_no_python(self) -> None:
        for tables in ({"street": 5}, {"front": {"colour": "blue"}}, {"x": 1}):
            self.assertNotIn("`", self.refused(tables).message)

    @settings(max_examples=100, deadline=None)
    @given(st.dictionaries(st.text(max_size=8) | KEYS, SCALARS | st.lists(SCALARS | ROOMS, max_size=2), max_size=3))
    def test_arbitrary_tables_are_a_house_or_a_config_error(self, tables: dict[str, Any]) -> None:
        try:
            house = convert(tables, House)
        except ConfigError as error:
            self.assertTrue(error.message)
        else:
            self.assertLessEqual(set(tables), set(House.__struct_fields__))
            self.assertIsInstance(house, House)


class Files(SynchronousTestCase):
    """TOML and YAML alike; everything else is a complaint, never a traceback."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def written(self, text: str | bytes, name: str = "house.toml") -> Path:
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def refused(self, path: Path) -> ConfigError:
        error: ConfigError = self.assertRaises(ConfigError, load, path, House)
        self.assertIn(str(path).replace("\0", "\\x00"), error.message)
        self.assertTrue(error.hint)
        self.assertEqual(error.key, "")
        return error

    def test_toml_and_yaml_say_the_same(self) -> None:
        self.assertEqual(load(self.written(TOML), House), WANTED)
        self.assertEqual(load(self.written(YAML, "house.yaml"), House), WANTED)
        self.assertEqual(load(self.written(YAML, "house.yml"), House), WANTED)

    def test_json_says_the_same(self) -> None:
        tables = parse(self.written(YAML, "house.yaml"))
        self.assertEqual(load(self.written(json.dumps(tables), "house.json"), House), WANTED)
        for text, said in (
            ("", "truncated"),
            ("{", "truncated"),
            ('{"a": 1, "a": 2}', "`a` twice"),
            ('{"a": {"b": 1, "b": 1}}', "`b` twice"),
            ("[]", "holds no sections"),
            ("[" * 40 + "]" * 40, "nested too deeply"),
        ):
            self.assertIn(said, self.refused(self.written(text, "house.json")).message)

    def test_an_empty_file_is_all_defaults(self) -> None:
        for name in ("house.toml", "house.yaml"):
            for text in ("", "\n\n", "# only a comment\n"):
                self.assertEqual(load(self.written(text, name), House), House())

    def test_garbage_names_the_place(self) -> None:
        self.assertIn("line 2", self.refused(self.written("a = 1\n= 2\n")).message)
        self.assertIn("line 2", self.refused(self.written("a: 1\n{b\n", "house.yaml")).message)
        self.assertIn("line 1", self.refused(self.written("a = '\0'")).message)

    def test_no_sections(self) -> None:
        for text in ("just words", "- a\n- b\n", "42"):
            self.assertIn("holds no sections", self.refused(self.written(text, "house.yaml")).message)

    def test_a_directory(self) -> None:
        self.assertIn("directory", self.refused(self.folder).message)

    def test_nothing_there(self) -> None:
        error = self.refused(self.folder / "missing.toml")
        self.assertIn("No such file", error.message)
        self.assertIn("--config", str(error.hint))

    def test_not_utf8(self) -> None:
        self.assertIn("not UTF-8", self.refused(self.written(b'street = "\xff"')).message)

    def test_the_size_limit_to_the_byte(self) -> None:
        fits = b"#" * (MAX_CONFIG_BYTES - 1) + b"\n"
        self.assertEqual(load(self.written(fits), House), House())
        self.assertIn(f"over {MAX_CONFIG_BYTES} bytes", self.refused(self.written(b"#" + fits)).message)

    def test_text_its_parser_chokes_on(self) -> None:
        """PyYAML and tomllib let ValueError, KeyError, AttributeError and RecursionError out."""
        for name, text in (
            ("a.yaml", "a: 2001-99-99"),
            ("b.yaml", "a: !!int ''"),
            ("c.yaml", "a: !!bool x"),
            ("d.yaml", "a: !!timestamp x"),
            ("e.yaml", "[" * 1500),
            ("f.toml", "a=" + "[" * 1500),
            ("g.toml", "a=" + "9" * 5000),
            ("h.toml", "a=" + "{a=" * 5000),
        ):
            self.refused(self.written(text, name))

    def test_text_made_to_keep_its_parser_busy(self) -> None:
        """Each takes tomllib or libyaml seconds to minutes when it is let through (256 KiB, quadratic)."""
        size = MAX_CONFIG_BYTES - 32
        for name, text, word in (
            ("a.yaml", "[" * size, "brackets"),
            ("b.yaml", "- " * (size // 2), "nested too deeply"),
            ("c.yaml", "a: " + ":".join("1" * (size // 2)), "characters"),
            ("d.toml", ".".join("a" * (size // 2)) + "=1", "dots"),
            ("e.toml", "".join(f"k{n}.{'a.' * 60}a=1\n" for n in range(1900)), "dots"),
            ("f.toml", "a=" + "{a=" * 40 + "1" + "}" * 40, "nested too deeply"),
        ):
            self.assertIn(word, self.refused(self.written(text[:size], name)).message)

    def test_yaml_aliases_and_anchors(self) -> None:
        """Nine lines of them can stand for a billion values."""
        laughs = "a: &a [x,x,x,x]\n" + "".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
        )
        for text in (laughs, "a: &x 1", "a: &x {b: 1}\nc: *x", "a: &x {b: 1}\nc:\n  <<: *x"):
            self.assertIn("write the value out", self.refused(self.written(text, "house.yaml")).message)

    def test_a_yaml_key_that_is_there_twice(self) -> None:
        """PyYAML takes the last one without a word; TOML forbids it."""
        for text in ("street: a\nstreet: b\n", "front:\n  width_cm: 1\n  width_cm: 2\n", "a: {b: 1, 'b': 2}\n"):
            self.assertIn("twice", self.refused(self.written(text, "house.yaml")).message)
        self.refused(self.written('street = "a"\nstreet = "b"\n'))
        same = "front: {width_cm: 1}\nrooms: [{name: a, doors: [{width_cm: 2}]}, {name: a}, {name: name}]\n"
        self.assertEqual(len(load(self.written(same, "house.yaml"), House).rooms), 3)

    def test_what_is_no_regular_file_is_not_waited_for(self) -> None:
        pipe = self.folder / "pipe.toml"
        os.mkfifo(pipe)
        self.assertIn("a pipe", self.refused(pipe).message)
        for device in ("/dev/zero", "/dev/null", "/dev/tty"):
            self.assertIn("no regular file", self.refused(Path(device)).message)
        self.refused(Path("a\0b"))

    def test_yaml_never_makes_objects(self) -> None:
        self.refused(self.written("a: !!python/object/apply:os.system ['true']", "house.yaml"))

    def test_yaml_that_refers_to_itself(self) -> None:
        self.assertIn("aliases", self.refused(self.written("rooms: &r [*r]", "house.yaml")).message)

    @settings(max_examples=100, deadline=None)
    @given(st.text(alphabet="ab=[]{}:-\"'\n #&*!?0123456789.T_\t", max_size=60), st.sampled_from(["x.toml", "x.yaml"]))
    @example("a: !!float x", "x.yaml")
    def test_arbitrary_text_gives_tables_or_a_config_error(self, text: str, name: str) -> None:
        try:
            tables = parse(self.written(text, name))
        except ConfigError as error:
            self.assertIn(name, error.message)
        else:
            self.assertIsInstance(tables, dict)

    @settings(max_examples=50, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
    def test_values_come_through_as_written(self, street: str) -> None:
        """JSON strings are YAML flow scalars and TOML basic strings too."""
        text = json.dumps(street, ensure_ascii=False)
        self.assertEqual(load(self.written(f"street = {text}"), House).street, street)
