"""Capabilities: macaroons minted from root keys, narrowed by caveats, checked on every call (DESIGN §4).

In: a token from `Authorization: Bearer` and what the call wants. Out: a `Capability`, or 401/403.
"""

from ron.auth.authority import Authority, Capability, Wanted
from ron.auth.caveats import Caveat, parse_caveat
from ron.auth.rootkeys import RootKeys

__all__ = ["Authority", "Capability", "Caveat", "RootKeys", "Wanted", "parse_caveat"]
