"""Fuzz the reader of torch.save's files with atheris, under the options and folders of libFuzzer that are given.

    python -m tests.fuzz_torch_files [OPTION ...] [FOLDER ...]

`python -m tests.run_fuzzers` calls it. An input is one byte, which says what the others are: a whole file, the pickle
of a zip archive, or the object's pickle of an older file; the latter two get intact surroundings, which random changes
would rarely leave whole. The reader may return arrays or raise a RunError. Anything else is a finding, and so is a
call, an import or an opened file that the input has led to.
"""

from __future__ import annotations

import codecs
import io
import os
import pickle
import struct
import sys
import tempfile
import zipfile

import atheris

# What it takes from Python counts as part of the reader, as copies of their own.
del sys.modules["pickle"], sys.modules["zipfile"]
with atheris.instrument_imports(include=["src.weights.torch_files", "src.weights.torch_pickle", "pickle", "zipfile"]):
    from src.weights import torch_files

from src.common.cli import RunError  # noqa: E402  after the imports that atheris changes

# Two storages for the pickles: their keys are the strings 0 and 1.
STORAGES = (bytes(range(64)), bytes(16))
FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "pickle.find_class", "import", "exec", "compile", "ctypes.")


def zip_archive(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        for key, data in enumerate(STORAGES):
            archive.writestr(f"w/data/{key}", data)
    return buffer.getvalue()


def older_file(pickled: bytes) -> bytes:
    """With storages of float32."""
    head = [pickle.dumps(value, 2) for value in (torch_files.MAGIC_NUMBER, torch_files.LEGACY_PROTOCOL, {})]
    tail = b"".join(struct.pack("<q", len(data) // 4) + data for data in STORAGES)
    return b"".join(head) + pickled + pickle.dumps([str(key) for key in range(len(STORAGES))], 2) + tail


CONTAINERS = (bytes, zip_archive, older_file)


class Fuzzer:
    """Reads inputs through a file and watches what Python does meanwhile."""

    def __init__(self, path: str):
        self.path = path
        self.reading = False
        sys.addaudithook(self.watch)

    def watch(self, event: str, arguments: tuple) -> None:
        if self.reading and (event.startswith(FORBIDDEN) or event == "open" and arguments[0] != self.path):
            self.reading = False
            os.write(2, f"the reader did {event} {arguments}\n".encode("utf-8", "replace"))
            os.abort()

    def test(self, data: bytes) -> None:
        with open(self.path, "wb") as file:
            file.write(CONTAINERS[data[0] % len(CONTAINERS)](data[1:]) if data else b"")
        self.reading = True
        try:
            entries = torch_files.read_pth(self.path, averaged=True).entries
        except RunError as error:
            assert str(error).startswith(self.path) and str(error).isprintable()
        else:
            bound = torch_files.MAX_GROWTH * os.path.getsize(self.path) + (1 << 20)
            assert sum(array.nbytes for array in entries.values()) <= bound
        finally:
            self.reading = False


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        fuzzer = Fuzzer(os.path.join(folder, "weights.pth"))
        # What is imported when it is first needed comes now: zipfile's encoding, that of our sentences, and the rest.
        codecs.lookup("cp437")
        codecs.lookup("unicode_escape")
        fuzzer.test(b"\1" + pickle.dumps({}, 2))
        fuzzer.test(b"\2" + pickle.dumps({}, 2))
        atheris.Setup(sys.argv, fuzzer.test)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
