"""A backend whose calls are timed and counted, whatever it is made of; nothing else about it changes.

In: a `Backend`, the meters of the process. Out: a `Backend`. What a quick one signs is timed with the operation itself
(`kms_latency_seconds`): there the meter would cost a tenth of the call. Blocks as the backend does; from any thread.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from prometheus_client import Counter, Gauge, Histogram

from ron.kernel import Metrics
from ron.proto.errors import RonError
from ron.proto.kms import Alg, Attestation, Kid
from ron.services.kms.backends.heads import Counting
from ron.services.kms.ports import Backend, Held

T = TypeVar("T")
_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0)
_OTHER = "Other"


class BackendMeters:
    """Make one per process. now_s: a clock that does not go back."""

    def __init__(self, metrics: Metrics, now_s: Callable[[], float] = time.monotonic) -> None:
        registry = metrics.registry
        self.now_s = now_s
        self.seconds = Histogram(
            "kms_backend_seconds",
            "Time of a call to a backend",
            ["backend", "op"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.errors = Counter(
            "kms_backend_errors_total", "Calls to a backend that failed", ["backend", "op", "code"], registry=registry
        )
        self.oldest = Gauge(
            "kms_backend_oldest_call_seconds",
            "How long the longest call to a backend has been under way",
            ["backend"],
            registry=registry,
        )


class Measured:
    """`Backend`. inner: the one that is measured. head, check_head: its own, where it has them."""

    head: Callable[[], tuple[int, bytes]]
    check_head: Callable[[int, bytes], None]

    def __init__(self, backend: Backend, meters: BackendMeters) -> None:
        self._backend = backend
        self._meters = meters
        self._calls: dict[int, float] = {}
        self._numbers = itertools.count()
        self.name = backend.name
        self.quick = backend.quick
        meters.oldest.labels(self.name).set_function(self.oldest_s)
        if isinstance(backend, Counting):
            self.head, self.check_head = backend.head, backend.check_head

    @property
    def inner(self) -> Backend:
        """What it times."""
        return self._backend

    def oldest_s(self) -> float:
        """How long the longest call that has not come back is under way, seconds; 0 for none."""
        began = list(self._calls.values())
        return self._meters.now_s() - min(began) if began else 0.0

    def open(self) -> None:
        """As the port has it."""
        self._timed("open", self._backend.open)

    def close(self) -> None:
        """As the port has it."""
        self._backend.close()

    def probe(self) -> None:
        """As the port has it."""
        self._timed("probe", self._backend.probe)

    def held(self) -> Sequence[Held]:
        """As the port has it."""
        return self._timed("held", self._backend.held)

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """As the port has it."""
        return self._timed("generate", lambda: self._backend.generate(kid, algs))

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """As the port has it."""
        if self.quick:
            return self._backend.sign(kid, alg, message)
        return self._timed("sign", lambda: self._backend.sign(kid, alg, message))

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """As the port has it."""
        return self._timed("unwrap", lambda: self._backend.unwrap(kid, suite, envelope, info))

    def destroy(self, kid: Kid) -> None:
        """As the port has it."""
        self._timed("destroy", lambda: self._backend.destroy(kid))

    def attest(self, kid: Kid | None) -> Attestation | None:
        """As the port has it."""
        return self._timed("attest", lambda: self._backend.attest(kid))

    def __repr__(self) -> str:
        return f"<Measured {self._backend!r}>"

    def _timed(self, op: str, call: Callable[[], T]) -> T:
        with self._under_way(op):
            return call()

    @contextmanager
    def _under_way(self, op: str) -> Iterator[None]:
        meters, number, began_s = self._meters, next(self._numbers), self._meters.now_s()
        self._calls[number] = began_s
        try:
            yield
        except Exception as error:
            code = error.code.value if isinstance(error, RonError) else _OTHER
            meters.errors.labels(self.name, op, code).inc()
            raise
        finally:
            del self._calls[number]
            meters.seconds.labels(self.name, op).observe(meters.now_s() - began_s)
