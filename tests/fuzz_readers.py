"""Fuzz a reader of files that others may have written with atheris, under the options and folders of libFuzzer given.

    python -m tests.fuzz_readers READER [OPTION ...] [FOLDER ...]

`python -m tests.run_fuzzers` calls it. A reader may return something, or raise an error that `run_cli` turns into a
sentence. Anything else is a finding.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import socketserver
import sys
import tempfile
import threading
import zlib
from pathlib import Path
from typing import Callable

import atheris

with atheris.instrument_imports(include=["src", "json", "csv", "yaml", "sqlite3", "safetensors"]):
    from src.common.cli import RunError, UsageError
    from src.config import read_config_file
    from src.data.label_list import read_list
    from src.data.mindrecord import read_mindrecord
    from src.launch.rank_table import read_rank_table
    from src.published import hub, origin
    from src.weights import torch_files
    from src.weights.model_info import ModelInfo

from src.published.table import PUBLISHED

SENTENCES = (RunError, UsageError, OSError, MemoryError)
SPLIT = b"\0SPLIT\0"
"""Between the two files of one input."""
NAME = "tf_efficientnet_b0.ns_jft_in1k"


class OneFile:
    """What a function reads from a file of this name."""

    def __init__(self, name: str, function: Callable[[str], object], folder: Path):
        self.path, self.function = folder / name, function

    def read(self, data: bytes) -> None:
        self.path.write_bytes(data)
        self.function(str(self.path))


class Checkpoints:
    """The first byte says whether a checksum that matches is put behind the others."""

    def __init__(self, folder: Path):
        # With it comes MindSpore, which the others do without.
        with atheris.instrument_imports(include=["src", "mindspore.train.serialization"]):
            from src.weights import checkpoint

        self.checkpoint, self.path = checkpoint, folder / "model.ckpt"

    def read(self, data: bytes) -> None:
        body = data[1:]
        if data[:1] == b"\1":
            body += self.checkpoint.CRC_MARK + zlib.crc32(body).to_bytes(self.checkpoint.CRC_BYTES, "big")
        self.path.write_bytes(body)
        self.checkpoint.read_checkpoint(str(self.path))


class Mindrecord:
    def __init__(self, folder: Path):
        self.path = folder / "images_00001_of_00001.mindrecord"

    def read(self, data: bytes) -> None:
        shard, _, index = data.partition(SPLIT)
        self.path.write_bytes(shard)
        Path(f"{self.path}.db").write_bytes(index)
        found = read_mindrecord(str(self.path))
        for number in range(min(3, len(found))):
            found.read(number)


class Lists:
    """Of two images; the first byte chooses between commas and tabs."""

    def __init__(self, folder: Path):
        self.paths = [folder / "list.csv", folder / "list.tsv"]
        for name in ("a.jpg", "b.jpg"):
            (folder / name).write_bytes(b"image")

    def read(self, data: bytes) -> None:
        path = self.paths[data[0] % 2 if data else 0]
        path.write_bytes(data[1:])
        read_list(str(path))


class Descriptions:
    """What a checkpoint, an ONNX file's metadata and the file beside a MINDIR say."""

    def __init__(self, folder: Path):
        pass

    def read(self, data: bytes) -> None:
        ModelInfo.from_json(data.decode("utf-8", "surrogateescape"), "model.onnx")


class Hub:
    """A server that answers each request with the same bytes, whatever was asked."""

    def __init__(self, folder: Path):
        answers = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.settimeout(1)
                with contextlib.suppress(OSError):
                    self.request.recv(1 << 16)
                    self.request.sendall(answers.data)

        self.data = b""
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(folder / "hub")}
        settings.update(HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DOWNLOAD_TIMEOUT="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
        os.environ.update(settings, NO_PROXY="127.0.0.1", XDG_CACHE_HOME=str(folder / "cache"))

    def read(self, data: bytes) -> None:
        self.data = data
        hub.take_from_hub(PUBLISHED[NAME], None)


READERS = {
    "safetensors": functools.partial(OneFile, "weights.safetensors", torch_files.read_safetensors),
    "checkpoints": Checkpoints,
    "mindrecord": Mindrecord,
    "rank_tables": functools.partial(OneFile, "table.json", read_rank_table),
    "lists": Lists,
    "configs": functools.partial(OneFile, "config.yaml", read_config_file),
    "descriptions": Descriptions,
    "notes": functools.partial(OneFile, "note.json", origin.read_note),
    "hub": Hub,
}


def main() -> None:
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        reader = READERS[name](Path(folder))

        def test(data: bytes) -> None:
            with contextlib.suppress(*SENTENCES), contextlib.redirect_stdout(io.StringIO()):
                reader.read(data)

        atheris.Setup(sys.argv, test)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
