"""Mixup, cutmix and random erasing: what becomes of pixels and targets, and that nothing but the position decides."""

import numpy as np
import pytest
from PIL import Image

from src.images.mix import ERASE_AREA, create_mix, cutmix, erase, mixup, one_hot

CLASSES, IMAGES, SIDE = 5, 8, 32


def batch(images=IMAGES, side=SIDE):
    """Images whose pixels are all the number of their class: what an image holds of a class can be counted."""
    labels = np.arange(images) % CLASSES
    pixels = np.broadcast_to(labels[:, None, None, None], (images, 3, side, side)).astype(np.uint8)
    return pixels, labels.astype(np.int32)


def test_mixup_rounds_to_the_nearest_byte():
    """As Pillow blends, up to the pixels that lie in the middle between two."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, SIDE, SIDE)).astype(np.uint8)
    found, _ = mixup(images, one_hot(np.array([0, 1]), CLASSES), 0.3, np.array([1, 0]))
    exact = 0.3 * images[0].astype(float) + 0.7 * images[1]
    assert found.dtype == np.uint8 and np.abs(found[0] - exact).max() <= 0.5 + 1e-5
    first, second = (Image.fromarray(image.transpose(1, 2, 0)) for image in images)
    peer = np.asarray(Image.blend(second, first, 0.3)).transpose(2, 0, 1)
    assert np.abs(peer.astype(int) - found[0]).max() <= 1


def test_mixup_blends_pixels_and_targets_alike():
    images, labels = batch()
    partner = np.roll(np.arange(IMAGES), 1)
    found, targets = mixup(images, one_hot(labels, CLASSES), 0.75, partner)
    for i in range(IMAGES):
        assert np.abs(found[i] - (0.75 * labels[i] + 0.25 * labels[i - 1])).max() <= 0.5
        assert np.isclose(targets[i, labels[i]], 0.75) and np.isclose(targets[i, labels[i - 1]], 0.25)
    assert np.allclose(targets.sum(1), 1)


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.0), (0.99, 0.1)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_cutmix_targets_are_the_shares_of_the_pixels(centre, share):
    """Also where the box is clipped at the border."""
    images, labels = batch()
    partner = np.roll(np.arange(IMAGES), 1)
    found, targets = cutmix(images, one_hot(labels, CLASSES), share, partner, centre)
    for i in range(IMAGES):
        counted = np.bincount(found[i].astype(int).ravel(), minlength=CLASSES) / found[i].size
        assert np.allclose(counted, targets[i], atol=1e-6)
        assert np.array_equal(found[i][0], found[i][1])
    if centre == (0.5, 0.5):
        assert abs(targets[0, 0] - share) < 2 / SIDE
    assert np.array_equal(images, batch()[0])


def test_cutmix_pastes_one_rectangle_from_the_same_place():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, SIDE, SIDE)).astype(np.uint8)
    found, _ = cutmix(images, one_hot(np.array([0, 1]), CLASSES), 0.75, np.array([1, 0]), (0.4, 0.6))
    pasted = (found[0] == images[1]).all(0)  # three bytes are hardly equal by chance
    rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
    assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert pasted.sum() == len(rows) * len(columns) == 16 * 16
    assert np.array_equal(found[0][:, ~pasted], images[0][:, ~pasted])


def test_erasing_fills_one_rectangle_of_a_share_of_the_images_with_noise():
    images = np.full((2000, 3, SIDE, SIDE), 5, np.uint8)
    found = erase(images, 0.25, np.random.default_rng(0))
    changed = (found != 5).any(1)
    erased = np.flatnonzero(changed.any((1, 2)))
    assert abs(len(erased) / 2000 - 0.25) < 0.03
    areas = []
    for index in erased:
        rows, columns = np.flatnonzero(changed[index].any(1)), np.flatnonzero(changed[index].any(0))
        box = found[index][:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        # A random byte is a 5 once in 256 times.
        assert changed[index].sum() >= 0.9 * box[0].size
        areas.append(box[0].size / SIDE**2)
    # Sides are rounded to whole pixels.
    assert ERASE_AREA[0] / 2 < min(areas) and max(areas) < ERASE_AREA[1] + 0.03
    assert abs(np.mean(areas) - np.mean(ERASE_AREA)) < 0.03
    noise = np.concatenate([found[index][:, changed[index]].ravel() for index in erased])
    # Whole numbers from 0 to 255, equally often.
    assert abs(noise.mean() - 127.5) < 0.5 and abs(noise.std() - np.sqrt((256**2 - 1) / 12)) < 0.5
    assert np.bincount(noise, minlength=256).min() > 0
    assert (images == 5).all()


def shares_of(mix, count=600):
    """Of the first image's own class in its target, over many batches."""
    images, labels = batch(2, 8)
    return np.array([mix(images, labels, 0, number)[1][0, 0] for number in range(count)])


def test_mixups_share_follows_beta():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)); half of the time the image is its own partner."""
    shares = shares_of(create_mix(CLASSES, 0.4, 0.0, 0.0, 1, 0), 3000)
    mixed = shares[shares < 1]
    assert abs(len(mixed) / 3000 - 0.5) < 0.05
    assert abs(mixed.mean() - 0.5) < 0.03
    assert abs(mixed.var() - 1 / (4 * 1.8)) < 0.02


def test_with_both_each_batch_takes_one_of_them():
    mix = create_mix(CLASSES, 0.8, 1.0, 0.0, 1, 0)
    images = (np.random.default_rng(0).integers(0, 128, (IMAGES, 3, SIDE, SIDE)) * 2).astype(np.uint8)
    labels = batch()[1]
    pasted = 0
    for number in range(300):
        found, targets = mix(images, labels, 0, number)
        # Cutmix leaves every pixel as it was in some image: even.
        pasted += not (found % 2).any()
        assert np.allclose(targets.sum(1), 1, atol=1e-6)
        assert found.dtype == np.uint8 and targets.dtype == np.float32
    assert abs(pasted / 300 - 0.5) < 0.1


def test_the_same_position_draws_the_same_and_no_other_does():
    images, labels = batch()

    def draw(seed=1, epoch=2, number=3, rank=0):
        return create_mix(CLASSES, 0.8, 1.0, 0.5, seed, rank)(images, labels, epoch, number)

    first = draw()
    assert all(np.array_equal(one, other) for one, other in zip(first, draw()))
    for change in ({"seed": 2}, {"epoch": 3}, {"number": 4}, {"rank": 1}):
        assert not np.array_equal(first[0], draw(**change)[0]), change


def test_erasing_alone_leaves_the_labels_as_numbers():
    images, labels = batch()
    found, same = create_mix(CLASSES, 0.0, 0.0, 1.0, 1, 0)(images, labels, 0, 0)
    assert same is labels
    assert not np.array_equal(found, images)


def test_without_any_there_is_nothing_to_call():
    assert create_mix(CLASSES, 0.0, 0.0, 0.0, 1, 0) is None
