"""Top-1, size and images/s of fp32, float16 and int8 files of one checkpoint, and of int8 made in other ways.

python benchmarks/quantisation.py --checkpoint_path b0.ckpt --calibration_path digits/train --dataset_path digits/val

Images/s depend on the CPU, the batch and the threads; all files take turns in one run, and each counts at its own best
batch size.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationMethod

from benchmarks.machine import describe_machine
from src.common.cli import create_parser, positive_int, run_cli
from src.common.machine import count_cores
from src.data.image_folder import read_image_folder
from src.data.image_list import images_below
from src.export.exporter import CALIBRATION_IMAGES
from src.export.onnx_graph import build_model
from src.export.plan import normalise_all
from src.export.quantisation import FLOAT_LAYERS, OPERATORS, measure_noise, quantise, quantise_best
from src.export.verification import pick_evenly, read_pixels
from src.models.family import VARIANTS
from src.weights.checkpoint import read_checkpoint
from src.weights.folding import fold_batch_norm

BATCH_SIZES = [1, 4, 16]
SWISH = r"|.*\.sigmoid|blocks\.\d+\.(expand|depthwise)$|head$"
WITH_CLIP = {"op_types_to_quantize": [operator for operator in OPERATORS if operator != "Clip"]}
OTHER_WAYS = {
    "int8, biases as rounded": {},
    "int8, ReLU6 an operator": WITH_CLIP,
    "int8, ReLU6 an operator, all layers": {"float_layers": "$.", **WITH_CLIP},
    "int8, all layers": {"float_layers": "$."},
    "int8, block 1 float": {"float_layers": FLOAT_LAYERS + r"|blocks\.[01]\b"},
    "int8, swish float": {"float_layers": FLOAT_LAYERS + SWISH},
    "int8, squeeze float": {"float_layers": FLOAT_LAYERS + r"|blocks\.\d+\.se\b"},
    "int8, depthwise float": {"float_layers": FLOAT_LAYERS + r"|.*\.depthwise\.conv"},
    "int8, head float": {"float_layers": FLOAT_LAYERS + r"|head|mean|features|logits"},
    "int8, scale per tensor": {"per_channel": False},
    "int8, symmetric": {"extra_options": {"ActivationSymmetric": True}},
    "int8, percentile": {"calibrate_method": CalibrationMethod.Percentile},
    "int8, entropy": {"calibrate_method": CalibrationMethod.Entropy},
    "int8, 7-bit weights": {"reduce_range": True},
}


def open_session(model) -> onnxruntime.InferenceSession:
    """A session of a model on the CPU; a call of it takes one core, as in infer_onnx.py."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def all_logits(session, images: np.ndarray) -> np.ndarray:
    """Logits of all images in batches."""
    return np.concatenate([session.run(None, {"image": images[i : i + 32]})[0] for i in range(0, len(images), 32)])


def time_in_turns(sessions: dict, images: np.ndarray, batch_sizes: list[int], threads: int, rounds: int) -> dict:
    """Each session's best images/s and the batch size that gives it; of each size the median, and all take turns.

    As in infer_onnx.py, so many threads call the network at once, each with a batch of its own.
    """
    seconds = {(name, size): [] for name in sessions for size in batch_sizes}
    with ThreadPoolExecutor(threads) as pool:
        for turn in range(rounds + 1):
            for (name, size), taken in seconds.items():
                batch = np.resize(images, (size, *images.shape[1:]))
                calls = threads * max(1, max(batch_sizes) // size)
                began = time.perf_counter()
                list(pool.map(sessions[name].run, [None] * calls, [{"image": batch}] * calls))
                if turn:
                    taken.append((time.perf_counter() - began) / calls)
    return {
        name: max((size / float(np.median(seconds[name, size])), size) for size in batch_sizes) for name in sessions
    }


def parse_arguments(argv=None):
    """Read the flags."""
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint_path", required=True, help="the .ckpt file")
    parser.add_argument("--calibration_path", required=True, help="folder of images for int8's ranges")
    parser.add_argument("--dataset_path", required=True, help="folder of class folders to count top-1 on")
    sizes = {"type": positive_int, "nargs": "+", "default": BATCH_SIZES}
    parser.add_argument("--batch_size", **sizes, help=f"images of a timed run (default: {BATCH_SIZES})")
    parser.add_argument(
        "--threads", type=positive_int, default=count_cores(), help="calls at once (default: the cores)"
    )
    parser.add_argument("--rounds", type=positive_int, default=20, help="timed runs of each (default: 20)")
    parser.add_argument("--other_ways", action="store_true", help="int8 made in other ways, too; takes minutes")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Make the files, count, time, print a table and a line of JSON."""
    arguments = parse_arguments(argv)
    checkpoint = read_checkpoint(arguments.checkpoint_path)
    info, weights = checkpoint.info, checkpoint.ema or checkpoint.weights
    folded = fold_batch_norm(weights, info.norm_eps)
    full = build_model(folded, info)
    paths = pick_evenly(images_below(arguments.calibration_path), CALIBRATION_IMAGES)
    calibration = normalise_all(read_pixels(paths, info.preprocess), info)
    models = {"fp32": full, "fp16": build_model(folded, info, np.float16)}
    models["int8"], measured = quantise_best(full, calibration)
    print(f"int8: {measured}", flush=True)
    if arguments.other_ways:
        models.update({name: quantise(full, calibration, **settings) for name, settings in OTHER_WAYS.items()})
    folder = read_image_folder(arguments.dataset_path)
    files = [folder.full_path(index) for index in range(len(folder))]
    images = normalise_all(read_pixels(files, info.preprocess), info)
    sessions = {name: open_session(model) for name, model in models.items()}
    logits = {name: all_logits(session, images) for name, session in sessions.items()}
    rates = time_in_turns(sessions, images, arguments.batch_size, arguments.threads, arguments.rounds)
    report(arguments, info, models, logits, folder.labels, rates)


def report(arguments, info, models, logits, labels, rates) -> None:
    """The table and the line of JSON."""
    print(
        f"machine: {describe_machine('onnxruntime')}; {arguments.threads} threads, "
        f"{VARIANTS[info.variant].title} at {info.preprocess.image_size} pixels, {len(labels)} images"
    )
    print("| file | top-1 | same class as fp32 | noise in the logits | size | images/s | at batch | by fp32's |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    summary = {}
    for name, model in models.items():
        top_1 = float((logits[name].argmax(1) == labels).mean())
        same = float((logits[name].argmax(1) == logits["fp32"].argmax(1)).mean())
        noise = measure_noise(logits["fp32"], logits[name])
        (rate, batch_size), share = rates[name], model.ByteSize() / models["fp32"].ByteSize()
        speed = rate / rates["fp32"][0]
        print(
            f"| {name} | {100 * top_1:.2f}% | {100 * same:.2f}% | {100 * noise:.1f}% | {100 * share:.1f}% | "
            f"{rate:.1f} | {batch_size} | {speed:.2f} |"
        )
        summary[name] = {"top_1": round(top_1, 4), "size_vs_fp32": round(share, 3), "speed_vs_fp32": round(speed, 2)}
    print(json.dumps({"int8_vs_fp32": summary["int8"]["speed_vs_fp32"], **summary}))


if __name__ == "__main__":
    sys.exit(run_cli(main))
