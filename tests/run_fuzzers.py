"""Fuzz the readers of ascend310_infer with libFuzzer, under AddressSanitizer and UBSan.

    python -m tests.run_fuzzers [SECONDS]    SECONDS for each of the three readers (default: 240)

Needs clang and its runtime library (Debian 12: `apt-get install clang libclang-rt-14-dev`). The seeds are small images,
good and bad ones, descriptions of models and ONNX files, written anew each time; what a run learns stays in
ascend310_infer/build-fuzz/corpus/, so that the next one goes on from there. An input that breaks a reader is left in
ascend310_infer/build-fuzz/ under a name that begins with crash, leak, oom or timeout.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from src.common.cli import ArgumentParser, RunError, positive_int, run_cli
from src.weights.model_info import ModelInfo
from tests.support import cpp_program as cpp
from tests.support.hard_images import bad_images, good_images

READERS = ("image", "model_info", "onnx_metadata")
MAX_BYTES = {"image": 6000, "model_info": 4000, "onnx_metadata": 4000}
WORDS = {
    "model_info": (
        "format variant num_classes class_names padding norm_eps preprocess image_size resize interpolation bicubic "
        "bilinear mean std null 1e999 [[ ]] {}"
    ).split(),
    "onnx_metadata": r"efficientnet \x72 \x0a\x0c \x12 \xff\xff\xff\xff\x0f".split(),
    "image": (
        r"\xff\xd8\xff \xff\xc0 \xff\xc2 \xff\xc4 \xff\xda \xff\xdb \xff\xdd Adobe "
        r"\x89PNG\x0d\x0a\x1a\x0a IHDR PLTE tRNS IDAT IEND"
    ).split(),
}


def main(argv=None) -> int:
    """Build, then run the fuzzers one after the other; exit code 1 if one of them found something."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", nargs="?", type=positive_int, default=240, help="for each reader")
    arguments = parser.parse_args(argv)
    compiler = find_clang()
    options = (f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_C_COMPILER={compiler.replace('++', '')}")
    options += ("-DWITH_FUZZERS=ON", "-DSANITIZE=address")
    folder, _ = cpp.build("fuzz", *options, openvino=False)
    found = [reader for reader in READERS if not fuzz(folder, reader, arguments.seconds)]
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
        limits = [f"-max_len={MAX_BYTES[reader]}", "-timeout=20", "-rss_limit_mb=3000"]
        command = [folder / "tests" / f"fuzz_{reader}", *limits, f"-max_total_time={seconds}", f"-dict={words}"]
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
        if len(data) <= MAX_BYTES[reader]:
            (folder / name.replace("/", "_")).write_bytes(data)


def seeds_of(reader: str):
    """Yield (name, bytes)."""
    if reader == "image":
        yield from good_images()
        yield from bad_images()
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


if __name__ == "__main__":
    sys.exit(run_cli(main))
