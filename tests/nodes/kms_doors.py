"""A key service with doors beside HTTP, on loopback; and its clients over gRPC."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import grpc
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from ron.kernel import HealthState, Metrics
from ron.nodes.grpc import kms_pb2 as pb
from ron.nodes.grpc.kms_pb2_grpc import KmsStub
from ron.nodes.parts.kms_doors import KmsDoors
from ron.proto.addresses import HostPort
from ron.services.kms.door import OPERATIONS
from ron.web import Edge
from tests.services.kms.world import B3, UNKNOWN, World

LOOPBACK = "127.0.0.1:0"
PATIENCE_S = 20.0
LIMIT_BYTES = 1024 * 1024
SIG = pb.Signature(alg="ed25519", signature_b64="A" * 86 + "==")
# A good message for each call, for a key that nobody has.
REQUESTS: dict[str, Any] = {
    "Sign": pb.SignRequest(kid_or_set={"kid": UNKNOWN}, payload_b3=B3),
    "Verify": pb.VerifyRequest(kid_or_set={"kid": UNKNOWN}, payload_b3=B3, sigs=[SIG]),
    "Wrap": pb.WrapRequest(kid=UNKNOWN, size=32),
    "Unwrap": pb.UnwrapRequest(kid=UNKNOWN, wrapped_b64="AAAA"),
    "CreateKey": pb.CreateKeyRequest(tenant="core", purpose="audit", alg="ed25519"),
    "Rotate": pb.RotateRequest(kid=UNKNOWN.partition("#")[0]),
    "GetKey": pb.GetKeyRequest(kid=UNKNOWN),
    "ListKeys": pb.ListKeysRequest(tenant="core"),
    "Attest": pb.AttestRequest(kid=UNKNOWN),
    "DestroyKey": pb.DestroyRequest(kid=UNKNOWN, proposal="none"),
}
SCOPES = {one.name: one.scope for one in OPERATIONS}


class Process:
    """What the doors need of their process."""

    tracing = spans = None

    def __init__(self, home: Path, health: HealthState, metrics: Metrics, edge: Edge) -> None:
        self.reactor = reactor
        self.home = home
        self.health = health
        self.metrics = metrics
        self.edge = edge
        self.drain_s = 3.0
        self.watched: dict[str, Any] = {}

    def watch_certificates(self, contexts: dict[str, Any]) -> None:
        self.watched.update(contexts)


class WithDoors(World):
    """A service in memory."""

    async def setUp(self) -> None:
        await super().setUp()
        # a socket's path is 107 bytes at most, and trial's own folders are longer
        self.folder = Path(tempfile.mkdtemp(prefix="ron-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.process = Process(self.folder, self.health, self.metrics, self.site.edge)
        self.doors: KmsDoors | None = None

    async def tearDown(self) -> None:
        if self.doors is not None:
            await self.doors.stop()
        await super().tearDown()

    def make(self, **options: Any) -> KmsDoors:
        """message_bytes, addresses and TLS as in `options`."""
        return KmsDoors(self.process, self.service, **{"message_bytes": LIMIT_BYTES, **options})

    def open(self, **options: Any) -> KmsDoors:
        self.doors = self.make(**options)
        self.doors.start()
        return self.doors

    @property
    def grpc_address(self) -> HostPort:
        assert self.doors is not None
        assert self.doors.grpc_address is not None
        return self.doors.grpc_address

    # gRPC

    def connect(self, target: str = "", credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
        """A connection of its own."""
        arguments = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        if credentials is not None:
            channel = grpc.secure_channel(target, credentials, arguments)
        else:
            channel = grpc.insecure_channel(str(self.grpc_address), arguments)
        self.addCleanup(deferToThread, channel.close)
        return channel

    def metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")] if self.token is not None else []

    async def rpc(self, method: str, request: Any = None, *, on: grpc.Channel | None = None, **options: Any) -> Any:
        """The response. Raises `grpc.RpcError`."""
        if on is None:
            on = self.channel = getattr(self, "channel", None) or self.connect()
        chosen = {"timeout": PATIENCE_S, "metadata": self.metadata(), **options}
        asked = REQUESTS[method] if request is None else request
        return await deferToThread(getattr(KmsStub(on), method), asked, **chosen)

    async def rpc_refused(self, method: str, request: Any = None, **options: Any) -> Any:
        try:
            await self.rpc(method, request, **options)
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"{method} was answered")

    async def raw(self, method: str, body: bytes, **options: Any) -> bytes:
        """A call with bytes that no message of ours would give. Raises `grpc.RpcError`."""
        on = self.channel = getattr(self, "channel", None) or self.connect()
        call = on.unary_unary(f"/ron.kms.v1.Kms/{method}", lambda raw: raw, lambda raw: raw)
        chosen = {"timeout": PATIENCE_S, "metadata": self.metadata(), **options}
        answer: bytes = await deferToThread(call, body, **chosen)
        return answer


def trailing(refused: Any) -> dict[str, Any]:
    return dict(refused.trailing_metadata() or ())


def code_of(refused: Any) -> str:
    """The stable name of the error."""
    return str(trailing(refused)["ron-error-code"])
