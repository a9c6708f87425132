"""Batches without MindSpore: threads that fill them, the order of training, cores per device."""

import time

import numpy as np
import pytest

from src.data.batches import Batch, Loading, fill_batches
from src.data.training_batches import Steps, training_order
from src.images.preprocess import Preprocess


class TestFillingBatches:
    def test_few_are_begun_before_they_are_asked_for(self):
        begun = []

        def start():
            for number in range(100):
                begun.append(number)
                yield Batch(np.arange(20), Loading(Preprocess(1, 1), normalised=False))

        def fill(batch, row):
            batch.planes[row] = row

        filled = fill_batches(start(), fill, 4)
        for number in range(5):
            batch = next(filled)
            np.testing.assert_array_equal(batch.images[:, 0, 0, 0], np.arange(20))
            time.sleep(0.05)
            assert len(begun) <= number + 6
        filled.close()

    def test_none(self):
        assert list(fill_batches([], None, 2)) == []

    def test_an_error_arrives(self):
        def fill(batch, row):
            raise KeyError("row")

        with pytest.raises(KeyError):
            list(fill_batches([Batch(np.arange(20), Loading(Preprocess(1, 1), normalised=False))], fill, 2))


class TestOrder:
    def test_an_epoch_takes_no_image_twice_and_ranks_share_none(self):
        orders = [training_order(103, 1, 0, 4, rank) for rank in range(4)]
        assert [len(order) for order in orders] == [25] * 4
        assert len(np.unique(np.concatenate(orders))) == 100

    def test_the_images_left_out_differ_by_epoch(self):
        left_out = [
            set(range(103)) - set(np.concatenate([training_order(103, 1, e, 4, r) for r in range(4)])) for e in (0, 1)
        ]
        assert left_out[0] != left_out[1]


@pytest.mark.parametrize("first", [-1, 18, 99])
def test_a_step_that_the_run_does_not_have(first):
    with pytest.raises(ValueError, match=f"first is {first}, but the run has 18 steps"):
        Steps(6, 3, first)
