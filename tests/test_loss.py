"""CrossEntropySmooth against PyTorch's cross-entropy and the zoo's formula."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from benchmarks.peers import torch
from src.evaluation.metrics import smoothed_cross_entropy
from src.loss import CrossEntropySmooth

FACTOR, CLASSES = 0.1, 7


def batch(seed=0, images=5, classes=CLASSES):
    random = np.random.default_rng(seed)
    logits = (4 * random.standard_normal((images, classes))).astype(np.float32)
    return logits, random.integers(0, classes, images).astype(np.int32)


def torch_loss(logits, labels, factor=FACTOR, **settings):
    """PyTorch spreads the smoothing over all classes, the zoo over the others: its factor is larger by C / (C - 1)."""
    smoothing = factor * logits.shape[1] / (logits.shape[1] - 1)
    return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, **settings)


def ours(logits, labels, factor=FACTOR, **settings):
    cell = CrossEntropySmooth(factor, logits.shape[1], **settings)
    return cell(ms.Tensor(logits), ms.Tensor(labels)).asnumpy()


def test_by_hand():
    """Two classes, logits 0 and ln 3: probabilities 1/4 and 3/4; the true class has 0.9 of the target."""
    logits = np.array([[0.0, np.log(3)]], np.float32)
    expected = -(0.9 * np.log(3 / 4) + 0.1 * np.log(1 / 4))
    assert np.isclose(ours(logits, np.array([1], np.int32)), expected, rtol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("classes", [2, 7, 1000])
def test_the_value_is_pytorchs(factor, classes):
    cell = CrossEntropySmooth(factor, classes)
    for seed in range(100):
        logits, labels = batch(seed, classes=classes)
        expected = torch_loss(torch.from_numpy(logits), torch.from_numpy(labels).long(), factor)
        assert np.isclose(cell(ms.Tensor(logits), ms.Tensor(labels)).asnumpy(), expected, rtol=1e-5)


def test_weights_of_classes_are_factors_on_the_losses_of_their_images():
    """PyTorch divides by the sum of the weights, which is the number of images where the weights are balanced."""
    logits, labels = batch(4, images=12, classes=3)
    labels[:] = [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    weights = len(labels) / (3 * np.bincount(labels))
    found = ours(logits, labels, 0.0, class_weights=weights)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels).long(), weight=torch.tensor(weights, dtype=torch.float32)
    )
    assert np.isclose(found, expected, rtol=1e-5)
    one_hot = np.eye(3, dtype=np.float32)[labels]
    cell = CrossEntropySmooth(0.0, 3, class_weights=weights)
    assert np.isclose(cell(ms.Tensor(logits), ms.Tensor(one_hot)).asnumpy(), expected, rtol=1e-5)


def test_the_gradient_is_pytorchs():
    logits, labels = batch()
    peer = torch.from_numpy(logits).requires_grad_()
    torch_loss(peer, torch.from_numpy(labels).long()).backward()
    cell = CrossEntropySmooth(FACTOR, CLASSES)
    gradient = ops.grad(lambda x: cell(x, ms.Tensor(labels)))(ms.Tensor(logits)).asnumpy()
    assert np.abs(gradient - peer.grad.numpy()).max() < 1e-6


def test_rows_of_mixed_labels_are_smoothed_as_their_parts():
    """Mixup's target of 0.7 a + 0.3 b has the loss 0.7 loss(a) + 0.3 loss(b)."""
    logits, first = batch(1)
    second = (first + 2) % CLASSES
    mixed = 0.7 * np.eye(CLASSES, dtype=np.float32)[first] + 0.3 * np.eye(CLASSES, dtype=np.float32)[second]
    found = ours(logits, mixed, reduction="none")
    parts = [ours(logits, labels, reduction="none") for labels in (first, second)]
    assert np.allclose(found, 0.7 * parts[0] + 0.3 * parts[1], rtol=1e-5)
    expected = torch_loss(torch.from_numpy(logits), torch.from_numpy(mixed), reduction="none").numpy()
    assert np.allclose(found, expected, rtol=1e-5)


def test_whole_rows_are_the_same_as_numbers():
    logits, labels = batch(2)
    assert np.isclose(ours(logits, np.eye(CLASSES, dtype=np.float32)[labels]), ours(logits, labels), rtol=1e-6)


def test_float16_logits_are_computed_in_float32():
    """1000 and -1000 would overflow an exponential in float16."""
    logits, labels = batch(3)
    logits = (logits * 100).astype(np.float16)
    expected = torch_loss(torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(labels).long())
    found = ours(logits, labels)
    assert found.dtype == np.float32
    assert np.isclose(found, expected, rtol=1e-5)


def test_evaluation_computes_the_same_in_numpy():
    logits, labels = batch(4, images=9)
    assert np.allclose(
        smoothed_cross_entropy(logits, labels, FACTOR), ours(logits, labels, reduction="none"), rtol=1e-5
    )


def test_a_single_class_has_no_loss():
    assert ours(np.ones((3, 1), np.float32), np.zeros(3, np.int32)) == 0


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction is 'sum', not mean or none"):
        CrossEntropySmooth(reduction="sum")
