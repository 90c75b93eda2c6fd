"""Vectors on the way: Flower's array records, without what Flower does anew for each array."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from protocol.fields import MessageError


def weights_record(weights: npt.NDArray[np.float32]) -> ArrayRecord:
    """Wrap the global part, float32 of shape (N_u,), for sending."""
    return vector_record("weights", np.ascontiguousarray(weights, dtype=np.float32))


def read_weights(record: ArrayRecord) -> npt.NDArray[np.float32]:
    """Return a fresh copy of the global part, float32 of shape (N_u,).

    Raises:
        MessageError: if it is absent, or not a float32 vector.
    """
    return read_array(record, "weights", np.float32)


def mask_record(mask: npt.NDArray[np.bool_]) -> ArrayRecord:
    """Wrap a mask of shape (N_u,) as a bitmap."""
    return vector_record("bitmap", np.packbits(mask))


def read_mask(record: ArrayRecord, num_weights: int) -> npt.NDArray[np.bool_]:
    """Return the boolean mask of shape (num_weights,).

    Raises:
        MessageError: if it is absent or too short.
    """
    bitmap = read_array(record, "bitmap", np.uint8)
    if bitmap.size != (num_weights + 7) // 8:
        raise MessageError(
            f"the mask has {bitmap.size} bytes; {num_weights} weights need {(num_weights + 7) // 8}"
        )
    return np.unpackbits(bitmap, count=num_weights).astype(np.bool_)


def vector_record(key: str, vector: npt.NDArray[Any]) -> ArrayRecord:
    """Return a record of one contiguous vector, equal to `ArrayRecord({key: Array(vector)})`.

    Flower has NumPy write the header of the ``.npy`` format anew for each array, most of the time that a
    small one takes; here it is remembered.
    """
    name, prefix = _npy_prefix(vector.dtype, vector.size)
    record = ArrayRecord()  # made from a dict it would copy the array
    record[key] = Array(name, vector.shape, "numpy.ndarray", prefix + vector.tobytes())
    return record


def vectors_record(vectors: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
    """Return a record of several vectors by name."""
    record = ArrayRecord()
    for name, vector in vectors.items():
        record[name] = vector_record(name, np.ascontiguousarray(vector).ravel())[name]
    return record


def read_vectors(record: ArrayRecord) -> dict[str, npt.NDArray[Any]]:
    """Return the vectors of a record by name, as fresh copies.

    Raises:
        MessageError: if one is unreadable, or no vector of numbers.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for name in record:
        try:
            array = _decode(record[name], copy=True)
        except Exception as error:  # whatever a damaged array makes NumPy raise
            raise MessageError(f"the array {name!r} is not readable: {error}") from error
        if array.ndim != 1 or array.dtype.kind not in "biuf":
            raise MessageError(
                f"the array {name!r} is {array.dtype} {array.shape}; a vector of numbers is expected"
            )
        found[name] = array
    return found


def replace_vector(array: Array, vector: npt.NDArray[Any]) -> bool:
    """Put a contiguous vector in the place of one of the same type and size; return whether it was one.

    That costs a quarter of a new record.
    """
    name, prefix = _npy_prefix(vector.dtype, vector.size)
    if (array.dtype, tuple(array.shape), array.stype) != (name, vector.shape, "numpy.ndarray"):
        return False
    array.data = prefix + vector.tobytes()
    return True


@lru_cache(maxsize=64)
def _npy_prefix(dtype: np.dtype[Any], size: int) -> tuple[str, bytes]:
    """Return the name of a dtype and the header of a vector's file."""
    file = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(file, header)
    return dtype.name, file.getvalue()


_Scalar = TypeVar("_Scalar", bound=np.generic)


def read_array(
    record: ArrayRecord, key: str, dtype: type[_Scalar], *, copy: bool = True
) -> npt.NDArray[_Scalar]:
    """Return the vector under `key`; without `copy` possibly a read-only view of the record's bytes.

    Raises:
        MessageError: if it is absent, unreadable, of another dtype or not a vector.
    """
    if key not in record:
        raise MessageError(f"the record lacks the array {key!r}")
    try:
        array = _decode(record[key], copy)
    except Exception as error:  # whatever a damaged array makes NumPy raise
        raise MessageError(f"the array {key!r} is not readable: {error}") from error
    if array.dtype != dtype or array.ndim != 1:
        raise MessageError(
            f"the array {key!r} has dtype {array.dtype} and shape {array.shape}; "
            f"a {np.dtype(dtype).name} vector is expected"
        )
    return array


def _decode(array: Array, copy: bool) -> npt.NDArray[Any]:
    """Return `array.numpy()`, which parses the header as Python source, with the headers remembered."""
    data = array.data
    if array.stype == "numpy.ndarray" and data[:8] == b"\x93NUMPY\x01\x00":
        start = 10 + int.from_bytes(data[8:10], "little")
        dtype, shape, fortran = _npy_header(data[:start])
        if len(shape) == 1 and not fortran and not dtype.hasobject:
            if len(data) != start + dtype.itemsize * shape[0]:
                raise ValueError(f"{len(data)} bytes do not hold {shape[0]} entries of {dtype}")
            vector = np.frombuffer(data, dtype, offset=start)
            return vector.copy() if copy else vector
    return array.numpy()


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    return dtype, shape, fortran
