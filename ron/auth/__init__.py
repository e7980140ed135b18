"""Capabilities: macaroons minted from root keys, narrowed by caveats, checked on every call (DESIGN §4).

In: a token from `Authorization: Bearer` and what the call wants. Out: a `Capability`, or a refusal with its reason.
"""

from ron.auth.authority import AUDIENCE, Authority
from ron.auth.caveats import Caveat, parse_caveat
from ron.auth.counts import AuthCounts
from ron.auth.files import AuthFiles
from ron.auth.refusals import Refused
from ron.auth.replay import ReplayGuard
from ron.auth.revocations import Revocations
from ron.auth.rootkeys import Epoch, RootKeys
from ron.auth.terms import Capability, Wanted
from ron.auth.tokens import Inspected, attenuate, inspect

__all__ = [
    "AUDIENCE",
    "AuthCounts",
    "AuthFiles",
    "Authority",
    "Capability",
    "Caveat",
    "Epoch",
    "Inspected",
    "Refused",
    "ReplayGuard",
    "Revocations",
    "RootKeys",
    "Wanted",
    "attenuate",
    "inspect",
    "parse_caveat",
]
