"""A service's governance with the people who decide: their keys, a clock to turn, an audit log that may refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace
from nacl.signing import SigningKey
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from ron.proto.errors import RonError
from ron.proto.governance import Action, Proposal, Role, SignedObject, SignerSet, Statement, Verb
from ron.proto.ids import uuid7
from ron.services.kms.governance.book import Book
from ron.services.kms.governance.proposals import Case
from ron.services.kms.governance.quorum import Governance
from ron.services.kms.governance.signers import MACRONODE, MICRONODE, key_id, set_digest, sign, signer_set
from ron.services.kms.ports import AuditEntry

START = 1_800_000_000
HOUR = 3600
DAY = 24 * HOUR
KID = "acme/sign/ed25519/00000000-0000-4000-8000-000000000001"
OWNER: Role = "policy-owner"
OFFICER: Role = "security-officer"
CUSTODIAN: Role = "custodian"
AUDITOR: Role = "auditor"
T = TypeVar("T")


def key_of(name: str) -> SigningKey:
    """The same key for the same name."""
    return SigningKey(hashlib.sha256(name.encode()).digest())


def public_of(name: str) -> str:
    return bytes(key_of(name).verify_key).hex()


def the_three(now: int = START, *, auditor: bool = True) -> SignerSet:
    """2-of-3, whose keys are named like their roles."""
    roles = [OWNER, OFFICER, CUSTODIAN, *([AUDITOR] if auditor else [])]
    return signer_set([(role, public_of(role)) for role in roles], 2, now, profile=MACRONODE)


def the_two(now: int = START) -> SignerSet:
    """1-of-2, of a micronode."""
    return signer_set([(role, public_of(role)) for role in (OWNER, OFFICER)], 1, now, profile=MICRONODE)


class World:
    """Turn `clock` with `pass_`, set `wrong_s` to have a wrong wall clock."""

    def __init__(
        self, folder: Path | None = None, *, micronode: bool = False, signers: SignerSet | None = None
    ) -> None:
        self.folder = folder
        self.signers = signers
        self.micronode = micronode
        self.clock = Clock()
        self.wrong_s = 0.0
        self.events: list[AuditEntry] = []
        self.trouble: RonError | None = None
        self.noted: list[tuple[str, str]] = []
        self.began = START
        self.start()

    def start(self) -> None:
        """As the service does; again after `stop` is a restart."""
        self.governance = Governance(
            self.clock,
            self.now,
            Book(self.folder),
            self.announce,
            noted=lambda what, state: self.noted.append((what, state)),
        )
        initial = self.signers or (the_two(self.began) if self.micronode else the_three(self.began))
        self.governance.load(initial, micronode=self.micronode)
        if self.trouble is None:
            self.do(self.governance.settle())

    def restart(self) -> None:
        self.governance.stop()
        self.start()

    def now(self) -> float:
        return START + self.clock.seconds() + self.wrong_s

    def pass_(self, seconds: float) -> None:
        """Time goes by, and the service notices."""
        self.clock.pump([seconds, 15.0])

    def announce(self, entry: AuditEntry) -> Deferred[int]:
        done: Deferred[int] = Deferred()
        if self.trouble is not None:
            done.errback(self.trouble)
        else:
            self.events.append(entry)
            done.callback(len(self.events))
        return done

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """What it returns, at once; or what it raises."""
        results: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(results.append)
        assert results, "it waits for something"
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]  # type: ignore[no-any-return]

    # people

    def proposal(self, action: Action, change: dict[str, str], scope: str = "tenant:acme", **more: Any) -> Proposal:
        author = more.pop("author", OWNER)
        made = int(more.pop("created_at", START + self.clock.seconds()))
        known: dict[str, Any] = {"rationale": "because", "expires_at": made + DAY, "id": str(uuid7())}
        return Proposal(
            **{
                "book": self.governance.ledger.book,
                "author": key_id(public_of(author)),
                "action": action,
                "scope": scope,
                "change": change,
                "signer_set": set_digest(self.governance.ledger.deciders()),
                "created_at": made,
                **known,
                **more,
            }
        )

    def signed(self, value: Proposal | Statement, by: str = OWNER) -> SignedObject:
        return sign(value, key_of(by))

    def propose(self, action: Action, change: dict[str, str], scope: str = "tenant:acme", **more: Any) -> Case:
        made = self.proposal(action, change, scope, **more)
        return self.do(self.governance.propose(self.signed(made, more.get("author", OWNER)), "cap-1"))

    def word(self, verb: Verb, case: Case, role: Role, /, **more: Any) -> SignedObject:
        by = more.pop("by", role)
        said = Statement(
            book=self.governance.ledger.book,
            verb=verb,
            signer=key_id(public_of(by)),
            role=role,
            at=int(START + self.clock.seconds()),
            proposal=case.proposal.id,
            digest=case.digest,
        )
        return self.signed(replace(said, **more), by)

    def say(self, verb: Verb, case: Case, role: Role, /, **more: Any) -> Case:
        after = self.do(self.governance.state(self.word(verb, case, role, **more), "cap-1"))
        assert after is not None
        return after

    def approve(self, case: Case, *roles: Role) -> Case:
        for role in roles:
            case = self.say("approve", case, role)
        return case

    def decide(self, action: Action, change: dict[str, str], scope: str = "tenant:acme", **more: Any) -> Case:
        """Proposed, approved by two, executed."""
        case = self.approve(self.propose(action, change, scope, **more), OWNER, OFFICER)
        return self.do(self.governance.execute(case.proposal.id, "cap-2")) if case.state == "approved" else case

    def dispute(self, verb: Verb, subject: str, reason: str = "look", role: Role = AUDITOR) -> None:
        said = Statement(
            book=self.governance.ledger.book,
            verb=verb,
            signer=key_id(public_of(role)),
            role=role,
            at=int(self.now()),
            subject=subject,
            reason=reason,
        )
        self.do(self.governance.state(self.signed(said, role)))


def code_of(call: Callable[[], object]) -> str:
    """The error's code, or "" when there is none."""
    try:
        call()
    except RonError as error:
        return error.code.value
    return ""
