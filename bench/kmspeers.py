"""What the key service is compared with, in the same run and on the same core.

The physical limit: each primitive bare in a loop, appends made durable one by one and 64 at a time, nginx with a fixed
answer to the same POST. Peers: a SoftHSM token called directly, moto's key service over HTTP.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import roles
from bench.harness import SERVER_CPU, free_port, running, scratch
from bench.kmsload import saturate

MODULE = "bench.kmspeers"
LOOP_S = 1.0
# What a record of a signature takes in the log, about; and how many share a write under load.
RECORD_BYTES, GROUP = 480, 64
REGION = "eu-central-1"
# moto asks for no signature, but reads the region here
_AWS = {
    "Authorization": f"AWS4-HMAC-SHA256 Credential=bench/20260101/{REGION}/kms/aws4_request, "
    "SignedHeaders=host, Signature=0",
    "Content-Type": "application/x-amz-json-1.1",
}
_SIGN = "TrentService.Sign"


def primitives() -> dict[str, float]:
    """Calls a second of what does the work, without anything round it."""
    return roles.run(MODULE, "primitives", cpu=SERVER_CPU)


def disk() -> dict[str, float]:
    """Records a second that this disk makes durable."""
    return roles.run(MODULE, "disk", cpu=SERVER_CPU)


def softhsm() -> dict[str, float]:
    """Signatures a second of a token in our own process, through python-pkcs11."""
    from tests.services.kms.backends.softhsm import NO_SOFTHSM, SoftToken

    if NO_SOFTHSM is not None:
        raise RuntimeError(NO_SOFTHSM)
    with contextlib.ExitStack() as stack:
        SoftToken(stack)
        return roles.run(MODULE, "softhsm", cpu=SERVER_CPU)


def nginx(bodies: Sequence[str], headers: dict[str, str], answer: str, *, seconds: int, connections: int) -> Any:
    """One worker that reads the same POST and answers with a fixed text."""
    with scratch() as folder:
        port = free_port()
        with _nginx(folder, port, answer):
            return saturate(f"http://127.0.0.1:{port}/sign", bodies, headers, seconds=seconds, connections=connections)


def moto(*, seconds: int, connections: int) -> dict[str, Any]:
    """Its server with two keys: one signs, one encrypts. It keeps no log and nothing on disk."""
    port = free_port()
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    url = f"http://127.0.0.1:{port}/"
    measured: dict[str, Any] = {}
    with running(command, port):
        for name, create, target, body in _moto_calls():
            key = _asked(url, "TrentService.CreateKey", create)["KeyMetadata"]["KeyId"]
            headers = {**_AWS, "X-Amz-Target": target}
            bodies = [json.dumps({"KeyId": key, **body})]
            _asked(url, target, {"KeyId": key, **body})
            measured[name] = saturate(url, bodies, headers, seconds=seconds, connections=connections)
    return measured


def _moto_calls() -> Iterator[tuple[str, dict[str, str], str, dict[str, str]]]:
    message = "f3" * 21 + "8="
    sign = {"Message": message[:44], "MessageType": "RAW", "SigningAlgorithm": "ECDSA_SHA_256"}
    yield "sign, ECDSA P-256", {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}, _SIGN, sign
    yield "encrypt, AES-GCM", {}, "TrentService.Encrypt", {"Plaintext": message[:44]}


def _asked(url: str, target: str, body: dict[str, str]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {**_AWS, "X-Amz-Target": target})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.loads(answer.read()))


@contextlib.contextmanager
def _nginx(folder: Path, port: int, answer: str) -> Iterator[None]:
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log /dev/null;\n"
        "events { worker_connections 4096; }\n"
        "http { access_log off; keepalive_requests 100000000;\n"
        f"  server {{ listen 127.0.0.1:{port}; default_type application/json;\n"
        f"    location / {{ return 200 '{answer}'; }} }} }}\n"
    )
    with running([shutil.which("nginx") or "/usr/sbin/nginx", "-p", folder, "-c", config], port):
        yield


# In processes of their own


def _primitives() -> dict[str, float]:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PublicKey, Suite
    from nacl.signing import SigningKey

    message = os.urandom(32)
    classical, lattice = SigningKey.generate(), MLDSA65PrivateKey.generate()
    signed, lattice_signed = classical.sign(message).signature, lattice.sign(message)
    to_classical, to_lattice = classical.verify_key, lattice.public_key()
    suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
    kem = MLKEM768X25519PublicKey(MLKEM768PrivateKey.generate().public_key(), X25519PrivateKey.generate().public_key())
    calls: dict[str, Callable[[], object]] = {
        "sign ed25519, PyNaCl": lambda: classical.sign(message),
        "sign ml-dsa, cryptography": lambda: lattice.sign(message),
        "sign both": lambda: (classical.sign(message), lattice.sign(message)),
        "verify ed25519, PyNaCl": lambda: to_classical.verify(message, signed),
        "verify ml-dsa, cryptography": lambda: to_lattice.verify(lattice_signed, message),
        "wrap, HPKE with X-Wing": lambda: suite.encrypt(message, kem, b"bench"),
    }
    return {name: _per_s(call) for name, call in calls.items()}


def _disk() -> dict[str, float]:
    with scratch() as folder:
        handle = os.open(folder / "probe", os.O_WRONLY | os.O_CREAT)

        def append(block: bytes) -> Callable[[], object]:
            def once() -> None:
                os.write(handle, block)
                os.fdatasync(handle)

            return once

        one, many = _per_s(append(bytes(RECORD_BYTES))), _per_s(append(bytes(RECORD_BYTES * GROUP)))
        os.close(handle)
    return {"one record a sync": one, f"{GROUP} records a sync": many * GROUP, f"syncs of {GROUP}": many}


def _softhsm() -> dict[str, float]:
    import pkcs11
    from pkcs11 import Mechanism, ObjectClass

    from ron.proto.kms import parse_kid
    from ron.services.kms.backends.pkcs11_objects import find, make_ed25519
    from tests.services.kms.backends.softhsm import LABEL, MODULE, PIN

    token = pkcs11.lib(MODULE).get_token(token_label=LABEL)
    kid = parse_kid("bench/sign/ed25519/00000000-0000-4000-8000-000000000000#v1")
    with token.open(rw=True, user_pin=PIN) as session:
        make_ed25519(session, kid)
        key: Any = find(session, kid, ObjectClass.PRIVATE_KEY)
        message = os.urandom(32)
        return {"sign ed25519": _per_s(lambda: key.sign(message, mechanism=Mechanism.EDDSA))}


def _per_s(call: Callable[[], object]) -> float:
    for _ in range(20):
        call()
    began_s = now_s = time.perf_counter()
    done = 0
    while (now_s := time.perf_counter()) < began_s + LOOP_S:
        call()
        done += 1
    return round(done / (now_s - began_s), 1)


ROLES: dict[str, Callable[[], dict[str, float]]] = {"primitives": _primitives, "disk": _disk, "softhsm": _softhsm}

if __name__ == "__main__":
    roles.tell(ROLES[sys.argv[1]]())
