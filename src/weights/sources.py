"""The published families of weights, and what their files do not say: padding, epsilon, the images they expect."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from src.common.cli import RunError
from src.data.imagenet import class_names_for
from src.images.preprocess import Preprocess
from src.models.family import VARIANTS
from src.weights.layouts import LAYOUTS, Layout
from src.weights.model_info import ModelInfo


@dataclasses.dataclass(frozen=True)
class Member:
    """What a source's weights of one member of the family expect.

    Attributes:
        norm_eps: batch-norm epsilon.
        image_size: pixels, side of the network's input.
        resize: pixels, the shorter side before the crop.
        settings: arguments of `Preprocess` in which the member differs from its source.
    """

    norm_eps: float
    image_size: int
    resize: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Source:
    """A published family of weights.

    Attributes:
        title: the family, as a sentence would call it.
        layout: its names.
        padding: "same" or "symmetric".
        members: by the variant's name.
        interpolation, mean, std: as in `Preprocess`.
        releases: patterns of the names of weights that were published with other settings than their member's, and
            these arguments of `Preprocess`.
    """

    title: str
    layout: Layout
    padding: str
    members: Mapping[str, Member]
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485 * 255, 0.456 * 255, 0.406 * 255)
    std: tuple[float, ...] = (0.229 * 255, 0.224 * 255, 0.225 * 255)
    releases: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def describe(self, variant: str, num_classes: int, name: str = "") -> ModelInfo:
        """What weights of this source expect, where the file itself has nothing but their names.

        Args:
            name: under which they were published: `tf_efficientnet_b0.ap_in1k`, or a file's name.

        Raises:
            RunError: if the source has no weights of this member.
        """
        if variant not in self.members:
            raise RunError(f"{name or self.title}: there are no weights of {VARIANTS[variant].title} by {self.title}")
        member = self.members[variant]
        settings = {"image_size": member.image_size, "resize": member.resize}
        settings.update({"interpolation": self.interpolation, "mean": self.mean, "std": self.std, **member.settings})
        for pattern, differing in self.releases.items():
            if re.search(pattern, name):
                settings.update(differing)
        names = class_names_for(num_classes)
        return ModelInfo(
            variant=variant,
            num_classes=num_classes,
            class_names=names,
            padding=self.padding,
            norm_eps=member.norm_eps,
            preprocess=Preprocess(**settings),
        )


HALF = {"mean": (127.5,) * 3, "std": (127.5,) * 3}
IMAGENET = {"mean": Source.mean, "std": Source.std}
# TensorFlow's batch-norm epsilon, and PyTorch's, which is MindSpore's own as well.
TF_EPS, TORCH_EPS = 1e-3, 1e-5
TF_MEMBERS = {
    "b0": Member(TF_EPS, 224, 256),
    "b1": Member(TF_EPS, 240, 272),
    "b2": Member(TF_EPS, 260, 292),
    "b3": Member(TF_EPS, 300, 331),
    "b4": Member(TF_EPS, 380, 412),
    "b5": Member(TF_EPS, 456, 488),
    "b6": Member(TF_EPS, 528, 560),
    "b7": Member(TF_EPS, 600, 632),
    "lite0": Member(TF_EPS, 224, 256, HALF),
    "lite1": Member(TF_EPS, 240, 272, HALF),
    "lite2": Member(TF_EPS, 260, 292, HALF),
    # timm measured Google's weights of the last two on larger images than Google did (280 and 300 pixels).
    "lite3": Member(TF_EPS, 300, 331, {"interpolation": "bilinear", **HALF}),
    "lite4": Member(TF_EPS, 380, 413, {"interpolation": "bilinear", **HALF}),
}
"""What Google's weights expect, as timm measured them; it rounds the shorter side down."""
# The sizes of those members that torchvision, the zoo and MindCV have.
SIZES = {name: row.image_size for name, row in VARIANTS.items() if row.squeeze_ratio}

SOURCES = {
    # timm's default weights of each member, which it calls b0.ra_in1k, b1.ra4_e3600_r240_in1k, and so on.
    "timm": Source(
        "timm's efficientnet_*",
        LAYOUTS["timm"],
        "symmetric",
        {
            "b0": Member(TORCH_EPS, 224, 256),
            "b1": Member(TORCH_EPS, 240, 266, HALF),
            "b2": Member(TORCH_EPS, 256, 292),
            "b3": Member(TORCH_EPS, 288, 329),
            "b4": Member(TORCH_EPS, 320, 365),
            "b5": Member(TORCH_EPS, 448, 448),
            "b6": Member(TORCH_EPS, 528, 560),
            "b7": Member(TORCH_EPS, 600, 632),
            "lite0": Member(TORCH_EPS, 224, 256),
            "lite1": Member(TORCH_EPS, 240, 272),
            "lite2": Member(TORCH_EPS, 260, 292),
            "lite3": Member(TORCH_EPS, 300, 331),
            "lite4": Member(TORCH_EPS, 380, 412),
        },
        releases={
            r"_b1(\.ft_|-533bc792)": {"image_size": 224, "resize": 256, **IMAGENET},
            r"_b0\.ra4_": {"resize": 248, **HALF},
            r"_b5\.sw_in12k(?!_ft)": {"image_size": 416, "resize": 437},
        },
    ),
    # Google's weights; those of AdvProp ("ap") were trained on other means.
    "timm_tf": Source(
        "timm's tf_efficientnet_*",
        LAYOUTS["timm"],
        "same",
        TF_MEMBERS,
        releases={r"_b\d[._]ap[_-]": HALF},
    ),
    # torchvision's default weights of each member; B1's are the second ones.
    "torchvision": Source(
        "torchvision",
        LAYOUTS["torchvision"],
        "symmetric",
        {
            "b0": Member(TORCH_EPS, 224, 256),
            "b1": Member(TORCH_EPS, 240, 255, {"interpolation": "bilinear"}),
            "b2": Member(TORCH_EPS, 288, 288),
            "b3": Member(TORCH_EPS, 300, 320),
            "b4": Member(TORCH_EPS, 380, 384),
            "b5": Member(TF_EPS, 456, 456),
            "b6": Member(TF_EPS, 528, 528),
            "b7": Member(TF_EPS, 600, 600),
        },
        releases={"_b1_rwightman": {"resize": 256, "interpolation": "bicubic"}},
    ),
    # Google's weights again, those of AdvProp in files like "adv-efficientnet-b0-b64d5a18.pth".
    "efficientnet_pytorch": Source(
        "EfficientNet-PyTorch",
        LAYOUTS["efficientnet_pytorch"],
        "same",
        TF_MEMBERS,
        releases={r"(^|[-_.])adv(prop)?[-_.]": HALF},
    ),
    # The zoo's evaluation resizes to 255 for 224 pixels, with OpenCV's linear interpolation.
    "zoo": Source(
        title="the MindSpore model zoo",
        layout=LAYOUTS["zoo"],
        padding="same",
        members={name: Member(TF_EPS, size, size * 255 // 224) for name, size in SIZES.items()},
        interpolation="bilinear",
        **HALF,
    ),
    # Its batch norms have MindSpore's own epsilon up to B4.
    "mindcv": Source(
        "MindCV",
        LAYOUTS["mindcv"],
        "same",
        {
            name: Member(TF_EPS if name in ("b5", "b6", "b7") else TORCH_EPS, size, int(size / 0.875))
            for name, size in SIZES.items()
        },
    ),
}


def source_of(layout: Layout) -> Source:
    """The source whose files have these names; of timm's two the one of `efficientnet_*`."""
    return next(source for source in SOURCES.values() if source.layout is layout)
