"""Compiles one training step for Ascend in MindSpore's dry run, as train.py sets it up. See `rehearsal.run`."""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import mindspore as ms
import numpy as np
from mindspore import amp, nn

CLASSES = 1000


def main(argv=None) -> None:
    """Build the step, and call it once on images of zeros."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="b0")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--amp_level", default="O3")
    parser.add_argument("--loss_scale", type=float, default=1024)
    parser.add_argument("--ema_decay", type=float, default=0.0)
    parser.add_argument("--clip_norm", type=float, default=0.0)
    parser.add_argument("--accumulate_steps", type=int, default=1)
    parser.add_argument("--freeze", type=int, default=0)
    parser.add_argument("--jit_level", default="O0")
    parser.add_argument("--mixed", action="store_true", help="float images and labels as mixup leaves them")
    parser.add_argument("--distribute", action="store_true")
    parser.add_argument("--without_kernels", action="store_true")
    parser.add_argument("--mindcv", help="the folder of MindCV's source: its efficientnet_b0 instead")
    parser.add_argument("--graphs", help="where MindSpore shall write the graph that it runs")
    arguments = parser.parse_args(argv)
    if arguments.graphs:
        os.environ["MS_DEV_DUMP_IR_PASSES"] = "graph_build"
        ms.set_context(save_graphs=1, save_graphs_path=arguments.graphs)
    pixels = (arguments.images, 3, arguments.pixels, arguments.pixels)
    labels = np.zeros((arguments.images, CLASSES) if arguments.mixed else arguments.images, np.float32)
    images = np.zeros(pixels, np.float32 if arguments.mixed or arguments.mindcv else np.uint8)
    step = mindcv_step(arguments) if arguments.mindcv else own_step(arguments)
    step(ms.Tensor(images), ms.Tensor(labels if arguments.mixed else labels.astype(np.int32)))


def own_step(arguments) -> nn.Cell:
    """This project's step, from the functions that train.py calls."""
    from src.kernels.ascend import AscendOperators
    from src.loss import CrossEntropySmooth
    from src.models.effnet import create_network
    from src.runtime.device import prepare_device
    from src.training.optimizer import OptimizerSettings, create_optimizer
    from src.training.step import StepSettings, TrainStep

    device = prepare_device("Ascend", 0, arguments.distribute, arguments.jit_level)
    network = create_network(arguments.variant, num_classes=CLASSES)
    level = arguments.amp_level
    computing = amp.auto_mixed_precision(network, level) if level != "O0" else network
    if not arguments.without_kernels:
        AscendOperators().install(network)
    frozen = network.freeze(arguments.freeze)
    rates = np.full(1000, 1e-3, np.float32)
    optimizer = create_optimizer(network.trainable_params(), rates, OptimizerSettings())
    settings = StepSettings(
        loss_scale=1.0 if level == "O0" else arguments.loss_scale,
        clip_norm=arguments.clip_norm,
        accumulate_steps=arguments.accumulate_steps,
        ema_decay=arguments.ema_decay,
        rank_size=device.rank_size,
    )
    return TrainStep(computing, CrossEntropySmooth(0.1, CLASSES), optimizer, settings, frozen=frozen).set_train()


def mindcv_step(arguments) -> nn.Cell:
    """MindCV's efficientnet_b0 as its recipe for Ascend trains it, which is in amp O2: RMSProp, dynamic loss scale."""
    sys.path.insert(0, arguments.mindcv)
    from mindcv.loss import create_loss
    from mindcv.models import create_model
    from mindcv.optim import create_optimizer
    from mindcv.utils import create_trainer

    from src.runtime.device import RUNTIME_THREADS

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("Ascend", 0)
    ms.runtime.dispatch_threads_num(RUNTIME_THREADS)
    network = create_model("efficientnet_b0", num_classes=CLASSES)
    loss = create_loss("CE", label_smoothing=0.1)
    scales = {"loss_scale_type": "dynamic", "loss_scale": 1024.0, "drop_overflow_update": True}
    optimizer = create_optimizer(
        network.trainable_params(), opt="rmsprop", lr=0.016, weight_decay=1e-5, momentum=0.9, eps=1e-3
    )
    trainer = create_trainer(network, loss, optimizer, {}, amp_level=arguments.amp_level, amp_cast_list="", **scales)
    return trainer._train_network.set_train()


if __name__ == "__main__":
    main()
