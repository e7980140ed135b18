"""`POST /v1/profile`: a CPU profile, and on request the heap, of the process that answers.

In: seconds. Out: `ron.kernel.profiling.Profile` as JSON. Behind scope `node:profile`; names of functions are told, no
values.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ron.kernel.profiling import MAX_SECONDS, MIN_SECONDS, Profile, Profiler
from ron.proto.errors import ErrorCode, RonError
from ron.web.endpoint import Call, Endpoint

# Beyond the profile itself: counting a heap of millions of objects takes seconds.
_GRACE_S = 30.0


class ProfileRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `/v1/profile`. heap: count objects and trace allocations too, which slows the process meanwhile."""

    seconds: Annotated[float, msgspec.Meta(ge=MIN_SECONDS, le=MAX_SECONDS)] = 10.0
    heap: bool = False


def profiling_endpoints(profiler: Profiler, enabled: bool) -> list[Endpoint]:
    """The endpoint; when not `enabled` it is there and says so."""

    async def profile(_call: Call, body: ProfileRequest) -> Profile:
        if not enabled:
            raise RonError(ErrorCode.UNSUPPORTED, "profiling is off", hint="set profiling.enabled = true")
        return await profiler.profile(body.seconds, heap=body.heap)

    return [
        Endpoint(
            method="POST",
            path="/v1/profile",
            handler=profile,
            scope="node:profile",
            body=ProfileRequest,
            deadline_s=MAX_SECONDS + _GRACE_S,
        )
    ]
