"""What is fuzzed of the key service: its JSON over HTTP, its messages over gRPC, bundles of signatures, wrapped keys.

In and out as in `fuzz.targets`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.finding import Finding

Target = Callable[[bytes], None]
_VECTORS = Path(__file__).resolve().parents[1] / "tests" / "vectors" / "kms"
_NOW_S = 1_800_000_000.0
# Bytes of a patch that say where it goes.
_PLACE = 2


def json_api() -> Target:
    """`/v1/kms` through the whole edge. First byte: which route; then what stands for `<kid>` in its path, up to a
    line's end; then the body. Nothing may come of it but an answer below 500."""
    from twisted.internet.error import ConnectionLost
    from twisted.internet.task import Clock
    from twisted.internet.testing import StringTransport
    from twisted.python.failure import Failure

    from ron.auth import Authority, Caveat, RootKeys
    from ron.kernel import Metrics
    from ron.services.kms.api import PATH, endpoints
    from ron.web import Edge, make_site

    clock = Clock()
    authority = Authority(RootKeys.generate(), audience="fuzz", now=lambda: _NOW_S)
    token = authority.mint([Caveat("scope", "kms:*")])
    edge = Edge(authority=authority, metrics=Metrics(), reactor=clock)
    asked: list[Any] = []
    routes = endpoints(_checking(asked), lambda: b"")
    site = make_site(edge, routes, body_limit=64 * 1024)
    lines = [(one.method, one.path) for one in routes if one.path.startswith(PATH) and "/audit/" not in one.path]

    def one(raw: bytes) -> None:
        method, path = lines[raw[0] % len(lines) if raw else 0]
        kid, _, body = raw[1:].partition(b"\n")
        line = path.encode().replace(b"<path:kid>", kid)
        if "<" not in path:
            line += b"?" + kid
        head = (
            b"%s %s HTTP/1.1\r\nHost: k\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        )
        channel, transport = site.buildProtocol(None), StringTransport()
        channel.makeConnection(transport)
        asked.clear()
        channel.dataReceived(head % (method.encode(), line, token.encode(), len(body)) + body)
        clock.advance(0.1)
        status = transport.value().partition(b" ")[2][:3]
        channel.connectionLost(Failure(ConnectionLost()))
        clock.advance(60)
        if status >= b"500" or (asked and not status):
            raise Finding(f"{method} {path} answers {status!r}")
        if edge.concurrency.busy:
            raise Finding("something is left of a call that is over")

    return one


def _checking(asked: list[Any]) -> Any:
    """A desk that only looks whether what comes in is what `ron.proto.kms` promises."""
    import msgspec

    from ron.proto.errors import not_found
    from ron.proto.kms import Kid, chosen, parse_kid

    class Desk:
        def __getattr__(self, act: str) -> Callable[..., Any]:
            async def call(_caller: Any, *arguments: Any) -> Any:
                asked.append(act)
                for one in arguments:
                    look(one)
                raise not_found("there is no such key")

            return call

    def look(one: Any) -> None:
        if isinstance(one, msgspec.Struct):
            if msgspec.json.decode(msgspec.json.encode(one), type=type(one)) != one:
                raise Finding("a request does not come back")
            selector = getattr(one, "kid_or_set", None)
            if selector is not None and not chosen(selector):
                raise Finding("a selector that names nothing")
            if len(bytes.fromhex(getattr(one, "payload_b3", "00" * 32))) != 32:
                raise Finding("a hash that is none")
        elif isinstance(one, Kid) and parse_kid(str(one)) != one:
            raise Finding("a key's name does not come back")

    return Desk()


def codec_bundle() -> Target:
    """Signatures and wrapped keys. First byte 0: the JSON of `verify`, `@ed` and `@ml` in it for the good signatures;
    1, 2: bytes written over the good Ed25519, ML-DSA signature; else: over a wrapped key. The next two say where."""
    import msgspec

    from ron.crypto import wrapping
    from ron.proto.errors import RonError
    from ron.proto.kms import Alg, VerifyRequest, parse_kid
    from ron.services.kms import phases
    from ron.services.kms.model import unb64

    vector = json.loads((_VECTORS / "hybrid-bundle-v1.json").read_text())
    publics = {Alg(alg): unb64(text, alg, 4096) for alg, text in vector["public_b64"].items()}
    texts = {alg: vector["signatures"][alg.value]["signature_b64"] for alg in publics}
    good = {alg: unb64(text, alg, 8192) for alg, text in texts.items()}
    message = bytes.fromhex(vector["payload_b3"])
    wrapped = json.loads((_VECTORS / "wrapped-v1.json").read_text())["cases"][0]
    kid, envelope = parse_kid(wrapped["kid"]), unb64(wrapped["wrapped_b64"], "wrapped_b64", 8192)
    seeds = {Alg(alg): bytes.fromhex(seed) for alg, seed in wrapped["seeds"].items()}
    private = wrapping.PrivateHalves(seeds)
    verify = _verifier(publics)

    def bundle(raw: bytes) -> None:
        body = raw.replace(b"@ed", texts[Alg.ED25519].encode()).replace(b"@ml", texts[Alg.ML_DSA].encode())
        try:
            request = msgspec.json.decode(body, type=VerifyRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        sigs = {alg: unb64(one.signature_b64, "", 8192) for alg, one in phases.screened(request.sigs).items()}
        mode = (request.policy and request.policy.mode) or "and"
        judge(sigs, bytes.fromhex(request.payload_b3), mode)

    def judge(sigs: dict[Alg, bytes], payload: bytes, mode: Any) -> None:
        holding = [alg for alg, sig in sigs.items() if verify(alg, payload, sig)]
        if any(payload != message or sigs[alg] != good[alg] for alg in holding):
            raise Finding("a signature that nobody made holds")
        details = phases.verdict(mode, publics, holding)
        enough = {"or": bool(holding), "and": len(holding) == len(publics), "pq_only": Alg.ML_DSA in holding}
        if (details.satisfied_mode is not None) != enough[mode]:
            raise Finding(f"{mode} is satisfied by {holding}")

    def opened(raw: bytes) -> None:
        changed = _patched(envelope, raw)
        head = wrapping.read_head(changed)
        # as the service does it: what the envelope says of itself is bound to it
        private.open(head.suite, changed, wrapping.info_of(kid.at(head.key_version), head.suite))
        if changed != envelope:
            raise Finding("a wrapped key that was changed opens")

    def one(raw: bytes) -> None:
        kind, rest = raw[:1], raw[1:]
        with contextlib.suppress(RonError):
            if kind == b"\0":
                bundle(rest)
            elif kind in (b"\1", b"\2"):
                alg = Alg.ED25519 if kind == b"\1" else Alg.ML_DSA
                judge({**good, alg: _patched(good[alg], rest)}, message, "and")
            else:
                opened(rest)

    return one


def _verifier(publics: dict[Any, bytes]) -> Callable[[Any, bytes, bytes], bool]:
    """Of our two halves; an algorithm that they have not does not hold."""
    from ron.crypto import signing

    def verify(alg: Any, payload: bytes, signature: bytes) -> bool:
        return alg in publics and signing.verify(alg, publics[alg], payload, signature)

    return verify


def _patched(good: bytes, raw: bytes) -> bytes:
    at, patch = int.from_bytes(raw[:_PLACE], "big") % len(good), raw[_PLACE:]
    return good[:at] + patch + good[at + len(patch) :]


def grpc_api() -> Target:
    """Messages of `ron.kms.v1`. First byte: which call; then the message."""
    import msgspec
    from google.protobuf.message_factory import GetMessageClass

    from ron.nodes.grpc import kms_pb2
    from ron.nodes.grpc.kms_messages import fields_of, reader
    from ron.proto.errors import RonError
    from ron.services.kms.door import OPERATIONS

    methods = kms_pb2.DESCRIPTOR.services_by_name["Kms"].methods_by_name
    calls = [(one, reader(one), GetMessageClass(methods[one.name].input_type)) for one in OPERATIONS]

    def one(raw: bytes) -> None:
        operation, read, message_class = calls[raw[0] % len(calls) if raw else 0]
        try:
            found = read(raw[1:])
        except RonError:
            return
        if msgspec.json.decode(msgspec.json.encode(found), type=operation.body) != found:
            raise Finding(f"{operation.name}: what gRPC takes, HTTP does not")
        again = message_class(**fields_of(found)).SerializeToString()
        if read(again) != found:
            raise Finding(f"{operation.name}: a request does not come back")

    return one


def pkcs11_adapter() -> Target:
    """What a token answers: see `fuzz.hsm`, which needs the extra `pkcs11`."""
    from fuzz import hsm

    return hsm.pkcs11_adapter()
