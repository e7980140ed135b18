"""The key service alone: `twistd -n ron-kms`, the same service a node embeds.

In: the config of ron-kms. Out: `/v1/kms` at `bind_addr`, health and administration at `metrics_addr` and on the
operators' socket, `kms.json` in the home.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from twisted.logger import Logger
from twisted.python.usage import UsageError

from ron.kernel import Config
from ron.kernel.config import Layers, Resolved
from ron.kernel.config.layers import Inputs
from ron.kernel.inprocess import ServiceUnit
from ron.kernel.limits_config import LimitsConfig
from ron.kernel.slo_config import SloConfig
from ron.nodes.daemon import ConfigOptions, Daemon, complain
from ron.nodes.parts import PARTS
from ron.nodes.parts.kms import HostedKms
from ron.nodes.runtime import Runtime
from ron.nodes.standalone import Standalone
from ron.proto.errors import RonError
from ron.services.configs import SCHEMAS, KmsDaemonConfig
from ron.services.kms.environment import FILE_VARIABLE, FLAGS, SWITCHES, VARIABLES, short
from ron.services.sections import (
    AdminSection,
    DosConfig,
    LogSection,
    ObservabilityConfig,
    ProfilingConfig,
    ShutdownConfig,
)

NAME = "ron-kms"
FACTS_FILE = "kms.json"
_log = Logger(namespace="ron.kms")


class KmsFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`$RON_HOME/kms.json`."""

    admin_url: str
    kms_url: str
    backend: str
    grpc_addr: str | None = None
    oap_addr: str | None = None


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """amnesia: nothing outlives the process."""

    amnesia: bool = False


class HostedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The file of ron-kms in the words of every daemon of ours, as `Runtime` has them; the file itself in `kms`."""

    kms: KmsDaemonConfig
    onion: Memory
    admin: AdminSection
    limits: LimitsConfig
    slo: SloConfig
    observability: ObservabilityConfig
    profiling: ProfilingConfig
    shutdown: ShutdownConfig
    log: LogSection
    dos: DosConfig = DosConfig()

    @classmethod
    def of(cls, config: KmsDaemonConfig) -> HostedConfig:
        """The same, told otherwise."""
        limits = LimitsConfig(
            read_idle_ms=config.read_timeout,
            idle_ms=config.idle_timeout,
            write_timeout_ms=config.write_timeout,
            connections=config.max_conns,
            body_bytes=config.limits.max_body_bytes,
            concurrency=config.limits.max_inflight_sign + config.limits.max_inflight_verify,
            decompress_ratio=config.limits.decompress_ratio_cap,
        )
        return cls(
            kms=config,
            onion=Memory(amnesia=config.service.amnesia),
            admin=AdminSection(bind=config.metrics_addr),
            limits=limits,
            slo=config.slo,
            observability=config.tracing,
            profiling=config.profiling,
            shutdown=config.shutdown,
            log=config.log,
        )


class KmsLayers(Layers[Any]):
    """defaults < file < `KMS_…` < `RON_KMS_…` < flags, judged as ron-kms's file and given out as `HostedConfig`."""

    def inputs(self) -> Inputs:
        """As `Layers.inputs`, of the variables by their own names."""
        found = super().inputs()
        long = {name: text for name, text in found.variables if name != FILE_VARIABLE}
        # in this order: where two mean one key, the last of them counts
        return found._replace(variables=(*sorted(short(self._environ).items()), *long.items()))

    def judge(self, inputs: Inputs) -> Resolved[Any]:
        """As `Layers.judge`."""
        found = super().judge(inputs)
        return found._replace(value=HostedConfig.of(found.value))

    def _key_of(self, name: str) -> str:
        return VARIABLES.get(name) or super()._key_of(name)


class Options(ConfigOptions):
    """Options of `twistd ron-kms`."""

    synopsis = "Usage: twistd [twistd options] ron-kms [--config etc/ron-kms.toml] [--backend file] [--set key=value]"
    longdesc = (
        "Keeps keys and uses them: hybrid signatures, wrapped keys, an audit log that nobody can rewrite. Flags beat "
        "RON_KMS_* variables, these the file, the file the defaults. State lives in $RON_HOME."
    )
    optParameters = [[flag, None, None, text] for flag, (_key, text) in FLAGS.items()] + [
        ["log-format", None, None, "json; there is no other."]
    ]
    optFlags = [[flag, None, text] for flag, (_key, text) in SWITCHES.items()]  # noqa: RUF012

    def postOptions(self) -> None:
        """The short flags become keys. `--set` beats them."""
        given = {key: str(self[flag]) for flag, (key, _text) in FLAGS.items() if self[flag] is not None}
        given |= {key: "true" for flag, (key, _text) in SWITCHES.items() if self[flag]}
        if given.get("log.level") == "trace":
            given["log.level"] = "debug"
        if self["log-format"] not in {None, "json"}:
            raise UsageError("--log-format: the log is JSON lines; take json, or leave it out")
        self["flags"] = {**given, **self["flags"]}


def open_kms_config(options: ConfigOptions, environ: Mapping[str, str] = os.environ) -> Config[Any]:
    """The config of ron-kms. Raises `ConfigError`."""
    schema, check = SCHEMAS[NAME]
    name = options["config"] or environ.get(FILE_VARIABLE)
    return Config(KmsLayers(schema, check, Path(name) if name else None, environ, options["flags"]))


def makeService(options: Options) -> Daemon:
    """The service for twistd; complains in one line and exits when config, files or ports are not right."""
    from twisted.internet import reactor

    named = bool(options["config"] or os.environ.get(FILE_VARIABLE))
    try:
        return KmsDaemon(Runtime(reactor, name=NAME, config=open_kms_config(options)), from_file=named)
    except RonError as error:
        complain(NAME, error)


class KmsDaemon(Standalone):
    """The key service and its listeners. from_file: somebody named a config file."""

    facts_file = FACTS_FILE

    def __init__(self, runtime: Runtime, *, from_file: bool = True) -> None:
        super().__init__(runtime)
        self._from_file = from_file
        self.kms = HostedKms(runtime)

    async def begin(self) -> None:
        """Health endpoints first, then the service, then facts and banner."""
        runtime, kms = self.runtime, self.kms
        if not self._from_file:
            _log.info("no config file: defaults, variables and flags are in force", event="config_defaults")
        self.open(kms.control_site(), kms.where)
        unit = ServiceUnit("kms", kms.service, ready=kms.ready)
        self.supervisor.add(unit, essential=True, start_s=PARTS["kms"].start_s)
        await self.supervisor.start()
        scheme = "https" if kms.config.tls.enabled else "http"
        facts = KmsFacts(
            admin_url=self.admin_url,
            kms_url=f"{scheme}://{kms.address}",
            backend=kms.desk.room.backend.name,
            grpc_addr=str(kms.doors.grpc_address) if kms.doors.grpc_address is not None else None,
            oap_addr=str(kms.doors.oap_address) if kms.doors.oap_address is not None else None,
        )
        self.write_facts(facts)
        runtime.say(
            f"\n  ron-kms is up: {facts.kms_url}/v1/kms, backend {facts.backend}"
            f"\n    health             {facts.admin_url}/readyz"
            "\n    look               ronctl kms key list\n"
        )
