"""A run set up: the configuration is resolved once and taken apart here; other rooms get the small values they need."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import mindspore as ms
from mindspore import amp

from src.common.cli import RunError, UsageError, printable
from src.config import Config
from src.data.batches import Loading, Sharding
from src.data.image_folder import read_held_out, read_training_folder
from src.data.listing import ImageFolder
from src.data.training_batches import Sampling, Steps
from src.dataset import create_training_stream
from src.images.augment import Augmentation
from src.images.bad_images import BadImages
from src.images.mix import create_mix
from src.kernels import Kernels
from src.kernels.ascend import AscendOperators
from src.loss import CrossEntropySmooth
from src.models.effnet import EfficientNet
from src.parameters import PARAMETERS
from src.preparation.split import read_split, split_by_class
from src.recipes.finetune import Choice, choose_start
from src.runtime.collective import count_ranks, find_disagreement, mean_over_ranks
from src.runtime.device import Device, prepare_device
from src.training.configuration import (
    check_card,
    check_sync_bn,
    check_transfer,
    complete_config,
    describe_model,
)
from src.training.optimizer import OptimizerSettings, create_optimizer
from src.training.resume import check_class_names, check_state, fit_classifier, merge_resumed, restore
from src.training.run_folder import find_resume, name_run_folder
from src.training.schedule import Progress, Schedule, create_schedule
from src.training.step import StepSettings, TrainStep
from src.weights.checkpoint import Checkpoint
from src.weights.conversion import read_pretrained
from src.weights.model_info import ModelInfo
from src.weights.network import build_network, load_weights


@dataclasses.dataclass(frozen=True)
class Run:
    """All that is known of a run before it begins.

    Attributes:
        config: the resolved parameters.
        device: what computes, and this process's rank.
        folder, held_out: the images to train on, and those to evaluate on or None.
        run_folder: where checkpoints and curves go.
        resumed: the checkpoint that the run goes on from, or None.
        pretrained: the checkpoint whose weights it starts from, or None.
        info: what its checkpoints say of the network.
        schedule: its length and learning rates.
        choices: what was chosen for these images, with the reasons.
    """

    config: Config
    device: Device
    folder: ImageFolder
    held_out: ImageFolder | None
    run_folder: str
    resumed: Checkpoint | None
    pretrained: Checkpoint | None
    info: ModelInfo
    schedule: Schedule
    choices: Sequence[Choice] = ()

    @property
    def smoothing(self) -> float:
        """The label smoothing of the loss."""
        return self.config.label_smooth_factor if self.config.use_label_smooth else 0.0

    @property
    def kernels(self) -> Kernels | AscendOperators | None:
        """What the network and the optimiser train with; those of a CPU compute in float32 only."""
        if not self.config.kernels:
            return None
        if self.device.target == "Ascend":
            return AscendOperators()
        return self.device.kernels if self.config.amp_level == "O0" else None


def resolve_run(config: Config) -> Run:
    """Find device, images and checkpoints, and resolve the configuration with them.

    Raises:
        UsageError: if they contradict each other or the flags.
        RunError: if images or a checkpoint cannot be read.
    """
    device = prepare_device(
        config.device_target, config.device_id, config.run_distribute, config.jit_level, config.conv_precision
    )
    check_card(device)
    folder = read_training_folder(config.dataset_path)
    held_out = read_held_out(config.eval_dataset_path or None, folder)
    run_folder = name_run_folder(config.save_checkpoint_path)
    resumed = find_resume(config.resume, run_folder) if config.resume else None
    resumed = check_state(resumed) if resumed else None
    if config.recipe == "finetune":
        config = config.replace(**choose_start(config, held_out is not None))
    if held_out is None:
        folder, held_out = hold_out(config, folder, resumed, run_folder)
    elif config.val_share:
        raise UsageError(f"--val_share {config.val_share:g} holds out images, but those to evaluate on are given")
    pretrained = read_pretrained(config.pretrained) if config.pretrained and not resumed else None
    choices: list[Choice] = []
    if resumed:
        config = merge_resumed(config, resumed, device.rank_size)
    else:
        config, choices = complete_config(config, device, folder, pretrained)
    # Found on this machine; config.json says so. The number of the device is left to DEVICE_ID, which each rank has.
    threads = Loading(num_workers=config.num_workers).choose_threads(device.rank_size)
    config = config.replace(device_target=device.target, num_workers=threads)
    info = describe_model(config, folder, resumed or pretrained)
    if resumed:
        check_class_names(resumed, info)
    if config.sync_bn:
        check_sync_bn(device)
    schedule = create_schedule(config, device, folder)
    return Run(
        config=config,
        device=device,
        folder=folder,
        held_out=held_out,
        run_folder=run_folder,
        resumed=resumed,
        pretrained=pretrained,
        info=info,
        schedule=schedule,
        choices=choices,
    )


def hold_out(
    config: Config, folder: ImageFolder, resumed: Checkpoint | None, run_folder: str
) -> tuple[ImageFolder, ImageFolder | None]:
    """Divide the images as --val_share says; a resumed run divides them as before.

    Returns:
        The images to train on, and those to evaluate on or None.
    """
    if resumed:
        share = resumed.state["config"].get("val_share", 0)
    else:
        share = config.val_share
    if not share:
        return folder, None
    split = (read_split(folder, run_folder) if resumed else None) or split_by_class(folder, share)
    for remark in split.remarks:
        print(f"note: {printable(remark)}", flush=True)
    return split.train, split.val


def create_model(run: Run) -> EfficientNet:
    """The network as it is trained, freshly initialised.

    Weights are the same on every rank; what is dropped and augmented is not.
    """
    config = run.config
    ms.set_seed(config.seed)
    return build_network(
        run.info,
        norm_momentum=config.norm_momentum,
        dropout_rate=config.dropout_rate,
        drop_connect_rate=config.drop_connect_rate,
        seed=config.seed * 1000003 + run.device.rank,
        sync_norm=config.sync_bn,
    )


def create_train_step(run: Run, network: EfficientNet) -> TrainStep:
    """Network, loss and optimiser as one cell to compile, in mixed precision as configured."""
    config = run.config
    # Mixed precision and kernels change the cells of the network in place, so that what is held fixed is asked for
    # afterwards.
    computing = amp.auto_mixed_precision(network, config.amp_level) if config.amp_level != "O0" else network
    if run.kernels:
        run.kernels.install(network)
    frozen = network.freeze(config.freeze) if config.freeze else ()
    settings = config.part(
        StepSettings,
        # The fixed scale of FixedLossScaleManager(loss_scale, drop_overflow_update=False); float32 needs none.
        loss_scale=1.0 if (config.amp_level, config.loss_scale_mode) == ("O0", "fixed") else config.loss_scale,
        ema_decay=config.ema_decay if config.use_ema else 0.0,
        rank_size=run.device.rank_size,
    )
    parameters, rates = network.trainable_params(), run.schedule.learning_rates
    optimizer = create_optimizer(parameters, rates, config.part(OptimizerSettings))
    if run.kernels:
        run.kernels.install(optimizer)
    weights = run.folder.balance() if config.class_weights == "balanced" else None
    loss = CrossEntropySmooth(run.smoothing, config.class_num, class_weights=weights)
    reduce = None
    if run.device.rank_size > 1:
        reduce = mean_over_ranks([weight.shape for weight in parameters], run.kernels)
    return TrainStep(computing, loss, optimizer, settings, frozen=frozen, reduce=reduce).set_train()


def begin(run: Run, network: EfficientNet, step_cell: TrainStep) -> Progress:
    """Load the weights that the run starts from, or all of the state that it goes on from; where it stands then.

    Raises:
        UsageError: if the checkpoint does not fit.
        RunError: if the ranks have not found the same.
    """
    progress = Progress(run.schedule.steps_per_epoch, run.schedule.epochs, len(run.folder))
    if run.pretrained:
        load_weights(network, fit_classifier(run.pretrained, run.info, network))
        step_cell.restart_average()
    if run.resumed:
        restore(run.resumed, network, step_cell, progress)
    check_ranks(run, progress, step_cell)
    return progress


def check_ranks(run: Run, progress: Progress, step_cell: TrainStep) -> None:
    """Refuse to train where the ranks, perhaps of several servers, have not found the same.

    Raises:
        UsageError: if a checkpoint would lack the other ranks' gradients.
        RunError: naming what differs.
    """
    config = run.config
    if count_ranks() > 1 and (config.save_checkpoint_steps or 0) % config.accumulate_steps:
        raise UsageError(
            f"--save_checkpoint_steps is {config.save_checkpoint_steps}; with several ranks it must be a multiple of "
            f"--accumulate_steps, which is {config.accumulate_steps}"
        )
    flags = {name: value for name, value in config.as_dict().items() if not PARAMETERS[name].resumable}
    held_out = run.held_out.paths if run.held_out else []
    facts = {
        "the flags": json.dumps(flags).encode(),
        "the images to train on": "\n".join(run.folder.paths).encode(errors="surrogateescape"),
        "the images to evaluate on": "\n".join(held_out).encode(errors="surrogateescape"),
        "the step to begin with": str(progress.step).encode(),
        "the weights to begin with": b"".join(weight.asnumpy().tobytes() for weight in step_cell.weights),
    }
    different = find_disagreement(facts)
    if different:
        raise RunError(
            f"{different} are not the same on all ranks: every server needs the same flags, images and checkpoints"
        )


def create_stream(run: Run, progress: Progress, bad: BadImages):
    """The augmented batches from where `progress` stands to the end of the run, as one MindSpore data set."""
    config = run.config
    if run.device.has_data_sink:
        check_transfer(config.batch_size, config.image_size)
    mix = create_mix(config.class_num, config.mixup, config.cutmix, config.random_erasing, config.seed, run.device.rank)
    return create_training_stream(
        run.folder,
        Sharding(config.batch_size, run.device.rank_size, run.device.rank),
        Steps(progress.steps_per_epoch, progress.epochs, progress.step),
        # The device makes floats of a quarter of their bytes.
        Loading(config.preprocess, normalised=False, num_workers=config.num_workers, bad=bad),
        Sampling(config.seed, config.part(Augmentation), config.repeats),
        mix,
    )
