"""Which JPEGs MindSpore may decode; its decoder crashes the process on some that are damaged."""

import os
import subprocess
import sys

import numpy as np
import pytest

from src.jpeg import plain_jpeg_size
from tests.images import bad_images, draw, encode, without_segment

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (9, 17), (64, 48), (500, 375)])
def test_everyday_jpegs_are_plain(width, height, subsampling):
    assert plain_jpeg_size(encode(draw(width, height), "JPEG", subsampling=subsampling)) == (height, width)


def test_grey_restarts_comments_and_optimised_tables_are_plain():
    image = draw(40, 30)
    assert plain_jpeg_size(encode(image.convert("L"), "JPEG")) == (30, 40)
    assert plain_jpeg_size(encode(image, "JPEG", restart_marker_rows=1, comment=b"\xff\xd9", optimize=True)) == (30, 40)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff\xd9",
        encode(draw(40, 30), "PNG"),
        encode(draw(40, 30), "JPEG", progressive=True),
        encode(draw(40, 30, mode="CMYK"), "JPEG"),
        encode(draw(40, 30), "JPEG")[:-2],
        encode(draw(40, 30), "JPEG") + b"\0",
        encode(draw(40, 30), "JPEG") * 2,
        without_segment(encode(draw(40, 30), "JPEG"), 0xDB),
        without_segment(encode(draw(40, 30), "JPEG"), 0xC4),
        without_segment(encode(draw(40, 30), "JPEG"), 0xC0),
    ],
)
def test_everything_else_is_not(data):
    assert plain_jpeg_size(data) is None


@pytest.mark.parametrize(("name", "data"), [item for item in bad_images() if item[0].endswith(".jpg")])
def test_broken_files_are_not_unless_only_their_size_is_wrong(name, data):
    size = plain_jpeg_size(data)
    assert size is None or size == (65000, 65000) or "sliver" in name


def test_no_prefix_of_a_jpeg_is_plain():
    data = encode(draw(24, 20), "JPEG")
    assert not any(plain_jpeg_size(data[:end]) or plain_jpeg_size(data[:end] + b"\xff\xd9") for end in range(600))


FUZZ = """
import sys
import numpy as np
from mindspore.dataset import vision
from src.jpeg import plain_jpeg_size
from tests.test_jpeg import damaged

crop, passed = vision.RandomCropDecodeResize(8), 0
for data in damaged(int(sys.argv[1])):
    size = plain_jpeg_size(data)
    if size and size[0] * size[1] < 1_000_000:
        passed += 1
        try:
            crop(np.frombuffer(data, np.uint8))
        except RuntimeError:
            pass
print(passed)
"""


def damaged(count):
    """JPEGs with bytes changed or cut out, most of them in the headers."""
    random = np.random.default_rng(11)
    whole = [
        encode(draw(int(random.integers(1, 40)), int(random.integers(1, 40)), turn), "JPEG", subsampling=turn % 3)
        for turn in range(12)
    ]
    for turn in range(count):
        data = bytearray(whole[turn % 12])
        header = data.index(b"\xff\xda") + 14
        for _ in range(random.integers(1, 5)):
            start = [2, data.find(b"\xff\xc4"), data.find(b"\xff\xc0"), data.find(b"\xff\xda")][random.integers(4)]
            position = int(start + random.integers(24)) if turn % 2 else int(random.integers(2, header))
            data[min(position, len(data) - 3)] = random.choice([0, 1, 0x11, 0x22, 255, random.integers(256)])
        if turn % 9 == 0:
            start = int(random.integers(2, len(data)))
            del data[start : start + int(random.integers(1, 40))]
        yield bytes(data)


def test_mindspores_decoder_survives_whatever_passes():
    command = [sys.executable, "-c", FUZZ, "6000"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr[-300:]
    assert int(result.stdout) > 500
