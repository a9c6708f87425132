"""Top-1, size and images/s of fp32, float16 and int8 files of one checkpoint, and of int8 made in other ways.

python benchmarks/quantisation.py --checkpoint_path b0.ckpt --calibration_path digits/train --dataset_path digits/val

int8's images/s depend on the CPU, the batch and the threads; all files take turns in one run.
"""

from __future__ import annotations

import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationMethod

from benchmarks.machine import describe_machine
from src.common.cli import create_parser, positive_int, run_cli
from src.data.image_folder import read_image_folder
from src.data.image_list import images_below
from src.export.exporter import CALIBRATION_IMAGES
from src.export.onnx_graph import build_model
from src.export.plan import normalise_all
from src.export.quantisation import FLOAT_LAYERS, quantise
from src.export.verification import centre, pick_evenly, read_pixels
from src.models.family import VARIANTS
from src.weights.checkpoint import read_checkpoint
from src.weights.folding import fold_batch_norm

SWISH = r"|.*\.sigmoid|blocks\.\d+\.(expand|depthwise)$|head$"
OTHER_WAYS = {
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


def open_session(model, threads: int) -> onnxruntime.InferenceSession:
    """A session of a model on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads of the session that has just computed would wait actively while the next one is timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def all_logits(session, images: np.ndarray) -> np.ndarray:
    """Logits of all images in batches."""
    return np.concatenate([session.run(None, {"image": images[i : i + 32]})[0] for i in range(0, len(images), 32)])


def time_in_turns(sessions: dict, batch: np.ndarray, rounds: int) -> dict:
    """Median images/s of each session, taking turns."""
    seconds = {name: [] for name in sessions}
    for turn in range(rounds + 1):
        for name, session in sessions.items():
            began = time.perf_counter()
            session.run(None, {"image": batch})
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: len(batch) / float(np.median(taken)) for name, taken in seconds.items()}


def parse_arguments(argv=None):
    """Read the flags."""
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint_path", required=True, help="the .ckpt file")
    parser.add_argument("--calibration_path", required=True, help="folder of images for int8's ranges")
    parser.add_argument("--dataset_path", required=True, help="folder of class folders to count top-1 on")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="images of a timed run (default: 16)")
    threads = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=positive_int, default=threads, help="of a session (default: all cores)")
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
    models = {"fp32": full, "fp16": build_model(folded, info, np.float16), "int8": quantise(full, calibration)}
    if arguments.other_ways:
        models.update({name: quantise(full, calibration, **settings) for name, settings in OTHER_WAYS.items()})
    folder = read_image_folder(arguments.dataset_path)
    files = [folder.full_path(index) for index in range(len(folder))]
    images = normalise_all(read_pixels(files, info.preprocess), info)
    sessions = {name: open_session(model, arguments.threads) for name, model in models.items()}
    logits = {name: all_logits(session, images) for name, session in sessions.items()}
    rates = time_in_turns(sessions, np.resize(images, (arguments.batch_size, *images.shape[1:])), arguments.rounds)
    report(arguments, info, models, logits, folder.labels, rates)


def report(arguments, info, models, logits, labels, rates) -> None:
    """The table and the line of JSON."""
    print(
        f"machine: {describe_machine('onnxruntime')}; {arguments.threads} threads, batch {arguments.batch_size}, "
        f"{VARIANTS[info.variant].title} at {info.preprocess.image_size} pixels, {len(labels)} images"
    )
    print("| file | top-1 | same class as fp32 | noise in the logits | size | images/s | by fp32's |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    full = centre(logits["fp32"])
    summary = {}
    for name, model in models.items():
        top_1 = float((logits[name].argmax(1) == labels).mean())
        same = float((logits[name].argmax(1) == logits["fp32"].argmax(1)).mean())
        noise = float(np.sqrt(((centre(logits[name]) - full) ** 2).mean()) / full.std())
        share, speed = model.ByteSize() / models["fp32"].ByteSize(), rates[name] / rates["fp32"]
        print(
            f"| {name} | {100 * top_1:.2f}% | {100 * same:.2f}% | {100 * noise:.1f}% | {100 * share:.1f}% | "
            f"{rates[name]:.1f} | {speed:.2f} |"
        )
        summary[name] = {"top_1": round(top_1, 4), "size_vs_fp32": round(share, 3), "speed_vs_fp32": round(speed, 2)}
    print(json.dumps({"int8_vs_fp32": summary["int8"]["speed_vs_fp32"], **summary}))


if __name__ == "__main__":
    sys.exit(run_cli(main))
