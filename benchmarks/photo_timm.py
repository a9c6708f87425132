"""A labelled folder of photos through timm in PyTorch: logits, and images/s."""

from __future__ import annotations

import time

import numpy as np
from PIL import Image

from benchmarks.labelled_photos import BATCH, Outcome
from benchmarks.peers import create_peer, timm, torch
from src.common.cli import RunError
from src.data.listing import ImageFolder
from src.export.plan import normalise_all
from src.images.preprocess import resized_size
from src.weights.model_info import ModelInfo


def load_timm(source: str, variant: str) -> torch.nn.Module:
    """timm's network with the weights of a file, by their order where they have other names."""
    model = create_peer("timm_tf", variant).eval()
    ours = {name: value for name, value in model.state_dict().items() if value.ndim}
    if source.endswith(".safetensors"):
        from safetensors.torch import load_file

        theirs = load_file(source)
    else:
        theirs = torch.load(source, map_location="cpu", weights_only=True)
        theirs = dict(zip(ours, (value for value in theirs.values() if value.ndim), strict=True))
    model.load_state_dict(theirs, strict=False)
    for name, value in model.state_dict().items():
        if value.ndim and not torch.equal(value, theirs[name]):
            raise RunError(f"{source}: timm's {name} did not get its weights")
    # PyTorch's fastest layout on a CPU.
    return model.to(memory_format=torch.channels_last)


def run_timm_on_crops(source: str, variant: str, info: ModelInfo, crops: np.ndarray) -> Outcome:
    """timm in PyTorch on our crops."""
    model = load_timm(source, variant)
    began, logits = time.perf_counter(), []
    with torch.inference_mode():
        for start in range(0, len(crops), BATCH):
            logits.append(model(torch.from_numpy(normalise_all(crops[start : start + BATCH], info))).numpy())
    return Outcome(np.concatenate(logits), len(crops) / (time.perf_counter() - began))


def run_timm(
    source: str, variant: str, folder: ImageFolder, info: ModelInfo, crops: np.ndarray
) -> tuple[Outcome, list[bool]]:
    """timm in PyTorch with timm's own transforms, photos decoded one by one.

    Returns:
        What came out; and of each photo of which timm's crop has other bytes than ours, whether half a pixel explains
        it: torchvision's crop begins at `round((side - crop) / 2)`, which goes to the even neighbour, ours at the whole
        part, as MindSpore's does.
    """
    model, size = load_timm(source, variant), info.preprocess.image_size
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    crop, tensor = transform.transforms[:-2], transform.transforms[-2:]
    seconds, logits, others = 0.0, [], []
    with torch.inference_mode():
        for start in range(0, len(folder), BATCH):
            began, pixels, sides = time.perf_counter(), [], []
            for index in range(start, min(start + BATCH, len(folder))):
                image = Image.open(folder.full_path(index)).convert("RGB")
                sides.append(resized_size(image.height, image.width, info.preprocess.resize))
                for step in crop:
                    image = step(image)
                pixels.append(image)
            batch = torch.stack([tensor[1](tensor[0](image)) for image in pixels])
            logits.append(model(batch).numpy())
            seconds += time.perf_counter() - began
            for image, ours, shape in zip(pixels, crops[start : start + BATCH], sides, strict=True):
                if not np.array_equal(np.asarray(image), ours):
                    others.append(any(round((side - size) / 2) != (side - size) // 2 for side in shape))
    return Outcome(np.concatenate(logits), len(folder) / seconds), others
