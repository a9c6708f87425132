"""Train EfficientNet on a folder of class folders: on one device, or as one rank of many.

python train.py --device_id 0 --dataset_path /data/imagenet/train
"""

from __future__ import annotations

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

import contextlib
import os
import sys
import time

from src.common.cli import UsageError, create_parser, run_cli
from src.common.files import atomic_write
from src.config import Config, add_config_flag, add_parameters, take_parameters
from src.images.bad_images import BadImages
from src.launch.modelarts import copied_folders
from src.Monitor import Monitor
from src.preparation.split import Split, write_split
from src.runtime.profiling import StepProfiler
from src.training.history import History
from src.training.loop import LoopSettings, TrainingLoop
from src.training.report import create_evaluator, describe_run, report_complete, report_end
from src.training.resume import STATE_FORMAT
from src.training.run_folder import CheckpointFolder, locked_run_folder
from src.training.schedule import Progress, choose_sink
from src.training.setup import Run, begin, create_model, create_stream, create_train_step, resolve_run
from src.training.step import TrainStep
from src.training.stop import StopRequest


def parse_arguments(argv=None) -> Config:
    """Read the flags into a checked configuration."""
    parser = create_parser(__doc__.splitlines()[0])
    add_config_flag(parser)
    add_parameters(parser)
    config = take_parameters(parser.parse_args(argv))
    if config.dataset_path is None and not config.run_modelarts:
        raise UsageError("--dataset_path is needed: a folder of class folders, or a list (.csv, .tsv)")
    for name in ("early_stop", "eval_interval"):
        if name in config.given and not (config.eval_dataset_path or config.val_share or config.recipe == "finetune"):
            sentence = "without an evaluation there is no best score"
            raise UsageError(f"--{name} needs --eval_dataset_path or --val_share: {sentence}")
    if config.resume not in (None, "auto") and config.pretrained:
        raise UsageError("--resume and --pretrained contradict each other: a resumed run has its weights")
    if config.freeze and not (config.pretrained or config.resume or config.recipe == "finetune"):
        raise UsageError("--freeze needs --pretrained: fixed random weights learn nothing")
    return config


def main(argv=None) -> int:
    """Train with the images where this machine has them, which on ModelArts takes a copy."""
    with copied_folders(parse_arguments(argv)) as config:
        return train_and_evaluate(config)


def train_and_evaluate(config: Config) -> int:
    """Train and evaluate; the story in the order in which it happens."""
    started = time.perf_counter()
    run = resolve_run(config)
    network = create_model(run)
    step_cell = create_train_step(run, network)
    progress = begin(run, network, step_cell)
    describe_run(run, network, progress)
    if progress.is_complete(run.config.early_stop):
        report_complete(run, progress)
        return 0

    with contextlib.ExitStack() as held:
        if run.device.rank == 0:
            held.enter_context(locked_run_folder(run.run_folder, run.resumed))
            with atomic_write(os.path.join(run.run_folder, "config.json"), "w") as file:
                file.write(run.config.to_json())
            if run.config.val_share:
                write_split(Split(run.folder, run.held_out), run.run_folder)
        stop = held.enter_context(StopRequest())
        loop = create_loop(run, step_cell, progress, stop)
        run_steps(run, loop)
        loop.close()
        report_end(run, loop, started)
        return stop.exit_code


def create_loop(run: Run, step_cell: TrainStep, progress: Progress, stop: StopRequest) -> TrainingLoop:
    """What happens around each step; rank 0 alone writes files and may draw a bar."""
    config, schedule, writes = run.config, run.schedule, run.device.rank == 0
    monitor = Monitor(
        steps_per_epoch=schedule.steps_per_epoch,
        epochs=schedule.epochs,
        learning_rates=schedule.learning_rates,
        steps_per_update=config.accumulate_steps,
        images_per_step=schedule.images_per_step,
        log_interval=config.log_interval,
        terminal=None if writes else False,
        evaluates=run.held_out is not None,
    )
    state = {"format": STATE_FORMAT, "config": config.as_dict(), "rank_size": run.device.rank_size}
    keep, info, rank = config.keep_checkpoint_max, run.info, run.device.rank
    return TrainingLoop(
        step_cell=step_cell,
        progress=progress,
        monitor=monitor,
        settings=config.part(LoopSettings),
        checkpoints=CheckpointFolder(run.run_folder, keep=keep, info=info, rank=rank, run=state) if writes else None,
        history=History(run.run_folder, progress.rows, config.tensorboard) if writes else None,
        evaluate=create_evaluator(run),
        stop=stop,
    )


def run_steps(run: Run, loop: TrainingLoop) -> None:
    """Train from where the run stands to its end, or until a stop is asked for."""
    bad = BadImages(len(run.folder), run.config.max_bad_images, root=run.folder.root)
    sink = None
    if run.device.has_data_sink:
        sink = choose_sink(loop.progress, run.config.sink_size, run.config.save_checkpoint_steps)
    steps, folder = run.config.profile, os.path.join(run.run_folder, "profile")
    profilers = [StepProfiler(steps, folder, run.device.target)] if steps else []
    with bad.as_sentence():
        loop.run(create_stream(run, loop.progress, bad), sink, profilers)


if __name__ == "__main__":
    sys.exit(run_cli(main))
