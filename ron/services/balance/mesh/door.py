"""Who is let in: members by their key, others by the cluster's token; of one name one run at a time.

In: what the other end of a link has claimed and signed. Out: nothing, or `Refused`, for whom it concerns.
Two runs of one name at once are a cloned machine: the younger is refused with the elder's own signature as the proof,
and ends itself (docs/mesh.rst, "The same node twice").
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ron.proto.errors import RonError, conflict
from ron.services.balance.mesh.dialling import Ourselves
from ron.services.balance.mesh.handshake import Claim, Met, Refusal, TwinProof, is_run_proved
from ron.services.balance.mesh.link import Dismissed, Link
from ron.services.balance.mesh.peers import PeerStates
from ron.services.balance.mesh.replay import Lives
from ron.services.balance.mesh.roster import Roster, hint_of
from ron.services.balance.mesh.voice import Voice
from ron.services.balance.mesh.wire import Refused

AskTwin = Callable[[str, bytes], Awaitable[TwinProof]]


class Door:
    """Of one node. ask_twin: has a connected node sign a nonce, or raises `RonError`. give_up: this node must end."""

    def __init__(
        self,
        voice: Voice,
        roster: Roster,
        peers: PeerStates,
        lives: Lives,
        *,
        ask_twin: AskTwin,
        give_up: Callable[[RonError], None],
    ) -> None:
        self._voice = voice
        self._roster = roster
        self._peers = peers
        self._lives = lives
        self._ask_twin = ask_twin
        self._give_up = give_up

    async def admit(self, link: Link, met: Met) -> None:
        """Return if there may be a link. Raises `Refused`; and has an older run's links closed that are dead."""
        claim = met.claim
        if claim.name == self._voice.name:
            self._refuse_ourselves(met)
        self._roster.refuse(claim.name, claim.key, proved=met.proved)
        if link.dialled and link.expected is not None and not self._roster.is_member(claim.name, claim.key):
            raise Refused("stranger", f"{claim.name} with another key", fatal=True)
        await self._refuse_twin(met)
        self._lives.begin(claim.name, claim.run, claim.boot, claim.seq)

    def turned(self, refusal: Refusal, nonce: bytes) -> RonError | None:
        """We were refused, we had asked to sign `nonce`. The error to end with if that is proven to be our twin's
        right; None if there is nothing to do but try again."""
        voice = self._voice
        twin = refusal.twin
        if twin is None or not is_run_proved(twin, voice.key, voice.cluster, voice.name, nonce):
            return None
        return self._younger(twin.run, twin.boot)

    def _refuse_ourselves(self, met: Met) -> None:
        """Somebody with our name. Always raises."""
        claim, voice = met.claim, self._voice
        if claim.key != voice.key:
            raise Refused("name_taken", claim.name, fatal=True)
        if claim.boot == voice.boot:
            raise Ourselves
        younger = self._younger(claim.run, claim.boot)
        if younger is not None:
            self._give_up(younger)
        raise Dismissed("twin", _twin_words(claim), voice.prove_run(met.nonce))

    def _younger(self, run: int, boot: bytes) -> RonError | None:
        """The error to end with, if the run with these is older than ours, and another."""
        voice = self._voice
        if boot == voice.boot or (run, boot) > (voice.run, voice.boot):
            return None
        return conflict(
            f"another node runs with the name and the key of this one, {voice.name}, and began before it",
            hint=hint_of("twin"),
        )

    async def _refuse_twin(self, met: Met) -> None:
        claim = met.claim
        life = self._lives.present(claim.name)
        state = self._peers.state(claim.name)
        if life is None or state is None or life.is_of(claim.run, claim.boot) or not state.links:
            return
        try:
            proof = await self._ask_twin(claim.name, met.nonce)
        except RonError:
            proof = None
        known = self._roster.members().get(claim.name)
        key = known.key if known is not None else claim.key
        if proof is not None and is_run_proved(proof, key, self._voice.cluster, claim.name, met.nonce):
            raise Dismissed("twin", _twin_words(claim), proof)
        # it was restarted, and we had not noticed
        for old in state.links:
            old.close()


def _twin_words(claim: Claim) -> str:
    return f"{claim.name} is here already, as another run"
