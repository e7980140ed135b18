"""Listening sockets, real ones: taken ports and strange families, shared by who accepts, mended, and always ended."""

from __future__ import annotations

import resource
import shutil
import socket
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import readBody
from twisted.web.http_headers import Headers

from ron.nodes.listeners import BoundSocket, Listening, allow_descriptors
from ron.proto.addresses import HostPort
from ron.proto.errors import ErrorCode, RonError
from ron.sdk.transport import unix_http
from ron.web.site import RonSite
from tests.nodes.with_runtime import WithRuntime, ask

LOOPBACK = HostPort("127.0.0.1", 0)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


class BoundSocketTests(SynchronousTestCase):
    def bound(self, address: HostPort) -> BoundSocket:
        one = BoundSocket(address, "gateway.bind")
        self.addCleanup(one.close)
        return one

    def test_a_taken_port_names_the_key_and_the_way_out(self) -> None:
        first = self.bound(LOOPBACK)
        error = self.assertRaises(RonError, BoundSocket, first.address, "mailbox.listen")
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertIn(f"mailbox.listen: cannot listen on {first.address}", error.message)
        self.assertIn("ss -ltnp", error.hint or "")

    def test_an_address_of_somebody_else(self) -> None:
        error = self.assertRaises(RonError, BoundSocket, HostPort("192.0.2.1", 0), "gateway.tls.bind")
        self.assertIn("gateway.tls.bind", error.message)

    def test_port_0_becomes_a_port(self) -> None:
        self.assertGreater(self.bound(LOOPBACK).address.port, 0)

    def test_callers_wait_in_the_backlog_until_it_is_closed(self) -> None:
        one = self.bound(LOOPBACK)
        with socket.create_connection(tuple(one.address), timeout=2):
            pass
        one.close()
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(tuple(one.address), timeout=2)

    def test_ipv6(self) -> None:
        if not has_ipv6():
            self.assertRaises(RonError, BoundSocket, HostPort("::1", 0), "gateway.bind")
            return
        one = self.bound(HostPort("::1", 0))
        self.assertEqual(str(one.address), f"[::1]:{one.address.port}")
        with socket.create_connection(tuple(one.address), timeout=2):
            pass


class AllowDescriptorsTests(SynchronousTestCase):
    def setUp(self) -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        self.soft, self.hard = before

    def test_raised_and_never_lowered(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, self.hard))
        self.assertEqual(allow_descriptors(600), 600)
        self.assertEqual(allow_descriptors(10), 600)
        self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE), (600, self.hard))

    def test_as_far_as_the_system_lets_us(self) -> None:
        if self.hard != resource.RLIM_INFINITY:
            self.assertEqual(allow_descriptors(self.hard + 1), self.hard)


class ListeningTests(WithRuntime):
    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.runtime.health.ok("all")

    def site(self) -> RonSite:
        return self.runtime.site([])

    def listen(self, where: int | Path, site: RonSite | None = None) -> Listening:
        one = Listening(reactor, where, site or self.site())
        self.addCleanup(lambda: Deferred.fromCoroutine(self.ended(one)))
        return one

    async def ended(self, one: Listening) -> None:
        await one.stop_accepting()
        await one.site.drain(1.0)

    async def status(self, address: HostPort) -> int:
        return (await ask("GET", f"http://{address}/healthz"))[0]

    async def test_two_accept_from_one_socket_and_either_may_end(self) -> None:
        bound = BoundSocket(LOOPBACK, "gateway.bind")
        self.addCleanup(bound.close)
        first, second = self.listen(bound.fileno()), self.listen(bound.fileno())
        self.assertEqual({await self.status(bound.address) for _ in range(20)}, {200})
        await first.stop_accepting()
        self.assertEqual({await self.status(bound.address) for _ in range(20)}, {200})
        await second.stop_accepting()
        waiting = Deferred.fromCoroutine(self.status(bound.address))
        third = self.listen(bound.fileno())
        self.assertEqual(await waiting, 200, "who came while nobody accepted was kept waiting")
        await third.stop_accepting()

    async def test_abort_hangs_up(self) -> None:
        bound = BoundSocket(LOOPBACK, "gateway.bind")
        self.addCleanup(bound.close)
        one = self.listen(bound.fileno())
        with socket.create_connection(tuple(bound.address), timeout=2):
            await self.until(lambda: one.site.channels, "the connection")
            one.abort()
            await self.until(lambda: not one.site.channels, "hanging up")

    async def over_unix(self, path: Path) -> int:
        close = Headers({"Connection": ["close"]})
        answer: Any = await unix_http(reactor, path).request("GET", "http://edge/healthz", headers=close)
        await readBody(answer)
        return int(answer.code)

    async def test_a_unix_socket_can_be_found_again_after_somebody_removed_it(self) -> None:
        path = self.home / "run" / "edge.sock"
        one = self.listen(path)
        self.assertEqual(await self.over_unix(path), 200)
        shutil.rmtree(path.parent)
        await self.until(path.exists, "being mended")
        self.assertEqual(await self.over_unix(path), 200)
        path.unlink()
        await one.stop_accepting()
        self.assertFalse(path.exists())

    async def test_aborted_it_is_not_mended(self) -> None:
        path = self.home / "run" / "edge.sock"
        one = self.listen(path)
        one.abort()
        await self.until(lambda: not path.exists(), "the end")
        self.assertFalse(one._mending.running)
