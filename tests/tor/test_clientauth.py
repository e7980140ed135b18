"""Client authorisation: keys that nobody can misread, and what the real tor makes of them."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from nacl.public import PrivateKey
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from txtorcon.torcontrolprotocol import TorDisconnectError, TorProtocolError

from ron.proto.errors import ErrorCode, RonError
from ron.tor.clientauth import (
    FLAG,
    MAX_CLIENTS,
    Added,
    ClientKey,
    ClientPublic,
    Credential,
    add_credential,
    add_onion_options,
    generate,
    list_credentials,
    parse_auth_private,
    parse_public,
    parse_secret,
    parse_view,
    remove_credential,
    service_id,
)
from ron.tor.control import ANSWER_TIMEOUT_S
from ron.tor.onionkeys import address_of, new_key
from tests.tor.test_backends import RealTor
from tests.web.wire import until

ONION = "cq3fxdy6at4z35othu3w2u52qmhaaohbbshenjkiihnrdztj6mfsljid.onion"
P = 2**255 - 19
# every u of low order below p, on the curve or its twist: RFC 7748 §6.1 and the list at cr.yp.to/ecdh.html
LOW_ORDER = (
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
)
secrets_of_keys = st.binary(min_size=32, max_size=32).filter(any)


def raw(number: int) -> bytes:
    return number.to_bytes(32, "little")


def base32(value: bytes) -> str:
    return base64.b32encode(value).decode().rstrip("=")


class PublicKeys(SynchronousTestCase):
    def refused(self, call: Any, *arguments: Any) -> RonError:
        error: RonError = self.assertRaises(RonError, call, *arguments)
        self.assertIs(error.code, ErrorCode.BAD_REQUEST)
        return error

    def test_points_of_low_order(self) -> None:
        """tor takes them; with the all-zero one everybody knows the shared secret."""
        for number in LOW_ORDER:
            self.refused(ClientPublic, raw(number))
            self.refused(parse_public, base32(raw(number)))

    def test_a_second_spelling_of_a_key(self) -> None:
        good = generate().public.raw
        self.refused(ClientPublic, good[:31] + bytes([good[31] | 0x80]))
        for number in (P, P + 9, 2**255 - 1, 2**256 - 1):
            self.refused(ClientPublic, raw(number))
        ClientPublic(raw(9))
        ClientPublic(raw(P - 2))

    def test_a_wrong_length(self) -> None:
        for length in (0, 31, 33, 64):
            self.refused(ClientPublic, b"\x09" * length)

    def test_text_that_is_no_key(self) -> None:
        good = generate().public.base32
        for text in (
            "",
            good[:-1],
            good + "A",
            good + "====",
            good + "\n",
            " " + good,
            "1" + good[1:],
            "é" + good[1:],
            "x25519:" + good,
            "descriptor:x25519:",
            "descriptor:ed25519:" + good,
            "descriptor:x25519:descriptor:x25519:" + good,
            good + " Port=22,127.0.0.1:22",
        ):
            error = self.refused(parse_public, text)
            self.assertNotIn(good[:40], error.message + str(error.hint))

    def test_the_last_character_holds_one_bit_of_the_key(self) -> None:
        good = generate().public.base32
        for last in "BCDEFGHIJKLMNOPRSTUVWXYZ234567":
            self.refused(parse_public, good[:-1] + last)

    def test_both_forms_and_either_case(self) -> None:
        public = generate().public
        for text in (public.base32, public.to_line(), public.base32.lower()):
            self.assertEqual(parse_public(text), public)
        self.assertEqual(public.to_line(), "descriptor:x25519:" + public.base32)

    @given(st.text(max_size=80))
    def test_any_text_is_a_key_or_refused(self, text: str) -> None:
        with contextlib.suppress(RonError):
            self.assertIn(text.removeprefix("descriptor:x25519:").upper(), parse_public(text).to_line())


class SecretKeys(SynchronousTestCase):
    @given(secrets_of_keys)
    def test_the_public_half_is_the_one_nacl_has(self, secret: bytes) -> None:
        key = ClientKey(secret)
        self.assertEqual(key.public.raw, bytes(PrivateKey(secret).public_key))
        self.assertEqual(parse_secret(key.base32), key)
        self.assertEqual(parse_secret(key.base32).secret, secret)

    def test_all_zero_and_wrong_lengths(self) -> None:
        for secret in (b"", bytes(32), b"a" * 31, b"a" * 33):
            self.assertRaises(RonError, ClientKey, secret)
        self.assertRaises(RonError, generate, bytes)

    def test_fresh_ones_differ(self) -> None:
        self.assertEqual(len({generate() for _ in range(20)}), 20)

    def test_nothing_shows_the_secret(self) -> None:
        key = generate()
        shown = f"{key!r} {key} {Credential(ONION, key)!r} {[key]} {vars(Added)}"
        for form in (key.base32, key.secret.hex(), base64.b64encode(key.secret).decode(), repr(key.secret)):
            self.assertNotIn(form, shown)
        for text in (key.base32[:-1], key.base32 + "A", key.base32[:-1] + "1"):
            error = self.assertRaises(RonError, parse_secret, text)
            self.assertNotIn(key.base32[:20], error.one_line())

    @given(secrets_of_keys)
    def test_the_auth_private_line(self, secret: bytes) -> None:
        key = ClientKey(secret)
        line = key.auth_private_line(ONION)
        self.assertEqual(line, f"{ONION.removesuffix('.onion')}:descriptor:x25519:{key.base32}")
        for text in (line, line + "\n"):
            self.assertEqual(parse_auth_private(text), Credential(ONION, key))

    def test_lines_that_are_not(self) -> None:
        key = generate()
        line = key.auth_private_line(ONION)
        for text in ("", "\n", ":" + line, line + "\n\n", line + ":", line[57:], line.upper()):
            error = self.assertRaises(RonError, parse_auth_private, text)
            self.assertNotIn(key.base32[:20], error.one_line())
        self.assertEqual(parse_auth_private(ONION + line[56:]).onion, ONION)


class Addresses(SynchronousTestCase):
    def test_with_and_without_its_ending(self) -> None:
        self.assertEqual(service_id(ONION), ONION[:56])
        self.assertEqual(service_id(ONION[:56]), ONION[:56])

    def test_what_is_none(self) -> None:
        for text in (
            "",
            ".onion",
            "x" * 56,
            "x" * 16,
            ONION.upper(),
            ONION + ".onion",
            ONION + "\n",
            "a" + ONION,
            ONION[1:],
            ONION.replace("f", "g", 1),
            ONION.replace("f", "1", 1),
            ONION.replace("f", "ſ", 1),
        ):
            self.assertRaises(RonError, service_id, text)

    @given(st.integers(0, 55), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
    def test_one_wrong_character_is_noticed(self, index: int, character: str) -> None:
        name = ONION[:56]
        other = name[:index] + character + name[index + 1 :]
        if other == name:
            self.assertEqual(service_id(other), name)
        else:
            self.assertRaises(RonError, service_id, other)


class Arguments(SynchronousTestCase):
    def refused(self, clients: list[ClientPublic]) -> ErrorCode:
        error: RonError = self.assertRaises(RonError, add_onion_options, clients)
        return error.code

    def test_nobody_somebody_twice_and_too_many(self) -> None:
        keys = [generate().public for _ in range(MAX_CLIENTS + 1)]
        self.assertIs(self.refused([]), ErrorCode.BAD_REQUEST)
        self.assertIs(self.refused([keys[0], keys[1], parse_public(keys[0].base32.lower())]), ErrorCode.CONFLICT)
        self.assertIs(self.refused(keys), ErrorCode.TOO_LARGE)
        self.assertEqual(len(add_onion_options(keys[:-1])), MAX_CLIENTS)

    def test_one_a_client(self) -> None:
        one, two = generate().public, generate().public
        self.assertEqual(add_onion_options([one, two]), (f"ClientAuthV3={one.base32}", f"ClientAuthV3={two.base32}"))


class Views(SynchronousTestCase):
    def test_what_a_tor_may_list(self) -> None:
        key = generate()
        told = base64.b64encode(key.secret).decode()
        head = f"CLIENT {ONION[:56]} x25519:{told}"
        for line, name in (
            (head, None),
            (head.replace(told, told[:-1]), None),
            (head.replace(ONION[:56], ONION[:56].upper()), None),
            (head + " ClientName=bob", "bob"),
            (head + " ClientName=bob Flags=Permanent", "bob"),
            (head + " Flags=Permanent", None),
            (head + " Something=new", None),
        ):
            self.assertEqual(parse_view(f"ONION_CLIENT_AUTH_VIEW\n{line}\n"), (Credential(ONION, key, name),))
        self.assertEqual(parse_view("ONION_CLIENT_AUTH_VIEW"), ())

    def test_what_cannot_be_read_is_not_quoted(self) -> None:
        told = base64.b64encode(generate().secret).decode()
        for line in (f"CLIENT {ONION[:55]} x25519:{told}", f"CLIENT {ONION[:56]} rsa:{told}", "CLIENT", "CLIENT x y"):
            error = self.assertRaises(RonError, parse_view, line)
            self.assertIs(error.code, ErrorCode.INTERNAL)
            self.assertNotIn(told[:20], error.one_line())


class Wire:
    """A control connection as far as `queue_command` goes."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.answer: Deferred[Any] = Deferred()

    def queue_command(self, text: str) -> Deferred[Any]:
        self.commands.append(text)
        return self.answer


class Refusals(SynchronousTestCase):
    """What goes wrong between us and tor is typed, and never shows the key."""

    def setUp(self) -> None:
        self.clock, self.wire, self.key = Clock(), Wire(), generate()

    def adding(self, credential: Credential | None = None) -> Deferred[Any]:
        credential = credential if credential is not None else Credential(ONION, self.key)
        return Deferred.fromCoroutine(add_credential(self.clock, self.wire, credential))

    def told(self, adding: Deferred[Any]) -> RonError:
        error: RonError = self.failureResultOf(adding, RonError).value
        secret = base64.b64encode(self.key.secret).decode()
        self.assertNotIn(secret[:20], f"{error.one_line()} {error!r} {error.__cause__!r}")
        self.assertTrue(error.__suppress_context__ or error.__context__ is None)
        return error

    def test_by_tors_codes(self) -> None:
        secret = base64.b64encode(self.key.secret).decode()
        for code, meant in (
            (510, ErrorCode.UNSUPPORTED),
            (512, ErrorCode.BAD_REQUEST),
            (551, ErrorCode.CONFLICT),
            (552, ErrorCode.UNSUPPORTED),
            (553, ErrorCode.BAD_REQUEST),
            (555, ErrorCode.INTERNAL),
        ):
            self.wire = Wire()
            adding = self.adding()
            self.wire.answer.errback(TorProtocolError(code, f'Invalid private key "{secret}"'))
            self.assertIs(self.told(adding).code, meant)

    def test_no_answer_and_no_tor(self) -> None:
        adding = self.adding()
        self.clock.advance(ANSWER_TIMEOUT_S - 0.1)
        self.assertNoResult(adding)
        self.clock.advance(0.1)
        self.assertIs(self.told(adding).code, ErrorCode.STORE_UNAVAILABLE)
        self.wire = Wire()
        adding = self.adding()
        self.wire.answer.errback(TorDisconnectError(text="gone", error=None))
        self.assertIs(self.told(adding).code, ErrorCode.STORE_UNAVAILABLE)

    def test_names_and_addresses_that_never_reach_tor(self) -> None:
        for name in ("", "b" * 17, "a b", "x\r\nSIGNAL SHUTDOWN", "é", "a=b", "bob\n"):
            self.assertIs(self.told(self.adding(Credential(ONION, self.key, name))).code, ErrorCode.BAD_REQUEST)
        for onion in ("x" * 56, ONION + "\r\nSIGNAL SHUTDOWN", ""):
            self.assertIs(self.told(self.adding(Credential(onion, self.key))).code, ErrorCode.BAD_REQUEST)
            removing = Deferred.fromCoroutine(remove_credential(self.clock, self.wire, onion))
            self.assertIs(self.told(removing).code, ErrorCode.BAD_REQUEST)
        self.assertEqual(self.wire.commands, [])

    def test_a_descriptor_that_could_be_read_at_once(self) -> None:
        adding = self.adding()
        self.wire.answer.callback("Registered client and decrypted desc")
        self.assertIs(self.successResultOf(adding), Added.DECRYPTED)


class AgainstTor(RealTor):
    async def test_a_restricted_onion(self) -> None:
        clients = [generate().public, generate().public]
        arguments = " ".join([f"Flags=Detach,{FLAG}", *add_onion_options(clients)])
        onion = await self.add_onion(arguments)
        self.assertIn(onion.removesuffix(".onion"), str(await self.control.get_info("onions/detached")))

    async def test_as_many_clients_as_we_allow(self) -> None:
        options = add_onion_options([generate().public for _ in range(MAX_CLIENTS)])
        await self.add_onion(" ".join([f"Flags={FLAG}", *options]))

    async def test_the_flag_and_the_clients_belong_together(self) -> None:
        option = add_onion_options([generate().public])[0]
        self.assertEqual(await self.refused(option), 512)
        self.assertEqual(await self.refused(f"Flags={FLAG}"), 512)

    async def test_what_tor_does_not_notice(self) -> None:
        """Why we look ourselves. When tor begins to, these rules may go."""
        option = add_onion_options([generate().public])[0]
        await self.add_onion(f"Flags={FLAG} {option} {option}")
        for number in LOW_ORDER:
            await self.add_onion(f"Flags={FLAG} ClientAuthV3={base32(raw(number))}")

    async def test_a_credential_from_first_to_last(self) -> None:
        one, two = generate(), generate()
        other = address_of(new_key())
        self.assertEqual(await list_credentials(reactor, self.control), ())
        self.assertFalse(await remove_credential(reactor, self.control, ONION))
        self.assertIs(await add_credential(reactor, self.control, Credential(ONION, one)), Added.NEW)
        self.assertIs(await add_credential(reactor, self.control, Credential(ONION, one)), Added.REPLACED)
        self.assertIs(await add_credential(reactor, self.control, Credential(ONION, two, "bob")), Added.REPLACED)
        self.assertIs(await add_credential(reactor, self.control, Credential(other, one)), Added.NEW)
        listed = await list_credentials(reactor, self.control)
        self.assertEqual(set(listed), {Credential(ONION, two, "bob"), Credential(other, one)})
        self.assertEqual(
            {c.onion: c.key.secret for c in listed},
            {ONION: two.secret, other: one.secret},
        )
        self.assertEqual(await list_credentials(reactor, self.control, other), (Credential(other, one),))
        self.assertTrue(await remove_credential(reactor, self.control, ONION))
        self.assertEqual(await list_credentials(reactor, self.control, ONION), ())
        self.assertEqual(await list_credentials(reactor, self.control), (Credential(other, one),))

    async def test_the_longest_name_leaves_the_connection_in_step(self) -> None:
        await add_credential(reactor, self.control, Credential(ONION, generate(), "b" * 16))
        self.assertIn("version", await self.control.get_info("version"))
        self.assertEqual((await list_credentials(reactor, self.control))[0].name, "b" * 16)

    async def test_nothing_is_written(self) -> None:
        key = generate()
        await add_credential(reactor, self.control, Credential(ONION, key))
        forms = (key.secret, key.base32.encode(), base64.b64encode(key.secret))
        for path in filter(Path.is_file, self.folder.rglob("*")):
            self.assertFalse([form for form in forms if form in path.read_bytes()], path)

    async def test_tor_quotes_the_key_it_refuses_and_we_do_not(self) -> None:
        text = base64.b64encode(bytes(32)).decode()
        with self.assertRaises(TorProtocolError) as caught:
            await self.control.queue_command(f"ONION_CLIENT_AUTH_ADD {ONION[:56]} x25519:{text}")
        self.assertIn(text, caught.exception.text)
        self.assertRaises(RonError, ClientKey, bytes(32))

    async def test_a_tor_that_ends(self) -> None:
        self.end()
        await until(lambda: self.control.transport is None or not self.control.transport.connected)
        await self.fails(list_credentials(reactor, self.control), ErrorCode.STORE_UNAVAILABLE)

    async def fails(self, call: Awaitable[Any], code: ErrorCode) -> None:
        with self.assertRaises(RonError) as caught:
            await call
        self.assertIs(caught.exception.code, code)
