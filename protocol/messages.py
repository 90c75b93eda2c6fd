"""The messages between the server and the devices: dataclasses here, Flower records on the way.

Every message carries what its receiver needs and nothing else: devices never read the configuration
files. The personal part of a device's model is in none of them. They stand in one file, however long, so that
whoever asks what leaves a device reads one place.

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
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from protocol.arrays import read_array, read_vectors, vector_record, vectors_record
from protocol.fields import MessageError, as_float, record_of, value_of, whole_number

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
        "measured-energy-j",
        "measured-began-at",
        "measured-ended-at",
        "measured-seconds-per-weight-step",
        "stated-uplink-bps",
        "state-set-aside",
        "state-lost",
    }
)

Uplink = Literal["digital", "analog"]


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
        clip_norm: largest norm of an update that leaves a device; 0: no limit.
        noise_deviation: of the noise that a device adds to every entry of it.
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
    clip_norm: float = 0.0
    noise_deviation: float = 0.0

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
        order = record_of(records, PROBE, ConfigRecord)
        return ProbeOrder(
            value_of(order, "address", str), value_of(order, "token", bytes), value_of(order, "size", int)
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
        resume_run: the run in whose folder the device keeps the part that this one continues from, or "".
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
        probe = None if self.probe is None else ConfigRecord(dataclasses.asdict(self.probe))
        further = {MASK: self.mask, PROBE: probe, BUFFERS: self.buffers, VECTORS: self.vectors}
        return RecordDict(
            {
                GLOBAL: self.weights,
                ORDER: ConfigRecord({"round": self.round, "num-pruned": self.num_pruned, **_continued(self)}),
                RUN: _run_record(self),
                **{name: record for name, record in further.items() if record is not None},
            }
        )

    @classmethod
    def from_records(cls, records: RecordDict) -> Self:
        """Read the content of a train message.

        Raises:
            MessageError: if a record or a key is absent or of the wrong type.
        """
        order = record_of(records, ORDER, ConfigRecord)
        return cls(
            round=value_of(order, "round", int),
            num_pruned=value_of(order, "num-pruned", int),
            **_read_continued(order),
            weights=record_of(records, GLOBAL, ArrayRecord),
            mask=record_of(records, MASK, ArrayRecord) if MASK in records else None,
            probe=ProbeOrder.from_records(records),
            buffers=record_of(records, BUFFERS, ArrayRecord) if BUFFERS in records else None,
            vectors=record_of(records, VECTORS, ArrayRecord) if VECTORS in records else None,
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
                ORDER: ConfigRecord({"round": self.round, **_continued(self)}),
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
        order = record_of(records, ORDER, ConfigRecord)
        return cls(
            weights=record_of(records, GLOBAL, ArrayRecord),
            buffers=record_of(records, BUFFERS, ArrayRecord) if BUFFERS in records else None,
            round=value_of(order, "round", int),
            **_read_continued(order),
            **_read_run(records),
        )


@dataclass(frozen=True)
class SaveOrder:
    """Store the personal part for a checkpoint; it does not travel.

    Attributes:
        directory: where to; a device with a folder of its own for its state uses that instead.
        round: last round of the checkpoint; what the device learned later is not stored.
        keep: rounds of the earlier checkpoints that the server still has.
        discard: runs that this one has replaced, whose folders on the device can go once its part is stored.
        spec: JSON text of the `DeviceSpec`.
        resume_dir, run, resume_run, resume_round, resume_part: as in `TrainOrder`.
    """

    directory: str
    round: int
    spec: str
    keep: tuple[int, ...] = ()
    discard: tuple[str, ...] = ()
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
            "discard": " ".join(self.discard),
            **_continued(self),
        }
        return RecordDict({ORDER: ConfigRecord(order), RUN: _run_record(self)})  # type: ignore[arg-type]

    @staticmethod
    def from_records(records: RecordDict) -> SaveOrder:
        """Read the content of a query.save message.

        Raises:
            MessageError: if a record or a key is absent or of the wrong type.
        """
        order = record_of(records, ORDER, ConfigRecord)
        kept = value_of(order, "keep", str).split()
        if not all(word.isdecimal() for word in kept):
            raise MessageError(f"keep = {kept} in the order; whole numbers are expected")
        return SaveOrder(
            value_of(order, "directory", str),
            value_of(order, "round", int),
            keep=tuple(map(int, kept)),
            discard=tuple(value_of(order, "discard", str).split()),
            **_read_continued(order),
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
        record = record_of(records, SAVED, ConfigRecord)
        report = SaveReport(
            value_of(record, "round", int),
            value_of(record, "sha256", str),
            value_of(record, "size", int),
            bool(value_of(record, "own", int)),
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
        return HelloOrder(
            value_of(record_of(records, RUN, ConfigRecord), "spec", str) if RUN in records else ""
        )


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
        record = record_of(records, DEVICE, ConfigRecord)
        own = "train-samples" in record
        return Introduction(
            index=value_of(record, "index", int),
            num_devices=value_of(record, "num-devices", int) if "num-devices" in record else 0,
            own_images=own,
            train_samples=value_of(record, "train-samples", int) if own else 0,
            test_samples=value_of(record, "test-samples", int) if own else 0,
            labels=tuple(sorted({entry for entry in _list(record, "labels") if type(entry) is int})),
            notes=tuple(map(str, _list(record, "notes")))[:_MAX_NOTES],
            problem=value_of(record, "problem", str) if "problem" in record else "",
        )


_MAX_NOTES = 5


def _list(record: ConfigRecord, key: str) -> list[Any]:
    found = record.get(key)
    return found if isinstance(found, list) else []


class Upload(Protocol):
    """Bytes: an array of uint8, or what is to become bytes when it leaves the machine."""

    def tobytes(self) -> bytes:
        """Return the bytes."""
        ...


@dataclass(frozen=True)
class TrainReport:
    """What a device answers to a `TrainOrder`.

    Attributes:
        payload: the upload (digital) or update (analog); None for no upload. Of a report that was received, a
            read-only view of the received bytes, uint8.
        num_examples: size of the device's training set.
        metrics: losses and what was measured, by a name of `REPORTED`.
        buffers: running statistics that are shared, by name; none where nothing is uploaded.
        arrays: what the local algorithm sends beside the upload: by name the values of the retained weights'
            entries.
    """

    payload: Upload | None
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    buffers: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    arrays: Mapping[str, Upload] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if ignored := self.metrics.keys() - REPORTED:
            raise ValueError(f"nobody reads {sorted(ignored)} of a report: REPORTED has {sorted(REPORTED)}")

    def to_records(self) -> RecordDict:
        """Return the content of the reply."""
        metrics: dict[str, int | float] = {**self.metrics, "num-examples": self.num_examples}
        records = RecordDict({METRICS: MetricRecord(dict(metrics))})
        if self.payload is not None:
            upload = records[UPLOAD] = _bytes_record("payload", self.payload)
            for name, array in self.arrays.items():
                upload[f"array.{name}"] = _bytes_record("array", array)["array"]
        if self.buffers:
            records[BUFFERS] = vectors_record(self.buffers)
        return records

    @classmethod
    def from_records(cls, records: RecordDict) -> Self:
        """Read the content of a reply, trusting none of it.

        Raises:
            MessageError: if a record or a key is absent or of the wrong type.
        """
        metrics = record_of(records, METRICS, MetricRecord)
        numbers = {key: as_float(metrics[key]) for key in REPORTED if key in metrics}
        num_examples = whole_number(metrics, "num-examples")
        if num_examples < 1:
            raise MessageError(f"num-examples = {num_examples} in the reply; it must be at least 1")
        payload, arrays = None, {}
        if UPLOAD in records:
            upload = record_of(records, UPLOAD, ArrayRecord)
            payload = read_array(upload, "payload", np.uint8, copy=False)
            arrays = {
                key.removeprefix("array."): read_array(upload, key, np.uint8, copy=False)
                for key in upload
                if key.startswith("array.")
            }
        finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
        buffers = read_vectors(record_of(records, BUFFERS, ArrayRecord)) if BUFFERS in records else {}
        return cls(payload, num_examples, finite, buffers, arrays)


def _bytes_record(key: str, upload: Upload) -> ArrayRecord:
    return vector_record(key, np.frombuffer(upload.tobytes(), np.uint8))


def _continued(order: TrainOrder | EvaluateOrder | SaveOrder) -> dict[str, str | int]:
    """Return what of the checkpoint that is continued is each device's own."""
    return {"resume-run": order.resume_run, "resume-part": order.resume_part}


def _read_continued(order: ConfigRecord) -> dict[str, Any]:
    """Read `_continued` back, under the names of the orders' fields."""
    return {
        "resume_run": value_of(order, "resume-run", str),
        "resume_part": value_of(order, "resume-part", int),
    }


def _run_record(order: TrainOrder | EvaluateOrder | SaveOrder) -> ConfigRecord:
    return _shared_run_record(*(getattr(order, name) for name in _RUN_FIELDS))


@lru_cache(maxsize=8)
def _shared_run_record(*values: str | int) -> ConfigRecord:
    """Return what all messages of a run share, as one object: built, checked and sent to a worker once."""
    names = (name.replace("_", "-") for name in _RUN_FIELDS)
    return ConfigRecord(dict(zip(names, values, strict=True)))


def _read_run(records: RecordDict) -> dict[str, Any]:
    """Read `_run_record` back, under the names of the orders' fields."""
    record = record_of(records, RUN, ConfigRecord)
    texts = {name: value_of(record, name.replace("_", "-"), str) for name in _RUN_FIELDS[:-1]}
    return {**texts, "resume_round": value_of(record, "resume-round", int)}


_RUN_FIELDS = ("spec", "resume_dir", "run", "resume_round")
_SHA256 = re.compile(r"[0-9a-f]{64}")
