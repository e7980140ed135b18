"""What every OpenAPI file of ours promises: it is made from the service, means something, and hides nothing.

In: the file and what makes it. Out: tests to inherit beside a TestCase; what answers are held against.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonschema import Draft202012Validator
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parents[1]
# mixins are no tests of their own
_Case = SynchronousTestCase if TYPE_CHECKING else object


class OpenApiFile:
    """docs/openapi/NAME. made: what it should say. remake: the command that writes it."""

    def __init__(self, name: str, made: Callable[[], str], remake: str) -> None:
        self.made = made
        self.remake = f"{remake} docs/openapi/{name}"
        self._path = ROOT / "docs" / "openapi" / name
        self._validators: dict[tuple[int, bool], Draft202012Validator] = {}

    @cached_property
    def text(self) -> str:
        """What is written down."""
        return self._path.read_text(encoding="utf-8")

    @cached_property
    def spec(self) -> dict[str, Any]:
        """What that means."""
        load = json.loads if self._path.suffix == ".json" else yaml.safe_load
        found: dict[str, Any] = load(self.text)
        return found

    @cached_property
    def closed(self) -> dict[str, Any]:
        """The components, with no field let through that they do not name: an answer says no more than its schema."""
        components: dict[str, Any] = json.loads(json.dumps(self.spec["components"]))
        for schema in components["schemas"].values():
            if "properties" in schema:
                schema["additionalProperties"] = False
        return components

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Path, method in lower case, operation."""
        for path, methods in self.spec["paths"].items():
            for method, operation in methods.items():
                yield path, method, operation

    def operation(self, method: str, path: str) -> dict[str, Any]:
        """KeyError when there is none."""
        found: dict[str, Any] = self.spec["paths"][path][method.lower()]
        return found

    def errors(self, content: dict[str, Any], value: Any, *, closed: bool) -> list[str]:
        """What is wrong with `value` as the JSON of a body or a response. closed: also fields that are not named."""
        # kept: a new one reads the whole document again
        if (key := (id(content), closed)) not in self._validators:
            components = self.closed if closed else self.spec["components"]
            schema = {**content["content"]["application/json"]["schema"], "components": components}
            self._validators[key] = Draft202012Validator(schema)
        return [error.message for error in self._validators[key].iter_errors(value)]


class Written(_Case):
    """Of `file`."""

    file: OpenApiFile

    def test_up_to_date(self) -> None:
        self.assertEqual(self.file.text, self.file.made(), f"run {self.file.remake}")

    def test_every_schema_is_one(self) -> None:
        for schema in self.file.spec["components"]["schemas"].values():
            Draft202012Validator.check_schema(schema)

    def test_every_reference_leads_somewhere(self) -> None:
        for name in re.findall(r"#/components/schemas/([A-Za-z0-9_]+)", self.file.text):
            self.assertIn(name, self.file.spec["components"]["schemas"])

    def test_patterns_are_those_of_json_schema(self) -> None:
        self.assertNotIn("\\Z", self.file.text)

    def test_bodies_with_unknown_fields_are_refused(self) -> None:
        for path, _method, operation in self.file.operations():
            if "requestBody" in operation:
                reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                schema = self.file.spec["components"]["schemas"][reference.rpartition("/")[2]]
                self.assertFalse(schema["additionalProperties"], path)

    def test_operations_have_names_and_sentences_of_their_own(self) -> None:
        for key in ("operationId", "summary"):
            names = [operation[key] for _path, _method, operation in self.file.operations()]
            self.assertEqual(len(set(names)), len(names), names)
