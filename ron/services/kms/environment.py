"""The variables and flags of ron-kms by their short names (specs/ron-kms.md, CONFIG §3 and §6, IDB §3.9, RUNBOOK §2).

In: a process's environment. Out: which key each of them sets. Where two of them set one key, the longer prefix counts.
Pure: no file and no environment is looked at here.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "RON_KMS_"
SHORT = "KMS_"
# Where the file is, when no flag says it.
FILE_VARIABLE = "RON_CONFIG"

# after RON_KMS_
LONG_NAMES: Mapping[str, str] = {
    "BIND_ADDR": "bind_addr",
    "METRICS_ADDR": "metrics_addr",
    "MAX_CONNS": "max_conns",
    "READ_TIMEOUT": "read_timeout",
    "WRITE_TIMEOUT": "write_timeout",
    "IDLE_TIMEOUT": "idle_timeout",
    "MAX_BODY_BYTES": "limits.max_body_bytes",
    "DECOMPRESS_RATIO_CAP": "limits.decompress_ratio_cap",
    "TLS_ENABLED": "tls.enabled",
    "TLS_CERT_PATH": "tls.cert_path",
    "TLS_KEY_PATH": "tls.key_path",
    "BACKEND": "service.backend",
    "AMNESIA": "service.amnesia",
    "ALLOWED_ALGS": "service.allowed_algs",
    "ALLOW_SIGN_FALLBACK": "service.allow_sign_fallback",
    "MULTI_BACKENDS": "service.multi_backends",
    "ATTEST_REQUIRE": "security.attest_require",
    "SIGN_RATE_LIMIT": "security.sign_rate_limit_rps",
    "TIME_SKEW_TOLERANCE_MS": "security.time_skew_tolerance_ms",
    "RNG_RESEED_INTERVAL_OPS": "entropy_time.rng_reseed_interval_ops",
    "PQ_PRODUCE_HYBRID": "pq.produce_hybrid",
    "PQ_VERIFY_MODE": "pq.verify_mode",
    "PQ_ROLLOUT_PERCENT": "pq.rollout_percent",
    "AUDIT_DIR": "audit.dir",
    "AUDIT_CHECKPOINT_INTERVAL": "audit.checkpoint_interval_ops",
    "AUDIT_SEALING": "audit.sealing",
    "VERIFY_CACHE_TTL_MS": "audit.verify_cache_ttl_ms",
    "REDACT_LEVEL": "observability.redact_level",
    "LOG_INPUTS": "observability.log_inputs",
    "CORRELATION_ID_MODE": "observability.correlation_id_mode",
    "EMIT_CACHE_AGE_METRIC": "observability.emit_cache_age_metric",
    "PKCS11_MODULE_PATH": "backends.pkcs11.module_path",
    "PKCS11_SLOT_LABEL": "backends.pkcs11.slot_label",
    "PKCS11_PIN_ENV": "backends.pkcs11.pin_env",
    "FILE_DIR": "backends.file.dir",
    "FILE_KDF": "backends.file.kdf",
    "FILE_AEAD": "backends.file.aead",
    # not in the table, and alike
    "GRPC_ADDR": "grpc_addr",
    "OAP_ADDR": "oap_addr",
    "WORKERS": "workers",
    "ALLOW_UNLOCKED": "security.allow_unlocked",
    "PQ_MIN_VERIFY_MODE": "pq.min_verify_mode",
    "VERIFY_CACHE_MAX": "limits.verify_cache_max",
    "MAX_INFLIGHT_SIGN": "limits.max_inflight_sign",
    "MAX_INFLIGHT_VERIFY": "limits.max_inflight_verify",
    "TENANT_SHARE_MIN": "limits.tenant_share_min",
}
# after KMS_
SHORT_NAMES: Mapping[str, str] = {
    "BIND": "bind_addr",
    "API_ADDR": "bind_addr",
    "GRPC_ADDR": "grpc_addr",
    "OAP_ADDR": "oap_addr",
    "METRICS_ADDR": "metrics_addr",
    "BACKEND": "service.backend",
    "AMNESIA": "service.amnesia",
    "MAX_PAYLOAD": "limits.max_body_bytes",
    "ALLOWED_ALGS": "service.allowed_algs",
    "ATTEST_REQUIRE": "security.attest_require",
    "SIGN_RATE_LIMIT": "security.sign_rate_limit_rps",
    "TIME_SKEW_TOLERANCE_MS": "security.time_skew_tolerance_ms",
    "RNG_RESEED_INTERVAL_OPS": "entropy_time.rng_reseed_interval_ops",
    "PQ_PRODUCE_HYBRID": "pq.produce_hybrid",
    "PQ_VERIFY_MODE": "pq.verify_mode",
    "PQ_ROLLOUT_PERCENT": "pq.rollout_percent",
    "PKCS11_MODULE": "backends.pkcs11.module_path",
    "VERIFY_CACHE_MAX": "limits.verify_cache_max",
    "VERIFY_CACHE_TTL_MS": "audit.verify_cache_ttl_ms",
    "MAX_INFLIGHT_SIGN": "limits.max_inflight_sign",
    "MAX_INFLIGHT_VERIFY": "limits.max_inflight_verify",
    "TENANT_SHARE_MIN": "limits.tenant_share_min",
}
VARIABLES: Mapping[str, str] = {
    **{SHORT + name: key for name, key in SHORT_NAMES.items()},
    **{PREFIX + name: key for name, key in LONG_NAMES.items()},
}
# flags with a value: name → key, what it is
FLAGS: Mapping[str, tuple[str, str]] = {
    "bind": ("bind_addr", "Where /v1/kms listens, ip:port."),
    "metrics": ("metrics_addr", "Where health and metrics are, ip:port."),
    "max-conns": ("max_conns", "Connections at a time."),
    "read-timeout": ("read_timeout", "5s, 250ms."),
    "write-timeout": ("write_timeout", "5s, 250ms."),
    "idle-timeout": ("idle_timeout", "60s."),
    "backend": ("service.backend", "inmem, file, pkcs11, tpm or cloud."),
    "allowed-algs": ("service.allowed_algs", "With commas between."),
    "attest": ("security.attest_require", "never, if-available or required."),
    "pq-verify": ("pq.verify_mode", "or, and, pq_only."),
    "pq-rollout": ("pq.rollout_percent", "0 to 100."),
    "audit-dir": ("audit.dir", "The audit log's folder."),
    "audit-checkpoint-ops": ("audit.checkpoint_interval_ops", "Records between signed heads."),
    "audit-sealing": ("audit.sealing", "software or attested."),
    "verify-cache-ttl": ("audit.verify_cache_ttl_ms", "In milliseconds."),
    "multi-backends": ("service.multi_backends", "With commas between; the first signs."),
    "log-level": ("log.level", "trace (as debug), debug, info, warn or error."),
}
# flags without one: they set their key to true
SWITCHES: Mapping[str, tuple[str, str]] = {
    "amnesia": ("service.amnesia", "Nothing outlives the process."),
    "pq-produce-hybrid": ("pq.produce_hybrid", "Sign with the post-quantum half too."),
    "allow-sign-fallback": ("service.allow_sign_fallback", "Another backend may sign where the key is the same."),
}


def short(environ: Mapping[str, str]) -> dict[str, str]:
    """Of `environ` the `KMS_…` that ron-kms knows. Any other is somebody else's: a PIN is where the config says."""
    return {name: text for name, text in environ.items() if name in VARIABLES and name.startswith(SHORT)}
