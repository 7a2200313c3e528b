"""Reads protobuf's wire format: files of Caffe, TensorFlow and ONNX, without their libraries."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from gnet_jax.model_folder.folder import WeightsError

# TensorFlow's TensorShapeProto, called "Shape".
TENSOR_SHAPE = {"Dim": {"size": (1, "int64")}, "Shape": {"dim": (2, "Dim[]")}}


def message_class(messages: Mapping[str, Mapping[str, tuple[int, str]]], root: str) -> Any:
    """Returns the class of the message `root`. Its `FromString` raises DecodeError.

    `messages` maps each message to its fields, and each field to its number and type. A type is the
    name of a message or of a scalar, with [] at the end if the field is repeated. Fields that are
    not listed are ignored.
    """
    file = descriptor_pb2.FileDescriptorProto(name="file.proto", syntax="proto2")
    for message, fields in messages.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = described.field.add(name=name, number=number)
            repeated, kind = kind.endswith("[]"), kind.removesuffix("[]")
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in messages:
                field.type, field.type_name = field.TYPE_MESSAGE, kind
            else:
                field.type = field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(root))


def to_array(
    raw: bytes, values: Sequence[float] | np.ndarray, shape: Sequence[int], where: str
) -> np.ndarray:
    """Returns a float32 array of `shape` from its bytes, or from `values` if `raw` is empty.

    Raises WeightsError, naming `where`, if the number of values does not match the shape.
    """
    stored = len(raw) / 4 or len(values)
    if stored != math.prod(shape) or min(shape, default=0) < 0:
        raise WeightsError(f"{where} has {stored:g} numbers for the shape {tuple(shape)}")
    return (np.frombuffer(raw, "<f4") if raw else np.array(values, np.float32)).reshape(shape)
