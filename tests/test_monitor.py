"""The training log with a clock of its own: the model card's line, speed, time left, learning rates."""

import numpy as np
import pytest

from src import Monitor as module
from src.Monitor import Monitor, format_seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def create(**changes):
    settings = {
        "steps_per_epoch": 625,
        "epochs": 350,
        "learning_rates": np.arange(1.0, 625 * 350 + 1),
        "steps_per_update": 1,
        "images_per_step": 2048,
        "log_interval": 50,
        "terminal": False,
    }
    return Monitor(**{**settings, **changes})


def test_the_model_cards_line(capsys):
    create().end_epoch(1, 665.94359, 625, 5.2731)
    assert capsys.readouterr().out == ("epoch 1: epoch time: 665943.590, per step time: 1065.510, avg loss: 5.273\n")


def test_plain_lines_come_every_log_interval_but_not_with_the_epochs_own(clock, capsys):
    monitor = create(steps_per_epoch=100)
    monitor.begin_epoch(1, 0)
    for step in range(1, 101):
        clock.now += 0.5
        monitor.step(step, 2.0)
    first, estimate, *lines = capsys.readouterr().out.splitlines()
    assert (first, estimate[:9]) == ("first step: 0.5 s, compilation included", "estimate:")
    assert len(lines) == 1
    left = format_seconds((100 * 350 - 50) * 0.5)
    assert lines[0] == f"epoch 1: step 50/100, loss: 2.000, lr: 50, 4096.0 images/s, time left: {left}"


def test_the_speed_is_that_of_the_last_steps(clock):
    """The first step compiles for a minute."""
    monitor = create()
    monitor.begin_epoch(1, 0)
    for step in range(1, 31):
        clock.now += 60 if step == 1 else 0.25
        monitor.step(step, 1.0)
    assert monitor.images_per_second() == 2048 * 4


def test_an_epoch_that_goes_on_counts_its_own_steps(clock):
    monitor = create()
    monitor.begin_epoch(3, 600)
    clock.now += 2
    monitor.step(2 * 625 + 601, 1.0)
    assert monitor.seconds_per_step() == 2


@pytest.mark.parametrize(("steps", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [1, 1, 2, 2, 3])])
def test_the_rate_is_that_of_the_steps_update(steps, expected):
    monitor = create(steps_per_update=steps)
    assert [monitor.learning_rate(step) for step in range(1, 6)] == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (245, "4:05"), (11045, "3:04:05"), (106200, "29:30:00")]
)
def test_times(seconds, text):
    assert format_seconds(seconds) == text


def test_lines_go_above_the_bar(capsys):
    monitor = create(terminal=True)
    monitor.begin_epoch(1, 0)
    monitor.say("a sentence")
    monitor.step(1, 1.0)
    monitor.end_epoch(1, 1.0, 625, 1.0)
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "a sentence"
    assert monitor.bar is None


def run_steps(monitor, clock, seconds, first=1):
    """Steps that take so many seconds each; returns the step after them."""
    for step, duration in enumerate(seconds, first):
        clock.now += duration
        monitor.step(step, 2.0)
    return first + len(seconds)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_first_steps_time_and_then_once_how_long_epoch_and_run_will_take(clock, capsys, terminal):
    """40 s of compilation count for nothing: 40 steps of 2 s are 1:20, 350 epochs of those 7:46:40."""
    monitor = create(steps_per_epoch=40, terminal=terminal)
    monitor.begin_epoch(1, 0)
    run_steps(monitor, clock, [40] + 25 * [2])
    assert capsys.readouterr().out.splitlines() == [
        "first step: 40.0 s, compilation included",
        "estimate: an epoch takes about 1:20, the run about 7:46:40",
    ]
    monitor.close()


def test_the_estimate_says_what_it_leaves_out_and_what_a_resumed_run_has_left(clock, capsys):
    """200 of 350 * 40 steps are done when four more have been timed."""
    monitor = create(steps_per_epoch=40, evaluates=True)
    monitor.begin_epoch(6, 0)
    run_steps(monitor, clock, [40] + 3 * [2], first=201)
    left = format_seconds((350 * 40 - 204) * 2)
    expected = f"estimate: an epoch takes about 1:20, what is left of the run about {left}, evaluations apart"
    assert capsys.readouterr().out.splitlines()[1:] == [expected]


def test_epochs_of_few_quick_steps_get_their_estimate_at_the_end_of_the_first(clock, capsys):
    monitor = create(steps_per_epoch=2, epochs=100)
    monitor.begin_epoch(1, 0)
    run_steps(monitor, clock, [30, 0.5])
    assert "estimate: an epoch takes about 0:01, the run about 1:40" in capsys.readouterr().out


def test_epochs_of_one_step_get_it_after_the_second(clock, capsys):
    monitor = create(steps_per_epoch=1, epochs=100)
    monitor.begin_epoch(1, 0)
    run_steps(monitor, clock, [30])
    assert "estimate" not in capsys.readouterr().out
    monitor.end_epoch(1, 30.0, 1, 2.0)
    monitor.begin_epoch(2, 0)
    run_steps(monitor, clock, [3], first=2)
    assert "estimate: an epoch takes about 0:03, the run about 5:00" in capsys.readouterr().out


def test_a_log_has_a_line_a_minute_where_steps_are_slow(clock, capsys):
    """Steps of 25 s: the third after each line comes 75 s after it."""
    monitor = create()
    monitor.begin_epoch(1, 0)
    run_steps(monitor, clock, [100] + 12 * [25])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1: step ")]
    # The estimate is the line after step 4.
    assert [int(line.split("step ")[1].split("/")[0]) for line in lines] == [4, 7, 10, 13]


def test_several_steps_of_a_device_at_once_are_called_so(clock, capsys):
    monitor = create()
    monitor.begin_epoch(1, 0)
    clock.now += 90
    monitor.step(25, 2.0)
    assert capsys.readouterr().out == "first 25 steps: 90.0 s, compilation included\n"
