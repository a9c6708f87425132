"""Which losses are named as far above those of guessing, by hand."""

import math

import pytest

from src.evaluation.chance import warn_of_evaluation, warn_of_training


@pytest.mark.parametrize(("warn", "factor", "more"), [(warn_of_training, 1.5, (0.1,)), (warn_of_evaluation, 10, ())])
class TestALoss:
    @pytest.mark.parametrize("classes", [2, 3, 1000])
    def test_above_so_many_times_that_of_guessing_is_named_with_both(self, warn, factor, more, classes):
        limit = factor * math.log(classes)
        assert warn(limit, classes, *more) is None
        sentence = warn(limit + 0.01, classes, *more)
        assert sentence.startswith("warning: ") and f"{math.log(classes):.3f}, that of guessing" in sentence
        assert f"{classes} classes" in sentence and sentence.count("\n") == 0

    def test_of_a_single_class_says_nothing(self, warn, factor, more):
        assert warn(100.0, 1, *more) is None

    def test_that_is_no_number_is_named(self, warn, factor, more):
        assert "nan" in warn(math.nan, 10, *more)


def test_the_advice_names_what_the_run_has():
    assert "(the rate is 0.25)" in warn_of_training(9.0, 10, 0.25)
    assert "--norm_momentum (it is 0.99)" in warn_of_evaluation(99.0, 10, 0.99)
    assert "(it is" not in warn_of_evaluation(99.0, 10)
