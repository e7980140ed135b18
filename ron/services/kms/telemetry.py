"""What is counted and logged of the service (specs/ron-kms.md, OBSERVABILITY §1.2 and §3).

In: what operations tell. Out: metrics of closed label sets and log events; no input, no secret and no key id in either,
a key is its hash. The log has single signatures and verifications only while its level is debug.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from twisted.logger import Logger

from ron.kernel import Metrics
from ron.kernel.logs import kid_hash as hashed
from ron.kernel.tally import Tally, TimeTally
from ron.proto.errors import RonError
from ron.proto.kms import Alg, Kid

OPS = ("sign", "verify", "wrap", "unwrap", "rotate", "create", "destroy", "attest", "checkpoint")
_FAST_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
_NO_ALG = "-"
_MANY_KEYS = 256
# Post-quantum halves take the time of an operation that has both.
_SLOWEST = (Alg.ML_DSA, Alg.ML_KEM, Alg.ED25519, Alg.X25519)
_log = Logger(namespace="ron.kms")
_Good = tuple[tuple[Tally, ...], TimeTally]


class KmsTelemetry:
    """Make one per process. chatty: does the log take single operations, too?"""

    def __init__(self, metrics: Metrics, clock: Callable[[], float], chatty: Callable[[], bool]) -> None:
        self._clock = clock
        self._chatty = chatty
        self.shared = metrics
        self._make_operations(metrics)
        self._make_custody(metrics)
        self._make_policy(metrics)
        # operations so far
        self.total = 0
        self._counted: dict[tuple[str, str, str], Tally] = {}
        self._good: dict[tuple[str, tuple[Alg, ...]], _Good] = {}
        self._states: dict[str, str] = {}

    def _make_operations(self, metrics: Metrics) -> None:
        registry = metrics.registry
        labels = ["op", "alg", "result"]
        self.ops = Counter("kms_ops_total", "Operations by algorithm and result", labels, registry=registry)
        self.latency = Histogram(
            "kms_latency_seconds", "Time of an operation", ["op", "alg"], buckets=_FAST_S, registry=registry
        )
        self.rejects = Counter("kms_reject_total", "Refusals by reason", ["reason"], registry=registry)
        self.keys = Gauge("kms_keys_total", "Keys", ["tenant", "purpose", "alg"], registry=registry)
        self.heads = Gauge("kms_key_version_head", "Newest version of a key", ["kid_hash"], registry=registry)
        self._hashes: set[str] = set()
        self._known_keys: set[str] = set()
        self._tenants: set[str] = set()

    def _make_custody(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.attests = Counter(
            "kms_attest_total", "Evidence asked of backends", ["backend", "result"], registry=registry
        )
        self.backend_up = Gauge(
            "kms_backend_sessions", "1 for the state a backend is in", ["backend", "state"], registry=registry
        )
        self.reconnects = Counter(
            "kms_backend_reconnects_total", "Times a backend came back", ["backend"], registry=registry
        )

    def _make_policy(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.policy_rejects = Counter(
            "kms_policy_rejects_total", "Refusals that a policy is the reason of", ["reason"], registry=registry
        )
        for reason in _POLICY:
            self.policy_rejects.labels(reason)
        self.pq_mode = Gauge("kms_pq_mode", "1 for the configured verify mode", ["mode"], registry=registry)
        self.rollout = Gauge("kms_pq_rollout_percent", "Tenants in the rollout", registry=registry)
        self.cache_age = Gauge("kms_verify_cache_age_ms", "Age of what verifying stands on", registry=registry)
        self.cache_hits = Counter(
            "kms_verify_cache_hits_total", "Was the key known without asking?", ["hit"], registry=registry
        )
        for hit in ("true", "false"):
            self.cache_hits.labels(hit)
        self.cache_expired = Counter(
            "verify_cache_expired_total", "Verifications with what is older than it may be", registry=registry
        )

    @property
    def chatty(self) -> bool:
        """Does the log take single operations, too?"""
        return self._chatty()

    def begin(self) -> float:
        """When an operation began."""
        return self._clock()

    def done(self, op: str, algs: Sequence[Alg], began_s: float, kid: Kid | None = None, **more: Any) -> None:
        """It went well."""
        took_s = self._clock() - began_s
        known = (op, tuple(algs))
        counters, timer = self._good.get(known) or self._make_good(*known)
        self.total += len(counters)
        for counter in counters:
            counter.inc()
        timer.observe(took_s)
        if self._chatty() or op not in {"sign", "verify", "wrap", "unwrap"}:
            self._log(f"{op}_result", kid, result="ok", alg="+".join(algs), latency_ms=_ms(took_s), **more)

    def failed(self, op: str, began_s: float, error: BaseException, kid: Kid | None = None, **more: Any) -> None:
        """It was refused, or broke."""
        self._count(op, kid.alg if kid is not None else _NO_ALG, "err")
        reason = reason_of(error)
        self.rejects.labels(reason).inc()
        if reason in _POLICY:
            self.policy_rejects.labels(reason).inc()
        if reason == "verify_cache_expired":
            self.cache_expired.inc()
        elif reason == "not_found" and op == "verify":
            self.cache_hits.labels("false").inc()
        if self._chatty():
            took_ms = _ms(self._clock() - began_s)
            self._log(f"{op}_result", kid, result="err", reason=reason, latency_ms=took_ms, **more)

    def asked(self, op: str, kid: Kid | None, **more: Any) -> None:
        """Somebody asks for it."""
        if self._chatty():
            self._log(f"{op}_request", kid, **more)

    def head(self, kid: Kid) -> None:
        """The newest version of a key; of the first keys only, for a label is never forgotten."""
        name = kid_hash(kid)
        if name in self._hashes or len(self._hashes) < _MANY_KEYS:
            self._hashes.add(name)
            self.heads.labels(name).set(kid.version)

    def known(self, kid: Kid) -> None:
        """There is such a key. Tenants beyond the first are counted together: a label is never forgotten."""
        if kid.key in self._known_keys:
            return
        self._known_keys.add(kid.key)
        if len(self._tenants) < _MANY_KEYS:
            self._tenants.add(kid.tenant)
        tenant = kid.tenant if kid.tenant in self._tenants else "other"
        self.keys.labels(tenant, kid.purpose if tenant != "other" else "-", kid.alg).inc()

    def told_pq(self, mode: str, percent: int) -> None:
        """What the config says."""
        for one in ("or", "and", "pq_only"):
            self.pq_mode.labels(one).set(one == mode)
        self.rollout.set(percent)

    def backend(self, name: str, state: str) -> None:
        """Is it there? state: connected, connecting or error."""
        for one in ("connected", "connecting", "error"):
            self.backend_up.labels(name, one).set(one == state)
        if state == "connecting" or state == self._states.get(name):
            # it tries again and again: the log has what came of it, once
            return
        self._states[name] = state
        if state == "connected":
            _log.info("{backend} is there", event="backend_session_up", backend=name)
        else:
            _log.warn("{backend} is away", event="backend_session_down", backend=name)

    def _make_good(self, op: str, algs: tuple[Alg, ...]) -> _Good:
        """What counts such operations; there are only so many kinds."""
        slowest = next((alg for alg in _SLOWEST if alg in algs), _NO_ALG)
        tallies, timed = self.shared.tallies, self.latency.labels(op, slowest)
        counters = tuple(tallies.of(self.ops.labels(op, str(alg), "ok")) for alg in algs or (_NO_ALG,))
        made = self._good[op, algs] = (counters, tallies.timing(timed))
        return made

    def _count(self, op: str, alg: str, result: str) -> None:
        self.total += 1
        counter = self._counted.get((op, alg, result))
        if counter is None:
            counter = self._counted[op, alg, result] = self.shared.tallies.of(self.ops.labels(op, alg, result))
        counter.inc()

    def _log(self, event: str, kid: Kid | None, **more: Any) -> None:
        about: dict[str, Any] = {} if kid is None else {"tenant": kid.tenant, "kid": str(kid)}
        if kid is not None and kid.version:
            about["kid_version"] = kid.version
        _log.info("{event}", event=event, **{**about, **more})


def kid_hash(kid: Kid) -> str:
    """What stands for a key in labels: that of the key, whatever its version."""
    return hashed(kid.key)


def reason_of(error: BaseException) -> str:
    """Why something was refused, from a closed set."""
    reason = getattr(error, "reason", "")
    if isinstance(reason, str) and reason in _REASONS:
        return reason
    return _BY_CODE.get(error.code.value, "other") if isinstance(error, RonError) else "internal"


_REASONS = frozenset(
    "pq_policy backpressure tenant_share rate attest_missing frozen clock_skew verify_cache_expired".split()  # noqa: SIM905
)
# Of these the ones that are neither a caller's mistake nor an outage.
_POLICY = ("pq_policy", "attest_missing", "frozen")
_BY_CODE = {
    "NoCapability": "unauth",
    "NotFound": "not_found",
    "BadRequest": "bad_request",
    "StoreUnavailable": "store_unavailable",
    "AttestationMissing": "attest_missing",
    "Backpressure": "backpressure",
    "Timeout": "timeout",
    "Conflict": "conflict",
    "TooLarge": "too_large",
    "Unsupported": "unsupported",
    "Internal": "internal",
}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
