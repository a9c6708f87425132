"""The recipe finetune: what it chooses for which images, and that a flag overrides each choice."""

import os

import numpy as np
import pytest
from PIL import Image

from src.config import Config
from src.data.listing import list_class_folders
from src.parameters import PARAMETERS
from src.recipes import finetune
from src.recipes.finetune import choose_frozen, choose_momentum, choose_settings, median_side


def make_folder(root, counts, size=(100, 100)):
    """Class folders with so many images each; all files are links to one image."""
    root.mkdir()
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(root / ".image.jpg")
    for number, count in enumerate(counts):
        (root / f"class {number}").mkdir()
        for i in range(count):
            os.link(root / ".image.jpg", root / f"class {number}" / f"{i:05}.jpg")
    return list_class_folders(str(root))


def choose(folder, ranks=1, target="CPU", **given):
    """Name to value of what is chosen."""
    config = Config(recipe="finetune", variant="lite0", **given)
    choices = choose_settings(config, folder, target, ranks)
    assert all(choice.reason for choice in choices)
    return {choice.name: choice.value for choice in choices}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos") / "large", (700, 699), (500, 375))


def test_choices_are_values_that_the_flags_accept_and_a_configuration_that_holds(folder):
    chosen = choose(folder)
    for name, value in chosen.items():
        assert PARAMETERS[name].read(str(value)) == value
    Config(**chosen).check()


@pytest.mark.parametrize("name, value", [("batch_size", 16), ("epoch_size", 9), ("lr_max", 0.1), ("freeze", 0)])
def test_a_flag_overrides_a_choice_and_what_follows_from_it(folder, name, value):
    chosen = choose(folder, **{name: value})
    assert name not in chosen
    before = choose(folder)
    if name == "batch_size":
        assert chosen["lr_max"] == before["lr_max"] / 2
    if name == "epoch_size":
        assert chosen["warmup_epochs"] == 0.9
    if name == "lr_max":
        assert (chosen["lr_init"], chosen["lr_end"]) == (0.001, 0.001)


@pytest.mark.parametrize("size, expected", [((100, 100), 128), ((48, 60), 96), ((180, 240), 224), ((500, 375), 224)])
def test_small_photos_are_trained_on_at_a_smaller_size(tmp_path, size, expected):
    folder = make_folder(tmp_path / "photos", (20, 20), size)
    assert median_side(folder) == min(size)
    assert choose(folder)["image_size"] == expected


def test_the_size_is_the_median_from_the_first_image_to_the_last(tmp_path):
    folder = make_folder(tmp_path / "photos", (1, 1), (100, 120))
    Image.fromarray(np.zeros((80, 60, 3), np.uint8)).save(tmp_path / "photos" / "small.jpg")
    (tmp_path / "photos" / "small.jpg").replace(tmp_path / "photos" / "class 0" / "00000.jpg")
    assert median_side(folder) == 80


def test_few_images_are_shown_more_often_in_smaller_batches_with_more_held_fixed(tmp_path, folder):
    few, more = choose(make_folder(tmp_path / "few", (20, 20))), choose(make_folder(tmp_path / "more", (3000, 3000)))
    many = choose(folder)
    assert few["batch_size"] < many["batch_size"] == more["batch_size"] == 32
    assert few["epoch_size"] > many["epoch_size"] > more["epoch_size"]
    assert few["freeze"] >= many["freeze"] > more["freeze"]


def test_few_images_train_less_of_the_network_and_many_all_of_it():
    assert [choose_frozen(images)[0] for images in (1, 5_000, 5_001, 50_000, 50_001)] == [4, 4, 2, 2, 0]


def test_classes_of_unequal_size_are_balanced(tmp_path):
    assert choose(make_folder(tmp_path / "equal", (20, 30)))["class_weights"] == "none"
    assert choose(make_folder(tmp_path / "unequal", (20, 200)))["class_weights"] == "balanced"


def test_little_memory_makes_smaller_batches_on_a_cpu_only(folder, monkeypatch):
    monkeypatch.setattr(finetune, "available_memory", lambda: 2 << 30)
    assert choose(folder)["batch_size"] < 32
    assert choose(folder, target="Ascend")["batch_size"] == 32


def test_several_ranks_share_the_images_and_raise_the_rate(folder):
    assert choose(folder, ranks=4)["lr_max"] == pytest.approx(4 * choose(folder)["lr_max"])


def test_an_unreadable_image_does_not_stop_the_choice(tmp_path):
    folder = make_folder(tmp_path / "photos", (20, 20))
    broken = tmp_path / "photos" / "class 0" / "00000.jpg"
    broken.unlink()
    broken.write_bytes(b"no image")
    assert choose(folder)["image_size"] == 128


def test_statistics_follow_a_run_of_one_step_an_epoch(tmp_path):
    """Fewer images than a batch has, 200 epochs: 1 - 25 / 200."""
    chosen = choose(make_folder(tmp_path / "photos", (4, 4)), batch_size=16, epoch_size=200)
    assert chosen["norm_momentum"] == 0.875


def test_statistics_follow_a_short_run_and_the_published_one_keeps_its_momentum():
    """0.9 learns the digits in 264 steps, 0.99 does not; the published run has 218,750."""
    (choice,) = choose_momentum(Config(epoch_size=6), 44)
    assert choice.name == "norm_momentum" and choice.value == pytest.approx(0.905, abs=0.001)
    assert choose_momentum(Config(), 625) == []
