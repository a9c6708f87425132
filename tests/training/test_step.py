"""The compiled step on a tiny network: average, clipping, accumulation, loss scale, against PyTorch and by hand."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, nn

from benchmarks.peers import torch
from src.loss import CrossEntropySmooth
from src.training.step import StepSettings, TrainStep
from src.weights.network import model_parameters

CLASSES, SIDE, IMAGES = 3, 4, 6


class Tiny(nn.Cell):
    """A convolution, a batch norm and a dense layer; counts its steps as EfficientNet does."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, pad_mode="same", weight_init="normal")
        self.norm = nn.BatchNorm2d(4, momentum=0.9)
        self.classifier = nn.Dense(4, CLASSES)
        self.random_step = Parameter(ms.Tensor(0, ms.int32), name="random_step", requires_grad=False)

    def construct(self, x):
        if self.training:
            self.random_step += 1
        return self.classifier(self.norm(self.conv(x)).mean((2, 3)))


def batch(step=0, images=IMAGES):
    random = np.random.default_rng([7, step])
    pixels = random.standard_normal((images, 3, SIDE, SIDE)).astype(np.float32)
    return ms.Tensor(pixels), ms.Tensor(random.integers(0, CLASSES, images).astype(np.int32))


def create(rate=0.1, evaluation=False, momentum=0.9, weights=None, **settings):
    """(network, step) with SGD; in evaluation mode the batch norm has nothing to do with the other images."""
    ms.set_seed(1)
    network = Tiny()
    parameters = [p for p in network.trainable_params() if weights is None or p.name.startswith(weights)]
    optimizer = nn.SGD(parameters, learning_rate=[rate] * 1000, momentum=momentum)
    step = TrainStep(network, CrossEntropySmooth(0.1, CLASSES), optimizer, StepSettings(**settings)).set_train()
    if evaluation:
        network.set_train(False)
    return network, step


def values(network):
    return {name: parameter.asnumpy().copy() for name, parameter in model_parameters(network).items()}


def test_the_moving_average_is_tensorflows_over_120_steps():
    """decay = min(0.95, (1 + t) / (10 + t)) after update t; statistics of the batch norm are averaged too."""
    network, step = create(ema_decay=0.95)
    average = {name: value.astype(np.float64) for name, value in values(network).items()}
    first = values(network)
    for t in range(1, 121):
        step(*batch(t))
        decay = min(0.95, (1 + t) / (10 + t))
        average = {name: decay * average[name] + (1 - decay) * now for name, now in values(network).items()}
    found = step.average_weights()
    assert found.keys() == average.keys() == {name for name in values(network) if name != "random_step"}
    for name, expected in average.items():
        assert np.abs(found[name] - expected).max() < 1e-5, name
        assert np.abs(expected - first[name]).max() > 1e-3, name
        assert np.abs(expected - values(network)[name]).max() > 1e-5, name


def test_the_average_of_a_step_is_tensorflows_with_warm_up():
    """After one update the weight of the past is 2 / 11."""
    network, step = create(ema_decay=0.9999)
    before = values(network)
    step(*batch())
    for name, found in step.average_weights().items():
        expected = 2 / 11 * before[name] + 9 / 11 * values(network)[name]
        assert np.abs(found - expected).max() < 1e-6, name


def test_the_average_can_begin_anew_at_loaded_weights():
    network, step = create(ema_decay=0.9999)
    network.classifier.weight.set_data(ms.Tensor(np.full((CLASSES, 4), 0.5, np.float32)))
    assert not np.array_equal(step.average_weights()["classifier.weight"], network.classifier.weight.asnumpy())
    step.restart_average()
    assert (step.average_weights()["classifier.weight"] == 0.5).all()
    step(*batch())
    assert not (network.classifier.weight.asnumpy() == step.average_weights()["classifier.weight"]).any()


def test_the_loss_scale_changes_neither_the_loss_nor_the_update():
    """1024 is a power of two: not a bit."""
    results = []
    for scale in (1.0, 1024.0):
        network, step = create(loss_scale=scale)
        losses = [step(*batch(t)).asnumpy() for t in range(3)]
        results.append((losses, values(network)))
    assert results[0][0] == results[1][0]
    assert all(np.array_equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_what_is_differentiated_is_the_loss_times_the_scale():
    """Without it gradients in float16 would be flushed to zero."""
    _, step = create(evaluation=True, loss_scale=1024.0)
    scaled, loss = (value.asnumpy() for value in step.scaled_loss(*batch()))
    assert np.isclose(scaled, 1024 * loss, rtol=1e-6)
    assert loss == step(*batch()).asnumpy()


OVERFLOWING = 1e12
"""Times this the images give gradients beyond float32 at a loss scale of 2**100, and a loss that is a number."""


def test_a_dynamic_scale_is_pytorchs_grad_scaler():
    """Over 12 steps with overflows in steps 2, 3 and 8: the scale, and which updates are left out. Window 3."""
    network, step = create(
        evaluation=True, momentum=0.0, loss_scale=2.0**100, loss_scale_mode="dynamic", scale_window=3
    )
    peer = torch_tiny(network).eval()
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=3)
    skipped = 0
    for t in range(12):
        images, labels = batch(t)
        images = images * (OVERFLOWING if t in (2, 3, 8) else 1)
        before = values(network)
        loss = torch_step(peer, images, labels, scaler)
        scaler.step(optimizer)
        scaler.update()
        assert np.isclose(step(images, labels).asnumpy(), loss, rtol=1e-4) and np.isfinite(loss)
        changed = not np.array_equal(values(network)["conv.weight"], before["conv.weight"])
        skipped += not changed
        assert step.overflow_state() == (skipped, scaler.get_scale())
        assert changed == (t not in (2, 3, 8))
    assert_like(network, peer, 1e-5)


def test_an_update_left_out_changes_nothing_but_the_scale_and_the_place_in_the_schedule():
    network, step = create(
        evaluation=True, loss_scale=2.0**100, loss_scale_mode="dynamic", ema_decay=0.9, clip_norm=1.0
    )
    step(*batch(0))
    images, labels = batch(1)
    before = {**values(network), **{name: p.asnumpy().copy() for name, p in step.training_parameters().items()}}
    averages = step.average_weights()
    step(images * OVERFLOWING, labels)
    after = {**values(network), **{name: p.asnumpy() for name, p in step.training_parameters().items()}}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"loss_scale", "loss_scale_good_updates", "overflows", "global_step", "loss_sum"}
    assert after["global_step"] == 2 and after["overflows"] == 1 and after["loss_scale"] == 2.0**99
    assert all(np.array_equal(averages[name], value) for name, value in step.average_weights().items())


def test_one_overflowing_batch_of_several_leaves_out_their_update():
    network, step = create(evaluation=True, loss_scale=2.0**100, loss_scale_mode="dynamic", accumulate_steps=3)
    before = values(network)["conv.weight"]
    for t, factor in enumerate((1, OVERFLOWING, 1)):
        step(batch(t)[0] * factor, batch(t)[1])
    assert np.array_equal(values(network)["conv.weight"], before)
    assert step.overflow_state() == (1, 2.0**99)
    for t in range(3):
        step(*batch(t))
    assert not np.array_equal(values(network)["conv.weight"], before)
    assert step.overflow_state() == (1, 2.0**99)


def test_float16_gradients_overflow_and_find_their_scale():
    """In float16 a scale of 2**24 is too much for this network; half of it a few times over is not."""
    network, step = create(loss_scale=2.0**24, loss_scale_mode="dynamic")
    network.to_float(ms.float16)
    losses = [step(*batch(t)).asnumpy() for t in range(20)]
    skipped, scale = step.overflow_state()
    assert 2 <= skipped <= 15 and scale == 2.0 ** (24 - skipped)
    assert np.isfinite(losses).all()


def test_an_update_is_pytorchs_on_the_same_network():
    """The same convolution, batch norm, dense layer, loss and SGD there, over 5 steps."""
    network, step = create()
    peer = torch_tiny(network)
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.1, momentum=0.9)
    for t in range(5):
        images, labels = batch(t)
        loss = torch_step(peer, images, labels)
        optimizer.step()
        assert np.isclose(step(images, labels).asnumpy(), loss, rtol=1e-5)
    assert_like(network, peer, 1e-5)


@pytest.mark.parametrize("largest", [0.05, 1000.0])
def test_clipping_is_pytorchs(largest):
    network, step = create(momentum=0.0, clip_norm=largest)
    peer = torch_tiny(network)
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.1)
    for t in range(3):
        torch_step(peer, *batch(t))
        norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), largest)
        assert (norm > largest) == (largest < 1)
        optimizer.step()
        step(*batch(t))
    assert_like(network, peer, 1e-6)


@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_accumulated_batches_are_one_large_batch(clip_norm):
    """Batch norm in evaluation mode, or its statistics would be those of the small batches.

    Clipping and RMSProp would hide a factor in the gradients; SGD alone does not.
    """
    network, step = create(evaluation=True, accumulate_steps=3, clip_norm=clip_norm, ema_decay=0.9)
    large, large_step = create(evaluation=True, clip_norm=clip_norm, ema_decay=0.9)
    first = values(network)
    for update in range(2):
        images, labels = batch(update, 3 * IMAGES)
        for part in range(3):
            rows = slice(part * IMAGES, (part + 1) * IMAGES)
            before = values(network)
            step(images[rows], labels[rows])
            changed = not np.array_equal(values(network)["classifier.weight"], before["classifier.weight"])
            assert changed == (part == 2)
        large_step(images, labels)
    for name, expected in values(large).items():
        assert np.abs(values(network)[name] - expected).max() < 1e-6, name
        assert np.abs(step.average_weights()[name] - large_step.average_weights()[name]).max() < 1e-6, name
    assert np.abs(values(network)["conv.weight"] - first["conv.weight"]).max() > 1e-4
    assert step.optimizer.global_step.asnumpy().item() == 2


def test_frozen_cells_stay_in_evaluation_mode():
    """Neither their weights nor their statistics change, and they compute with the moving statistics."""
    ms.set_seed(1)
    network = Tiny()
    for cell in (network.conv, network.norm):
        for parameter in cell.get_parameters():
            parameter.requires_grad = False
    optimizer = nn.SGD(network.trainable_params(), learning_rate=[0.1] * 10)
    step = TrainStep(network, CrossEntropySmooth(0.1, CLASSES), optimizer, frozen=[network.conv, network.norm])
    step.set_train()
    before = values(network)
    step(*batch())
    changed = {name for name, value in values(network).items() if not np.array_equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_the_sum_of_the_losses_is_kept_on_the_device_and_taken_once():
    _, step = create()
    losses = [step(*batch(t)).asnumpy() for t in range(4)]
    assert np.isclose(step.take_loss_sum(), sum(losses), rtol=1e-6)
    assert step.take_loss_sum() == 0
    assert np.isclose(step(*batch(9)).asnumpy(), step.take_loss_sum())


@pytest.mark.parametrize(
    "scale", [{}, {"loss_scale": 2.0**100, "loss_scale_mode": "dynamic", "scale_window": 2}], ids=["fixed", "dynamic"]
)
def test_a_restored_step_goes_on_bit_for_bit(scale):
    """In the middle of an accumulated update, into a cell that has been elsewhere; batches 1 and 4 overflow."""
    settings = {"accumulate_steps": 2, "ema_decay": 0.99, "clip_norm": 1.0, "evaluation": bool(scale), **scale}
    network, step = create(**settings)

    def coming(t):
        images, labels = batch(t)
        return images * (OVERFLOWING if scale and t in (1, 4) else 1), labels

    for t in range(3):
        step(*coming(t))
    weights, training = values(network), {name: p.asnumpy() for name, p in step.training_parameters().items()}
    averages = step.average_weights()
    other, other_step = create(**settings)
    other_step(*batch(99))
    for name, parameter in model_parameters(other).items():
        parameter.set_data(ms.Tensor(weights[name]))
    assert other_step.restore(training, averages) == []
    for t in range(3, 8):
        assert step(*coming(t)).asnumpy() == other_step(*coming(t)).asnumpy()
    assert step.overflow_state() == other_step.overflow_state()
    assert step.overflow_state()[0] == (2 if scale else 0)
    for found, expected in ((values(other), values(network)), (other_step.average_weights(), step.average_weights())):
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_the_training_state_holds_what_the_next_step_depends_on():
    _, step = create(accumulate_steps=2, ema_decay=0.99)
    names = {name.split(".")[0] for name in step.training_parameters()}
    assert {"random_step", "global_step", "loss_sum", "micro_step", "ema_updates", "accum", "gradient_sum"} <= names
    assert not names & {"conv", "norm", "classifier", "ema", "learning_rate"}


def test_an_incomplete_state_is_named_and_changes_nothing():
    network, step = create(ema_decay=0.99)
    training = {name: p.asnumpy() + 1 for name, p in step.training_parameters().items()}
    del training["global_step"]
    assert step.restore(training, step.average_weights()) == ["global_step"]
    assert step.restore({**training, "global_step": np.zeros((2, 2))}, step.average_weights()) == ["global_step"]
    assert step.restore({**training, "global_step": np.ones(1)}, None)[0].startswith("ema.")
    assert step.training_parameters()["random_step"].asnumpy() == 0


def test_pixels_of_a_byte_are_normalised_on_the_device():
    mean, std = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, SIDE, SIDE)).astype(np.uint8)
    shape = (1, 3, 1, 1)
    expected = (pixels.astype(np.float32) - np.float32(mean).reshape(shape)) / np.float32(std).reshape(shape)
    _, labels = batch()
    losses = []
    for images in (pixels, expected):
        _, step = create(mean=mean, std=std)
        losses.append(step(ms.Tensor(images), labels).asnumpy())
    assert losses[0] == losses[1]


def torch_tiny(network):
    """The same network in PyTorch, with the same weights; its batch-norm momentum is 1 minus MindSpore's."""
    peer = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(4, eps=1e-5, momentum=0.1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, CLASSES),
    )
    with torch.no_grad():
        for parameter, value in zip(peer.parameters(), network.trainable_params()):
            parameter.copy_(torch.from_numpy(value.asnumpy()))
    return peer.train()


def torch_step(peer, images, labels, scaler=None):
    """Compute loss and gradients, scaled by a GradScaler if given, in PyTorch; returns the loss."""
    peer.zero_grad()
    smoothing = 0.1 * CLASSES / (CLASSES - 1)
    logits = peer(torch.from_numpy(images.asnumpy()))
    labels = torch.from_numpy(labels.asnumpy()).long()
    loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    (scaler.scale(loss) if scaler else loss).backward()
    return loss.item()


def assert_like(network, peer, tolerance):
    for parameter, expected in zip(network.trainable_params(), peer.parameters()):
        assert np.abs(parameter.asnumpy() - expected.detach().numpy()).max() < tolerance, parameter.name
