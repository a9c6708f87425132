"""Top-1, top-5 and loss against PyTorch and hand calculations."""

import math

import numpy as np
import pytest

from benchmarks.peers import torch
from src.evaluation.metrics import Score, smoothed_cross_entropy, top_k_hits


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_hits_are_pytorchs(k):
    random = np.random.default_rng(k)
    logits, labels = random.standard_normal((200, 10)).astype(np.float32), random.integers(0, 10, 200)
    top = torch.from_numpy(logits).topk(k).indices.numpy()
    assert top_k_hits(logits, labels, k) == (top == labels[:, None]).any(axis=1).sum()


def test_equal_logits_are_taken_in_the_order_of_the_classes():
    logits = np.zeros((4, 4), np.float32)
    assert [top_k_hits(logits, np.arange(4), k) for k in (1, 2, 4)] == [1, 2, 4]


@pytest.mark.parametrize("nan_at", [0, 1])
def test_nan_never_helps(nan_at):
    logits = np.array([[1.0, 2.0, 0.5]])
    logits[0, nan_at] = np.nan
    assert top_k_hits(logits, np.array([1]), 1) == 0


@pytest.mark.parametrize(
    ("logits", "labels", "k"),
    [(np.zeros((2, 3)), np.zeros(3, int), 1), (np.zeros(3), np.zeros(3, int), 1), (np.zeros((2, 3)), np.zeros(2), 4)],
)
def test_shapes_that_do_not_fit_are_refused(logits, labels, k):
    with pytest.raises(ValueError, match=r"logits of shape|there are 3 classes"):
        top_k_hits(logits, labels, k)


def test_loss_without_smoothing_is_pytorchs():
    random = np.random.default_rng(0)
    logits, labels = 30 * random.standard_normal((50, 7)), random.integers(0, 7, 50)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), reduction="none")
    np.testing.assert_allclose(smoothed_cross_entropy(logits, labels), expected.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 7])
def test_smoothing_spreads_over_the_other_classes(classes):
    """The model zoo's off-value is factor / (classes - 1): PyTorch's rule, over all classes, with a larger factor."""
    random = np.random.default_rng(1)
    logits, labels = random.standard_normal((50, classes)), random.integers(0, classes, 50)
    loss = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1 * classes / (classes - 1))
    expected = loss(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
    np.testing.assert_allclose(smoothed_cross_entropy(logits, labels, 0.1), expected, rtol=1e-12)


def test_a_single_class_has_no_loss():
    assert smoothed_cross_entropy(np.array([[3.0]]), np.array([0]), 0.1) == [0.0]


def test_a_score_adds_batches_up():
    score = Score()
    score.add(np.array([[2.0, 1.0], [2.0, 1.0]]), np.array([0, 1]))
    score.add(np.array([[0.0, 0.0]]), np.array([0]))
    score.add_wrong(1)
    loss = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1)) + math.log(2)) / 3
    assert score.as_result() == {"Loss": pytest.approx(loss), "Top_1_Acc": 0.5, "Top_5_Acc": 0.75}


def test_a_score_of_one_image_is_that_images():
    score = Score()
    score.add(np.array([[2.0, 1.0]]), np.array([0]))
    loss = math.log(1 + math.exp(-1))
    assert score.as_result() == {"Loss": pytest.approx(loss), "Top_1_Acc": 1.0, "Top_5_Acc": 1.0}


def test_an_empty_score_is_zero():
    assert Score().as_result() == {"Loss": 0.0, "Top_1_Acc": 0.0, "Top_5_Acc": 0.0}
