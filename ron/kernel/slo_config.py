"""The `[slo]` section: what is promised, and when it burns so fast that writes are shed."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

_LIVE = {"reload": True}
_Window = Annotated[int, Meta(ge=1, le=86_400, extra={"unit": "s", **_LIVE})]


class SloConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """availability: the share of requests that must be good. latency_ms: a slower answer is a bad one.

    short_window_s, long_window_s: both must burn `burn_rate` times faster than promised before anything is shed.
    hold_s: how long the short window must be calm before all is as before.
    """

    enabled: Annotated[bool, Meta(extra=_LIVE)] = True
    availability: Annotated[float, Meta(ge=0.5, le=0.99999, extra=_LIVE)] = 0.999
    latency_ms: Annotated[int, Meta(ge=1, le=600_000, extra={"unit": "ms", **_LIVE})] = 500
    short_window_s: _Window = 30
    long_window_s: _Window = 300
    burn_rate: Annotated[float, Meta(ge=1, le=1000, extra=_LIVE)] = 10.0
    hold_s: _Window = 30
