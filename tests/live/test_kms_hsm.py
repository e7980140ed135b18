"""An HSM in a process of its own that is killed while ron-kms signs; and many threads in one module.

Needs SoftHSM and p11-kit. p11-kit's wire carries neither EdDSA nor AES-GCM before 0.25, so the halves are sealed by
HMAC in the token; what is proven here is the way there and back.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ron.crypto import signing
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg
from ron.services.kms.backends.pkcs11 import Pkcs11Backend
from ron.services.kms.backends.pkcs11_sessions import Sessions, TokenAddress
from ron.services.kms.ports import Held
from tests.live.support import until
from tests.services.kms.backends.contract import MESSAGE, SIGNING, BackendCase, Contract, new_kid, public_of
from tests.services.kms.backends.softhsm import (
    CLIENT,
    LABEL,
    MODULE,
    NO_P11KIT,
    NO_SOFTHSM,
    PROXY,
    SoftToken,
    TokenServer,
    environment,
    pin,
)

WORKERS = 4
BACK_S = 30.0


class ServerCase(BackendCase):
    """A token behind a socket, and a backend that knows it by its label."""

    skip = NO_SOFTHSM or NO_P11KIT

    def setUp(self) -> None:
        super().setUp()
        self.server = TokenServer(SoftToken(self.stack), self.stack)
        self.came_back = 0

    def build(self) -> Pkcs11Backend:
        """Not open."""
        address = TokenAddress(CLIENT, LABEL)
        return Pkcs11Backend(address, pin(), sessions=Sessions(address, pin(), on_reconnect=self._back))

    def opened(self) -> Pkcs11Backend:
        """Open until the test ends."""
        backend = self.build()
        backend.open()
        self.stack.callback(backend.close)
        return backend

    def _back(self) -> None:
        self.came_back += 1


class ContractOverTheWire(Contract, ServerCase):
    """The port's contract, each call to the token through a socket."""


class Signers:
    """Threads that sign without a pause until they are stopped. good, refused: how often; wrong: what should not be."""

    def __init__(self, backend: Pkcs11Backend, held: Held) -> None:
        self.good = self.refused = 0
        self.wrong: list[Any] = []
        self._backend, self._held = backend, held
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._sign, args=(i,)) for i in range(WORKERS)]

    def __enter__(self) -> Signers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(BACK_S)

    def _sign(self, worker: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            message = (worker << 64 | number).to_bytes(32, "big")
            alg = SIGNING[number % 2]
            try:
                signature = self._backend.sign(self._held.kid, alg, message)
            except RonError as error:
                with self._lock:
                    self.refused += 1
                    if error.code is not ErrorCode.STORE_UNAVAILABLE:
                        self.wrong.append(error)
                time.sleep(0.01)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test tells
                self.wrong.append(error)
            else:
                good = signing.verify(alg, public_of(self._held, alg), message, signature)
                with self._lock:
                    self.good += good
                    if not good:
                        self.wrong.append("a bad signature")


class Killed(ServerCase):
    """SIGKILL to the HSM's process."""

    def test_killed_under_load_three_times(self) -> None:
        """Each time: StoreUnavailable and nothing else, no bad signature, and it comes back by itself."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        with Signers(backend, held) as signers:
            for kill in range(1, 4):
                before = signers.good
                until(lambda before=before: signers.good > before + 20, BACK_S, "signing")  # type: ignore[misc]
                self.server.kill()
                refused = signers.refused
                until(lambda refused=refused: signers.refused > refused + 20, BACK_S, "refusing")  # type: ignore[misc]
                self.server.start()
                until(lambda kill=kill: self.came_back >= kill, BACK_S, "coming back")  # type: ignore[misc]
            before = signers.good
            until(lambda: signers.good > before + 20, BACK_S, "signing again")
        self.assertEqual(signers.wrong, [])
        self.assertEqual(list(backend.held()), [held])

    def test_killed_while_it_makes_a_key(self) -> None:
        """What returned is there afterwards; what was refused is not there, or is whole; another try decides."""
        backend = self.opened()
        made: dict[Any, Held] = {}
        tried = []
        stop = threading.Event()

        def make() -> None:
            while not stop.is_set():
                kid = new_kid()
                tried.append(kid)
                try:
                    made[kid] = backend.generate(kid, SIGNING)
                except RonError:
                    time.sleep(0.01)

        thread = threading.Thread(target=make)
        thread.start()
        for _ in range(3):
            count = len(made)
            until(lambda count=count: len(made) > count + 3, BACK_S, "making keys")  # type: ignore[misc]
            self.server.kill()
            time.sleep(0.05)
            self.server.start()
        stop.set()
        thread.join(BACK_S)
        until(lambda: self._there(backend), BACK_S, "coming back")
        after = {held.kid: held for held in backend.held()}
        self.assertEqual({kid: after.get(kid) for kid in made}, made)
        self.assertLessEqual(set(after), set(tried))
        for kid, held in after.items():
            for alg in SIGNING:
                signature = backend.sign(kid, alg, MESSAGE)
                self.assertTrue(signing.verify(alg, public_of(held, alg), MESSAGE, signature))
        for kid in set(tried) - set(after):
            backend.generate(kid, (Alg.ED25519,))
            backend.sign(kid, Alg.ED25519, MESSAGE)

    def test_it_hears_and_says_nothing(self) -> None:
        """One caller hangs with it; the others are refused in time, and all goes on when it speaks again."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        with ThreadPoolExecutor(1) as pool:
            self.server.pause(on=True)
            try:
                hangs = pool.submit(backend.sign, held.kid, Alg.ML_DSA, MESSAGE)
                until(lambda: backend._sessions._out, BACK_S, "a call")
                self.refused(ErrorCode.STORE_UNAVAILABLE, backend.probe)
            finally:
                self.server.pause(on=False)
            self.assertEqual(len(hangs.result(BACK_S)), signing.SIGNATURE_BYTES[Alg.ML_DSA])
        backend.probe()
        self.assertEqual(self.came_back, 0)

    def test_killed_and_not_started_again(self) -> None:
        """Every call is StoreUnavailable, with a time to come back; closing works."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        self.server.kill()
        for call in (backend.probe, backend.held, lambda: backend.sign(held.kid, Alg.ED25519, MESSAGE)):
            self.refused(ErrorCode.STORE_UNAVAILABLE, call)
        backend.close()
        self.refused(ErrorCode.STORE_UNAVAILABLE, self.build().open)

    @staticmethod
    def _there(backend: Pkcs11Backend) -> bool:
        try:
            backend.probe()
        except RonError:
            return False
        return True


class Threads(BackendCase):
    """A module that locks, p11-kit's proxy in front of the token, is called by as many threads as it has sessions."""

    skip = NO_SOFTHSM or NO_P11KIT

    def test_as_many_sessions_as_are_configured(self) -> None:
        """Through the proxy four, and all signatures are good; without it one, whatever is configured."""
        token = SoftToken(self.stack)
        modules = token.home / "config" / "pkcs11" / "modules"
        modules.mkdir(parents=True)
        (modules.parent / "pkcs11.conf").write_text("user-config: only\n")
        (modules / "soft.module").write_text(f"module: {MODULE}\n")
        self.stack.enter_context(environment(XDG_CONFIG_HOME=str(token.home / "config")))
        for module, sessions in ((PROXY, WORKERS), (MODULE, 1)):
            backend = Pkcs11Backend(TokenAddress(module, LABEL, WORKERS), pin())
            backend.open()
            self.assertEqual(len(backend._sessions._all), sessions)
            held = backend.generate(new_kid(), SIGNING)

            def good(i: int, backend: Pkcs11Backend = backend, held: Held = held) -> bool:
                alg, message = SIGNING[i % 2], i.to_bytes(32, "big")
                return signing.verify(alg, public_of(held, alg), message, backend.sign(held.kid, alg, message))

            with ThreadPoolExecutor(2 * WORKERS) as pool:
                self.assertTrue(all(pool.map(good, range(200))))
            backend.close()
