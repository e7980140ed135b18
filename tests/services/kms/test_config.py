"""The config of ron-kms: its variables, flags and their precedence (CONFIG §1, §3, §6), and what is refused (§4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import ConfigError, convert, keys_of
from ron.kernel.config.schema import leaves
from ron.kernel.config.text import value_of
from ron.nodes.kms import HostedConfig, Options, open_kms_config
from ron.proto.kms import Alg
from ron.services.configs import SCHEMAS, KmsDaemonConfig
from ron.services.kms.config import EmbeddedKms
from ron.services.kms.environment import FLAGS, LONG_NAMES, SHORT_NAMES, SWITCHES, VARIABLES, short
from tests.services.configtables import check

KEYS = keys_of(KmsDaemonConfig)
# a value other than the default, as text, for each key that has a variable
OTHER: dict[str, str] = {
    "bind_addr": "127.0.0.1:7441", "metrics_addr": "127.0.0.1:7442", "grpc_addr": "127.0.0.1:9445", "max_conns": "2048",
    "oap_addr": "127.0.0.1:9447", "workers": "2",
    "read_timeout": "250ms", "write_timeout": "7s", "idle_timeout": "1m", "limits.max_body_bytes": "2MiB",
    "limits.decompress_ratio_cap": "3", "limits.max_inflight_sign": "64", "limits.max_inflight_verify": "65",
    "limits.tenant_share_min": "0.1", "limits.verify_cache_max": "9", "tls.enabled": "0", "tls.cert_path": "a.crt",
    "tls.key_path": "a.key", "service.backend": "inmem", "service.amnesia": "0",
    "service.allowed_algs": "ed25519,ml-dsa",
    "service.allow_sign_fallback": "0", "service.multi_backends": "file,inmem", "security.attest_require": "never",
    "security.sign_rate_limit_rps": "200", "security.time_skew_tolerance_ms": "1s", "security.allow_unlocked": "1",
    "entropy_time.rng_reseed_interval_ops": "200000", "pq.produce_hybrid": "1", "pq.verify_mode": "or",
    "pq.rollout_percent": "5", "pq.min_verify_mode": "and", "audit.dir": "elsewhere",
    "audit.checkpoint_interval_ops": "7",
    "audit.sealing": "software", "audit.verify_cache_ttl_ms": "1m", "observability.redact_level": "lengths",
    "observability.log_inputs": "0", "observability.correlation_id_mode": "uuidv4",
    "observability.emit_cache_age_metric": "0", "backends.pkcs11.module_path": "/x.so",
    "backends.pkcs11.slot_label": "OTHER", "backends.pkcs11.pin_env": "PIN", "backends.file.dir": "other",
    "backends.file.kdf": "age", "backends.file.aead": "aes-gcm", "log.level": "debug",
}  # fmt: skip
ETC = Path(__file__).parents[3] / "etc" / "ron-kms.toml"


def opened(environ: dict[str, str], *words: str) -> HostedConfig:
    options = Options()
    options.parseOptions(list(words))
    current: HostedConfig = open_kms_config(options, environ).current
    return current


class Tables(SynchronousTestCase):
    def test_every_name_is_of_a_key(self) -> None:
        for key in [
            *LONG_NAMES.values(),
            *SHORT_NAMES.values(),
            *(k for k, _ in [*FLAGS.values(), *SWITCHES.values()]),
        ]:
            self.assertIn(key, KEYS)
        self.assertEqual(set(OTHER), set(LONG_NAMES.values()) | {key for key, _text in FLAGS.values()})

    def test_every_variable_sets_its_key(self) -> None:
        for name, key in VARIABLES.items():
            kms = opened({name: OTHER[key]}).kms
            wanted = convert(nested(key, OTHER[key]), KmsDaemonConfig)
            self.assertEqual(kms, wanted, name)

    def test_every_flag_sets_its_key(self) -> None:
        for flag, (key, _text) in FLAGS.items():
            self.assertEqual(
                opened({}, f"--{flag}", OTHER[key]).kms, convert(nested(key, OTHER[key]), KmsDaemonConfig), flag
            )
        self.assertTrue(opened({}, "--pq-produce-hybrid").kms.pq.produce_hybrid)
        forgetful = opened({}, "--amnesia", "--backend", "inmem", "--set", "log.to=memory")
        self.assertEqual((forgetful.kms.service.amnesia, forgetful.onion.amnesia), (True, True))
        self.assertEqual(opened({}, "--log-level", "trace").log.level, "debug")

    def test_what_a_flag_does_not_take(self) -> None:
        with self.assertRaises(UsageError):
            Options().parseOptions(["--log-format", "text"])
        Options().parseOptions(["--log-format", "json"])
        with self.assertRaises(UsageError):
            Options().parseOptions(["--pq-mode", "hybrid"])

    def test_the_example_shows_the_defaults(self) -> None:
        shown = opened({}, "--config", str(ETC)).kms
        self.assertEqual((shown.bind_addr, shown.metrics_addr), ("127.0.0.1:9446", "127.0.0.1:9909"))
        plain = convert({"bind_addr": shown.bind_addr, "metrics_addr": shown.metrics_addr}, KmsDaemonConfig)
        self.assertEqual(shown, plain)


class Precedence(SynchronousTestCase):
    def test_each_layer_over_the_one_before(self) -> None:
        path = Path(self.mktemp())
        path.write_text("[pq]\nrollout_percent = 10\n", encoding="utf-8")
        words: tuple[str, ...] = ("--config", str(path))
        self.assertEqual(opened({}).kms.pq.rollout_percent, 100)
        self.assertEqual(opened({}, *words).kms.pq.rollout_percent, 10)
        self.assertEqual(opened({"RON_CONFIG": str(path)}).kms.pq.rollout_percent, 10)
        environ = {"KMS_PQ_ROLLOUT_PERCENT": "20"}
        self.assertEqual(opened(environ, *words).kms.pq.rollout_percent, 20)
        environ["RON_KMS_PQ_ROLLOUT_PERCENT"] = "30"
        self.assertEqual(opened(environ, *words).kms.pq.rollout_percent, 30)
        self.assertEqual(opened(environ, *words, "--pq-rollout", "40").kms.pq.rollout_percent, 40)
        self.assertEqual(
            opened(environ, *words, "--pq-rollout", "40", "--set", "pq.rollout_percent=50").kms.pq.rollout_percent, 50
        )

    def test_variables_of_others(self) -> None:
        """A PIN, the home: none of ours. What begins with RON_ and means nothing is refused by its name."""
        environ = {"KMS_PKCS11_PIN": "1234", "KMS_E2E": "1", "RON_HOME": "/x", "RON_LOG_LEVEL": "warn", "PATH": "/bin"}
        self.assertEqual(opened(environ).log.level, "warn")
        self.assertEqual(short(environ), {})
        error = self.assertRaises(ConfigError, opened, {"RON_KMS_BAKEND": "file"})
        self.assertIn("RON_KMS_BAKEND", error.message)

    def test_a_refusal_names_the_variable(self) -> None:
        for name, text in (("KMS_BACKEND", "floppy"), ("RON_KMS_READ_TIMEOUT", "5 s"), ("RON_KMS_AMNESIA", "perhaps")):
            error = self.assertRaises(ConfigError, opened, {name: text})
            self.assertIn(name, error.message)
            self.assertEqual(error.key, VARIABLES[name])

    def test_in_the_words_of_every_daemon(self) -> None:
        hosted = opened({}, "--max-conns", "5", "--read-timeout", "1s", "--metrics", "127.0.0.1:1")
        self.assertEqual((hosted.limits.connections, hosted.limits.read_idle_ms), (5, 1000))
        self.assertEqual(
            (hosted.admin.bind, hosted.limits.body_bytes, hosted.onion.amnesia), ("127.0.0.1:1", 1 << 20, False)
        )

    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(sorted(VARIABLES)), st.text(max_size=20).filter(lambda text: "\0" not in text))
    def test_any_text_is_a_value_or_a_clear_word(self, name: str, text: str) -> None:
        try:
            opened({name: text})
        except ConfigError as error:
            self.assertTrue(error.key and error.hint, error)


class Refused(SynchronousTestCase):
    def refused(self, key: str, **tables: Any) -> str:
        error: ConfigError = self.assertRaises(ConfigError, check, "ron-kms", tables)
        self.assertEqual(error.key, key, error.message)
        self.assertTrue(error.hint)
        if key.split(".")[0] in {field.name for field in msgspec.structs.fields(EmbeddedKms)} and "log" not in tables:
            nested_error = self.assertRaises(ConfigError, check, "ron-node", {"kms": {"enabled": True, **tables}})
            self.assertEqual(nested_error.key, f"kms.{key}")
        return error.message

    def test_addresses(self) -> None:
        for text in ("9446", "localhost:9446", "127.0.0.1:99999", ""):
            self.refused("bind_addr", bind_addr=text)
            self.refused("metrics_addr", metrics_addr=text)
        for text in ("0.0.0.0:9446", "192.168.1.1:9446", "[::]:9446"):
            self.assertIn("can be reached by others", self.refused("bind_addr", bind_addr=text))
            self.refused("metrics_addr", metrics_addr=text)
            check("ron-kms", {"bind_addr": text, "tls": {"enabled": True, "cert_path": "a", "key_path": "b"}})
        self.refused("metrics_addr", bind_addr="127.0.0.1:7", metrics_addr="127.0.0.1:7")
        for door in ("grpc_addr", "oap_addr"):
            self.refused(door, **{door: "nowhere"})
            self.refused(door, **{door: "0.0.0.0:9445"})

    def test_tls_without_its_files(self) -> None:
        self.refused("tls.cert_path", tls={"enabled": True})
        self.refused("tls.key_path", tls={"enabled": True, "cert_path": "a"})

    def test_backends(self) -> None:
        self.refused("service.multi_backends", service={"multi_backends": ["inmem", "file"]})
        self.refused("service.multi_backends", service={"multi_backends": ["file", "file"]})
        self.refused("service.allow_sign_fallback", service={"allow_sign_fallback": True})
        self.refused("backends.pkcs11.module_path", service={"backend": "pkcs11"})
        named = {"pkcs11": {"module_path": "/x.so"}}
        self.refused("backends.pkcs11.pin_env", service={"backend": "pkcs11"}, backends=named)
        self.refused("service.multi_backends", service={"backend": "cloud"})
        self.refused("service.multi_backends", service={"multi_backends": ["file", "cloud"]})
        beside = {"backend": "cloud", "multi_backends": ["cloud", "file"]}
        self.refused("backends.cloud.key_id", service=beside)
        check("ron-kms", {"service": beside, "backends": {"cloud": {"key_id": "k"}}})
        self.refused("backends.file.dir", backends={"file": {"dir": ""}})
        order = convert({"service": {"multi_backends": ["file", "inmem"]}}, KmsDaemonConfig).order
        self.assertEqual(order, ("file", "inmem"))

    def test_evidence_where_there_is_none(self) -> None:
        for backend in ("file", "inmem"):
            service = {"backend": backend}
            self.refused("security.attest_require", service=service, security={"attest_require": "required"})
            self.refused("audit.sealing", service=service, audit={"sealing": "attested"})

    def test_amnesia_keeps_nothing(self) -> None:
        self.refused("service.backend", service={"amnesia": True}, log={"to": "memory"})
        forgets = {"amnesia": True, "backend": "inmem"}
        self.refused("log.to", service=forgets)
        self.refused("profiling.enabled", service=forgets, log={"to": "memory"}, profiling={"enabled": True})
        for folder in ("/var/lib/ron/audit", "audit", "/dev/shm/../../var", "/dev/shm"):
            self.refused("audit.dir", service=forgets, log={"to": "memory"}, audit={"dir": folder})
        check("ron-kms", {"service": forgets, "log": {"to": "memory"}, "audit": {"dir": "/dev/shm/kms"}})
        node = {"onion": {"amnesia": True}, "log": {"to": "memory"}, "kms": {"enabled": True}}
        self.assertEqual(self.assertRaises(ConfigError, check, "ron-node", node).key, "kms.service.amnesia")

    def test_what_no_log_of_ours_has(self) -> None:
        self.refused("observability.log_inputs", observability={"log_inputs": True})

    def test_nothing_that_could_verify(self) -> None:
        self.refused("pq.verify_mode", service={"allowed_algs": ["ed25519"]}, pq={"verify_mode": "pq_only"})
        self.refused("pq.verify_mode", pq={"verify_mode": "and", "produce_hybrid": False})

    def test_a_node_without_one_is_not_judged(self) -> None:
        check("ron-node", {"kms": {"bind_addr": "nowhere"}})

    def test_every_key_that_reloads_is_read_at_each_use(self) -> None:
        live = {key for key, leaf in leaves(SCHEMAS["ron-kms"][0]).items() if leaf.live}
        for key in ("service.backend", "bind_addr", "tls.enabled", "backends.pkcs11.module_path", "audit.dir"):
            self.assertNotIn(key, live, "CONFIG §5: disruptive")
        self.assertLessEqual({"pq.verify_mode", "pq.rollout_percent", "security.sign_rate_limit_rps"}, live)
        self.assertEqual(set(convert({}, KmsDaemonConfig).service.allowed_algs), set(Alg))


def nested(key: str, text: str) -> dict[str, Any]:
    """Tables with one key, its text read as a variable's is."""
    value: Any = value_of(text, leaves(KmsDaemonConfig)[key], key)
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]
