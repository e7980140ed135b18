"""What stands for an input in the log of single operations, at each level; never the input."""

from __future__ import annotations

import base64

from twisted.trial.unittest import SynchronousTestCase

from ron.proto.kms import (
    Alg,
    CreateKeyRequest,
    Signature,
    SignRequest,
    UnwrapRequest,
    VerifyRequest,
    WrapRequest,
)
from ron.services.kms.recorder import hashed
from ron.services.kms.redaction import stands_for
from tests.services.kms.world import B3, UNKNOWN

SIG = Signature(alg=Alg.ED25519, signature_b64=base64.b64encode(bytes(64)).decode())
SECRET = base64.b64encode(b"thirty-two bytes of a secret key").decode()
SIGN = SignRequest(kid_or_set=UNKNOWN, payload_b3=B3)
VERIFY = VerifyRequest(payload_b3=B3, sigs=(SIG,))
WRAP = WrapRequest(kid=UNKNOWN, plaintext_key_b64=SECRET)
UNWRAP = UnwrapRequest(kid=UNKNOWN, wrapped_b64=SECRET)


class Levels(SynchronousTestCase):
    def test_none(self) -> None:
        for body in (SIGN, VERIFY, WRAP, UNWRAP):
            self.assertEqual(stands_for("none", body), {})

    def test_lengths(self) -> None:
        for body, length in ((SIGN, 32), (VERIFY, 96), (WRAP, 32), (UNWRAP, 32)):
            self.assertEqual(stands_for("lengths", body), {"input_bytes": length})

    def test_hashes(self) -> None:
        self.assertEqual(stands_for("hashes", SIGN), {"input_bytes": 32, "payload_b3": B3})
        self.assertEqual(stands_for("hashes", VERIFY)["payload_b3"], B3)
        self.assertEqual(stands_for("hashes", UNWRAP)["input_b3"], hashed(base64.b64decode(SECRET)))

    def test_a_key_that_is_to_be_wrapped_has_not_even_a_hash(self) -> None:
        self.assertEqual(stands_for("hashes", WRAP), {"input_bytes": 32})
        fresh = WrapRequest(kid=UNKNOWN, size=32)
        self.assertEqual(stands_for("hashes", fresh), {"input_bytes": 0})

    def test_what_is_no_base64_is_nothing(self) -> None:
        self.assertEqual(stands_for("lengths", UnwrapRequest(kid=UNKNOWN, wrapped_b64="a")), {"input_bytes": 0})

    def test_other_requests_have_no_input(self) -> None:
        made = CreateKeyRequest(tenant="core", purpose="audit", alg="ed25519")
        self.assertEqual(stands_for("hashes", made), {"input_bytes": 0})
