"""The messages between the server and the devices: dataclasses here, Flower records on the way.

Every message carries what its receiver needs and nothing else: devices never read the configuration
files. The personal part of a device's model is in none of them.

=========  =========================  ==================================================================
direction  message                    records
=========  =========================  ==================================================================
to device  train (`TrainOrder`)       ``global`` (ArrayRecord ``weights``), ``order`` (ConfigRecord),
                                      ``run`` (ConfigRecord, the same in all messages of a run),
                                      ``mask`` (ArrayRecord ``bitmap``; only with a common mask),
                                      ``probe`` (ConfigRecord; only where the uplink is measured),
                                      ``buffers`` (ArrayRecord; only where running statistics are shared),
                                      ``vectors`` (ArrayRecord, of the local algorithm; only if it has some)
to server  train (`TrainReport`)      ``upload`` (ArrayRecord ``payload``; absent when nothing was kept; and
                                      one payload per named array that the local algorithm sends),
                                      ``metrics`` (MetricRecord), ``buffers`` (with ``upload``)
to device  evaluate (`EvaluateOrder`) ``global``, ``order``, ``run``, ``buffers``
to server  evaluate                   ``metrics``
to device  query.hello (`HelloOrder`) ``run`` (ConfigRecord ``spec``; or none)
to server  query.hello                ``device`` (ConfigRecord, see `Introduction`)
to device  query.save (`SaveOrder`)   ``order``, ``run``
to server  query.save (`SaveReport`)  ``device``, ``saved`` (ConfigRecord)
=========  =========================  ==================================================================
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

GLOBAL = "global"
ORDER = "order"
RUN = "run"
MASK = "mask"
UPLOAD = "upload"
METRICS = "metrics"
DEVICE = "device"
PROBE = "probe"
VECTORS = "vectors"
SAVED = "saved"
BUFFERS = "buffers"

# Of a personal part: the server does not know after which round it stands.
UNKNOWN_ROUND = -1

HELLO = "query.hello"
SAVE = "query.save"

# What a device may report beside its upload. Anything else in a reply is ignored.
REPORTED = frozenset(
    {
        "personal-loss",
        "global-loss",
        "measured-train-seconds",
        "measured-compute-seconds",
        "measured-seconds-per-weight-step",
        "stated-uplink-bps",
        "state-set-aside",
        "state-lost",
    }
)

Uplink = Literal["digital", "analog"]


class MessageError(ValueError):
    """A message lacks a record or a key, or holds a value of the wrong type."""


@dataclass(frozen=True)
class DeviceSpec:
    """What stays the same for a device over the whole run.

    Attributes:
        seed: seed of the run.
        run_key: digest of the configuration; a part of the key of what a device stores on disk.
        num_devices: number of devices that share the data set.
        model: keyword arguments of `task.models.build_model` (without the generator).
        personal: glob patterns of the names of personal parameters and buffers.
        dataset: keyword arguments of `task.datasets.load_dataset` (without the folder).
        learning: fields of `task.build.Learning`.
        partition: keyword arguments of `task.partition.partition` (without labels and generator).
        training: fields of `protocol.training.TrainingSpec`.
        bits_per_weight: bits of each uploaded weight, 32, 16 or 8.
        uplink: ``digital`` (retained weights, at `bits_per_weight`) or ``analog`` (updates, which the
            emulated air superposes).
        num_classes: labels are 0..num_classes-1, also of images that a node has of its own; 0: no labels.
        mean, std: of each channel, scaled to 0..1, by which a node normalises images of its own.
        sample_shape: of the run's samples, to which a node brings images of its own.
        label_names: by which a node may name its folders, or ().
        data_root: folder of the data sets on the server's machine, or "" for the default one.
        own_data_root: whether a device that knows a folder of its own uses that instead (a node of a fleet).
        data_digest: of the labels of the server's data set; "" if it does not matter.
    """

    seed: int
    run_key: str
    num_devices: int
    model: Mapping[str, Any]
    personal: tuple[str, ...]
    dataset: Mapping[str, Any]
    partition: Mapping[str, Any]
    training: Mapping[str, Any]
    bits_per_weight: int = 32
    uplink: Uplink = "digital"
    num_classes: int = 10
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    sample_shape: tuple[int, ...] = (1, 28, 28)
    label_names: tuple[str, ...] = ()
    learning: Mapping[str, Any] = field(default_factory=dict)
    data_root: str = ""
    own_data_root: bool = False
    data_digest: str = ""

    def to_json(self) -> str:
        """Return the JSON text that travels in an order."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@lru_cache(maxsize=8)
def spec_from_json(text: str) -> DeviceSpec:
    """Parse a `DeviceSpec`; the same text gives the same object, so it can key caches by identity.

    Raises:
        MessageError: if the text is not a `DeviceSpec`.
    """
    try:
        values = json.loads(text)
        lists = ("personal", "mean", "std", "sample_shape", "label_names")
        return DeviceSpec(**{**values, **{name: tuple(values[name]) for name in lists}})
    except (ValueError, TypeError, KeyError) as error:
        raise MessageError(f"the device specification in the order is not readable: {error}") from error


@dataclass(frozen=True)
class ProbeOrder:
    """A timed transfer of meaningless bytes over the device's real uplink.

    Attributes:
        address: host and port that take the bytes, as ``host:port``.
        token: 16 bytes that name this transfer.
        size: bytes to send.
    """

    address: str
    token: bytes
    size: int

    @staticmethod
    def from_records(records: RecordDict) -> ProbeOrder | None:
        """Read the order of a transfer, if there is one.

        Raises:
            MessageError: if a key is absent or of the wrong type.
        """
        if PROBE not in records:
            return None
        order = _record(records, PROBE, ConfigRecord)
        return ProbeOrder(
            _value(order, "address", str), _value(order, "token", bytes), _value(order, "size", int)
        )


@dataclass(frozen=True)
class TrainOrder:
    """One device's work in one round.

    Attributes:
        round: number of the round, from 1.
        num_pruned: weights of the global part to prune; all of them means: upload nothing.
        spec: JSON text of the `DeviceSpec`.
        weights: global part, float32, shape (N_u,).
        mask: bitmap of a mask that the server imposes on every device, or None.
        resume_dir: folder from which a device without a personal part takes it, or "".
        run: names this run among all runs; keys what a device keeps on its own disk.
        resume_run: the run that this one continues, or "".
        resume_round: last round of the checkpoint that it continues, or 0.
        resume_part: round of the device's personal part in that checkpoint; 0: it had none yet;
            `UNKNOWN_ROUND`: not known.
        probe: timed transfer to make after training, or None.
        buffers: running statistics that are shared, by name, or None.
        vectors: named vectors of the local algorithm, float32 (N_u,), such as SCAFFOLD's control variate;
            None where it has none.
    """

    round: int
    num_pruned: int
    spec: str
    weights: ArrayRecord
    mask: ArrayRecord | None = None
    resume_dir: str = ""
    run: str = ""
    resume_run: str = ""
    resume_round: int = 0
    resume_part: int = UNKNOWN_ROUND
    probe: ProbeOrder | None = None
    buffers: ArrayRecord | None = None
    vectors: ArrayRecord | None = None

    def to_records(self) -> RecordDict:
        """Return the content of the train message."""
        records = RecordDict(
            {
                GLOBAL: self.weights,
                ORDER: ConfigRecord(
                    {"round": self.round, "num-pruned": self.num_pruned, "resume-part": self.resume_part}
                ),
                RUN: _run_record(self),
            }
        )
        if self.mask is not None:
            records[MASK] = self.mask
        if self.probe is not None:
            records[PROBE] = ConfigRecord(dataclasses.asdict(self.probe))
        if self.buffers is not None:
            records[BUFFERS] = self.buffers
        if self.vectors is not None:
            records[VECTORS] = self.vectors
        return records

    @classmethod
    def from_records(cls, records: RecordDict) -> Self:
        """Read the content of a train message.

        Raises:
            MessageError: if a record or a key is absent or of the wrong type.
        """
        order = _record(records, ORDER, ConfigRecord)
        return cls(
            round=_value(order, "round", int),
            num_pruned=_value(order, "num-pruned", int),
            resume_part=_value(order, "resume-part", int),
            weights=_record(records, GLOBAL, ArrayRecord),
            mask=_record(records, MASK, ArrayRecord) if MASK in records else None,
            probe=ProbeOrder.from_records(records),
            buffers=_record(records, BUFFERS, ArrayRecord) if BUFFERS in records else None,
            vectors=_record(records, VECTORS, ArrayRecord) if VECTORS in records else None,
            **_read_run(records),
        )


@dataclass(frozen=True)
class EvaluateOrder:
    """Test the global part together with the device's personal part."""

    round: int
    spec: str
    weights: ArrayRecord
    resume_dir: str = ""
    run: str = ""
    resume_run: str = ""
    resume_round: int = 0
    resume_part: int = UNKNOWN_ROUND
    buffers: ArrayRecord | None = None

    def to_records(self) -> RecordDict:
        """Return the content of the evaluate message."""
        records = RecordDict(
            {
                GLOBAL: self.weights,
                ORDER: ConfigRecord({"round": self.round, "resume-part": self.resume_part}),
                RUN: _run_record(self),
            }
        )
        if self.buffers is not None:
            records[BUFFERS] = self.buffers
        return records

    @classmethod
    def from_records(cls, records: RecordDict) -> Self:
        """Read the content of an evaluate message.

        Raises:
            MessageError: if a record or a key is absent or of the wrong type.
        """
        order = _record(records, ORDER, ConfigRecord)
        return cls(
            round=_value(order, "round", int),
            resume_part=_value(order, "resume-part", int),
            weights=_record(records, GLOBAL, ArrayRecord),
            buffers=_record(records, BUFFERS, ArrayRecord) if BUFFERS in records else None,
            **_read_run(records),
        )


@dataclass(frozen=True)
class SaveOrder:
    """Store the personal part for a checkpoint; it does not travel.

    Attributes:
        directory: where to; a device with a folder of its own for its state uses that instead.
        round: last round of the checkpoint; what the device learned later is not stored.
        keep: rounds of the earlier checkpoints that the server still has.
        spec: JSON text of the `DeviceSpec`.
        resume_dir, run, resume_run, resume_round, resume_part: as in `TrainOrder`.
    """

    directory: str
    round: int
    spec: str
    keep: tuple[int, ...] = ()
    resume_dir: str = ""
    run: str = ""
    resume_run: str = ""
    resume_round: int = 0
    resume_part: int = UNKNOWN_ROUND

    def to_records(self) -> RecordDict:
        """Return the content of the query.save message."""
        order = {
            "directory": self.directory,
            "round": self.round,
            "keep": " ".join(map(str, self.keep)),
            "resume-part": self.resume_part,
        }
        return RecordDict({ORDER: ConfigRecord(order), RUN: _run_record(self)})  # type: ignore[arg-type]

    @staticmethod
    def from_records(records: RecordDict) -> SaveOrder:
        """Read the content of a query.save message.

        Raises:
            MessageError: if a record or a key is absent or of the wrong type.
        """
        order = _record(records, ORDER, ConfigRecord)
        kept = _value(order, "keep", str).split()
        if not all(word.isdecimal() for word in kept):
            raise MessageError(f"keep = {kept} in the order; whole numbers are expected")
        return SaveOrder(
            _value(order, "directory", str),
            _value(order, "round", int),
            keep=tuple(map(int, kept)),
            resume_part=_value(order, "resume-part", int),
            **_read_run(records),
        )


@dataclass(frozen=True)
class SaveReport:
    """What a device has stored for a checkpoint.

    Attributes:
        round: after which its personal part stands; 0 if it has none yet and stored nothing.
        sha256: hexadecimal digest of the file.
        size: bytes of the file.
        own: whether the file lies in a folder of the device's own, which the server does not see.
    """

    round: int
    sha256: str = ""
    size: int = 0
    own: bool = False

    def to_record(self) -> ConfigRecord:
        """Return the record ``saved`` of the reply."""
        return ConfigRecord({**dataclasses.asdict(self), "own": int(self.own)})

    @staticmethod
    def from_records(records: RecordDict, server_round: int) -> SaveReport:
        """Read the content of a reply to a `SaveOrder` of round `server_round`, trusting none of it.

        Raises:
            MessageError: if a record or a key is absent, of the wrong type or makes no sense.
        """
        record = _record(records, SAVED, ConfigRecord)
        report = SaveReport(
            _value(record, "round", int),
            _value(record, "sha256", str),
            _value(record, "size", int),
            bool(_value(record, "own", int)),
        )
        if not 0 <= report.round <= server_round:
            raise MessageError(f"it stored a personal part of round {report.round}")
        if report.round and not (_SHA256.fullmatch(report.sha256) and report.size > 0):
            raise MessageError("it did not tell what it stored")
        return report


@dataclass(frozen=True)
class HelloOrder:
    """Ask a node which device it is, and whether it has what the run needs.

    Attributes:
        spec: JSON text of the `DeviceSpec`; "": ask for the index only.
    """

    spec: str = ""

    def to_records(self) -> RecordDict:
        """Return the content of the query.hello message."""
        return RecordDict({RUN: ConfigRecord({"spec": self.spec})} if self.spec else {})

    @staticmethod
    def from_records(records: RecordDict) -> HelloOrder:
        """Read the content of a query.hello message.

        Raises:
            MessageError: if a key is absent or of the wrong type.
        """
        return HelloOrder(_value(_record(records, RUN, ConfigRecord), "spec", str) if RUN in records else "")


@dataclass(frozen=True)
class Introduction:
    """What a node answers to a `HelloOrder`.

    Attributes:
        index, num_devices: which device it is, of how many.
        own_images: whether it learns from images of its own instead of its part of the run's data set.
        train_samples, test_samples, labels: of its own images.
        notes: what is to be known of them.
        problem: why it cannot take part, or "".
    """

    index: int
    num_devices: int
    own_images: bool = False
    train_samples: int = 0
    test_samples: int = 0
    labels: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    problem: str = ""

    def to_records(self) -> RecordDict:
        """Return the content of the reply."""
        values: dict[str, Any] = {"index": self.index, "num-devices": self.num_devices}
        if self.own_images:
            values |= {
                "train-samples": self.train_samples,
                "test-samples": self.test_samples,
                "labels": list(self.labels),
                "notes": list(self.notes),
            }
        if self.problem:
            values["problem"] = self.problem
        return RecordDict({DEVICE: ConfigRecord(values)})

    @staticmethod
    def from_records(records: RecordDict) -> Introduction:
        """Read the content of a reply, trusting none of it.

        Raises:
            MessageError: if a record or a key is absent or of the wrong type.
        """
        record = _record(records, DEVICE, ConfigRecord)
        own = "train-samples" in record
        return Introduction(
            index=_value(record, "index", int),
            num_devices=_value(record, "num-devices", int) if "num-devices" in record else 0,
            own_images=own,
            train_samples=_value(record, "train-samples", int) if own else 0,
            test_samples=_value(record, "test-samples", int) if own else 0,
            labels=tuple(sorted({entry for entry in _list(record, "labels") if type(entry) is int})),
            notes=tuple(map(str, _list(record, "notes")))[:_MAX_NOTES],
            problem=_value(record, "problem", str) if "problem" in record else "",
        )


_MAX_NOTES = 5


def _list(record: ConfigRecord, key: str) -> list[Any]:
    found = record.get(key)
    return found if isinstance(found, list) else []


@dataclass(frozen=True)
class TrainReport:
    """What a device answers to a `TrainOrder`.

    Attributes:
        payload: encoded upload (digital) or float32 update bytes (analog), uint8; None for no upload. Of a
            report that was received, a read-only view of the received bytes.
        num_examples: size of the device's training set.
        metrics: losses and, measured, seconds of training.
        buffers: running statistics that are shared, by name; none where nothing is uploaded.
        arrays: what the local algorithm sends beside the upload: by name the encoded values of the retained
            weights' entries, uint8.
    """

    payload: npt.NDArray[np.uint8] | None
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    buffers: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    arrays: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)

    def to_records(self) -> RecordDict:
        """Return the content of the reply."""
        metrics: dict[str, int | float] = {**self.metrics, "num-examples": self.num_examples}
        records = RecordDict({METRICS: MetricRecord(dict(metrics))})
        if self.payload is not None:
            upload = records[UPLOAD] = vector_record("payload", self.payload)
            for name, array in self.arrays.items():
                upload[f"array.{name}"] = vector_record("array", array)["array"]
        if self.buffers:
            records[BUFFERS] = vectors_record(self.buffers)
        return records

    @classmethod
    def from_records(cls, records: RecordDict) -> Self:
        """Read the content of a reply, trusting none of it.

        Raises:
            MessageError: if a record or a key is absent or of the wrong type.
        """
        metrics = _record(records, METRICS, MetricRecord)
        numbers = {key: _number(metrics[key]) for key in REPORTED if key in metrics}
        num_examples = whole_number(metrics, "num-examples")
        if num_examples < 1:
            raise MessageError(f"num-examples = {num_examples} in the reply; it must be at least 1")
        payload, arrays = None, {}
        if UPLOAD in records:
            upload = _record(records, UPLOAD, ArrayRecord)
            payload = read_array(upload, "payload", np.uint8, copy=False)
            arrays = {
                key.removeprefix("array."): read_array(upload, key, np.uint8, copy=False)
                for key in upload
                if key.startswith("array.")
            }
        finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
        buffers = read_vectors(_record(records, BUFFERS, ArrayRecord)) if BUFFERS in records else {}
        return cls(payload, num_examples, finite, buffers, arrays)


def _run_record(order: TrainOrder | EvaluateOrder | SaveOrder) -> ConfigRecord:
    return _shared_run_record(*(getattr(order, name) for name in _RUN_FIELDS))


@lru_cache(maxsize=8)
def _shared_run_record(*values: str | int) -> ConfigRecord:
    """Return what all messages of a run share, as one object: built, checked and sent to a worker once."""
    names = (name.replace("_", "-") for name in _RUN_FIELDS)
    return ConfigRecord(dict(zip(names, values, strict=True)))


def _read_run(records: RecordDict) -> dict[str, Any]:
    """Read `_run_record` back, under the names of the orders' fields."""
    record = _record(records, RUN, ConfigRecord)
    texts = {name: _value(record, name.replace("_", "-"), str) for name in _RUN_FIELDS[:-1]}
    return {**texts, "resume_round": _value(record, "resume-round", int)}


_RUN_FIELDS = ("spec", "resume_dir", "run", "resume_run", "resume_round")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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


_Record = TypeVar("_Record", ArrayRecord, ConfigRecord, MetricRecord)


def _record(records: RecordDict, key: str, kind: type[_Record]) -> _Record:
    record = records.get(key)
    if not isinstance(record, kind):
        raise MessageError(f"the message lacks the {kind.__name__} {key!r}")
    return record


_Value = TypeVar("_Value", int, str, float, bytes)


def whole_number(record: MetricRecord, key: str) -> int:
    """Return a whole number that a device reports.

    Raises:
        MessageError: if it is absent or of another type.
    """
    return _value(record, key, int)


def real_number(record: MetricRecord, key: str) -> float:
    """Return a number that a device reports, which may be infinite or NaN.

    Raises:
        MessageError: if it is absent or of another type.
    """
    value = record.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MessageError(f"{key!r} in the message is {value!r}; a number is expected")
    return _number(value)


def _number(value: object) -> float:
    """Return a reported number as float; NaN for what is none, or a whole number too large for one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _value(record: ConfigRecord | MetricRecord, key: str, kind: type[_Value]) -> _Value:
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise MessageError(f"{key!r} in the message is {value!r}; {kind.__name__} is expected")
    return value
