"""Listening addresses as they stand in configs."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.addresses import HostPort, parse_host_port

ports = st.integers(0, 65535)


class Parsing(SynchronousTestCase):
    def test_the_two_forms(self) -> None:
        self.assertEqual(parse_host_port("127.0.0.1:9080"), HostPort("127.0.0.1", 9080))
        self.assertEqual(parse_host_port("[::1]:0"), HostPort("::1", 0))

    @given(st.ip_addresses(), ports)
    def test_there_and_back(self, host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
        address = HostPort(str(host), port)
        self.assertEqual(parse_host_port(str(address)), address)

    @given(st.text(max_size=30) | st.from_regex(r"[\[0-9a-f:.\]]{0,20}:[0-9]{0,6}", fullmatch=True))
    def test_anything_else_is_a_value_error_that_quotes_it(self, text: str) -> None:
        try:
            address = parse_host_port(text)
        except ValueError as error:
            self.assertIn("is not an", str(error))
        else:
            self.assertTrue(0 <= address.port <= 65535)
            self.assertEqual(ipaddress.ip_address(address.host).version == 6, text.startswith("["))

    def test_near_misses(self) -> None:
        for text in (
            "",
            ":",
            "9080",
            ":9080",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:65536",
            "127.0.0.1:-1",
            "127.0.0.1:+1",
            "127.0.0.1: 80",
            "127.0.0.1:80 ",
            "127.0.0.1:8_0",
            "127.0.0.1:\u0661",
            "127.0.0.1:" + "9" * 5000,
            "127.0.0.01:80",
            "localhost:80",
            "127.0.0.1:80:80",
            "::1:80",
            "[::1]",
            "[::1:80",
            "::1]:80",
            "[127.0.0.1]:80",
            "[[::1]]:80",
            "[]:80",
        ):
            self.assertRaises(ValueError, parse_host_port, text)

    def test_loopback(self) -> None:
        for text in ("127.0.0.1:1", "127.8.9.10:1", "[::1]:1"):
            self.assertTrue(parse_host_port(text).is_loopback, text)
        for text in ("0.0.0.0:1", "[::]:1", "192.168.0.1:1", "10.0.0.1:1", "[fe80::1]:1", "1.2.3.4:1"):
            self.assertFalse(parse_host_port(text).is_loopback, text)
