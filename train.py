"""Train EfficientNet on a folder of class folders: on one device, or as one rank of many.

python train.py --device_id 0 --dataset_path /data/imagenet/train
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time

import mindspore as ms
from mindspore import amp

from src.common.cli import RunError, UsageError, create_parser, run_cli
from src.common.files import atomic_write
from src.config import Config, add_parameters, take_parameters
from src.data.batches import Loading, Sharding
from src.data.image_folder import read_image_folder
from src.data.listing import ImageFolder
from src.data.training_batches import Sampling, Steps
from src.dataset import create_dataset, create_training_stream
from src.images.augment import Augmentation
from src.images.bad_images import BadImages
from src.images.engine import describe_engine
from src.images.mix import create_mix
from src.kernels import Kernels
from src.launch.modelarts import copied_folders
from src.loss import CrossEntropySmooth
from src.lr_generator import get_lr
from src.models.effnet import VARIANTS, EfficientNet, create_network
from src.models.table import count_multiply_adds
from src.Monitor import Monitor, format_seconds
from src.runtime.collective import count_ranks, find_disagreement
from src.runtime.device import Device, prepare_device
from src.training.graph_cache import find_graph_folder
from src.training.history import History
from src.training.loop import (
    FREE_TO_CHANGE,
    Progress,
    StopRequest,
    TrainingLoop,
    adopt_pretrained,
    evaluator,
    fit_classifier,
    merge_resumed,
)
from src.training.optimizer import create_optimizer
from src.training.recipes import apply_recipe
from src.training.run_folder import CheckpointFolder, find_resume, locked_run_folder
from src.training.step import TrainStep
from src.weights.checkpoint import BEST_NAME, Checkpoint, load_weights, read_checkpoint
from src.weights.model_info import ModelInfo

ZOO_GLOBAL_BATCH = 2048
AUGMENTATIONS = ("random_crop", "crop_scale_min", "crop_aspect_max", "flip", "color_jitter", "auto_augment")


def parse_arguments(argv=None) -> Config:
    """Read the flags into a checked configuration."""
    parser = create_parser(__doc__.splitlines()[0])
    add_parameters(parser)
    config = take_parameters(parser.parse_args(argv))
    if config.dataset_path is None and not config.run_modelarts:
        raise UsageError("--dataset_path is needed: a folder of class folders")
    for name in ("early_stop", "eval_interval"):
        if name in config.given and not config.eval_dataset_path:
            raise UsageError(f"--{name} needs --eval_dataset_path: without an evaluation there is no best score")
    if config.resume not in (None, "auto") and config.pretrained:
        raise UsageError("--resume and --pretrained contradict each other: a resumed run has its weights")
    if config.freeze and not (config.pretrained or config.resume):
        raise UsageError("--freeze needs --pretrained: fixed random weights learn nothing")
    return config


def main(argv=None) -> int:
    """Train with the images where this machine has them, which on ModelArts takes a copy."""
    with copied_folders(parse_arguments(argv)) as config:
        return train_and_evaluate(config)


def train_and_evaluate(config: Config) -> int:
    """Train and evaluate; the story in the order in which it happens."""
    started = time.perf_counter()
    device = prepare_device(config.device_target, config.device_id, config.run_distribute)
    folder = read_image_folder(config.dataset_path)
    held_out = read_held_out(config, folder)
    run_folder = os.path.join(config.save_checkpoint_path, f"model_{0 if device.rank_size > 1 else device.rank}")

    resumed = find_resume(config.resume, run_folder) if config.resume else None
    pretrained = read_checkpoint(config.pretrained) if config.pretrained and not resumed else None
    if resumed:
        config = merge_resumed(config, resumed, device.rank_size)
    else:
        config = complete_config(config, device, folder, pretrained)
    info = describe_model(config, folder)
    check_class_names(resumed, info)

    # Weights are the same on every rank; what is dropped and augmented is not.
    ms.set_seed(config.seed)
    network = create_model(config, info, device)
    steps_per_epoch = count_steps(config, device, folder)
    learning_rates = create_learning_rates(config, device, steps_per_epoch)
    step_cell = create_train_step(config, device, network, learning_rates)
    progress = Progress(steps_per_epoch, config.epoch_size, len(folder))
    if pretrained:
        load_weights(network, fit_classifier(pretrained, info, network))
        step_cell.restart_average()
    if resumed:
        restore(resumed, network, step_cell, progress)
    check_ranks(config, folder, held_out, progress, step_cell)
    describe_run(config, device, folder, info, network, learning_rates, progress)
    if resumed or pretrained:
        describe_start(progress, resumed or pretrained)
    if progress.step == progress.total_steps or progress.has_stagnated(config.early_stop):
        print(f"the run is complete: {progress.epoch} epochs in {resumed.path}")
        report_best(progress, run_folder)
        return 0

    with contextlib.ExitStack() as held:
        writes = device.rank == 0
        if writes:
            held.enter_context(locked_run_folder(run_folder, resumed))
            with atomic_write(os.path.join(run_folder, "config.json"), "w") as file:
                file.write(config.to_json())
        history = History(run_folder, progress.rows, config.tensorboard) if writes else None
        stop = held.enter_context(StopRequest())
        loop = TrainingLoop(
            step_cell,
            progress,
            create_monitor(config, device, learning_rates, steps_per_epoch),
            config,
            CheckpointFolder(run_folder, config.keep_checkpoint_max, info, device.rank) if writes else None,
            history,
            create_evaluator(config, device, info, held_out),
            stop,
        )
        run_steps(config, device, folder, step_cell, progress, loop)
        loop.monitor.close()
        if history:
            history.close()
        report_end(progress, run_folder, loop, time.perf_counter() - started)
        return stop.exit_code


def read_held_out(config: Config, folder: ImageFolder) -> ImageFolder | None:
    """The images to evaluate on, which must have the same classes; None without any."""
    if not config.eval_dataset_path:
        return None
    held_out = read_image_folder(config.eval_dataset_path)
    if held_out.classes != folder.classes:
        raise UsageError(f"{held_out.root} has other class folders than {folder.root}")
    return held_out


def complete_config(config: Config, device: Device, folder: ImageFolder, pretrained: Checkpoint | None) -> Config:
    """Fill in what was left to the recipe, the trained weights, the variant, the folder and the device."""
    config = apply_recipe(config)
    if pretrained:
        config = adopt_pretrained(config, pretrained)
    variant = VARIANTS[config.variant]
    values = {}
    if "class_num" not in config.given:
        values["class_num"] = len(folder.classes)
    elif config.class_num != len(folder.classes):
        raise UsageError(
            f"--class_num is {config.class_num}, but {folder.root} has {len(folder.classes)} class folders"
        )
    if "image_size" not in config.given and not pretrained:
        values["image_size"] = variant.image_size
    if config.dropout_rate is None:
        values["dropout_rate"] = variant.dropout_rate
    if config.amp_level is None:
        values["amp_level"] = "O3" if device.target == "Ascend" else "O0"
    config = config.replace(**values)
    config.check()
    return config


def describe_model(config: Config, folder: ImageFolder) -> ModelInfo:
    """What the checkpoints will say of themselves."""
    if config.class_num != len(folder.classes):
        raise UsageError(
            f"the run has {config.class_num} classes, but {folder.root} has {len(folder.classes)} class folders"
        )
    return ModelInfo(
        config.variant,
        config.class_num,
        tuple(folder.classes),
        config.padding,
        config.norm_eps,
        config.preprocess,
    )


def check_class_names(resumed: Checkpoint | None, now: ModelInfo) -> None:
    """Refuse to go on with a folder whose labels mean something else."""
    if resumed and resumed.info.class_names != now.class_names:
        raise UsageError("--resume: the checkpoint was trained on classes of other names than those in --dataset_path")


def create_model(config: Config, info: ModelInfo, device: Device) -> EfficientNet:
    """The network as it is trained."""
    if config.sync_bn:
        check_sync_bn(device)
    return create_network(
        info.variant,
        num_classes=info.num_classes,
        padding=info.padding,
        norm_eps=info.norm_eps,
        norm_momentum=config.norm_momentum,
        dropout_rate=config.dropout_rate,
        drop_connect_rate=config.drop_connect_rate,
        seed=config.seed * 1000003 + device.rank,
        sync_norm=config.sync_bn,
        kernels=choose_kernels(config, device),
    )


def choose_kernels(config: Config, device: Device) -> Kernels | None:
    """The device's kernels, which are for float32."""
    return device.kernels if config.kernels and config.amp_level == "O0" else None


def check_sync_bn(device: Device) -> None:
    """Refuse what MindSpore's batch norm over several ranks cannot do."""
    if device.target != "Ascend":
        raise UsageError(
            f"--sync_bn needs Ascend devices, MindSpore cannot on {device.target}; without it each rank has its own "
            "batch-norm statistics"
        )
    if device.rank_size == 1:
        raise UsageError("--sync_bn needs several ranks; one device has the statistics of the whole batch anyway")


def count_steps(config: Config, device: Device, folder: ImageFolder) -> int:
    """Steps of an epoch: whole global batches, a multiple of the batches that make an update."""
    global_batch = config.batch_size * device.rank_size * config.accumulate_steps
    updates = len(folder) // global_batch
    if updates == 0:
        raise UsageError(
            f"a global batch of {global_batch} images is more than the {len(folder)} in {folder.root}; "
            "a smaller --batch_size makes a step"
        )
    return updates * config.accumulate_steps


def create_learning_rates(config: Config, device: Device, steps_per_epoch: int):
    """The rate of every update, scaled to the global batch where asked for."""
    global_batch = config.batch_size * device.rank_size * config.accumulate_steps
    factor = global_batch / ZOO_GLOBAL_BATCH if config.scale_lr else 1.0
    return get_lr(
        config.lr_init * factor,
        config.lr_end * factor,
        config.lr_max * factor,
        config.warmup_epochs,
        config.epoch_size,
        steps_per_epoch // config.accumulate_steps,
        config.lr_decay_mode,
    )


def create_train_step(config: Config, device: Device, network: EfficientNet, learning_rates) -> TrainStep:
    """Network, loss and optimiser as one cell to compile, in mixed precision as configured."""
    # It changes the cells of the network in place, so that what is held fixed must be asked for afterwards.
    computing = amp.auto_mixed_precision(network, config.amp_level) if config.amp_level != "O0" else network
    frozen = network.freeze(config.freeze) if config.freeze else []
    smoothing = config.label_smooth_factor if config.use_label_smooth else 0.0
    return TrainStep(
        computing,
        CrossEntropySmooth(smoothing, config.class_num),
        create_optimizer(network.trainable_params(), learning_rates, config, choose_kernels(config, device)),
        # The fixed scale of FixedLossScaleManager(loss_scale, drop_overflow_update=False); float32 needs none.
        1.0 if config.amp_level == "O0" else config.loss_scale,
        config.clip_norm,
        config.accumulate_steps,
        config.ema_decay if config.use_ema else 0.0,
        device.rank_size,
        frozen,
        config.mean,
        config.std,
        choose_graph_folder(config, device),
    ).set_train()


def choose_graph_folder(config: Config, device: Device) -> str | None:
    """Where the compiled step is kept; nowhere on NPUs, where that was not run, nor for one of many ranks."""
    return find_graph_folder() if config.keep_graph and device.target == "CPU" and device.rank_size == 1 else None


def restore(resumed, network, step_cell: TrainStep, progress: Progress) -> None:
    """Put everything back where the checkpoint's run was."""
    load_weights(network, resumed.weights)
    missing = step_cell.restore(resumed.training, resumed.ema)
    if missing:
        raise UsageError(f"--resume {resumed.path}: its training state lacks {missing[0]}")
    before = Progress(**resumed.state["progress"])
    if (before.images, before.steps_per_epoch) != (progress.images, progress.steps_per_epoch):
        raise UsageError(
            f"--resume {resumed.path}: its epochs had {before.steps_per_epoch} steps over {before.images} images, but "
            f"the folder makes {progress.steps_per_epoch} steps of {progress.images} now; the images have changed"
        )
    for field in dataclasses.fields(Progress):
        setattr(progress, field.name, getattr(before, field.name))


def check_ranks(config: Config, folder: ImageFolder, held_out: ImageFolder | None, progress: Progress, step_cell):
    """Refuse to train where the ranks, perhaps of several servers, have not found the same.

    Raises:
        UsageError: if a checkpoint would lack the other ranks' gradients.
        RunError: naming what differs.
    """
    if count_ranks() > 1 and (config.save_checkpoint_steps or 0) % config.accumulate_steps:
        raise UsageError(
            f"--save_checkpoint_steps is {config.save_checkpoint_steps}; with several ranks it must be a multiple of "
            f"--accumulate_steps, which is {config.accumulate_steps}"
        )
    flags = {name: value for name, value in config.as_dict().items() if name not in FREE_TO_CHANGE}
    facts = {
        "the flags": json.dumps(flags).encode(),
        "the images to train on": "\n".join(folder.paths).encode(errors="surrogateescape"),
        "the images to evaluate on": "\n".join(held_out.paths if held_out else []).encode(errors="surrogateescape"),
        "the step to begin with": str(progress.step).encode(),
        "the weights to begin with": b"".join(weight.asnumpy().tobytes() for weight in step_cell.weights),
    }
    different = find_disagreement(facts)
    if different:
        raise RunError(
            f"{different} are not the same on all ranks: every server needs the same flags, images and checkpoints"
        )


def describe_run(config, device, folder, info, network, learning_rates, progress) -> None:
    """Say at the start what is going to happen."""
    weights = sum(parameter.size for parameter in network.trainable_params())
    global_batch = config.batch_size * device.rank_size * config.accumulate_steps
    print(
        f"device: {device.describe()}, amp level {config.amp_level}, "
        f"data sink {'on' if device.has_data_sink else 'off'}"
    )
    print(
        f"network: EfficientNet-{config.variant.upper()}, {weights / 1e6:.2f} M trainable parameters, "
        f"{count_multiply_adds(network, config.image_size) / 1e9:.3f} G multiply-adds for an image of "
        f"{config.image_size} pixels"
    )
    print(f"data: {len(folder)} images in {len(folder.classes)} classes in {folder.root}, {describe_engine()}")
    print(
        f"schedule: {config.epoch_size} epochs of {progress.steps_per_epoch} steps, global batch {global_batch}, "
        f"peak learning rate {learning_rates.max():.6g}",
        flush=True,
    )


def describe_start(progress: Progress, checkpoint: Checkpoint) -> None:
    """Say which weights a run begins with."""
    if progress.step:
        print(f"resumed: {checkpoint.path}, after step {progress.step} of {progress.total_steps}", flush=True)
    else:
        kind = "averaged" if checkpoint.ema else "raw"
        print(f"pretrained: {checkpoint.path}, {kind} weights of {checkpoint.info.num_classes} classes", flush=True)


def create_monitor(config: Config, device: Device, learning_rates, steps_per_epoch: int) -> Monitor:
    """The log; only rank 0 may draw a bar."""
    return Monitor(
        steps_per_epoch,
        config.epoch_size,
        learning_rates,
        config.accumulate_steps,
        config.batch_size * device.rank_size,
        config.log_interval,
        terminal=None if device.rank == 0 else False,
    )


def create_evaluator(config: Config, device: Device, info: ModelInfo, held_out: ImageFolder | None):
    """A function from weights to a Score on the held-out set, or None without one."""
    if held_out is None:
        return None

    # One for the whole run: each image that cannot be decoded is named once.
    bad = BadImages(len(held_out))

    def batches():
        dataset = create_dataset(
            held_out,
            False,
            config.batch_size,
            device.rank_size,
            device.rank,
            loading=Loading(info.preprocess, num_workers=config.num_workers, bad=bad),
        )
        return dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)

    smoothing = config.label_smooth_factor if config.use_label_smooth else 0.0
    return evaluator(info, batches, smoothing, device.kernels if config.kernels else None)


def run_steps(config: Config, device: Device, folder: ImageFolder, step_cell, progress: Progress, loop) -> None:
    """Train from where `progress` stands to the end of the run, or until a stop is asked for."""
    bad = BadImages(len(folder), config.max_bad_images)
    mix = create_mix(config.class_num, config.mixup, config.cutmix, config.random_erasing, config.seed, device.rank)
    augmentation = Augmentation(**{name: getattr(config, name) for name in AUGMENTATIONS})
    stream = create_training_stream(
        folder,
        Sharding(config.batch_size, device.rank_size, device.rank),
        Steps(progress.steps_per_epoch, progress.epochs, progress.step),
        # What blends images needs floats; else the device makes them of a quarter of the bytes.
        Loading(config.preprocess, normalised=mix is not None, num_workers=config.num_workers, bad=bad),
        Sampling(config.seed, augmentation, config.repeats),
        mix,
    )
    left = progress.total_steps - progress.step
    with bad.as_sentence():
        if device.has_data_sink:
            sink = largest_divisor(progress.steps_per_epoch, left, config.sink_size, config.save_checkpoint_steps)
            ms.Model(step_cell).train(left // sink, stream, callbacks=[loop], dataset_sink_mode=True, sink_size=sink)
        else:
            ms.Model(step_cell).train(1, stream, callbacks=[loop], dataset_sink_mode=False)


def largest_divisor(steps_per_epoch: int, left: int, most: int, save_steps: int | None) -> int:
    """Steps to send to the device at once, so that epochs, checkpoints and the run end between two sendings."""
    fits = [n for n in range(1, most + 1) if steps_per_epoch % n == 0 and left % n == 0 and (save_steps or n) % n == 0]
    return max(fits)


def report_end(progress: Progress, run_folder: str, loop: TrainingLoop, seconds: float) -> None:
    """Say at the end what came of it."""
    if loop.stop.signal:
        if loop.saved_path:
            then = "--resume auto goes on"
        else:
            then = "nothing was saved" if loop.checkpoints else "rank 0 saves"
        print(f"stopped by signal {loop.stop.signal} after step {progress.step} of {progress.total_steps}; {then}")
    report_best(progress, run_folder)
    if loop.saved_path:
        print(f"last checkpoint: {loop.saved_path}")
    print(f"total time: {format_seconds(seconds)}", flush=True)


def report_best(progress: Progress, run_folder: str) -> None:
    """Say how good the best evaluation was and where its weights are."""
    if progress.best:
        path = os.path.join(run_folder, BEST_NAME)
        where = f", in {path}" if os.path.exists(path) else ""
        print(
            f"best: top-1 {progress.best['top_1']:.4f} after epoch {progress.best['epoch']} "
            f"({progress.best['weights']} weights){where}"
        )


if __name__ == "__main__":
    sys.exit(run_cli(main))
