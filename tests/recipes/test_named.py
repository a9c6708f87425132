"""Recipes: named sets of flags, what a caller may change, and what contradicts them."""

import pytest

from src.common.cli import UsageError
from src.config import Config
from src.parameters import PARAMETERS
from src.recipes.named import FINE_TUNING_LR, INGREDIENTS, SUGGESTIONS, apply_recipe


def test_fine_tuning_starts_from_a_tenth_of_the_zoos_peak_rate():
    assert FINE_TUNING_LR == Config().lr_max / 10 == 0.02


def test_zoo_is_the_default_and_changes_nothing():
    assert Config().recipe == "zoo"
    assert apply_recipe(Config()).as_dict() == Config().as_dict()


@pytest.mark.parametrize("recipe", INGREDIENTS)
def test_recipes_consist_of_parameters_with_values_that_their_flags_accept(recipe):
    for name, value in {**SUGGESTIONS[recipe], **INGREDIENTS[recipe]}.items():
        assert PARAMETERS[name].read(str(value)) == value
    assert recipe in Config().replace(recipe=recipe).recipe


def test_timm_ra_is_the_published_command():
    """Of timm's training documentation for efficientnet_b0, 77.7% top-1.

    -b 384 --sched step --epochs 450 --decay-epochs 2.4 --decay-rate .97 --opt rmsproptf --opt-eps .001 --warmup-lr 1e-6
    --weight-decay 1e-5 --drop 0.2 --drop-path 0.2 --model-ema --model-ema-decay 0.9999 --aa rand-m9-mstd0.5
    --remode pixel --reprob 0.2 --lr .048, on 2 GPUs; of its defaults, 3 epochs of warm-up and smoothing of 0.1, and of
    PyTorch's batch norm.
    """
    config = apply_recipe(Config(recipe="timm_ra"))
    expected = {
        "batch_size": 384,
        "lr_decay_mode": "exponential",
        "epoch_size": 450,
        "opt": "rmsprop",
        "opt_eps": 0.001,
        "lr_init": 1e-6,
        "weight_decay": 1e-5,
        "dropout_rate": 0.2,
        "drop_connect_rate": 0.2,
        "use_ema": True,
        "ema_decay": 0.9999,
        "auto_augment": "randaugment",
        "random_erasing": 0.2,
        "scale_lr": True,
        "mixup": 0.0,
        "warmup_epochs": 3,
        "label_smooth_factor": 0.1,
        "color_jitter": 0.0,
        "padding": "symmetric",
        "norm_eps": 1e-5,
        "norm_momentum": 0.9,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert abs(config.lr_max * 2 * 384 / 2048 - 0.048) < 1e-9


def test_suggestions_may_be_changed():
    config = apply_recipe(Config(recipe="timm_ra", epoch_size=100, batch_size=64))
    assert (config.epoch_size, config.batch_size, config.use_ema) == (100, 64, True)


@pytest.mark.parametrize(("name", "value"), [("opt", "sgd"), ("use_ema", False), ("random_erasing", 0.0)])
def test_ingredients_may_not(name, value):
    with pytest.raises(UsageError, match=f"--{name} {value} contradicts --recipe timm_ra, which sets it to "):
        apply_recipe(Config(recipe="timm_ra", **{name: value}))


def test_an_ingredient_may_be_repeated():
    assert apply_recipe(Config(recipe="timm_ra", opt="rmsprop")).opt == "rmsprop"


@pytest.mark.parametrize("recipe", INGREDIENTS)
def test_fine_tuning_has_a_smaller_rate_of_its_own(recipe):
    assert apply_recipe(Config(recipe=recipe, pretrained="b0.ckpt")).lr_max == FINE_TUNING_LR < Config().lr_max
    assert apply_recipe(Config(recipe=recipe, pretrained="b0.ckpt", lr_max=0.1)).lr_max == 0.1
