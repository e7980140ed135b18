"""The map in a real browser, through the onion. Needs tor, Chromium and chromedriver."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

from PIL import Image
from twisted.trial.unittest import SynchronousTestCase

from tests.live.support import NO_CHROMIUM, NO_TOR, chromium, shared_node, until


class HelloMapTests(SynchronousTestCase):
    """What a person sees who opens the onion address."""

    skip = NO_TOR or NO_CHROMIUM

    def test_the_map_loads_through_the_onion(self) -> None:
        facts = shared_node().facts()
        with chromium(facts["socks_port"]) as browser:
            browser.set_page_load_timeout(60)
            browser.get(f"http://{facts['onion']}/")
            body = browser.find_element("css selector", "body")
            until(lambda: int(body.get_attribute("data-tiles") or 0) >= 4, 60, "tiles being shown")
            until(lambda: body.get_attribute("data-ping") == "ok", 60, "a finished ping")
            drawn = "return document.querySelectorAll('img.leaflet-tile-loaded').length"
            until(lambda: browser.execute_script(drawn) >= 4, 20, "tiles drawn")
            text = body.text
            if keep := os.environ.get("RON_SCREENSHOT"):
                Path(keep).write_bytes(browser.get_screenshot_as_png())
            picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
            console = browser.get_log("browser")
            requests = self.requested_urls(browser.get_log("performance"))
        self.assertIn(facts["onion"][:8], text)
        self.assertIn("ML-KEM-768", text)
        self.assertIn("Natural Earth", text)
        self.assertGreaterEqual(sum("/tiles/" in url for url in requests), 4)
        self.assertEqual([entry for entry in console if entry["level"] == "SEVERE"], [])
        # Chromium itself tries https first for what is typed into its address bar: same host, not the page's doing
        own = (f"http://{facts['onion']}/", f"https://{facts['onion']}/", "data:", "chrome")
        strangers = [url for url in requests if not url.startswith(own)]
        self.assertEqual(strangers, [], "the page reached another origin than its own")
        self.assert_shows_a_map(picture)

    @staticmethod
    def requested_urls(log: list[dict[str, str]]) -> list[str]:
        """Every URL the page asked for, from the DevTools log."""
        messages = (json.loads(entry["message"])["message"] for entry in log)
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def assert_shows_a_map(self, picture: Image.Image) -> None:
        """Sea and land both cover a good part of the picture, and coasts make many colour changes."""
        sea = Image.open(io.BytesIO(self.tile("2/0/2"))).convert("RGB").getpixel((128, 128))
        small = picture.resize((320, 200))
        pixels = list(small.getdata())
        near_sea = sum(1 for p in pixels if max(abs(a - b) for a, b in zip(p, sea, strict=True)) <= 12)
        share = near_sea / len(pixels)
        self.assertGreater(share, 0.15, "no sea in the picture")
        self.assertLess(share, 0.9, "nothing but sea in the picture")
        self.assertGreater(len(set(pixels)), 200, "too few colours for a map")

    def tile(self, address: str) -> bytes:
        from tests.live.support import http

        return http("GET", f"{shared_node().facts()['gateway_url']}/tiles/{address}.png").body
