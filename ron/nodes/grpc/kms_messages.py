"""Messages of `ron.kms.v1` and the structs they mirror, one turned into the other by the names of their fields. Pure.

In: bytes of a request, the struct it has to be; a struct to answer. Out: the struct, or `RonError`; bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct

from ron.nodes.grpc import kms_pb2
from ron.proto.errors import ErrorCode, RonError, bad_request, too_large
from ron.services.kms.door import Operation, strictly

# Over twice of what the service takes as policy_hints, however they are written: more is not even looked at.
MOST_STRUCT_BYTES = 32 * 1024
# protobuf reads 100 levels of messages; a level of JSON is three of them at most.
MOST_LEVELS = 24
# Beyond it a double stands for several whole numbers.
_EXACT = 2**53


def reader(operation: Operation) -> Callable[[bytes], msgspec.Struct]:
    """Requests of `operation` from their bytes. Raises `RonError`: BadRequest, TooLarge."""
    message_class = GetMessageClass(_method(operation).input_type)

    def read(raw: bytes) -> msgspec.Struct:
        try:
            message = message_class.FromString(raw)
        except DecodeError:
            raise bad_request("the request is no such message", "build it from proto/ron/kms/v1/kms.proto") from None
        size = message.ByteSize()
        message.DiscardUnknownFields()
        if message.ByteSize() != size:
            raise bad_request("the request has an unknown field", "build it from proto/ron/kms/v1/kms.proto")
        found: msgspec.Struct = strictly(lambda: msgspec.convert(_plain(message), operation.body, strict=True))
        return found

    return read


def writer(operation: Operation) -> Callable[[msgspec.Struct], bytes]:
    """Answers of `operation` as bytes. Raises `RonError` (Unsupported) for one that no message can carry."""
    message_class = GetMessageClass(_method(operation).output_type)

    def write(answer: msgspec.Struct) -> bytes:
        return message_class(**fields_of(answer)).SerializeToString()

    return write


def _method(operation: Operation) -> Any:
    return kms_pb2.DESCRIPTOR.services_by_name["Kms"].methods_by_name[operation.name]


# Message → what `msgspec.convert` takes


def _plain(message: Message) -> dict[str, Any]:
    """The fields that are there. A text that is empty and need not be said is as good as none: it is missing then."""
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is None:
        return list(value) if field.is_repeated else value
    if field.is_repeated:
        return [_plain(one) for one in value]
    if isinstance(value, Struct):
        if value.ByteSize() > MOST_STRUCT_BYTES:
            raise too_large(f"{field.name} has over {MOST_STRUCT_BYTES} bytes")
        return _object(field.name, value, MOST_LEVELS)
    return _plain(value)


def _object(name: str, struct: Any, levels: int) -> dict[str, Any]:
    _descend(name, struct.fields, levels)
    return {key: _json(name, value, levels - 1) for key, value in struct.fields.items()}


def _json(name: str, value: Any, levels: int) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _object(name, value.struct_value, levels)
    if kind == "list_value":
        _descend(name, value.list_value.values, levels)
        return [_json(name, one, levels - 1) for one in value.list_value.values]
    if kind == "number_value":
        return _number(name, value.number_value)
    if kind == "null_value":
        return None
    if kind is None:
        raise bad_request(f"{name} has a value that is none", "say null_value")
    return getattr(value, kind)


def _descend(name: str, inner: Any, levels: int) -> None:
    """Raises `RonError` (BadRequest) for what could not be answered again."""
    if inner and not levels:
        raise bad_request(f"{name} is over {MOST_LEVELS} levels deep")


def _number(name: str, number: float) -> int | float:
    """As JSON would have it: a whole number is one again."""
    if not math.isfinite(number):
        raise bad_request(f"{name} has a number that is none", "JSON knows neither NaN nor infinity")
    return int(number) if number.is_integer() and abs(number) <= _EXACT else number


# Struct → what a message is made from


def fields_of(struct: msgspec.Struct) -> dict[str, Any]:
    """What a message is made from: by the names on the wire; what is None is left out. Defaults are said, for a message
    has its own. Raises `RonError` (Unsupported) for what no message can carry."""
    found = {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if value is not None:
            found[field.encode_name] = _made(field.encode_name, value)
    return found


def _made(name: str, value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return fields_of(value)
    if isinstance(value, tuple):
        return [_made(name, one) for one in value]
    if isinstance(value, Mapping):
        _check(name, value, MOST_LEVELS)
    return value


def _check(name: str, value: Any, levels: int) -> None:
    """Raises `RonError` for JSON that no google.protobuf.Struct holds."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    if inner and not levels:
        raise _unsupported(f"{name} is over {MOST_LEVELS} levels deep")
    if isinstance(value, int):
        try:
            float(value)
        except OverflowError:
            raise _unsupported(f"{name} has a number that no double holds") from None
    for one in inner:
        _check(name, one, levels - 1)


def _unsupported(message: str) -> RonError:
    return RonError(ErrorCode.UNSUPPORTED, message, hint="ask over HTTP")
