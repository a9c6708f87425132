"""The report's figures against published numbers, scikit-learn, SciPy and calculations by hand."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn import metrics

from src.mistakes import measures
from src.mistakes.outcomes import ROW, Outcomes


@pytest.mark.parametrize(
    ("hits", "images", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(hits, images, low, high):
    found = measures.wilson_interval(hits, images)
    assert [round(float(limit), 4) for limit in found] == [low, high]


def test_wilsons_interval_of_no_image_says_nothing():
    low, high = measures.wilson_interval(np.array([0, 5]), np.array([0, 5]))
    assert (low[0], high[0]) == (0, 1) and high[1] == 1 and 0.5 < low[1] < 0.6


def draws(classes=7, images=300, seed=0):
    """Labels, of which one class has none, and predictions, of which one never comes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes - 1, images)
    predictions = np.where(random.random(images) < 0.6, labels, random.integers(1, classes, images))
    return labels, np.where(predictions == 2, 3, predictions)


def count(labels, predictions, classes=7):
    hits = np.bincount(labels[labels == predictions], minlength=classes)
    return hits, np.bincount(labels, minlength=classes), np.bincount(predictions, minlength=classes)


def test_precision_recall_and_f1_are_scikit_learns():
    labels, predictions = draws()
    expected = metrics.precision_recall_fscore_support(labels, predictions, labels=range(7), zero_division=np.nan)
    hits, images, predicted = count(labels, predictions)
    found = measures.class_figures(hits, images, predicted)
    assert found[6][1] is None and found[2][0] is None and found[2][2] == 0
    for ours, *theirs in zip(found, *expected[:3]):
        np.testing.assert_allclose([np.nan if value is None else value for value in ours], theirs, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_balanced_accuracy_is_scikit_learns():
    labels, predictions = draws()
    value, low, high = measures.balanced_accuracy(*count(labels, predictions)[:2])
    assert value == pytest.approx(metrics.balanced_accuracy_score(labels, predictions), rel=1e-12)
    assert low < value < high


def test_balanced_accuracy_of_one_class_has_wilsons_interval():
    value, low, high = measures.balanced_accuracy(np.array([81, 0]), np.array([263, 0]))
    assert value == 81 / 263
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    value, low, high = measures.balanced_accuracy(np.array([20]), np.array([20]))
    assert (value, round(low, 4), high) == (1, 1 - 0.1611, 1)


@pytest.mark.parametrize(("classes", "images"), [(3, 40), (10, 36), (20, 12), (200, 5), (1000, 1)])
def test_the_interval_of_balanced_accuracy_holds_the_truth_in_about_95_of_100_draws(classes, images):
    random = np.random.default_rng(1)
    shares = random.uniform(0.5, 1, classes)
    held = 0
    for _ in range(1000):
        _, low, high = measures.balanced_accuracy(random.binomial(images, shares), np.full(classes, images))
        held += low <= shares.mean() <= high
    assert 930 <= held <= 975


def test_the_calibration_error_is_that_of_a_calculation_by_hand():
    # Bins of 1/15: two images at 0.95 (one right), one at 0.5 (right), one at 1/3, the upper end of the fifth (wrong).
    bins = measures.reliability(np.array([0.95, 0.95, 0.5, 1 / 3]), np.array([True, False, True, False]))
    assert bins[:, 0].nonzero()[0].tolist() == [4, 7, 14]
    np.testing.assert_allclose(bins[14], [2, 0.95, 0.5])
    assert measures.calibration_error(bins) == pytest.approx((2 * 0.45 + 0.5 + 1 / 3) / 4)


def test_certainty_falls_into_the_last_bin_and_none_into_the_first():
    bins = measures.reliability(np.array([1.0, 0.0]), np.array([True, False]))
    assert bins[:, 0].tolist() == [1] + [0] * 13 + [1]


@pytest.mark.parametrize("scale", [0.3, 1, 4])
def test_the_temperature_is_scipys(scale):
    random = np.random.default_rng(2)
    labels = random.integers(0, 10, 2000)
    logits = random.normal(0, 1, (2000, 10))
    logits[np.arange(2000), labels] += 2
    logits = (logits * scale).astype(np.float32)

    def loss(temperature):
        exponents = np.exp(logits.astype(np.float64) / temperature)
        return metrics.log_loss(labels, exponents / exponents.sum(axis=1, keepdims=True))

    expected = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    assert measures.fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-4)


def test_the_temperature_of_a_faultless_network_stays_within_the_limits():
    logits = 5 * np.eye(4, dtype=np.float32)
    assert measures.fit_temperature(logits, np.arange(4)) == pytest.approx(0.05, rel=0.01)
    assert measures.fit_temperature(logits, (np.arange(4) + 1) % 4) == pytest.approx(20, rel=0.01)


def test_mislabelled_images_are_as_sure_of_another_class_as_its_own_images_are():
    table = [  # label, prediction, confidence, own
        (0, 0, 0.9, 0.9),
        (0, 0, 0.7, 0.7),
        (0, 1, 0.85, 0.1),  # 1's own images have 0.6 on average: suspicious
        (0, 1, 0.55, 0.4),  # not sure enough
        (1, 1, 0.6, 0.6),
        (1, 0, 0.8, 0.2),  # 0's own have (0.9 + 0.7 + 0.1 + 0.4) / 4, 1's then (0.6 + 0.2) / 2: suspicious
        (1, 2, 0.99, 0.0),  # 2 has no images to compare with
    ]
    rows = np.zeros(len(table), ROW)
    for name, values in zip(("label", "prediction", "confidence", "own"), zip(*table)):
        rows[name] = values
    assert measures.find_mislabelled(rows, 3).tolist() == [2, 5, 3]
    # Now 1's own images are surer.
    rows["own"][4:7] = [1.0, 0.8, 0.0]
    assert measures.find_mislabelled(rows, 3).tolist() == [2, 5]


class TestOutcomes:
    def test_hold_what_a_calculation_by_hand_gives(self):
        outcomes = Outcomes(5, 3, 0.1)
        logits = np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]], np.float32))
        outcomes.add(logits, np.array([1, 2]))
        outcomes.add(logits[:1], np.array([2]))
        rows = outcomes.rows
        assert rows["prediction"].tolist() == [1, 0, 1] and rows["rank"].tolist() == [0, 2, 2]
        np.testing.assert_allclose(rows["confidence"], [0.7, 0.5, 0.7], rtol=1e-6)
        np.testing.assert_allclose(rows["own"], [0.7, 0.25, 0.1], rtol=1e-6)
        expected = -(0.9 * np.log(0.7) + 0.05 * np.log(0.2) + 0.05 * np.log(0.1))
        assert rows["loss"][0] == pytest.approx(expected, rel=1e-6)
        assert outcomes.kept_logits()[0].shape == (3, 3)

    @pytest.mark.filterwarnings("ignore:invalid value")
    def test_logits_that_are_no_numbers_have_no_confidence_and_leave_the_temperature_alone(self):
        outcomes = Outcomes(2, 2, 0.0)
        outcomes.add(np.array([[np.nan, 0], [1, 2]], np.float32), np.array([1, 1]))
        assert outcomes.rows["confidence"][0] == 0 and outcomes.rows["confidence"][1] > 0.7
        assert outcomes.kept_logits()[1].tolist() == [1]

    def test_a_large_evaluation_keeps_the_logits_of_a_part(self, monkeypatch):
        monkeypatch.setattr("src.mistakes.outcomes.MOST_LOGITS", 40)
        outcomes = Outcomes(20, 5, 0.0)
        for start in range(0, 20, 4):
            outcomes.add(np.eye(5, dtype=np.float32)[:4], np.arange(start, start + 4) % 5)
        assert outcomes.kept_logits()[1].tolist() == [0, 3, 1, 4, 2, 0, 3]


def test_the_interval_of_a_mean_is_that_of_a_calculation_by_hand():
    """1 and 3: the deviation, divided by one less than their number, is the root of 2, and that of the mean 1."""
    assert measures.mean_interval(np.array([1.0, 3.0])) == pytest.approx((2, 2 - 1.96, 2 + 1.96), abs=1e-3)
    assert measures.mean_interval(np.array([5.0])) == (5, 5, 5)
    assert measures.mean_interval(np.array([])) == (0, 0, 0)
