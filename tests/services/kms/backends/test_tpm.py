"""The TPM backend on a real TPM 2.0 in software. Needs swtpm and tpm2-pytss."""

from __future__ import annotations

import base64
import copy
import hashlib
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ron.crypto import signing
from ron.proto.errors import ErrorCode
from ron.proto.kms import Alg
from ron.services.kms.backends.errors import DamagedError, LockedError, RolledBackError
from tests.services.kms.backends.contract import MESSAGE, SIGNING, BackendCase, Contract, new_kid, public_of
from tests.services.kms.backends.softhsm import environment
from tests.services.kms.backends.swtpm import NO_SWTPM, SoftTpm

if NO_SWTPM is None:
    from tpm2_pytss import ESAPI
    from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_HC
    from tpm2_pytss.types import TPM2B_AUTH, TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA

    from ron.services.kms.backends.tpm import ByTpm, TpmBackend
    from ron.services.kms.backends.tpm_device import Sealed, TpmDevice, owner_auth_from_env

# TPMS_ATTEST of a quote, TPM 2.0 Library Part 2, 10.12.8: magic, type, then what follows the signer and the nonce
_HEAD, _CLOCK, _SELECTION = struct.Struct(">4sH"), struct.Struct(">QIIBQ"), struct.Struct(">IHB3s")


def quote_holds(evidence: bytes) -> bool:
    """What who knows the TPM's key does with evidence, without a TPM: does it say what it seems to say?"""
    told = msgspec.json.decode(evidence)
    quoted = base64.b64decode(told["quoted"])
    key = load_pem_public_key(told["ak_public"].encode())
    assert isinstance(key, EllipticCurvePublicKey)
    try:
        key.verify(base64.b64decode(told["signature"]), quoted, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    at, parts = _HEAD.size, []
    for _ in range(2):
        size = int.from_bytes(quoted[at : at + 2], "big")
        parts.append(quoted[at + 2 : at + 2 + size])
        at += 2 + size
    at += _CLOCK.size
    count, bank, _size, bits = _SELECTION.unpack_from(quoted, at)
    digest = quoted[at + _SELECTION.size + 2 :]
    chosen = sorted(int(pcr) for pcr in told["pcrs"])
    values = b"".join(bytes.fromhex(told["pcrs"][str(pcr)]) for pcr in chosen)
    return (
        _HEAD.unpack_from(quoted) == (b"\xffTCG", 0x8018)
        and parts[1] == hashlib.sha256(told["bound"].encode()).digest()
        and (count, bank, int.from_bytes(bits, "little")) == (1, 0x000B, sum(1 << pcr for pcr in chosen))
        and digest == hashlib.sha256(values).digest()
    )


class TpmCase(BackendCase):
    """A fresh TPM and an empty directory."""

    skip = NO_SWTPM

    def setUp(self) -> None:
        super().setUp()
        self.tpm = SoftTpm(self.stack)
        self.keys = self.tpm.home / "keys"
        self.device = TpmDevice(self.tpm.tcti)

    def build(self, keys: Path | None = None) -> TpmBackend:
        """Not open."""
        return TpmBackend(keys or self.keys, self.device, allow_unlocked=True)

    def opened(self) -> TpmBackend:
        """Open until the test ends."""
        backend = self.build()
        backend.open()
        self.stack.callback(backend.close)
        return backend

    def boot_otherwise(self) -> None:
        """Something else goes into PCR 7, as when Secure Boot is turned off."""
        value = TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=b"\1" * 32))
        with ESAPI(self.tpm.tcti) as esys:
            esys.pcr_extend(ESYS_TR.PCR7, TPML_DIGEST_VALUES([value]))


class ContractOnTpm(Contract, TpmCase):
    """Everything the port promises."""


class Sealing(TpmCase):
    """The master key opens on this machine, in this state, and nowhere else."""

    def test_another_tpm(self) -> None:
        """A disk in another machine: locked."""
        self.opened().close()
        other = SoftTpm(self.stack)
        self.device = TpmDevice(other.tcti)
        self.assertRaises(LockedError, self.build().open)

    def test_another_state_of_the_machine(self) -> None:
        """Started otherwise: locked. Started as before: open again."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        backend.close()
        self.boot_otherwise()
        self.assertRaises(LockedError, self.build().open)
        self.tpm.kill()
        self.tpm.start()
        again = self.opened()
        signature = again.sign(held.kid, Alg.ED25519, MESSAGE)
        self.assertTrue(signing.verify(Alg.ED25519, public_of(held, Alg.ED25519), MESSAGE, signature))

    def test_bound_to_another_state_before_an_update(self) -> None:
        """`reseal` to registers that stay: the same master key, the same counter."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        backend.close()
        root = self.keys / "root"
        root.write_bytes(ByTpm(self.device, allow_unlocked=True).reseal(root.read_bytes(), (0,)))
        self.boot_otherwise()
        self.assertEqual(list(self.opened().held()), [held])

    def test_a_root_that_was_changed(self) -> None:
        """One bit of what is sealed: the TPM refuses. No root at all: damaged."""
        self.opened().close()
        root = self.keys / "root"
        whole = msgspec.msgpack.decode(root.read_bytes())
        flipped = bytearray(whole["private"])
        flipped[-1] ^= 1
        root.write_bytes(msgspec.msgpack.encode({**whole, "private": bytes(flipped)}))
        self.assertRaises(LockedError, self.build().open)
        for bad in (b"", b"rubbish", msgspec.msgpack.encode({**whole, "kind": "tpm1"})):
            root.write_bytes(bad)
            self.assertRaises(DamagedError, self.build().open)

    def test_a_secret_of_somebody_else(self) -> None:
        """Sealed by this very TPM, but no master key of ours."""
        self.opened().close()
        sealed = self.device.seal(b"short", (7,))
        root = self.keys / "root"
        whole = msgspec.msgpack.decode(root.read_bytes())
        root.write_bytes(msgspec.msgpack.encode({**whole, "public": sealed.public, "private": sealed.private}))
        self.assertRaises(DamagedError, self.build().open)

    def test_owner_password(self) -> None:
        """With a password on the owner hierarchy, nothing is made without it."""
        with ESAPI(self.tpm.tcti) as esys:
            esys.hierarchy_change_auth(ESYS_TR.OWNER, TPM2B_AUTH(b"owner"))
        self.assertRaises(LockedError, self.build().open)
        shutil.rmtree(self.keys)
        with environment(RON_TEST_OWNER="owner", RON_TEST_EMPTY=""):
            auth = owner_auth_from_env("RON_TEST_OWNER", allow_unlocked=True)
            self.assertIsNone(owner_auth_from_env(""))
            self.refused(ErrorCode.BAD_REQUEST, owner_auth_from_env, "RON_TEST_EMPTY")
        self.device = TpmDevice(self.tpm.tcti, owner_auth=auth)
        self.opened().generate(new_kid(), SIGNING)

    def test_nothing_is_left_in_the_tpm(self) -> None:
        """No object and no session after a call: a bare TPM has room for three."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        backend.attest(held.kid)
        self.boot_otherwise()
        backend.close()
        self.assertRaises(LockedError, self.build().open)
        with ESAPI(self.tpm.tcti) as esys:
            for kind in (TPM2_HC.TRANSIENT_FIRST, TPM2_HC.HMAC_SESSION_FIRST, TPM2_HC.POLICY_SESSION_FIRST):
                _more, found = esys.get_capability(TPM2_CAP.HANDLES, kind, 10)
                self.assertEqual(int(found.data.handles.count), 0)

    def test_sizes(self) -> None:
        """What a TPM cannot seal is refused before it is asked."""
        for secret in (b"", bytes(129)):
            self.assertRaises(ValueError, self.device.seal, secret, (7,))
        self.assertRaises(ValueError, self.device.quote, b"short", (7,))
        secret = bytes(range(128))
        self.assertEqual(self.device.unseal(self.device.seal(secret, (0, 7)), (7, 0)), secret)
        self.assertRaises(LockedError, self.device.unseal, self.device.seal(secret, (0,)), (7,))
        self.assertIsInstance(self.device.seal(secret, (0,)), Sealed)


class Counting(TpmCase):
    """I-6: the counter is in the TPM, where no restore of files reaches it."""

    def test_i6_an_older_copy_of_the_whole_directory(self) -> None:
        """It is perfectly consistent in itself, and does not open."""
        backend = self.opened()
        backend.generate(new_kid(), SIGNING)
        backend.close()
        older = self.tpm.home / "older"
        shutil.copytree(self.keys, older)
        backend.open()
        backend.destroy(backend.held()[0].kid)
        backend.close()
        error = self.assertRaises(RolledBackError, self.build(older).open)
        self.assertIn("change 1", error.message)
        self.build().open()

    def test_a_copy_that_knows_of_more(self) -> None:
        """Changed elsewhere, where the TPM did not see it."""
        backend = self.opened()
        for _ in range(2):
            backend._file.generate(new_kid(), (Alg.ED25519,))
        self.refused_change(backend)
        backend.close()
        self.assertRaises(RolledBackError, self.build().open)

    def refused_change(self, backend: TpmBackend) -> None:
        """Nor does it grow while it runs."""
        self.assertRaises(RolledBackError, backend.generate, new_kid(), SIGNING)

    def test_killed_between_the_disk_and_the_counter(self) -> None:
        """The change is there, and is counted at the next start."""
        backend = self.opened()
        held = backend._file.generate(new_kid(), SIGNING)
        backend.close()
        again = self.opened()
        self.assertEqual(list(again.held()), [held])
        self.assertEqual(again._unlock.changes(), again.head()[0])
        again.check_head(*again.head())

    def test_the_counter_is_gone(self) -> None:
        """A TPM that was cleared of it: locked, with the reason."""
        backend = self.opened()
        index = backend._unlock._counter.nv_index  # type: ignore[union-attr]
        backend.close()
        with ESAPI(self.tpm.tcti) as esys:
            esys.nv_undefine_space(esys.tr_from_tpmpublic(index))
        error = self.assertRaises(LockedError, self.build().open)
        self.assertIn("counter", error.message)

    def test_nobody_else_moves_it(self) -> None:
        """It takes what only the sealed root knows."""
        backend = self.opened()
        index = backend._unlock._counter.nv_index  # type: ignore[union-attr]
        self.assertRaises(LockedError, self.device.count, index, bytes(32), up=True)
        self.assertEqual(backend._unlock.changes(), 0)


class Away(TpmCase):
    """The TPM does not answer."""

    def test_it_signs_without_the_tpm_and_changes_nothing(self) -> None:
        """The master key is in memory; a new key would not be counted, so there is none."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        self.tpm.kill()
        backend.sign(held.kid, Alg.ML_DSA, MESSAGE)
        backend.probe()
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.generate, new_kid(), SIGNING)
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.destroy, held.kid)
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.attest, held.kid)
        self.assertEqual(list(backend.held()), [held])
        self.tpm.start()
        backend.destroy(held.kid)
        self.assertEqual(list(backend.held()), [])

    def test_no_tpm_at_the_start(self) -> None:
        """StoreUnavailable, and nothing half done."""
        self.opened().close()
        self.tpm.kill()
        backend = self.build()
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.open)
        self.tpm.start()
        backend.open()
        backend.close()

    def test_busy(self) -> None:
        """One call at a time; who waits too long is refused."""
        device = TpmDevice(self.tpm.tcti, wait_s=0.01)
        with device._connected():
            self.refused(ErrorCode.STORE_UNAVAILABLE, device.describe)
        self.assertEqual(device.describe()["manufacturer"], "IBM")

    def test_closed(self) -> None:
        """No counter and no store."""
        self.refused(ErrorCode.STORE_UNAVAILABLE, self.build().held)
        self.refused(ErrorCode.STORE_UNAVAILABLE, ByTpm(self.device).changes)


class Quoting(TpmCase):
    """I-12: evidence that somebody else can check."""

    def evidence(self, backend: TpmBackend, kid: Any = None) -> bytes:
        """As it comes, decoded."""
        attestation = backend.attest(kid)
        assert attestation is not None
        self.assertEqual(attestation.class_, "tpm-sealed")
        return base64.b64decode(attestation.evidence or "")

    def test_i12_a_quote_is_verified_offline(self) -> None:
        """By `cryptography` and the document alone; it names the key, its halves and the store's state."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        evidence = self.evidence(backend, held.kid)
        self.assertTrue(quote_holds(evidence))
        self.assertTrue(quote_holds(self.evidence(backend)))
        bound = msgspec.json.decode(msgspec.json.decode(evidence)["bound"])
        digests = [hashlib.sha256(half.public).hexdigest() for half in held.halves]
        self.assertEqual((bound["kid"], [half["public_sha256"] for half in bound["halves"]]), (str(held.kid), digests))
        self.assertEqual(bound["store"]["change"], 1)
        self.refused(ErrorCode.NOT_FOUND, backend.attest, new_kid())

    def test_evidence_that_was_changed(self) -> None:
        """Another key, other registers, another statement: none of them holds."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        told = msgspec.json.decode(self.evidence(backend, held.kid))
        quoted = bytearray(base64.b64decode(told["quoted"]))
        quoted[-1] ^= 1
        for change in (
            {"bound": told["bound"].replace("#v1", "#v2")},
            {"pcrs": {**told["pcrs"], "7": "01" * 32}},
            {"quoted": base64.b64encode(bytes(quoted)).decode()},
        ):
            self.assertFalse(quote_holds(msgspec.json.encode({**told, **change})))

    def test_another_state_shows(self) -> None:
        """A register that changed is in the next quote, signed by the same key."""
        backend = self.opened()
        before = msgspec.json.decode(self.evidence(backend))
        self.boot_otherwise()
        evidence = self.evidence(backend)
        after = msgspec.json.decode(evidence)
        self.assertTrue(quote_holds(evidence))
        self.assertEqual(before["ak_public"], after["ak_public"])
        self.assertNotEqual(before["pcrs"]["7"], after["pcrs"]["7"])

    def test_it_is_not_copied(self) -> None:
        """Neither shown nor stored (I-1)."""
        backend = self.opened()
        for refused in (copy.copy, copy.deepcopy, pickle.dumps):
            self.assertRaises(TypeError, refused, backend)
        self.assertIn("TpmBackend", repr(backend))
