"""What a model file says of itself, so that no program is told image size, mean or class names by hand.

A checkpoint, an exported ONNX file (in its metadata) and the JSON beside an exported MINDIR carry the same text.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence

from src.common.cli import RunError, UsageError, printable
from src.images.preprocess import Preprocess
from src.models.family import PADDINGS, VARIANTS
from src.published.origin import Origin

INFO_FORMAT = 1
METADATA_KEY = "efficientnet"
"""The entry in the metadata of an ONNX or .safetensors file that holds the description."""


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A network and the input that it expects.

    Attributes:
        variant: the member of the family, a key of `VARIANTS`.
        num_classes: width of the logits, at least 1.
        class_names: the class folders' names in the order of the labels, or None where they are not known.
        padding: "same" (TensorFlow's) or "symmetric" (PyTorch's).
        norm_eps: epsilon of the batch norm.
        preprocess: what happens to an image before the network.
        origin: the published weights that these are, or that their training began with; None for others.
    """

    variant: str = "b0"
    num_classes: int = 1000
    class_names: tuple[str, ...] | None = None
    padding: str = "same"
    norm_eps: float = 1e-3
    preprocess: Preprocess = dataclasses.field(default_factory=Preprocess)
    origin: Origin | None = None

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise RunError(f"the model's variant is '{self.variant}', not one of {', '.join(VARIANTS)}")
        if self.padding not in PADDINGS:
            raise RunError(f"the model's padding is '{self.padding}', not one of {', '.join(PADDINGS)}")
        if isinstance(self.num_classes, bool) or not isinstance(self.num_classes, int) or self.num_classes < 1:
            raise RunError(f"the model's class count is {self.num_classes!r}, not a whole number of at least 1")
        if not isinstance(self.norm_eps, float) or not 0 < self.norm_eps < 1:
            raise RunError(f"the model's batch-norm epsilon is {self.norm_eps!r}, not a number between 0 and 1")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise RunError(f"the model has {self.num_classes} classes and {len(self.class_names)} class names")

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where names are not known."""
        return self.class_names[label] if self.class_names else str(label)

    def check_folder(self, classes: Sequence[str], root: str, source: str) -> None:
        """Refuse a labelled folder whose labels mean something else than this model's.

        Where no name occurs on both sides (synset numbers there, words here), only the counts are compared.

        Args:
            classes: the folder's class names in the order of its labels.
            root: the folder, for the sentence.
            source: the model's file, for the sentence.

        Raises:
            UsageError: if the counts differ, or the same names stand in other places.
        """
        if len(classes) != self.num_classes:
            raise UsageError(f"{root} has {len(classes)} class folders, but {source} has {self.num_classes} classes")
        if self.class_names and set(self.class_names) & set(classes):
            for label, (here, there) in enumerate(zip(classes, self.class_names)):
                if here != there:
                    raise UsageError(
                        f"{root}: class {label} is '{printable(here)}', but {source} was trained with "
                        f"'{printable(there)}'"
                    )

    def to_json(self, indent: int | None = None) -> str:
        """The info as JSON text."""
        fields = {"format": INFO_FORMAT, **dataclasses.asdict(self)}
        if self.origin is None:
            # Earlier versions of this program know no origin.
            del fields["origin"]
        return json.dumps(fields, ensure_ascii=False, indent=indent)

    @classmethod
    def from_json(cls, text: str, source: str) -> ModelInfo:
        """Read what `to_json` wrote.

        Args:
            text: the JSON text.
            source: the file that it came from, for the error's sentence.

        Raises:
            RunError: if the text is not JSON, of another format, or contradicts itself.
        """
        try:
            fields = json.loads(text)
            if fields.pop("format") != INFO_FORMAT:
                raise RunError(
                    f"{source}: its description is of another format than {INFO_FORMAT}; a newer program wrote it"
                )
            fields["preprocess"] = Preprocess.from_dict(fields["preprocess"])
            if fields.get("class_names") is not None:
                fields["class_names"] = tuple(str(name) for name in fields["class_names"])
            if fields.get("origin") is not None:
                fields["origin"] = Origin(**fields["origin"])
            return cls(**fields)
        except RunError as error:
            raise RunError(error if str(error).startswith(source) else f"{source}: {error}") from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunError(f"{source}: the description of the model is broken ({error})") from None


def info_path(model_path: str) -> str:
    """The file beside a model file that holds its description: `b0.json` for `b0.mindir`, which cannot carry it."""
    return os.path.splitext(model_path)[0] + ".json"
