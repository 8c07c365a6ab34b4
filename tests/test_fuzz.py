"""Damaged files of every format that is read: what is promised comes out, or one clear error.

One harness for all of them. A target is a folder of sound files and what reads them; each case
damages one file. A case fails by an exception that is none of ``blsgan.errors``, by a message of
several lines, by a temporary file that is left, by taking too long, by memory that is not given
back; and a compiled library that crashes ends the process. The cases come from a seed, so a
failure comes again:

    python tests/test_fuzz.py --seconds 1800                  # every target, in turn
    python tests/test_fuzz.py --target dicom --seed 7 --cases 2000

``make fuzz`` runs it and the C++ runner's own, under AddressSanitizer.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import hashlib
import importlib.util
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import typing
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel

from blsgan.errors import BlsganError, InputError

SECONDS_A_CASE = 20
GROWTH_MIB = 64
PEAK_MIB = 2048
HERE = Path(__file__).resolve().parent
Files = dict[str, bytes]
Mutate = Callable[[bytes, random.Random, list[bytes]], bytes]

# ---- damage ----

ODD_BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\n", b"{", b"[")
ODD_VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 10**400, 1.5, -0.0, 1e308, float("inf"),
    float("nan"), "", "x", "x" * 300, "1", "\udcff", "\0", "..", "../../x", "/", "é", [], [[]],
    {}, {"a": 1}, [1, "a", None], {"sha256": {"a": [1]}},
)  # fmt: skip
ODD_TEXTS = (
    "", "[", "[" * 100_000, '{"a":' * 5000, "1" * 5000, "1e999", "null", "NaN", "\ufeff{}", "é" * 50
)  # fmt: skip


def damaged(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Bytes changed, cut, lost, doubled, or joined to another file's."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not made:
            break
        kind, at = rng.randrange(8), rng.randrange(len(made))
        reach = at if rng.random() < 0.5 else at % 400  # headers are where most is decided
        end = min(len(made), reach + rng.randrange(1, 64))
        if kind <= 1:
            made[reach] ^= 1 << rng.randrange(8)
        elif kind == 2:
            made[reach] = rng.randrange(256)
        elif kind == 3:
            odd = rng.choice(ODD_BYTES)
            made[reach : reach + len(odd)] = odd
        elif kind == 4:
            del made[at:]
        elif kind == 5:
            del made[reach:end]
        elif kind == 6:
            made[end:end] = made[reach:end]
        else:
            other = rng.choice(others)
            cut = rng.randrange(len(other) + 1)
            made[at:] = other[cut : cut + len(data)]
    return bytes(made)


def odd_json(value: object, rng: random.Random) -> object:
    """The value with one piece of it, anywhere, of another type, gone or twice."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(rng.choice(ODD_VALUES))
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(("x", "schema", "", "\udcff", "kind"))] = copy.deepcopy(
                rng.choice(ODD_VALUES)
            )
        elif kind == 1:
            holder.append(copy.deepcopy(rng.choice(ODD_VALUES)))
        elif kind == 2:
            holder[key] = json.loads(json.dumps(rng.choice(places)[0], default=str))
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return value


def _places(value: object) -> Iterator[tuple]:
    """Every (holder, key or index) in it."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, dict | list):
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            for key in keys:
                yield holder, key
                waiting.append(holder[key])


def damaged_json(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A JSON file, most often one that still is JSON."""
    kind = rng.randrange(10)
    if kind == 0:
        return damaged(data, rng, others)
    if kind == 1:
        return rng.choice(ODD_TEXTS).encode()
    text = json.dumps(odd_json(json.loads(data), rng))
    encoding = rng.choice(("utf-8",) * 8 + ("utf-16", "utf-8-sig"))
    return text.encode(encoding)


def damaged_text(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Lines and cells of a text lost, doubled, exchanged or odd."""
    if rng.random() < 0.3:
        return damaged(data, rng, others)
    lines = data.decode().split("\n")
    at = rng.randrange(len(lines))
    for mark in rng.sample([",", ":", " ", "="], 4):
        parts = lines[at].split(mark)
        if len(parts) > 1:
            part = rng.randrange(len(parts))
            parts[part] = rng.choice(
                ["", "x", "1e999", "-1", "nan", "\0", "[", "*a", "&a", "!!set {a}", "2020-01-01",
                 "9" * 5000, '"', "\r", "٣", parts[rng.randrange(len(parts))]]
            )  # fmt: skip
            lines[at] = mark.join(parts)
            break
    if rng.random() < 0.3:
        lines.insert(at, lines[rng.randrange(len(lines))])
    if rng.random() < 0.2:
        del lines[rng.randrange(len(lines))]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def damaged_yaml(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    import yaml

    if rng.random() < 0.5:
        return damaged_text(data, rng, others)
    return json.dumps(odd_json(yaml.safe_load(data), rng)).encode()  # JSON is YAML


def damaged_png(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A chunk of a PNG damaged, its checksum made right: what lies behind the checksum is read."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.3:
        return damaged(data, rng, others)
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    chosen = rng.randrange(len(chunks))
    kind, content = chunks[chosen]
    if rng.random() < 0.3:
        kind = rng.choice((b"tRNS", b"PLTE", b"acTL", b"eXIf", b"iCCP", b"tEXt", b"sBIT", b"IDAT"))
    if kind == b"IDAT" and rng.random() < 0.5:
        with contextlib.suppress(zlib.error):
            content = zlib.compress(damaged(zlib.decompress(content), rng, others))
    else:
        content = damaged(content or b"x", rng, others)
    chunks[chosen] = kind, content
    made = data[:8]
    for kind, content in chunks:
        made += struct.pack(">I", len(content)) + kind + content
        made += struct.pack(">I", zlib.crc32(kind + content))
    return made


def damaged_dicom(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """An element of a DICOM file with a value or a type that is not its own, or without it."""
    if rng.random() < 0.4:
        return damaged(data, rng, others)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _odd_elements(data, rng) or damaged(data, rng, others)


def _odd_elements(data: bytes, rng: random.Random) -> bytes | None:
    import pydicom
    from pydicom.dataelem import RawDataElement

    dataset = pydicom.dcmread(io.BytesIO(data))
    for _ in range(rng.choice((1, 1, 2))):
        tags = [tag for tag in dataset.keys() if tag.element]  # noqa: SIM118
        tag = rng.choice(tags)
        if rng.random() < 0.25:
            dataset._dict.pop(tag)
            continue
        value = rng.choice(
            [b"", b"0", b"-1", b"1e999", b"nan", b"\xff\xfe", b"a\\b", b"1\\2\\3", b"x" * 300,
             b"0.0", b"\0\0", b"\xff\xff", b"1,5", b"\x1b$B", bytes(rng.randbytes(8))]
        )  # fmt: skip
        value += b" " * (len(value) % 2)
        vr = rng.choice([dataset.get_item(tag).VR] * 4 + ["US", "DS", "SQ", "UN", "LO"])
        dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    made = io.BytesIO()
    try:
        pydicom.dcmwrite(made, dataset, enforce_file_format=False)
    except Exception:  # what pydicom will not write; another damage takes its place
        return None
    return made.getvalue()


def damaged_tensors(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A safetensors file whose header is odd, its length made right; metadata may hold JSON."""
    if rng.random() < 0.4:
        return damaged(data, rng, others)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    metadata = header.get("__metadata__", {})
    inner = [key for key, value in metadata.items() if value[:1] in "[{"]
    if inner and rng.random() < 0.6:
        key = rng.choice(inner)
        metadata[key] = json.dumps(odd_json(json.loads(metadata[key]), rng))
    else:
        header = odd_json(header, rng)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[end:]


def damaged_archive(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """An .npz of which an array is of another type or shape, gone, or damaged inside."""
    if rng.random() < 0.4:
        return damaged(data, rng, others)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            if name == chosen:
                kind = rng.randrange(4)
                if kind == 0:
                    continue
                if kind == 1:
                    content = damaged(content, rng, others)
                else:
                    array = rng.choice(
                        [np.zeros((3, 4), np.uint8), np.array("text"), np.zeros(0, np.float32),
                         np.array({"a": 1}, object), np.full((48, 40), np.nan, np.complex64)]
                    )  # fmt: skip
                    stream = io.BytesIO()
                    np.save(stream, array, allow_pickle=True)
                    content = stream.getvalue()
            new.writestr(name, content)
    return made.getvalue()


# ---- sound files, and what reads them ----


@dataclass(frozen=True)
class Target:
    """``files`` lie in a folder; ``read`` gets the path of the one that was damaged.

    ``mutate`` by the ending of the file; ``cases`` are run in the tests.
    """

    name: str
    files: Files
    read: Callable[[Path], object]
    mutate: dict[str, Mutate]
    cases: int
    spared: tuple[str, ...] = ()


def _encoded(file_format: str, values: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format=file_format, **options)
    return stream.getvalue()


SIZE = (40, 48)
NOISE = np.random.default_rng(7).integers(0, 65536, SIZE, dtype=np.uint16)
GREY8 = (NOISE >> 8).astype(np.uint8)


def pictures() -> Target:
    from blsgan.io.radiograph import read_radiograph

    def read(path: Path) -> None:
        pixels = read_radiograph(path).pixels
        assert pixels.dtype == np.float32
        assert pixels.ndim == 2
        assert pixels.flags.c_contiguous
        assert pixels.min() >= 0
        assert pixels.max() <= 1  # also false for NaN

    files = {
        "png16.png": _encoded("PNG", NOISE),
        "rgb.png": _encoded("PNG", np.stack([GREY8] * 3, axis=-1)),
        "baseline.jpg": _encoded("JPEG", GREY8),
        "progressive.jpg": _encoded("JPEG", GREY8, progressive=True),
        "raw.tif": _encoded("TIFF", NOISE),
        "deflate.tif": _encoded("TIFF", NOISE, compression="tiff_adobe_deflate"),
        "lzw.tif": _encoded("TIFF", GREY8, compression="tiff_lzw"),
        "float.tif": _encoded("TIFF", (NOISE / 65535).astype(np.float32)),
        "grey.bmp": _encoded("BMP", GREY8),
    }
    return Target("pictures", files, read, {".png": damaged_png}, 1500)


def dicom() -> Target:
    from pydicom import Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    from blsgan.io.radiograph import read_radiograph

    def encoded(compress: bool, table: bool) -> bytes:
        made = Dataset()
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        made.PatientName, made.SpecificCharacterSet = "A^B", "ISO_IR 192"
        made.Rows, made.Columns = SIZE
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME1"
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
        made.RescaleSlope, made.RescaleIntercept = "1", "0"
        if table:
            lut = Dataset()
            lut.LUTDescriptor = [256, 0, 16]
            lut.LUTData = np.arange(0, 65536, 256, dtype="<u2").tobytes()
            made.VOILUTSequence = [lut]
        else:
            made.WindowCenter, made.WindowWidth = 30000, 50000
        made.PixelSpacing = [0.1, 0.1]
        made.PixelData = NOISE.tobytes()
        if compress:
            made.compress(RLELossless, generate_instance_uid=False)
        stream = io.BytesIO()
        dcmwrite(stream, made, enforce_file_format=True)
        return stream.getvalue()

    files = {
        "plain.dcm": encoded(False, False),
        "table.dcm": encoded(False, True),
        "rle.dcm": encoded(True, False),
    }

    def read(path: Path) -> None:
        pixels = read_radiograph(path).pixels
        assert pixels.min() >= 0
        assert pixels.max() <= 1

    return Target("dicom", files, read, {".dcm": damaged_dicom}, 800)


def masks() -> Target:
    from blsgan.io.files import read_file
    from blsgan.io.masks import decode_masks

    upper = np.zeros(SIZE, np.uint8)
    upper[5:25, 10:40] = 255
    lower = np.roll(upper, 12, axis=0)

    def read(path: Path) -> None:
        other = path.with_name("lower.png" if path.stem.startswith("upper") else "upper.png")
        given = (read_file(file, what="mask") for file in (path, other))
        found = decode_masks(*given, SIZE).masks
        assert found.shape == (2, *SIZE)
        assert found.any(axis=(1, 2)).all()

    files = {
        "upper.png": _encoded("PNG", upper),
        "lower.png": _encoded("PNG", lower),
        "upper.bmp": _encoded("BMP", upper),
        "upper.tiff": _encoded("TIFF", upper),
    }
    return Target("masks", files, read, {".png": damaged_png}, 600)


def lists() -> Target:
    from blsgan.data.layout import load_list
    from blsgan.data.verify import verify
    from blsgan.jsn.visits import load_pairs
    from blsgan.pipeline.worklist import work_list

    entries = [
        {key: f"J{joint}/é{visit}{end}" for key, end in
         (("image", ".png"), ("upper", "_u.png"), ("lower", "_l.png"), ("background", "_b.png"))}
        for joint in range(2) for visit in range(2)
    ]  # fmt: skip
    pairs = [
        {f"{role}{part}": f"J0/é{visit}.png" for visit, role in enumerate(("fixed", "moving"))
         for part in ("", "_upper", "_lower")} | {"joint_name": "J0"}
    ]  # fmt: skip

    def read(path: Path) -> None:
        for use in (
            lambda: load_list(path) and None,
            lambda: load_pairs(path) and None,
            lambda: work_list(path, None),
            lambda: verify(path.parent).record().text(),
        ):
            with contextlib.suppress(BlsganError):
                use()

    files = {
        "LS_K1_all_train": json.dumps(entries).encode(),
        "DR_K1_train": json.dumps(pairs, ensure_ascii=False).encode("utf-16"),
        "J0/é0.png": _encoded("PNG", GREY8),
    }
    plain: Mutate = lambda data, rng, others: damaged_json(  # noqa: E731
        data if data[:1] == b"[" else json.dumps(json.loads(data.decode("utf-16"))).encode(),
        rng, others,
    )  # fmt: skip
    return Target("lists", files, read, {"": plain}, 300, spared=("J0/é0.png",))


def configurations() -> Target:
    from blsgan.training.config import PRESETS, load_config, preset_names

    def read(path: Path) -> None:
        config = load_config(path)
        assert len(config.dump()) < 2**20
        rng = random.Random(path.read_bytes())
        change = rng.choice(("stages.0.steps", "model.configuration", "name", "data.crop", "x.y"))
        value = rng.choice(
            ("1", "[", "*a", "&a [*a]", "{a: 1}", "2020-01-01", "true", "..", ".inf")
        )
        with contextlib.suppress(BlsganError):
            load_config(path, [f"{change}={value}"])

    files = {f"{name}.yaml": (PRESETS / f"{name}.yaml").read_bytes() for name in preset_names()}
    return Target("configurations", files, read, {".yaml": damaged_yaml}, 500)


def weights() -> Target:
    import torch

    from blsgan.deploy.inspection import inspect_file
    from blsgan.models import build_generator
    from blsgan.models.weights import load_generator, safetensors_bytes
    from blsgan.runtimes.onnx import OnnxSession
    from blsgan.tasks.task import find_weights

    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"widths": [8, 8, 16, 16], "blocks": [1, 1, 1, 1]}
        tensors = safetensors_bytes(build_generator("lite", small))
    with tempfile.TemporaryDirectory() as folder:
        _neighbour("conftest").write_network(Path(folder) / "x.onnx")
        graph = (Path(folder) / "x.onnx").read_bytes()
    from blsgan.tasks.task import WEIGHTS_FOLDER

    def read(path: Path) -> None:
        with contextlib.suppress(BlsganError):
            inspect_file(path)
        if path.suffix == ".safetensors":
            load_generator(path)
        elif path.suffix == ".onnx":
            OnnxSession(path.read_bytes(), str(path), threads=1)
        else:
            found = find_weights(path)
            for part in (found.onnx, found.safetensors):
                if part is not None:
                    found.load(part)

    files = {
        "small.safetensors": tensors,
        "net.onnx": graph,
        "card.json": (WEIGHTS_FOLDER / "lite.json").read_bytes(),
        "card.onnx": b"x",
    }
    mutate = {".safetensors": damaged_tensors, ".json": damaged_json}
    return Target("weights", files, read, mutate, 400, spared=("card.onnx",))


def engines() -> Target:
    from blsgan.deploy.inspection import inspect_file
    from blsgan.runtimes.manifest import misfit, read_manifest, read_plan
    from blsgan.tasks.task import find_weights

    fields = _neighbour("runtimes/test_manifest").fields
    plan = _neighbour("runtimes/test_manifest").PLAN

    def read(path: Path) -> None:
        engine = path.with_name("m.engine")
        manifest = read_manifest(engine)
        json.loads(manifest.text())
        assert manifest.parity()
        misfit(manifest, version="10.13.3", gpu=None)
        assert manifest.profile["masks"].takes((1, 2, 96, 192)) in (True, False)
        find_weights(engine)
        inspect_file(engine)
        read_plan(engine, manifest)

    files = {"m.engine": plan, "m.engine.json": json.dumps(fields()).encode()}
    return Target("engines", files, read, {".json": damaged_json}, 400)


EVALUATION = {
    "schema": 2, "kind": "evaluation", "split": "val", "seed": 0,
    "dataset": {"images": 2, "joints": 2, "sha256": "a"},
    "model": {"weights": "lite", "sha256": "a", "architecture": "lite", "backend": "onnx 1"},
    "synthetic": {"rows": {}},
    "real": {"frechet": [{"name": "patches", "distance": {"blsgan lite": 1.5}}]},
}  # fmt: skip
KEY: Files = {
    "study-key.json": json.dumps(
        {"schema": 1, "kind": "reader-study-key", "blsgan": "1", "study": "s", "seed": 0,
         "min_overlap_px": 150,
         "items": [{"item": number, "truth": truth, "bone": "upper", "overlap_px": 0,
                    "source": "a", "record_sha256": "b"}
                   for number, truth in enumerate(("real", "generated"), start=1)]}
    ).encode(),
    "reader.csv": b"study,reader,group,item,answer,realism\ns,r,,1,real,3\ns,r,,2,real,5\n",
}  # fmt: skip


def records() -> Target:
    """Every kind: read, and written again as it was."""
    import blsgan.records
    from blsgan.records.record import Record, read_json

    for module in Path(blsgan.records.__file__).parent.glob("[a-z]*.py"):
        importlib.import_module(f"blsgan.records.{module.stem}")
    models = [model for model in _all_below(Record) if "kind" in model.model_fields]
    files = {path.name: path.read_bytes() for path in (HERE / "records/files").glob("*.json")}
    for model in models:
        sample = _sample(model)
        assert model.parse(sample).fields() == sample
        files[f"{model.__name__}.json"] = json.dumps(sample).encode()

    def read(path: Path) -> None:
        content = read_json(path)
        for model in models:
            if content is not None and (record := model.of(content)) is not None:
                with contextlib.suppress(ValueError):  # a figure of an unknown field
                    assert json.loads(record.text()) is not None

    return Target("records", files, read, {".json": damaged_json}, 1500)


def _sample(kind: Any) -> Any:
    """A value of a record's field, or a whole record, as JSON has it."""
    kinds = typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = kind.model_fields.items()
        return {field.alias or name: _sample(field.annotation) for name, field in fields}
    origin = typing.get_origin(kind)
    if origin is dict:
        return {_sample(kinds[0]): _sample(kinds[1])}
    if origin in (list, tuple):
        return [_sample(inner) for inner in kinds if inner is not Ellipsis]
    if kinds:  # one of several values or types
        return kinds[0] if origin is typing.Literal else _sample(kinds[0])
    return {str: "image", int: 0, float: 0.5, bool: True}.get(kind)


def _all_below(model: type) -> Iterator[type]:
    for inner in model.__subclasses__():
        yield inner
        yield from _all_below(inner)


def scores() -> Target:
    """A reader study's key and answers, and evaluations to compare."""
    from blsgan.evaluation.compare import METRICS, compare, load_evaluation
    from blsgan.report.scoring import markdown, read_answers, read_key, score

    def read(path: Path) -> None:
        if path.name in KEY:
            key = read_key(path.with_name("study-key.json"))
            found = score(key, [read_answers(path.with_name("reader.csv"), key)])
            assert markdown(found)
            found.record().text()
        else:
            at = path.with_name("evaluation.json")
            sides = compare([load_evaluation(at, "a"), load_evaluation(at, "b")])
            sides.record().text(indent=1)
            assert sides.heading()
            assert sides.tables()

    synthetic = [metric.key for metric in METRICS if metric.part == "synthetic"]
    header = ",".join(["image", "other", "method", "joint", "kind", "bone", "psnr_db", *synthetic])
    rows = [
        f"{image},o,{method},{image[0]},layer,{bone},20.5" + ",0.5" * len(synthetic)
        for image in ("a1", "b1")
        for method in ("blsgan lite", "equal")
        for bone in ("upper", "lower")
    ]
    table = "\n".join([header, *rows, ""]).encode()
    evaluation = {"evaluation.json": json.dumps(EVALUATION).encode()}
    tables = {"synthetic.csv": table, "real.csv": table}
    mutate = {".json": damaged_json, ".csv": damaged_text}
    return Target("scores", {**KEY, **evaluation, **tables}, read, mutate, 150)


def runs() -> Target:
    """A training run's folder, as ``--resume`` reads it."""
    import torch

    from blsgan.training.checkpoint import Checkpoint, latest_step, load_checkpoint, save_checkpoint
    from blsgan.training.config import load_config
    from blsgan.training.run_folder import metrics_until, note_precision

    with tempfile.TemporaryDirectory() as folder:
        for step in (1, 2):
            tensor = {"w": torch.arange(4.0)}
            save_checkpoint(Path(folder), Checkpoint(step, tensor, {"m": torch.zeros(2)}), 3)
        files = {f"checkpoints/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}
    lines = [{"step": step, "loss": 1.5, "validation": None} for step in (1, 2, 3)]
    files["metrics.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines).encode()
    files["environment.json"] = json.dumps({"precision": "float32", "git": None}).encode()
    files["config.yaml"] = load_config("segmenter").dump().encode()

    def read(path: Path) -> None:
        run = path.parent if path.parent.name != "checkpoints" else path.parent.parent
        assert all(line["step"] <= 2 for line in metrics_until(run / "metrics.jsonl", 2))
        said: list[str] = []
        with contextlib.suppress(BlsganError):
            load_config(run / "config.yaml")
        with contextlib.suppress(BlsganError):
            note_precision(run, "bfloat16", 2, said.append)
        latest_step(run / "checkpoints")
        found = load_checkpoint(run / "checkpoints", said.append)
        assert found.step in (1, 2)
        assert torch.equal(found.weights["w"], torch.arange(4.0))

    mutate = {
        ".json": damaged_json, ".jsonl": damaged_text, ".yaml": damaged_yaml,
        ".safetensors": damaged_tensors,
    }  # fmt: skip
    return Target("runs", files, read, mutate, 500)


def packed() -> Target:
    from blsgan.data.dataset import load_root
    from blsgan.data.layout import content_hashes, read_joint
    from blsgan.data.packed import pack
    from blsgan.synthesis.phantoms import joint_phantom

    conftest = _neighbour("conftest")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "Data"
        phantom = joint_phantom(0, 128)
        entries = [conftest.write_visit(root, "00001_L_2", visit, phantom) for visit in "ab"]
        (root / "LS_K1_all_train").write_text(json.dumps(entries))
        pack(load_root(root), Path(folder) / "packed")
        files = {"joints.packed": (Path(folder) / "packed").read_bytes()}

    def read(path: Path) -> None:
        for joint in load_root(path):
            content_hashes(joint)
            arrays = read_joint(joint)
            assert arrays.masks.shape == (2, *arrays.image.shape)

    return Target("packed", files, read, {".packed": damaged_tensors}, 400)


_JSN_CSV = (
    "joint,baseline,followup,narrowing_px,narrowing_mm,mismatch,quality,problems,notes\n"
    "out,joint.png,other.png,1.5,0.15,False,0.9,,\nJ,a.png,b.png,,,True,,no; way,n\n"
)


def results() -> Target:
    """Results of separate and jsn: what report, export-dicom and separate itself make of them.

    By the command line, which says "unexpected" of what nobody foresaw.
    """
    from blsgan.cli import main
    from blsgan.records.hand import HandRecord
    from blsgan.records.hand_visits import HandVisitsRecord
    from blsgan.synthesis.phantoms import joint_phantom

    def run(*command: object) -> tuple[int, str]:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main([str(part) for part in command])
        return status, said.getvalue()

    write_network = _neighbour("conftest").write_network
    fast = ("--threads", 1, "--weights")
    phantom = joint_phantom(3, 128, gap_px=-8.0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_network(root / "random.onnx")
        network = (root / "random.onnx").read_bytes()
        (root / "in").mkdir()
        for name, dtype, form in (("joint", np.uint16, "png"), ("other", np.uint8, "npz")):
            pixels = np.rint(phantom.image * np.iinfo(dtype).max)
            Image.fromarray(pixels.astype(dtype)).save(root / f"in/{name}.png")
            for bone, mask in zip(("upper", "lower"), phantom.masks, strict=True):
                picture = Image.fromarray(mask.astype(np.uint8) * 255)
                picture.save(root / f"in/{name}_mask_{bone}.png")
            status, said = run(
                "separate", root / f"in/{name}.png", "-o", root / "out", "--format", form, *fast,
                root / "random.onnx",
            )  # fmt: skip
            assert status == 0, said
        found = [path for path in sorted(root.glob("*/*")) if path.is_file()]
        files = {str(path.relative_to(root)): path.read_bytes() for path in found}
    measured = json.loads((HERE / "records/files/jsn.json").read_text())
    for visit, name in (("baseline", "joint"), ("followup", "other")):
        measured[visit]["sha256"]["image"] = _sha256(files[f"in/{name}.png"])
    files["out/jsn.json"] = json.dumps(measured).encode()
    files["out/table/jsn.csv"] = _JSN_CSV.encode()
    hand = {**_sample(HandRecord), "inputs": {"image": {"sha256": _sha256(files["in/joint.png"])}}}
    files["out/hand/hand.json"] = json.dumps(hand).encode()
    files["out/hand/visits.json"] = json.dumps(_sample(HandVisitsRecord)).encode()

    def read(path: Path) -> None:
        root = path.parents[1] if path.parents[1].name == "case" else path.parents[2]
        made = root.parent / "made"
        weights = root.parent / "random.onnx"
        if not weights.exists():
            weights.write_bytes(network)
        record = path.with_name(f"{path.stem.partition('_')[0]}.json")
        if path.parent.name == "in":
            commands = [("separate", root / "in/joint.png", "-o", made, *fast, weights)]
        else:
            commands = [("report", root / "out", "-o", made / "r.html", "--images", root / "in")]
            if path.suffix == ".json" and importlib.util.find_spec("highdicom") is not None:
                images = ("--images", root / "in")
                commands.append(("export-dicom", root / "out", *images, "-o", made / "dicom"))
        sound = record.read_bytes() if record.exists() else b""
        if path.suffix in (".png", ".npz") and sound:  # damage that no hash tells
            content = json.loads(sound)
            content["outputs"][path.name] = _sha256(path.read_bytes())
            record.write_text(json.dumps(content))
        refused = None
        for command in commands:
            status, said = run(*command)
            assert status in (0, 1, 2), (command, status)
            assert "unexpected" not in said, said
            assert "Traceback" not in said, said
            refused = said.strip().splitlines()[-1] if status else refused
        if sound and path != record:
            record.write_bytes(sound)
        if refused is not None:
            raise InputError(refused)

    mutate = {".png": damaged_png, ".json": damaged_json, ".csv": damaged_text,
              ".npz": damaged_archive}  # fmt: skip
    return Target("results", files, read, mutate, 30)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


TARGETS: dict[str, Callable[[], Target]] = {
    make.__name__: make
    for make in (
        pictures, dicom, masks, lists, configurations, weights, engines, records, scores, runs,
        packed, results,
    )
}  # fmt: skip


def _neighbour(name: str):
    """A module of the tests: each is a file alone."""
    known = f"fuzz_{name.replace('/', '_')}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, HERE / f"{name}.py")
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]


# ---- the harness ----


class Hang(BaseException):
    """A case that takes too long."""


@dataclass
class Found:
    """What became of a target's cases; ``failures`` are (number of the case, why)."""

    cases: int = 0
    refused: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)


def fuzz(
    target: Target, folder: Path, seed: int, *, cases: int | None = None, seconds: float = 1e9,
    first: int = 0, keep: Path | None = None,
) -> Found:  # fmt: skip
    """Damage one file a case, the same for a number in every run; ``keep``: for what fails."""
    root = folder / "case"
    for name, content in target.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    names = [name for name in target.files if name not in target.spared]
    others = [target.files[name] for name in names]
    # A few tables and records beside many pictures are damaged as often as these.
    texts = [name for name in names if Path(name).suffix in (".json", ".csv")]
    names += texts * (len(names) // max(1, len(texts)))
    found = Found()
    started = time.monotonic()
    settled: int | None = None
    peak = _peak_mib()
    for number in range(first, first + cases if cases is not None else sys.maxsize):
        if time.monotonic() - started > seconds:
            break
        rng = random.Random(f"{seed} {target.name} {number}")
        name = rng.choice(names)
        sound = target.files[name]
        mutate = target.mutate.get(Path(name).suffix, damaged)
        content = mutate(sound, rng, others)
        path = root / name
        path.write_bytes(content)
        why = _judge(target, path, found)
        if why is None and (left := _leftovers(folder)):
            why = f"left {', '.join(left)}"
        if why is None and _peak_mib() - peak > PEAK_MIB:
            why, peak = f"took more than {PEAK_MIB} MiB", _peak_mib()
        if why is not None:
            found.failures.append((number, f"{name}: {why}"))
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{target.name}-{number}{path.suffix}").write_bytes(content)
        path.write_bytes(sound)
        found.cases += 1
        shutil.rmtree(folder / "made", ignore_errors=True)
        if settled is None and (found.cases == 50 or time.monotonic() - started > seconds / 3):
            settled = _resident_mib()  # libraries load and caches fill at first
    if settled is not None and (growth := _resident_mib() - settled) > GROWTH_MIB:
        found.failures.append((-1, f"memory grew by {growth} MiB in {found.cases} cases"))
    return found


def _judge(target: Target, path: Path, found: Found) -> str | None:
    """Why a case fails, or None."""

    def hang(number: int, frame: object) -> None:
        raise Hang(f"takes more than {SECONDS_A_CASE} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS_A_CASE)
    try:
        target.read(path)
    except BlsganError as error:
        found.refused += 1
        if "\n" in str(error) or len(str(error)) > 6000:
            return f"says {str(error)[:300]!r}"
    except (Exception, Hang) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} ({str(error)[-500:]}) in {where.filename}:{where.lineno}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def _leftovers(folder: Path) -> list[str]:
    return [
        name
        for _, folders, files in os.walk(folder)
        for name in (*folders, *files)
        if name.startswith(".blsgan-")
    ]


def _resident_mib() -> int:
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize() >> 20


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(name, tmp_path):
    target = TARGETS[name]()
    found = fuzz(target, tmp_path, 0, cases=target.cases)
    assert found.failures == []
    assert found.cases == target.cases
    assert found.refused > target.cases / 10 or name in ("records", "lists")


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda path: 1 / 0, "ZeroDivisionError"),
        (lambda path: (path.parent / ".blsgan-0.tmp").touch(), "left .blsgan-0.tmp"),
        (lambda path: time.sleep(5), "takes more than 1 s"),
        (lambda path: _HOARD.append(bytearray(b"x") * 2**22), "memory grew"),
    ],
)
def test_the_harness_sees_what_it_is_for(does, said, tmp_path, monkeypatch):
    _HOARD.clear()
    cases = 150 if said == "memory grew" else 1
    monkeypatch.setattr(sys.modules[__name__], "SECONDS_A_CASE", 1)
    found = fuzz(Target("x", {"a": b"abc"}, does, {}, 0), tmp_path, 0, cases=cases)
    _HOARD.clear()
    assert said in found.failures[0][1]


_HOARD: list[bytearray] = []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, help="of all targets together")
    parser.add_argument("--cases", type=int, help="of each target; as in the tests by default")
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="for what fails")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    seconds = 1e9 if options.seconds is None else options.seconds / len(names)
    print(f"seed {options.seed}", flush=True)
    failed = False
    for name in names:
        # In a process of its own, which a compiled library may crash.
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as folder:

            def work(name=name, folder=folder, theirs=theirs) -> None:
                target = TARGETS[name]()
                cases = target.cases if options.seconds is None else None
                found = fuzz(
                    target, Path(folder), options.seed, cases=options.cases or cases,
                    seconds=seconds, first=options.first, keep=options.keep,
                )  # fmt: skip
                theirs.send(found)

            child = context.Process(target=work)
            began = time.monotonic()
            child.start()
            theirs.close()
            try:
                found = ours.recv()
            except EOFError:
                found = Found(failures=[(-1, f"the process ended with {child.exitcode}")])
                shutil.copytree(folder, options.keep / f"{name}-crash", dirs_exist_ok=True)
            child.join()
        spent = time.monotonic() - began
        print(
            f"{name}: {found.cases} cases in {spent:.0f} s, {found.refused} refused, "
            f"{len(found.failures)} failed", flush=True,
        )  # fmt: skip
        for number, why in found.failures[:20]:
            print(f"  case {number}: {why}", flush=True)
        failed = failed or bool(found.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
