"""Learning rates against timm's and PyTorch's schedulers and against hand calculations."""

import importlib

import numpy as np
import pytest

from benchmarks.peers import torch
from src.lr_generator import DECAY_MODES, get_lr

scheduler = importlib.import_module("timm.scheduler")  # after the peers' import, which makes timm's possible
INIT, END, MAX = 0.0001, 0.00001, 0.2
WARMUP, EPOCHS, STEPS = 2, 9, 25


def rates(mode, **changes):
    settings = {"warmup_epochs": WARMUP, "total_epochs": EPOCHS, "steps_per_epoch": STEPS, **changes}
    return get_lr(INIT, END, MAX, lr_decay_mode=mode, **settings)


def scheduled(create):
    """What a timm scheduler sets for every update of the run."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=MAX)
    timms = create(optimizer)
    found = [optimizer.param_groups[0]["lr"]]
    for update in range(1, EPOCHS * STEPS):
        timms.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def in_updates(**settings):
    return {"warmup_t": WARMUP * STEPS, "warmup_lr_init": INIT, "t_in_epochs": False, **settings}


def after_warmup():
    return in_updates(warmup_prefix=True, lr_min=END, t_initial=(EPOCHS - WARMUP) * STEPS)


def test_cosine_is_timms():
    expected = scheduled(lambda optimizer: scheduler.CosineLRScheduler(optimizer, **after_warmup()))
    assert np.allclose(rates("cosine"), expected, rtol=1e-5)


def test_poly_is_timms_of_power_2():
    expected = scheduled(lambda optimizer: scheduler.PolyLRScheduler(optimizer, power=2.0, **after_warmup()))
    assert np.allclose(rates("poly"), expected, rtol=1e-5)


def test_exponential_is_timms_step_of_2_4_epochs_as_in_the_paper():
    """As timm's train.py has it: the warm-up is part of the epochs that count."""
    steps = in_updates(warmup_prefix=False, decay_t=2.4 * STEPS, decay_rate=0.97)
    expected = scheduled(lambda optimizer: scheduler.StepLRScheduler(optimizer, **steps))
    assert np.allclose(rates("exponential"), expected, rtol=1e-5)


@pytest.mark.parametrize("mode", ["liner", "linear"])
def test_linear_is_pytorchs(mode):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=MAX)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, INIT / MAX, 1.0, WARMUP * STEPS)
    fall = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, END / MAX, (EPOCHS - WARMUP) * STEPS)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [WARMUP * STEPS])
    expected = []
    for _ in range(EPOCHS * STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()
    assert np.allclose(rates(mode), expected, rtol=1e-5)


def test_steps_fall_to_a_tenth_after_30_60_and_80_percent_of_the_run():
    found = rates("steps", total_epochs=10, steps_per_epoch=10)
    assert np.allclose(found[20:30], 0.2)
    assert np.allclose(found[30:60], 0.02)
    assert np.allclose(found[60:80], 0.002)
    assert np.allclose(found[80:], 0.0002)


def test_the_zoos_run_by_hand():
    """350 epochs of 625 steps: the peak after 1250 steps, then a straight line over the other 217,500."""
    found = get_lr(0.0001, 0.00001, 0.2, 2, 350, 625, "liner")
    assert found.shape == (218750,) and found.dtype == np.float32
    assert np.isclose(found[0], 0.0001)
    assert np.isclose(found[625], 0.0001 + 0.1999 / 2)
    assert np.isclose(found[1250], 0.2)
    assert np.isclose(found[1250 + 217500 // 2], (0.2 + 0.00001) / 2)
    assert np.isclose(found[-1], 0.00001 + (0.2 - 0.00001) / 217500, rtol=1e-4)


@pytest.mark.parametrize("mode", DECAY_MODES)
def test_every_schedule_starts_low_peaks_once_and_never_falls_below_the_end(mode):
    found = rates(mode)
    assert found[0] == np.float32(INIT)
    assert found.max() <= np.float32(MAX) and found.argmax() in (WARMUP * STEPS, WARMUP * STEPS - 1)
    assert (np.diff(found[: WARMUP * STEPS]) > 0).all()
    assert (np.diff(found[WARMUP * STEPS :]) <= 0).all()
    assert found.min() >= np.float32(END)


@pytest.mark.parametrize("mode", DECAY_MODES)
@pytest.mark.parametrize("warmup", [0, 0.5, 1])
def test_short_runs_and_parts_of_an_epoch_have_a_rate_for_every_step(mode, warmup):
    found = rates(mode, warmup_epochs=warmup, total_epochs=1, steps_per_epoch=3)
    assert found.shape == (3,) and np.isfinite(found).all() and (found > 0).all()
    if warmup == 0:
        assert found[0] == np.float32(MAX)


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="lr_decay_mode is 'up', not one of liner, "):
        rates("up")
