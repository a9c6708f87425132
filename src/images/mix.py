"""Mixup, cutmix and random erasing on whole batches; pixels stay bytes, of which a device gets four for one float.

Their random numbers depend on (seed, epoch, batch, rank) alone, so that a resumed run draws the same.
"""

from __future__ import annotations

from typing import Callable

import numpy as np

# Random erasing's box as in the paper (Zhong et al. 2017, arXiv:1708.04896) and timm: share of the area, aspect ratio.
ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)
ERASE_ATTEMPTS = 10


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """One-hot targets, float32 array of shape (N, classes), of int labels of shape (N,)."""
    return np.eye(classes, dtype=np.float32)[labels]


def mixup(images: np.ndarray, targets: np.ndarray, share: float, partner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blend each image and its target with its partner's (Zhang et al. 2018, arXiv:1710.09412).

    Args:
        images: uint8 array of shape (N, 3, H, W); a blended pixel is rounded to the nearest whole number.
        targets: float32 array of shape (N, C).
        share: share of the image itself in the blend, 0 to 1.
        partner: int array of shape (N,), a permutation.
    """
    share = np.float32(share)
    rest = np.float32(1) - share
    blended = np.rint(images * share + images[partner] * rest).astype(np.uint8)
    return blended, targets * share + targets[partner] * rest


def cutmix(
    images: np.ndarray, targets: np.ndarray, share: float, partner: np.ndarray, centre: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Paste a box of each image's partner into it (Yun et al. 2019, arXiv:1905.04899); targets follow the true areas.

    Args:
        images, targets, partner: as in `mixup`.
        share: share of the image's area that stays, 0 to 1, before the box is clipped at the border.
        centre: (y, x) of the box's centre, as shares of height and width.
    """
    height, width = images.shape[2:]
    cut = np.sqrt(1.0 - share)
    half_height, half_width = int(height * cut) // 2, int(width * cut) // 2
    y, x = int(centre[0] * height), int(centre[1] * width)
    top, bottom = max(0, y - half_height), min(height, y + half_height)
    left, right = max(0, x - half_width), min(width, x + half_width)
    images = images.copy()
    images[:, :, top:bottom, left:right] = images[partner][:, :, top:bottom, left:right]
    share = np.float32(1.0 - (bottom - top) * (right - left) / (height * width))
    return images, targets * share + targets[partner] * (np.float32(1) - share)


def erase(images: np.ndarray, probability: float, random: np.random.Generator) -> np.ndarray:
    """Fill a random rectangle of some images with random pixels of 0 to 255, as the paper does.

    Args:
        images: uint8 array of shape (N, 3, H, W).
        probability: share of the images that get a rectangle.
        random: the source of all random numbers.
    """
    height, width = images.shape[2:]
    images = images.copy()
    for index in np.flatnonzero(random.random(len(images)) < probability):
        for _ in range(ERASE_ATTEMPTS):
            area = random.uniform(*ERASE_AREA) * height * width
            aspect = np.exp(random.uniform(*np.log(ERASE_ASPECT)))
            tall, wide = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < tall < height and 0 < wide < width:
                top, left = random.integers(height - tall + 1), random.integers(width - wide + 1)
                noise = random.integers(0, 256, (images.shape[1], tall, wide), np.uint8)
                images[index, :, top : top + tall, left : left + wide] = noise
                break
    return images


def create_mix(
    classes: int, mixup_alpha: float, cutmix_alpha: float, erase_probability: float, seed: int, rank: int
) -> Callable | None:
    """A function of (images, labels, epoch, batch number) that augments both; None if all methods are off.

    If both alphas are above 0, mixup or cutmix is chosen at random for each batch, as in timm.

    Args:
        classes: number of classes, C.
        mixup_alpha, cutmix_alpha: parameter of the beta distribution of the shares; 0 turns the method off. With
            either of them the labels become float32 targets of shape (N, C).
        erase_probability: share of the images in which a rectangle is erased.
        seed, rank: decide the random numbers, with the epoch and the batch's number.
    """
    if not (mixup_alpha or cutmix_alpha or erase_probability):
        return None

    def mix(images: np.ndarray, labels: np.ndarray, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([seed, epoch, number, rank])
        if erase_probability:
            images = erase(images, erase_probability, random)
        if not (mixup_alpha or cutmix_alpha):
            return images, labels
        targets = one_hot(labels, classes)
        partner = random.permutation(len(images))
        if cutmix_alpha and (not mixup_alpha or random.random() < 0.5):
            share = random.beta(cutmix_alpha, cutmix_alpha)
            return cutmix(images, targets, share, partner, tuple(random.random(2)))
        return mixup(images, targets, random.beta(mixup_alpha, mixup_alpha), partner)

    return mix
