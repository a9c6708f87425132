"""Inputs for tests/fuzz_readers.py to begin with: small files as our programs and others write them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from src.weights.model_info import ModelInfo
from tests.support.hub_server import COMMIT
from tests.support.launcher import EIGHT, PAIR, table_of

SPLIT = b"\0SPLIT\0"
DIGEST = "ab" * 32


def seeds_for(reader: str) -> Iterator[bytes]:
    """The inputs of a reader."""
    return SEEDS[reader]()


def safetensors() -> Iterator[bytes]:
    from safetensors.numpy import save

    arrays = {"conv_stem.weight": np.ones((2, 3), np.float32), "b": np.zeros(0, np.int64), "c": np.float16([1])}
    yield save(arrays, {"architecture": "efficientnet_b0"})
    yield save({"a": np.ones(1, np.uint8)})
    yield (2).to_bytes(8, "little") + b"{}"


def checkpoints() -> Iterator[bytes]:
    """A byte that says whether a checksum follows, then the file without it."""
    from src.weights.checkpoint import CRC_BYTES, CRC_MARK, write_checkpoint

    weights = {"stem.conv.weight": np.ones((2, 3), np.float32), "a.moving_mean": np.zeros(2, np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.ckpt")
        for extra in ({}, {"ema": weights, "training": {"moment.a": np.ones(1, np.int64)}, "state": {"epoch": 1}}):
            write_checkpoint(str(path), weights, ModelInfo(num_classes=2, class_names=("a", "b")), **extra)
            data = path.read_bytes()
            yield b"\1" + data[: -len(CRC_MARK) - CRC_BYTES]
            yield b"\0" + data


def mindrecord() -> Iterator[bytes]:
    from src.data.image_folder import read_image_folder
    from src.data.mindrecord_writer import convert

    with tempfile.TemporaryDirectory() as folder:
        for name in ("cat/1.jpg", "dog/2.jpg"):
            path = Path(folder, "images", name)
            path.parent.mkdir(parents=True)
            path.write_bytes(b"image")
        convert(read_image_folder(f"{folder}/images"), f"{folder}/out", 1)
        shard = next(Path(folder, "out").glob("*.mindrecord"))
        # The first page alone: the header; images lie in the pages behind it.
        yield shard.read_bytes().rstrip(b"\0")[:20_000] + SPLIT + Path(f"{shard}.db").read_bytes()


def rank_tables() -> Iterator[bytes]:
    for servers in ([PAIR], [EIGHT]):
        yield json.dumps(table_of(*servers)).encode()


def lists() -> Iterator[bytes]:
    yield b"\0path,label\na.jpg,cat\nb.jpg,dog\n"
    yield b'\0a.jpg,"0",train\n"b.jpg",1,val\n'
    yield b"\1a.jpg\t0\nb.jpg\t1\n"
    yield b"\0\xef\xbb\xbfa.jpg,cat\r\na.jpg,cat\r\n"


def configs() -> Iterator[bytes]:
    yield b"batch_size: 32\nlr_max: 0.1\nmean: [1, 2, 3]\nuse_ema: true\nvariant: b0\n"
    yield b'{"epoch_size": 3, "mixup": null, "amp_level": "O0"}'
    yield b"a: &x [1]\nb: *x\n<<: {c: 1}\n"


def descriptions() -> Iterator[bytes]:
    yield ModelInfo().to_json().encode()
    yield ModelInfo(num_classes=2, class_names=("a", "ü")).to_json(indent=1).encode()


def notes() -> Iterator[bytes]:
    fields = {"name": "n", "place": "p", "revision": "r", "sha256": DIGEST, "licence": "apache-2.0"}
    yield json.dumps({"path": "/a", "origin": fields}).encode()


def hub() -> Iterator[bytes]:
    stated = f'ETag: "{DIGEST}"\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: "{DIGEST}"\r\nX-Linked-Size: 3\r\n'
    yield f"HTTP/1.1 200 OK\r\n{stated}Content-Length: 3\r\n\r\nabc".encode()
    yield f"HTTP/1.1 302 Found\r\n{stated}Location: /cdn/x\r\nContent-Length: 0\r\n\r\n".encode()
    yield b"HTTP/1.1 404 Not Found\r\nX-Error-Code: RepoNotFound\r\nContent-Length: 0\r\n\r\n"
    yield b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1-2/3\r\nContent-Encoding: gzip\r\n\r\nxx"


SEEDS = {
    name: globals()[name]
    for name in "safetensors checkpoints mindrecord rank_tables lists configs descriptions notes hub".split()
}
