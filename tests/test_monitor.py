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
    lines = capsys.readouterr().out.splitlines()
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
    monitor.step(1, 1.0)
    monitor.say("a sentence")
    monitor.end_epoch(1, 1.0, 625, 1.0)
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "a sentence"
    assert monitor.bar is None
