"""The four events of the kernel, and nothing else (blueprint §2.1, frozen).

In: what happened to a service, the config or the process. Out: immutable values on the bus's topic `kernel`.
"""

from __future__ import annotations

from typing import ClassVar, TypeAlias

import msgspec


class KernelEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="event"):
    """One of `KernelEvent.Health`, `.ConfigUpdated`, `.ServiceCrashed`, `.Shutdown`; tell them apart with `match`."""

    Health: ClassVar[type[Health]]
    ConfigUpdated: ClassVar[type[ConfigUpdated]]
    ServiceCrashed: ClassVar[type[ServiceCrashed]]
    Shutdown: ClassVar[type[Shutdown]]


class Health(KernelEvent, frozen=True, tag="Health"):
    """`service` came up (`ok`) or is not up any more."""

    service: str
    ok: bool


class ConfigUpdated(KernelEvent, frozen=True, tag="ConfigUpdated"):
    """A new config snapshot is in force; `version` counts from 1 and never goes back."""

    version: int


class ServiceCrashed(KernelEvent, frozen=True, tag="ServiceCrashed"):
    """`service` ended without being asked to. `reason` is one redacted sentence."""

    service: str
    reason: str


class Shutdown(KernelEvent, frozen=True, tag="Shutdown"):
    """The process is going down: stop accepting, finish what is under way."""


KernelEvent.Health = Health
KernelEvent.ConfigUpdated = ConfigUpdated
KernelEvent.ServiceCrashed = ServiceCrashed
KernelEvent.Shutdown = Shutdown

# The same four as a union, for strict decoding.
AnyKernelEvent: TypeAlias = Health | ConfigUpdated | ServiceCrashed | Shutdown
