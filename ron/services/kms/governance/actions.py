"""What may be proposed: for whom, with which changes, and what happens once it is decided. Pure.

In: an action, its scope and its change. Out: its rule, or `RonError` (BadRequest) that says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ron.proto.errors import bad_request
from ron.proto.governance import Action
from ron.proto.kms import parse_kid
from ron.services.kms.governance.signers import parse_signers

GLOBAL = "global"
TENANT = "tenant:"
_Check = Callable[[Mapping[str, str], str], None]


class Rule(NamedTuple):
    """scopes: prefixes of those it may have. check: raises for a change that makes no sense.

    enacted: it takes effect here; any other is a permission, which the service makes use of once. at_once: with the
    last approval, nobody needs to execute it. neutral: it weakens nothing, so that an auditor may break a tie.
    """

    scopes: tuple[str, ...]
    check: _Check
    enacted: bool = False
    at_once: bool = False
    neutral: bool = False


def _only(key: str, *values: str) -> _Check:
    def check(change: Mapping[str, str], _scope: str) -> None:
        if set(change) != {key} or change[key] not in values:
            raise bad_request(f"the change is {key}={'|'.join(values)} and nothing else")

    return check


def _anything(_change: Mapping[str, str], _scope: str) -> None:
    """What it means is for the part of the service that asks for the permission: it compares word for word."""


def _kid(change: Mapping[str, str], scope: str) -> None:
    if "kid" not in change:
        raise bad_request("the change names no kid", "kid=<tenant>/<purpose>/<alg>/<uuid>")
    if f"{TENANT}{parse_kid(change['kid']).tenant}" != scope:
        raise bad_request("this key is another tenant's than the scope says")


def _signers(change: Mapping[str, str], _scope: str) -> None:
    if set(change) - {"group"} != {"signers", "threshold"} or change["threshold"] not in map(str, range(1, 17)):
        raise bad_request("the change is signers=role:public,… and threshold=N, and group=… with a joint key")
    parse_signers(change["signers"])


_BOTH = (GLOBAL, TENANT)
RULES: dict[Action, Rule] = {
    "destroy_key": Rule((TENANT,), _kid),
    "root_rotation": Rule((GLOBAL,), _anything),
    "backend_change": Rule((GLOBAL,), _anything),
    "amnesia_off": Rule((GLOBAL,), _anything),
    "attest_require": Rule(_BOTH, _anything, neutral=True),
    "override": Rule(_BOTH, _anything, neutral=True),
    "pq_mode": Rule(_BOTH, _only("pq_mode", "and", "pq_only"), enacted=True, neutral=True),
    "hybrid_off": Rule(_BOTH, _only("pq_mode", "or"), enacted=True),
    "rollback": Rule((GLOBAL,), _only("pq_mode", "or", "and", "config"), enacted=True),
    "freeze": Rule(_BOTH, _only("freeze", "on", "off"), enacted=True, at_once=True),
    "signers": Rule((GLOBAL,), _signers, enacted=True),
}
# Which action a change means, for people who do not name one
_MEANT: dict[str, Action] = {
    "freeze": "freeze",
    "signers": "signers",
    "kid": "destroy_key",
    "backend": "backend_change",
    "attest_require": "attest_require",
    "amnesia": "amnesia_off",
    "root": "root_rotation",
}


def check_action(action: Action, scope: str, change: Mapping[str, str]) -> Rule:
    """The action's rule. Raises `RonError` (BadRequest) for a scope or change that it cannot have."""
    rule = RULES[action]
    if not any(scope == one or (one == TENANT and scope.startswith(TENANT)) for one in rule.scopes):
        raise bad_request(f"{action} is not for {scope.partition(':')[0]}", " or ".join(rule.scopes))
    rule.check(change, scope)
    return rule


def meant(change: Mapping[str, str]) -> Action:
    """The action that `change` means. Raises `RonError` (BadRequest) where that is not clear."""
    if set(change) == {"pq_mode"}:
        return "hybrid_off" if change["pq_mode"] == "or" else "pq_mode"
    found = {_MEANT[key] for key in change if key in _MEANT}
    if len(found) != 1:
        raise bad_request("which action is this change?", f"--action {'|'.join(sorted(RULES))}")
    return found.pop()
