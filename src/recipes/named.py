"""Named sets of flags. A recipe fixes its ingredients; sizes, lengths and rates are suggestions that may be changed."""

from __future__ import annotations

from src.common.cli import UsageError
from src.config import Config

# zoo: the published model card's settings, which are the defaults. finetune: chosen for the images, see finetune.py.
# timm_ra: the RandAugment recipe of timm's training documentation (efficientnet_b0, 77.7% top-1): 2 GPUs of 384 images
# each at a rate of 0.048, which is 0.128 for the 2048 images that lr_max is stated for; 0.97 every 2.4 epochs. Its
# network pads symmetrically and has PyTorch's batch norm.
INGREDIENTS = {
    "zoo": {},
    "finetune": {},
    "timm_ra": {
        "opt": "rmsprop",
        "auto_augment": "randaugment",
        "random_erasing": 0.2,
        "use_ema": True,
        "lr_decay_mode": "exponential",
        "use_label_smooth": True,
    },
}
SUGGESTIONS = {
    "zoo": {},
    "finetune": {},
    "timm_ra": {
        "epoch_size": 450,
        "warmup_epochs": 3.0,
        "lr_init": 1e-6,
        "lr_max": 0.128,
        "batch_size": 384,
        "scale_lr": True,
        "label_smooth_factor": 0.1,
        "ema_decay": 0.9999,
        "weight_decay": 1e-5,
        "dropout_rate": 0.2,
        "drop_connect_rate": 0.2,
        "color_jitter": 0.0,
        "padding": "symmetric",
        "norm_eps": 1e-5,
        "norm_momentum": 0.9,
    },
}
FINE_TUNING_LR = 0.2 / 10
"""Peak rate of a run that starts from trained weights, for a global batch of 2048; in place of a recipe's own."""


def apply_recipe(config: Config) -> Config:
    """Fill in what the recipe says and the caller did not.

    Raises:
        UsageError: if a given flag contradicts an ingredient of a given recipe.
    """
    ingredients = INGREDIENTS[config.recipe]
    for name, value in ingredients.items():
        if name in config.given and getattr(config, name) != value:
            raise UsageError(
                f"--{name} {getattr(config, name)} contradicts --recipe {config.recipe}, which sets it to {value}; "
                "leave one of them out"
            )
    values = {**SUGGESTIONS[config.recipe], **ingredients}
    if config.pretrained:
        values["lr_max"] = FINE_TUNING_LR
    return config.replace(**{name: value for name, value in values.items() if name not in config.given})
