"""Train EfficientNet on a folder of class folders: on one device, or as one rank of many.

python train.py --device_id 0 --dataset_path /data/imagenet/train
"""

from __future__ import annotations

import os
import sys
import time

from src.device import Device, prepare_device  # first: it sets what MindSpore reads when it loads

import mindspore as ms
from mindspore import amp

from src.checkpoint import load_weights, read_checkpoint
from src.cli import UsageError, atomic_write, run_cli
from src.config import Config, add_parameters, create_parser, take_parameters
from src.dataset import BadImages, create_dataset, create_training_stream
from src.history import History
from src.image_folder import ImageFolder, read_image_folder
from src.loss import CrossEntropySmooth
from src.lr_generator import get_lr
from src.mix import create_mix
from src.model_info import ModelInfo
from src.modelarts import copied_folders
from src.models.effnet import VARIANTS, EfficientNet, create_network
from src.models.table import count_multiply_adds
from src.Monitor import Monitor, format_seconds
from src.optimizer import create_optimizer
from src.recipes import apply_recipe
from src.train_step import TrainStep
from src.training import (
    CheckpointFolder,
    Progress,
    StopRequest,
    TrainingLoop,
    evaluator,
    find_resume,
    fit_classifier,
    merge_resumed,
)

ZOO_GLOBAL_BATCH = 2048
AUGMENTATIONS = ("random_crop", "crop_scale_min", "crop_aspect_max", "flip", "color_jitter", "auto_augment")


def parse_arguments(argv=None) -> Config:
    """Read the flags into a checked configuration."""
    parser = create_parser(__doc__.splitlines()[0])
    add_parameters(parser)
    config = take_parameters(parser.parse_args(argv))
    if config.dataset_path is None and not config.run_modelarts:
        raise UsageError("--dataset_path is needed: a folder of class folders")
    if config.early_stop and not config.eval_dataset_path:
        raise UsageError("--early_stop needs --eval_dataset_path: without an evaluation there is no best score")
    if config.resume and config.pretrained:
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
    run_folder = os.path.join(config.save_checkpoint_path, f"model_{0 if device.rank_size > 1 else device.rank}")

    resumed = find_resume(config.resume, run_folder) if config.resume else None
    config = merge_resumed(config, resumed, device.rank_size) if resumed else complete_config(config, device, folder)
    info = describe_model(config, folder)
    check_class_names(resumed.info if resumed else None, info)

    # Weights are the same on every rank; what is dropped and augmented is not.
    ms.set_seed(config.seed)
    network = create_model(config, info, device.rank)
    steps_per_epoch = count_steps(config, device, folder)
    learning_rates = create_learning_rates(config, device, steps_per_epoch)
    step_cell = create_train_step(config, device, network, learning_rates)
    progress = Progress(steps_per_epoch, config.epoch_size)
    if config.pretrained and not resumed:
        load_pretrained(config, info, network, step_cell)
    if resumed:
        restore(resumed, network, step_cell, progress)

    monitor = Monitor(
        steps_per_epoch,
        config.epoch_size,
        learning_rates,
        config.accumulate_steps,
        config.batch_size * device.rank_size,
        config.log_interval,
        terminal=None if device.rank == 0 else False,
    )
    describe_run(config, device, folder, info, network, learning_rates, progress, resumed)
    if progress.step >= progress.total_steps:
        print(f"the run is complete: {progress.epochs} epochs in {resumed.path}")
        return 0

    writes = device.rank == 0
    history = History(run_folder, progress.rows, config.tensorboard) if writes else None
    if writes:
        with atomic_write(os.path.join(run_folder, "config.json"), "w") as file:
            file.write(config.to_json())
    with StopRequest() as stop:
        loop = TrainingLoop(
            step_cell,
            progress,
            monitor,
            config,
            CheckpointFolder(run_folder, config.keep_checkpoint_max, info, device) if writes else None,
            history,
            create_evaluator(config, device, info, folder),
            stop,
        )
        run_steps(config, device, folder, step_cell, progress, loop)
    monitor.close()
    if history:
        history.close()
    report_end(progress, run_folder, stop, time.perf_counter() - started)
    return stop.exit_code


def complete_config(config: Config, device: Device, folder: ImageFolder) -> Config:
    """Fill in what was left to the recipe, the variant, the folder and the device."""
    config = apply_recipe(config)
    variant = VARIANTS[config.variant]
    values = {}
    if "class_num" not in config.given:
        values["class_num"] = len(folder.classes)
    elif config.class_num != len(folder.classes):
        raise UsageError(
            f"--class_num is {config.class_num}, but {folder.root} has {len(folder.classes)} class folders"
        )
    if "image_size" not in config.given:
        values["image_size"] = variant.image_size
    if config.dropout_rate is None:
        values["dropout_rate"] = variant.dropout_rate
    if config.amp_level is None:
        values["amp_level"] = "O3" if device.target == "Ascend" else "O0"
    return config.replace(**values)


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


def check_class_names(before: ModelInfo | None, now: ModelInfo) -> None:
    """Refuse to go on with a folder whose labels mean something else."""
    if before is not None and before.class_names != now.class_names:
        raise UsageError("--resume: the checkpoint was trained on classes of other names than those in --dataset_path")


def create_model(config: Config, info: ModelInfo, rank: int) -> EfficientNet:
    """The network in mixed precision as configured."""
    if config.sync_bn:
        raise UsageError("--sync_bn needs several Ascend or GPU devices")
    network = create_network(
        info.variant,
        num_classes=info.num_classes,
        padding=info.padding,
        norm_eps=info.norm_eps,
        norm_momentum=config.norm_momentum,
        dropout_rate=config.dropout_rate,
        drop_connect_rate=config.drop_connect_rate,
        seed=config.seed * 1000003 + rank,
    )
    return amp.auto_mixed_precision(network, config.amp_level) if config.amp_level != "O0" else network


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


def create_train_step(config: Config, device: Device, network, learning_rates) -> TrainStep:
    """Network, loss and optimiser as one cell to compile."""
    frozen = network.freeze(config.freeze) if config.freeze else []
    smoothing = config.label_smooth_factor if config.use_label_smooth else 0.0
    return TrainStep(
        network,
        CrossEntropySmooth(smoothing, config.class_num),
        create_optimizer(network.trainable_params(), learning_rates, config),
        # The fixed scale of FixedLossScaleManager(loss_scale, drop_overflow_update=False).
        amp.FixedLossScaleManager(config.loss_scale, drop_overflow_update=False).get_loss_scale(),
        config.clip_norm,
        config.accumulate_steps,
        config.ema_decay if config.use_ema else 0.0,
        device.rank_size,
        frozen,
    ).set_train()


def load_pretrained(config: Config, info: ModelInfo, network, step_cell: TrainStep) -> None:
    """Start from trained weights; a dense layer of another class count starts anew."""
    checkpoint = read_checkpoint(config.pretrained)
    load_weights(network, fit_classifier(checkpoint, info, network))
    step_cell.restart_average()


def restore(resumed, network, step_cell: TrainStep, progress: Progress) -> None:
    """Put everything back where the checkpoint's run was."""
    load_weights(network, resumed.weights)
    missing = step_cell.restore(resumed.training, resumed.ema)
    if missing:
        raise UsageError(f"--resume {resumed.path}: its training state lacks {missing[0]}")
    for name, value in resumed.state["progress"].items():
        if name not in ("steps_per_epoch", "epochs"):
            setattr(progress, name, value)
    if resumed.state["progress"]["steps_per_epoch"] != progress.steps_per_epoch:
        raise UsageError(
            f"--resume {resumed.path}: its epochs have {resumed.state['progress']['steps_per_epoch']} steps, but the "
            f"folder makes {progress.steps_per_epoch} now; the images have changed"
        )


def describe_run(config, device, folder, info, network, learning_rates, progress, resumed) -> None:
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
    print(f"data: {len(folder)} images in {len(folder.classes)} classes in {folder.root}")
    print(
        f"schedule: {config.epoch_size} epochs of {progress.steps_per_epoch} steps, global batch {global_batch}, "
        f"peak learning rate {learning_rates.max():.6g}",
        flush=True,
    )
    if resumed:
        print(f"resumed: {resumed.path}, after step {progress.step} of {progress.total_steps}", flush=True)


def create_evaluator(config: Config, device: Device, info: ModelInfo, folder: ImageFolder):
    """A function from weights to a Score on the held-out set, or None without one."""
    if not config.eval_dataset_path:
        return None
    held_out = read_image_folder(config.eval_dataset_path)
    if held_out.classes != folder.classes:
        raise UsageError(f"{held_out.root} has other class folders than {folder.root}")

    def batches():
        dataset = create_dataset(
            held_out,
            False,
            config.batch_size,
            device.rank_size,
            device.rank,
            preprocess=info.preprocess,
            num_workers=config.num_workers,
        )
        return dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)

    smoothing = config.label_smooth_factor if config.use_label_smooth else 0.0
    return evaluator(info, batches, smoothing)


def run_steps(config: Config, device: Device, folder: ImageFolder, step_cell, progress: Progress, loop) -> None:
    """Train from where `progress` stands to the end of the run, or until a stop is asked for."""
    stream = create_training_stream(
        folder,
        steps_per_epoch=progress.steps_per_epoch,
        epochs=progress.epochs,
        first_step=progress.step,
        mix=create_mix(config.class_num, config.mixup, config.cutmix, config.random_erasing, config.seed, device.rank),
        batch_size=config.batch_size,
        device_num=device.rank_size,
        rank=device.rank,
        preprocess=config.preprocess,
        augment={name: getattr(config, name) for name in AUGMENTATIONS},
        seed=config.seed,
        num_workers=config.num_workers,
        bad=BadImages(len(folder), config.max_bad_images),
    )
    left = progress.total_steps - progress.step
    if not device.has_data_sink:
        ms.Model(step_cell).train(1, stream, callbacks=[loop], dataset_sink_mode=False)
        return
    sink = largest_divisor(progress.steps_per_epoch, left, config.sink_size, config.save_checkpoint_steps)
    ms.Model(step_cell).train(left // sink, stream, callbacks=[loop], dataset_sink_mode=True, sink_size=sink)


def largest_divisor(steps_per_epoch: int, left: int, most: int, save_steps: int | None) -> int:
    """Steps to send to the device at once, so that epochs, checkpoints and the run end between two sendings."""
    fits = [n for n in range(1, most + 1) if steps_per_epoch % n == 0 and left % n == 0 and (save_steps or n) % n == 0]
    return max(fits)


def report_end(progress: Progress, run_folder: str, stop: StopRequest, seconds: float) -> None:
    """Say at the end what came of it."""
    if stop.signal:
        print(
            f"stopped by signal {stop.signal} after step {progress.step} of {progress.total_steps}; "
            "--resume auto goes on"
        )
    if progress.best:
        print(
            f"best: top-1 {progress.best['top_1']:.4f} after epoch {progress.best['epoch']} "
            f"({progress.best['weights']} weights), in {os.path.join(run_folder, 'best.ckpt')}"
        )
    print(f"total time: {format_seconds(seconds)}", flush=True)


if __name__ == "__main__":
    sys.exit(run_cli(main))
