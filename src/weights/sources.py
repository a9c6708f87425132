"""The published families of weights, and what their files leave unsaid: padding, epsilon, the images they expect."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from src.data.imagenet import class_names_for
from src.images.preprocess import Preprocess
from src.models.family import VARIANTS
from src.weights.layouts import LAYOUTS, Layout
from src.weights.model_info import ModelInfo


@dataclasses.dataclass(frozen=True)
class Source:
    """A published family of weights.

    Attributes:
        title: the family, as a sentence would call it.
        layout: its names.
        padding: "same" or "symmetric".
        norm_eps: batch-norm epsilon of B0 to B7.
        images: for B0 to B7 the side of the network's input and the shorter side before the crop, in pixels.
        interpolation, mean, std: as in `Preprocess`.
        special: members (`b1`) with other arguments of `Preprocess`, and patterns of names under which a project
            published weights that differ from those of the table.
    """

    title: str
    layout: Layout
    padding: str
    norm_eps: tuple[float, ...]
    images: tuple[tuple[int, int], ...]
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485 * 255, 0.456 * 255, 0.406 * 255)
    std: tuple[float, ...] = (0.229 * 255, 0.224 * 255, 0.225 * 255)
    special: Mapping[str, dict] = dataclasses.field(default_factory=dict)

    def describe(self, variant: str, num_classes: int, name: str = "") -> ModelInfo:
        """What weights of this source expect, if the file itself says no more than its names.

        Args:
            name: under which they were published: `tf_efficientnet_b0.ap_in1k`, or a file's name.
        """
        member = list(VARIANTS).index(variant)
        image_size, resize = self.images[member]
        settings = {"image_size": image_size, "resize": resize}
        settings.update({"interpolation": self.interpolation, "mean": self.mean, "std": self.std})
        for pattern, differing in self.special.items():
            if pattern == variant or re.search(pattern, name):
                settings.update(differing)
        preprocess = Preprocess(**settings)
        names = class_names_for(num_classes)
        return ModelInfo(variant, num_classes, names, self.padding, self.norm_eps[member], preprocess)


HALF = {"mean": (127.5,) * 3, "std": (127.5,) * 3}
IMAGENET = {"mean": Source.mean, "std": Source.std}
SIZES = tuple(variant.image_size for variant in VARIANTS.values())
TF_CROPS = (0.875, 0.882, 0.890, 0.904, 0.922, 0.934, 0.942, 0.949)

SOURCES = {
    # timm's default weights of each member, which it calls b0.ra_in1k, b1.ra4_e3600_r240_in1k, and so on.
    "timm": Source(
        "timm's efficientnet_*",
        LAYOUTS["timm"],
        "symmetric",
        (1e-5,) * 8,
        ((224, 256), (240, 266), (256, 292), (288, 329), (320, 365), (448, 448), (528, 560), (600, 632)),
        special={
            "b1": HALF,
            r"_b1(\.ft_|-533bc792)": {"image_size": 224, "resize": 256, **IMAGENET},
            r"_b0\.ra4_": {"resize": 248, **HALF},
            r"_b5\.sw_in12k(?!_ft)": {"image_size": 416, "resize": 437},
        },
    ),
    # Google's weights; timm rounds the shorter side down. Those of AdvProp ("ap") were trained on other means.
    "timm_tf": Source(
        "timm's tf_efficientnet_*",
        LAYOUTS["timm"],
        "same",
        (1e-3,) * 8,
        tuple((size, int(size / crop)) for size, crop in zip(SIZES, TF_CROPS)),
        special={r"_b\d[._]ap[_-]": HALF},
    ),
    # torchvision's default weights of each member; B1's are the second ones.
    "torchvision": Source(
        "torchvision",
        LAYOUTS["torchvision"],
        "symmetric",
        (1e-5,) * 5 + (1e-3,) * 3,
        ((224, 256), (240, 255), (288, 288), (300, 320), (380, 384), (456, 456), (528, 528), (600, 600)),
        special={"b1": {"interpolation": "bilinear"}, "_b1_rwightman": {"resize": 256, "interpolation": "bicubic"}},
    ),
    # The zoo's evaluation resizes to 255 for 224 pixels, with OpenCV's linear interpolation.
    "zoo": Source(
        "the MindSpore model zoo",
        LAYOUTS["zoo"],
        "same",
        (1e-3,) * 8,
        tuple((size, size * 255 // 224) for size in SIZES),
        "bilinear",
        **HALF,
    ),
    # Its batch norms have MindSpore's own epsilon up to B4.
    "mindcv": Source(
        "MindCV",
        LAYOUTS["mindcv"],
        "same",
        (1e-5,) * 5 + (1e-3,) * 3,
        tuple((size, int(size / 0.875)) for size in SIZES),
    ),
}


def source_of(layout: Layout) -> Source:
    """The source of a layout; timm's, which has two, is for `efficientnet_*`."""
    return next(source for source in SOURCES.values() if source.layout is layout)
