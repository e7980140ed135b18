"""Certificates that change or run out while we serve: noticed, swapped, told to health, metrics and the log.

In: the TLS contexts of a process by name. Out: new connections use the new certificate; a bad file changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import Gauge
from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.kernel.health import HealthState
from ron.kernel.metrics import Metrics
from ron.kernel.tls import ReloadableTls
from ron.proto.errors import RonError

WARN_DAYS = 14
_DAY_S = 86400
_log = Logger(namespace="ron.tls")


class CertificateWatch(Service):
    """Looks at the files of all TLS contexts of a process, swaps what changed, and tells when time runs out.

    For each name: `tls_certificate_expiry_seconds{name}` is what is left, negative once expired. Readiness key
    `tls.<name>`: missing once expired; degraded in the last `warn_days`, or while the files on disk cannot be used.
    One per process and `Metrics`.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        health: HealthState,
        metrics: Metrics,
        now: Callable[[], float] = time.time,
        interval_s: float = 1.0,
        warn_days: float = WARN_DAYS,
    ) -> None:
        self._health = health
        self._now = now
        self._interval_s = interval_s
        self._warn_days = warn_days
        self._watched: dict[str, ReloadableTls] = {}
        self._complaints: dict[str, str] = {}
        self._told: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {}
        self._left = Gauge(
            "tls_certificate_expiry_seconds", "Time until our certificate expires", ["name"], registry=metrics.registry
        )
        self._loop = LoopingCall(self.check)
        self._loop.clock = reactor

    def add(self, name: str, tls: ReloadableTls) -> None:
        """Watch `tls` under `name` from now on."""
        self._watched[name] = tls
        self._look_at(name, tls)

    def startService(self) -> None:
        """Look every `interval_s`."""
        super().startService()
        self._loop.start(self._interval_s)

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        if self._loop.running:
            self._loop.stop()

    def check(self) -> None:
        """Look at all of them once, now."""
        for name, tls in self._watched.items():
            self._look_at(name, tls)

    def _look_at(self, name: str, tls: ReloadableTls) -> None:
        if tls.changed():
            self._reload(name, tls)
        left_s = tls.not_after.timestamp() - self._now() if tls.not_after is not None else None
        if left_s is not None:
            self._left.labels(name).set(left_s)
        self._tell(name, *self._verdict(name, left_s))

    def _reload(self, name: str, tls: ReloadableTls) -> None:
        try:
            tls.reload()
        except RonError as error:
            self._complaints[name] = error.one_line()
            _log.warn(
                "{name}: the new certificate is not used, the old one stays: {problem}",
                event="tls_reload_refused",
                name=name,
                problem=error.one_line(),
            )
        else:
            self._complaints.pop(name, None)
            _log.info("{name}: certificate reloaded", event="tls_reloaded", name=name, not_after=str(tls.not_after))

    def _verdict(self, name: str, left_s: float | None) -> tuple[Callable[..., None], tuple[str, ...]]:
        complaint = self._complaints.get(name)
        if left_s is not None and left_s <= 0:
            return self._health.missing, (complaint or "the certificate has expired; fix: ronctl ca renew",)
        if complaint is not None:
            return self._health.degraded, (f"the certificate files cannot be used, the old ones are: {complaint}",)
        if left_s is not None and left_s < self._warn_days * _DAY_S:
            days = int(left_s // _DAY_S)
            return self._health.degraded, (f"the certificate expires in {days} days; fix: ronctl ca renew",)
        return self._health.ok, ()

    def _tell(self, name: str, report: Callable[..., None], reason: tuple[str, ...]) -> None:
        """Only news: health wakes its observers at every report."""
        if self._told.get(name) != (report, reason):
            self._told[name] = (report, reason)
            report(f"tls.{name}", *reason)
