"""Fuzz everything that reads what others have written: C++ with libFuzzer under AddressSanitizer and UBSan, Python with
atheris.

    python -m tests.run_fuzzers [SECONDS] [--reader NAME]    SECONDS for each of the readers (default: 240)

Those in C++ (image, crop, model_info, onnx_metadata) need clang and its runtime library (Debian 12: `apt-get install
clang libclang-rt-14-dev`), the others need atheris and PyTorch. The seeds are written anew each time; what a run learns
stays in ascend310_infer/build-fuzz/corpus/, so that the next one goes on from there. An input that breaks a reader is
left in ascend310_infer/build-fuzz/ under a name that begins with crash, leak, oom or timeout; `python -m
tests.fuzz_torch_files FILE` and `python -m tests.fuzz_readers READER FILE` run the readers in Python on one.
"""

from __future__ import annotations

import argparse
import collections
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from src.common.cli import ArgumentParser, RunError, positive_int, run_cli
from src.weights.model_info import ModelInfo
from tests.support import cpp_program as cpp
from tests.support.fuzz_seeds import SEEDS, seeds_for
from tests.support.hard_images import bad_images, good_images

IN_CPP = ("image", "crop", "model_info", "onnx_metadata")
READERS = (*IN_CPP, "torch_files", *SEEDS)
MAX_BYTES = {"image": 6000, "crop": 6000, "mindrecord": 60_000}
USUAL_BYTES = 4000
WORDS = {
    "model_info": (
        "format variant num_classes class_names padding norm_eps preprocess image_size resize interpolation bicubic "
        "bilinear mean std null 1e999 [[ ]] {}"
    ).split(),
    "onnx_metadata": r"efficientnet \x72 \x0a\x0c \x12 \xff\xff\xff\xff\x0f".split(),
    "torch_files": (
        r"torch\x0a torch._utils\x0a torch.storage\x0a _rebuild_tensor\x0a _rebuild_tensor_v2\x0a "
        r"_rebuild_tensor_v3\x0a _rebuild_parameter\x0a FloatStorage\x0a BFloat16Storage\x0a UntypedStorage\x0a "
        r"collections\x0a OrderedDict\x0a argparse\x0a Namespace\x0a posix\x0a system\x0a builtins\x0a getattr\x0a "
        r"X\x07\x00\x00\x00storage X\x0a\x00\x00\x00state_dict \x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f "
        r"r\xff\xff\xff\xff PK\x01\x02 PK\x05\x06 /data.pkl"
    ).split(),
    "safetensors": r"__metadata__ dtype shape data_offsets F32 F16 BF16 I64 BOOL [-1,0] 1e400".split(),
    "checkpoints": (
        r"model_info training_state ema. crc_num Float32 Int64 str stem.conv.weight moving_mean \x0a \x12 \x1a "
        r"\xff\xff\xff\xff\x0f format variant num_classes preprocess"
    ).split(),
    "mindrecord": r"schema blob_fields header_size page_size desc -1 1e999 INDEXES PAGE_ID_BLOB ROW_ID".split(),
    "rank_tables": "server_list server_id device device_id device_ip rank_id host_nic_ip server_count status".split(),
    "lists": r"path label split train val \x0d\x0a \xef\xbb\xbf ../ a.jpg".split(),
    "configs": r"&a *a <<: !!python/object: !!binary ? | > --- 1e999 .nan 0x 2001-01-01 batch_size".split(),
    "descriptions": "format variant num_classes class_names padding norm_eps preprocess NaN Infinity".split(),
    "notes": "path origin name place revision sha256 licence [[ {}".split(),
    "hub": r"\x0d\x0a Location: ETag: X-Repo-Commit: X-Linked-Etag: X-Linked-Size: Transfer-Encoding: chunked".split(),
    "image": (
        r"\xff\xd8\xff \xff\xc0 \xff\xc2 \xff\xc4 \xff\xda \xff\xdb \xff\xdd Adobe "
        r"\x89PNG\x0d\x0a\x1a\x0a IHDR PLTE tRNS IDAT IEND"
    ).split(),
    "crop": r"\xff\xd8\xff \xff\xc0 \xff\xc4 \xff\xda \xff\xdb \xff\xdd \xff\xd0".split(),
}


def main(argv=None) -> int:
    """Build, then run the fuzzers one after the other; exit code 1 if one of them found something."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", nargs="?", type=positive_int, default=240, help="for each reader")
    parser.add_argument("--reader", choices=READERS, action="append", help="only this one; may be repeated")
    arguments = parser.parse_args(argv)
    readers = arguments.reader or READERS
    folder = cpp.SOURCE / "build-fuzz"
    if set(readers) & set(IN_CPP):
        compiler = find_clang()
        options = (f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_C_COMPILER={compiler.replace('++', '')}")
        options += ("-DWITH_FUZZERS=ON", "-DSANITIZE=address")
        folder, _ = cpp.build("fuzz", *options, openvino=False)
    found = [reader for reader in readers if not fuzz(folder, reader, arguments.seconds)]
    print("found something: " + ", ".join(found) if found else "nothing found")
    return 1 if found else 0


def find_clang() -> str:
    """The name of clang's C++ compiler, the newest where there are several.

    Raises:
        RunError: if there is none.
    """
    for name in ("clang++", *(f"clang++-{version}" for version in range(30, 10, -1))):
        if shutil.which(name):
            return name
    raise RunError("there is no clang++; on Debian: apt-get install clang libclang-rt-14-dev")


def fuzz(folder: Path, reader: str, seconds: int) -> bool:
    """Run one fuzzer; whether it found nothing."""
    corpus = folder / "corpus" / reader
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        seeds = Path(work, "seeds")
        write_seeds(seeds, reader)
        words = Path(work, "words")
        words.write_text("".join(f'"{word}"\n' for word in WORDS[reader]))
        limits = [f"-max_len={MAX_BYTES.get(reader, USUAL_BYTES)}", "-timeout=20", "-rss_limit_mb=3000"]
        program = [folder / "tests" / f"fuzz_{reader}"]
        if reader == "torch_files":
            program = [sys.executable, "-m", "tests.fuzz_torch_files"]
        elif reader in SEEDS:
            program = [sys.executable, "-m", "tests.fuzz_readers", reader]
        command = [*program, *limits, f"-max_total_time={seconds}", f"-dict={words}"]
        done = subprocess.run(
            [*map(str, command), "-print_final_stats=1", f"-artifact_prefix={folder}/", str(corpus), str(seeds)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            errors="replace",
        )
    if done.returncode:
        sys.stderr.write(done.stderr[-5000:])
    runs = re.search(r"number_of_executed_units: *(\d+)", done.stderr)
    coverage = re.findall(r"cov: (\d+)", done.stderr)
    print(
        f"{reader}: {runs[1] if runs else '?'} inputs in {seconds} s, {coverage[-1] if coverage else '?'} edges, "
        f"exit code {done.returncode}",
        flush=True,
    )
    return done.returncode == 0


def write_seeds(folder: Path, reader: str) -> None:
    """Write inputs to begin with, none larger than the fuzzer makes them."""
    folder.mkdir()
    for name, data in seeds_of(reader):
        if len(data) <= MAX_BYTES.get(reader, USUAL_BYTES):
            (folder / name.replace("/", "_")).write_bytes(data)


def seeds_of(reader: str):
    """Yield (name, bytes)."""
    if reader == "image":
        yield from good_images()
        yield from bad_images()
        return
    if reader == "crop":
        choices = (bytes(10), bytes(range(40, 240, 20)), b"\x05" + b"\xc0" * 9)
        images = [(name, data) for name, data in good_images() if data[:2] == b"\xff\xd8"]
        yield from ((f"{name}_{choice[0]}", choice + data) for name, data in images for choice in choices)
        return
    if reader == "torch_files":
        yield from torch_files()
        return
    if reader in SEEDS:
        yield from ((str(number), data) for number, data in enumerate(seeds_for(reader)))
        return
    infos = [ModelInfo(), cpp.small_info(["cat", "dog"]), cpp.small_info(["a"], 600, interpolation="bilinear")]
    for number, info in enumerate(infos):
        if reader == "model_info":
            yield str(number), info.to_json().encode()
            yield f"{number}_indented", info.to_json(indent=2).encode()
        else:
            with tempfile.TemporaryDirectory() as work:
                path = os.path.join(work, "model.onnx")
                for softmax in (False, True):
                    cpp.write_onnx_model(path, cpp.small_info(list(info.class_names or "ab"), 8), softmax=softmax)
                    data = Path(path).read_bytes()
                    yield f"{number}_{softmax}", data
                    yield f"{number}_{softmax}_cut", data[: len(data) // 2]


def torch_files():
    """Yield (name, bytes) as tests/fuzz_torch_files.py takes them: a byte, then a whole file or a pickle."""
    import torch

    base = torch.arange(16.0)
    values = {
        "views": {"state_dict": {"a": base, "b": base.view(4, 4).T, "c": base[1::2], "d": base[3], "e": base[:0]}},
        "dtypes": {name: torch.ones(2).to(getattr(torch, name)) for name in ("bfloat16", "float16", "bool", "uint16")},
        "parameter": collections.OrderedDict(a=torch.nn.Parameter(base[:4])),
        "beside": {
            "model_ema": {"a": torch.ones(2, 2)},
            "args": argparse.Namespace(lr=0.1, kinds={1}),
            "metric": np.float64(1),
            "device": torch.device("cpu"),
            "arch": "b0",
            "counts": collections.Counter("ab"),
        },
        "module": torch.nn.Linear(1, 1),
    }
    for (name, value), protocol in itertools.product(values.items(), (2, 4)):
        for older in (False, True):
            buffer = io.BytesIO()
            torch.save(value, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=not older)
            yield f"{name}_{protocol}_{older}", b"\0" + buffer.getvalue()
            if not older:
                with zipfile.ZipFile(buffer) as archive:
                    pickled = archive.read("archive/data.pkl")
                yield f"{name}_{protocol}_pickle", b"\1" + pickled
                yield f"{name}_{protocol}_older", b"\2" + pickled


if __name__ == "__main__":
    sys.exit(run_cli(main))
