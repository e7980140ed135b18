"""`ron.kms.v1` mirrors the structs field for field, both ways; and what its reader refuses. No server, no channel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect
from twisted.trial.unittest import SynchronousTestCase

import ron
from ron.nodes.grpc import kms_pb2 as pb
from ron.nodes.grpc import kms_server
from ron.nodes.grpc.kms_messages import MOST_LEVELS, MOST_STRUCT_BYTES, reader, writer
from ron.proto import kms
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import (
    Attestation,
    CreateKeyRequest,
    DestroyResponse,
    KeyList,
    KeyMaterialPublic,
    KeyView,
    KidSelector,
    SignRequest,
    VerifyDetails,
    VerifyResponse,
)
from ron.proto.kmscalls import AttestRequest, DestroyCall, KmsCall, ListKeysRequest, RotateCall
from ron.services.kms import api, openapi
from ron.services.kms.door import OPERATIONS, SERVICE, Operation

KID = "core/audit/ed25519/00000000-0000-4000-8000-00000000ffff#v1"
B3 = "7f" * 32
SCHEMA = pb.DESCRIPTOR.services_by_name["Kms"]
BY_NAME = {one.name: one for one in OPERATIONS}
INTEGERS = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
# The rpcs that the specification names.
SPECIFIED = {"Sign", "Verify", "Wrap", "Unwrap", "CreateKey", "Rotate", "GetKey"}


def pairs() -> Iterator[tuple[type[msgspec.Struct], Descriptor, bool]]:
    """Every struct with its message, and whether a caller sends it."""
    for one in OPERATIONS:
        method = SCHEMA.methods_by_name[one.name]
        yield from _below(one.body, method.input_type, True)
        yield from _below(one.answer, method.output_type, False)


def _below(
    kind: type[msgspec.Struct], message: Descriptor, asked: bool
) -> Iterator[tuple[type[msgspec.Struct], Descriptor, bool]]:
    yield kind, message, asked
    for field in _fields(kind):
        inner = _struct(_inner(field.type))
        if inner is not None:
            yield from _below(inner, message.fields_by_name[field.encode_name].message_type, asked)


def _fields(kind: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    return cast(inspect.StructType, inspect.type_info(kind)).fields


def _inner(found: inspect.Type) -> inspect.Type:
    """Without metadata and without None. Where an object or a bare kid may stand, the object: it says the same."""
    while isinstance(found, inspect.Metadata):
        found = found.type
    if isinstance(found, inspect.UnionType):
        left = [one for one in map(_inner, found.types) if not isinstance(one, inspect.NoneType)]
        if len(left) > 1:
            left = [one for one in left if isinstance(one, inspect.StructType)]
        (found,) = left
    return found


def _struct(found: inspect.Type) -> type[msgspec.Struct] | None:
    if isinstance(found, inspect.VarTupleType):
        return _struct(_inner(found.item_type))
    return cast("type[msgspec.Struct]", found.cls) if isinstance(found, inspect.StructType) else None


def _fits(found: inspect.Type, field: FieldDescriptor) -> bool:
    if isinstance(found, inspect.VarTupleType):
        return field.is_repeated and _one_fits(_inner(found.item_type), field)
    return not field.is_repeated and _one_fits(found, field)


def _one_fits(found: inspect.Type, field: FieldDescriptor) -> bool:
    if isinstance(found, inspect.StructType):
        return field.message_type is not None and field.message_type.file.name == pb.DESCRIPTOR.name
    if isinstance(found, inspect.DictType):
        return field.message_type is struct_pb2.Struct.DESCRIPTOR
    if isinstance(found, inspect.BoolType):
        return bool(field.type == FieldDescriptor.TYPE_BOOL)
    if isinstance(found, inspect.IntType):
        return field.type in INTEGERS
    # words are words: the values that JSON has, not numbers of an enum
    return isinstance(found, inspect.StrType | inspect.EnumType | inspect.LiteralType) and (
        field.type == FieldDescriptor.TYPE_STRING
    )


def _may_be_none(field: inspect.Field) -> bool:
    found = field.type
    while isinstance(found, inspect.Metadata):
        found = found.type
    return isinstance(found, inspect.UnionType) and found.includes_none


class Mirror(SynchronousTestCase):
    """Field for field."""

    def test_every_call_is_an_rpc_and_every_rpc_a_call(self) -> None:
        self.assertEqual(SCHEMA.full_name, SERVICE)
        self.assertEqual(set(SCHEMA.methods_by_name), set(BY_NAME))
        self.assertLessEqual(SPECIFIED, set(BY_NAME))
        self.assertEqual({one.call for one in OPERATIONS}, set(KmsCall))

    def test_every_field_is_there_and_no_other(self) -> None:
        for kind, message, _asked in pairs():
            names = {field.encode_name for field in _fields(kind)}
            self.assertEqual(set(message.fields_by_name), names, message.full_name)

    def test_types_fit(self) -> None:
        for kind, message, _asked in pairs():
            for field in _fields(kind):
                found = message.fields_by_name[field.encode_name]
                self.assertTrue(_fits(_inner(field.type), found), f"{message.full_name}.{field.encode_name}")

    def test_what_may_be_left_out_can_be(self) -> None:
        for kind, message, asked in pairs():
            for field in _fields(kind):
                found = message.fields_by_name[field.encode_name]
                if found.is_repeated:
                    continue
                # `optional` in the file; a message always knows whether it is there
                optional = found.containing_oneof is not None
                wanted = _may_be_none(field) or (asked and not field.required)
                self.assertEqual(optional, wanted, f"{message.full_name}.{field.encode_name}")
                self.assertTrue(not optional or found.has_presence)

    def test_messages_are_called_as_their_structs(self) -> None:
        for kind, message, _asked in pairs():
            self.assertIn(message.name, {kind.__name__, kind.__name__.removesuffix("Call") + "Request"})

    def test_no_message_stands_for_nothing_and_no_struct_without_one(self) -> None:
        seen = list(pairs())
        self.assertEqual({message.name for _kind, message, _asked in seen}, set(pb.DESCRIPTOR.message_types_by_name))
        known = {kind for kind, _message, _asked in seen} | {base for kind, _m, _a in seen for base in kind.__mro__}
        structs = {
            value
            for name, value in vars(kms).items()
            if isinstance(value, type) and issubclass(value, msgspec.Struct) and not name.startswith("_")
        }
        self.assertEqual(structs - known, set())
        self.assertGreater(len(structs), 20)

    def test_a_whole_request_is_the_routes_path_query_and_body(self) -> None:
        paths = openapi.document()["paths"]
        specs = {(one.method, one.path): one for one in api.endpoints(cast(Any, None), lambda: b"")}
        for one in OPERATIONS:
            method, path = one.http
            spec = specs[method, path]
            described = paths[path.replace("<path:kid>", "{kid}")][method.lower()]
            outside = {parameter["name"] for parameter in described.get("parameters", ())}
            body = {field.encode_name for field in _fields(spec.body)} if spec.body is not None else set()
            self.assertEqual({field.encode_name for field in _fields(one.body)}, outside | body, one.name)
            self.assertEqual(one.answer, api.ANSWERS[method, path], one.name)

    def test_scopes_deadlines_and_writes_are_those_of_the_routes(self) -> None:
        specs = {(one.method, one.path): one for one in api.endpoints(cast(Any, None), lambda: b"")}
        for one in OPERATIONS:
            spec = specs[one.http]
            self.assertEqual(
                (one.scope, one.deadline_s, one.writes), (spec.scope, spec.deadline_s, spec.writes), one.name
            )
        left = {path for (_method, path) in set(specs) - {one.http for one in OPERATIONS}}
        self.assertEqual({path for path in left if "/audit/" not in path}, {api.OPENAPI_PATH})

    def test_the_file_where_the_specification_looks_for_it_is_this_one(self) -> None:
        root = Path(ron.__file__).parents[1]
        where = root / "proto" / "ron" / "kms" / "v1" / "kms.proto"
        self.assertEqual(where.resolve(), Path(kms_server.__file__).with_name("kms.proto"))


def sent(name: str, **fields: Any) -> bytes:
    """A request as a client would write it."""
    message = GetMessageClass(SCHEMA.methods_by_name[name].input_type)(**fields)
    return cast(bytes, message.SerializeToString())


SIGN = {"kid_or_set": {"kid": KID}, "payload_b3": B3}
UNKNOWN_FIELD = b"\xf8\x07\x01"
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# what a double holds, and the smallest is not told from nought by anybody
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=10,
)


class Bad(SynchronousTestCase):
    """Refused by the reader."""

    def refused(self, name: str, raw: bytes, code: ErrorCode = ErrorCode.BAD_REQUEST) -> str:
        error = self.assertRaises(RonError, reader(BY_NAME[name]), raw)
        self.assertIs(error.code, code)
        return str(error.message)

    def test_bytes_that_are_no_message(self) -> None:
        for raw in (b"\xff" * 20, b"\x0a\xff", b"\x12\x02\xff\xfe", sent("Sign", **SIGN)[:-1]):
            self.assertIn("no such message", self.refused("Sign", raw))

    def test_unknown_fields_anywhere(self) -> None:
        whole = sent("Sign", **SIGN)
        selector = pb.KidSelector(kid=KID).SerializeToString() + UNKNOWN_FIELD
        inner = b"\x0a" + bytes([len(selector)]) + selector + b"\x12\x40" + B3.encode()
        for raw in (whole + UNKNOWN_FIELD, inner):
            self.assertIn("unknown field", self.refused("Sign", raw))

    def test_a_field_of_another_type_is_an_unknown_one(self) -> None:
        self.assertIn("unknown field", self.refused("GetKey", b"\x08\x01"))

    def test_what_must_be_there(self) -> None:
        for fields in ({}, {"payload_b3": B3}, {"kid_or_set": {"kid": KID}}, {**SIGN, "payload_b3": ""}):
            self.assertIn("missing required field", self.refused("Sign", sent("Sign", **fields)))
        self.refused("GetKey", b"")
        self.refused("DestroyKey", sent("DestroyKey", kid=KID))

    def test_the_patterns_are_those_of_the_structs(self) -> None:
        for fields in (
            {**SIGN, "payload_b3": "7F" * 32},
            {**SIGN, "kid_or_set": {"kid": "core"}},
            {**SIGN, "kid_or_set": {"kid_set": [KID] * 17}},
            {**SIGN, "op_id": ""},
            {**SIGN, "op_id": "1"},
        ):
            self.refused("Sign", sent("Sign", **fields))
        self.refused("Wrap", sent("Wrap", kid=KID, size=15))
        self.refused("Wrap", sent("Wrap", kid=KID, size=32, kem_mode="none"))
        signature = {"alg": "rsa", "signature_b64": ""}
        self.refused("Verify", sent("Verify", payload_b3=B3, sigs=[signature]))
        self.refused("Verify", sent("Verify", payload_b3=B3))

    def test_hints_that_json_has_not(self) -> None:
        create = {"tenant": "core", "purpose": "audit", "alg": "ed25519"}
        for value in (struct_pb2.Value(), struct_pb2.Value(number_value=float("nan"))):
            hints = struct_pb2.Struct(fields={"a": value})
            self.refused("CreateKey", sent("CreateKey", **create, policy_hints=hints))

    def test_hints_that_are_too_large_or_too_deep(self) -> None:
        create = {"tenant": "core", "purpose": "audit", "alg": "ed25519"}
        large = sent("CreateKey", **create, policy_hints={"a": [1] * (MOST_STRUCT_BYTES // 9)})
        self.refused("CreateKey", large, ErrorCode.TOO_LARGE)
        for shape in (_nested, _mapped):
            # the second is more than protobuf itself reads
            for levels in (MOST_LEVELS, 90):
                self.refused("CreateKey", sent("CreateKey", **create, policy_hints=shape(levels)))
            deepest = sent("CreateKey", **create, policy_hints=shape(MOST_LEVELS - 1))
            found = cast(CreateKeyRequest, reader(BY_NAME["CreateKey"])(deepest))
            self.assertEqual(found.policy_hints, shape(MOST_LEVELS - 1))

    @settings(deadline=None, max_examples=100)
    @given(st.sampled_from(OPERATIONS), st.binary(max_size=200))
    def test_any_bytes(self, operation: Operation, raw: bytes) -> None:
        try:
            found = reader(operation)(raw)
        except RonError as error:
            self.assertIn(error.code, {ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE})
        else:
            self.assertIsInstance(found, operation.body)


class Requests(SynchronousTestCase):
    """Read as they were meant."""

    def test_a_selector_of_one_or_of_several(self) -> None:
        read = reader(BY_NAME["Sign"])
        self.assertEqual(
            read(sent("Sign", **SIGN, policy={"produce_hybrid": False})),
            SignRequest(kid_or_set=KidSelector(kid=KID), payload_b3=B3, policy=kms.SignPolicy(produce_hybrid=False)),
        )
        several = read(sent("Sign", kid_or_set={"kid_set": [KID, KID]}, payload_b3=B3))
        self.assertEqual(cast(SignRequest, several).kid_or_set, KidSelector(kid_set=(KID, KID)))

    def test_what_is_left_out_is_as_in_json(self) -> None:
        self.assertEqual(reader(BY_NAME["ListKeys"])(b""), ListKeysRequest())
        self.assertEqual(reader(BY_NAME["Attest"])(b""), AttestRequest())
        wrap = cast(kms.WrapRequest, reader(BY_NAME["Wrap"])(sent("Wrap", kid=KID, size=32)))
        self.assertEqual((wrap.kem_mode, wrap.plaintext_key_b64), ("hybrid", None))
        self.assertEqual(reader(BY_NAME["Rotate"])(sent("Rotate", kid=KID)), RotateCall(kid=KID))
        destroy = reader(BY_NAME["DestroyKey"])(sent("DestroyKey", kid=KID, proposal="p"))
        self.assertEqual(destroy, DestroyCall(kid=KID, proposal="p"))

    @settings(deadline=None, max_examples=100)
    @given(st.dictionaries(_TEXT, JSON, max_size=4))
    def test_hints_come_and_go_as_json(self, hints: dict[str, Any]) -> None:
        raw = sent("CreateKey", tenant="core", purpose="audit", alg="ed25519", policy_hints=hints)
        body = cast(CreateKeyRequest, reader(BY_NAME["CreateKey"])(raw))
        self.assertEqual(body.policy_hints, hints)
        view = KeyView(
            kid=KID,
            alg="ed25519",
            versions=("#v1",),
            public=KeyMaterialPublic(alg=kms.Alg.ED25519, pubkey_b64=""),
            policy_hints=hints,
        )
        message = pb.KeyView.FromString(writer(BY_NAME["GetKey"])(view))
        again = cast(CreateKeyRequest, reader(BY_NAME["CreateKey"])(
            sent("CreateKey", tenant="core", purpose="audit", alg="ed25519", policy_hints=message.policy_hints)
        ))  # fmt: skip
        self.assertEqual(again.policy_hints, hints)


class Answers(SynchronousTestCase):
    """Written so that nothing is lost."""

    def test_a_default_is_said(self) -> None:
        """JSON leaves `destroyed: true` out; a message that left it out would say false."""
        raw = writer(BY_NAME["DestroyKey"])(DestroyResponse(kid=KID))
        self.assertTrue(pb.DestroyResponse.FromString(raw).destroyed)

    def test_none_and_nothing_are_told_apart(self) -> None:
        details = VerifyDetails(checked=())
        write = writer(BY_NAME["Verify"])
        fresh = pb.VerifyResponse.FromString(write(VerifyResponse(ok=False, details=details)))
        self.assertFalse(fresh.HasField("cache_age_ms"))
        self.assertFalse(fresh.details.HasField("satisfied_mode"))
        cached = pb.VerifyResponse.FromString(write(VerifyResponse(ok=True, details=details, cache_age_ms=0)))
        self.assertTrue(cached.HasField("cache_age_ms"))

    def test_a_word_of_python_is_a_field(self) -> None:
        raw = writer(BY_NAME["Attest"])(
            kms.AttestResponse(backend="file", attestation=Attestation(class_="software-file"))
        )
        self.assertEqual(getattr(pb.AttestResponse.FromString(raw).attestation, "class"), "software-file")

    def test_hints_that_no_message_carries(self) -> None:
        write = writer(BY_NAME["ListKeys"])
        for hints in (_nested(MOST_LEVELS), {"a": 10**400}):
            error = self.assertRaises(RonError, write, _listed(hints))
            self.assertIs(error.code, ErrorCode.UNSUPPORTED)
        # the deepest that goes out can be read by whoever gets it
        for shape in (_nested, _mapped):
            raw = write(_listed(shape(MOST_LEVELS - 1)))
            self.assertEqual(len(pb.KeyList.FromString(raw).keys), 1)

    def test_doubles_as_they_are(self) -> None:
        raw = writer(BY_NAME["ListKeys"])(_listed({"a": 0.1}))
        self.assertEqual(pb.KeyList.FromString(raw).keys[0].policy_hints["a"], 0.1)


def _nested(levels: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return {"a": value}


def _mapped(levels: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return {"a": value}


def _listed(hints: dict[str, Any]) -> KeyList:
    public = KeyMaterialPublic(alg=kms.Alg.ED25519, pubkey_b64="")
    return KeyList(keys=(KeyView(kid=KID, alg="ed25519", versions=("#v1",), public=public, policy_hints=hints),))
