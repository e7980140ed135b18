"""The page keeps its word: every script and style is ours, unaltered, and nothing is asked of anybody else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import ron
from ron.services.gateway.api import CONTENT_SECURITY_POLICY

PACKAGE = Path(ron.__file__).parent
PAGE = PACKAGE / "services" / "gateway" / "page" / "index.html"
ASSETS = PACKAGE / "services" / "edge" / "assets"


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text inside script and style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self._inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in {"script", "style"} else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside and data.strip():
            self.inline.append(data)


class PageTests(SynchronousTestCase):
    """index.html and what it loads."""

    def setUp(self) -> None:
        self.parsed = Tags()
        self.parsed.feed(PAGE.read_text())

    def loaded(self) -> list[tuple[str, dict[str, str | None]]]:
        scripts = [("src", a) for t, a in self.parsed.tags if t == "script"]
        styles = [("href", a) for t, a in self.parsed.tags if t == "link" and a.get("rel") == "stylesheet"]
        return [(str(attributes[key]), attributes) for key, attributes in scripts + styles]

    def test_integrity_is_that_of_the_bytes(self) -> None:
        listed = json.loads((ASSETS / "sri.json").read_text())
        loaded = self.loaded()
        self.assertGreaterEqual(len(loaded), 4)
        for url, attributes in loaded:
            self.assertTrue(url.startswith("/assets/"), url)
            name = url.removeprefix("/assets/").partition("?")[0]
            digest = base64.b64encode(hashlib.sha384((ASSETS / name).read_bytes()).digest()).decode()
            self.assertEqual(attributes.get("integrity"), f"sha384-{digest}", url)
            self.assertEqual(listed[name], f"sha384-{digest}")

    def test_the_vendoring_script_agrees(self) -> None:
        script = PACKAGE.parent / "scripts" / "vendor-assets"
        done = subprocess.run([script, "--check"], capture_output=True, text=True, check=False, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_nothing_inline(self) -> None:
        self.assertEqual(self.parsed.inline, [])
        for tag, attributes in self.parsed.tags:
            handlers = [name for name in attributes if name.startswith("on") or name == "style"]
            self.assertEqual(handlers, [], tag)

    def test_nothing_from_elsewhere(self) -> None:
        for path in (PAGE, ASSETS / "hello" / "hello.js", ASSETS / "hello" / "hello.css"):
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            self.assertEqual(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"']*", text), [], path.name)

    def test_the_policy_lets_nothing_else_in(self) -> None:
        self.assertTrue(CONTENT_SECURITY_POLICY.startswith("default-src 'none';"))
        self.assertNotIn("unsafe", CONTENT_SECURITY_POLICY)
        self.assertIn("connect-src 'self'", CONTENT_SECURITY_POLICY)
