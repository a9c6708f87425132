"""`pixels_resized` of src/images/engine.c, which resizes what the C++ program decodes itself, against Pillow."""

import resource
import subprocess

import numpy as np
import pytest
from PIL import Image

from src.images.engine import FASTER, FILTERS, FLAGS, LIBRARIES, Request
from src.images.preprocess import RESAMPLING
from tests.support import cpp_program as cpp

DONE, NO_MEMORY = 0, 2
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
BUILDS = {"native": FASTER, "portable": (), "native_sanitized": FASTER + SANITIZERS, "portable_sanitized": SANITIZERS}


@pytest.fixture(scope="module", params=BUILDS)
def program(request, tmp_path_factory):
    """tests/cpp/resample.c, compiled as the engine is."""
    path = tmp_path_factory.mktemp("resample") / request.param
    flags = [flag for flag in (*FLAGS, *BUILDS[request.param]) if flag != "-shared"]
    cpp.check(["cc", *flags, cpp.ROOT / "tests/cpp/resample.c", "-o", path, *LIBRARIES])
    return path


def resize(program, cases, **options):
    """Run the program on (pixels, request) pairs: for each, planes (3, side, side) or a result unlike DONE."""
    text = b"".join(
        np.array([pixels.shape[1], pixels.shape[0]], np.int32).tobytes() + bytes(request) + pixels.tobytes()
        for pixels, request in cases
    )
    done = subprocess.run([program], input=text, capture_output=True, **options)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-5000:]
    answers, position = [], 0
    for _, request in cases:
        result, count = int(np.frombuffer(done.stdout, np.int32, 1, position)[0]), 3 * request.side**2
        position += 4
        if result == DONE:
            answers.append(np.frombuffer(done.stdout, np.uint8, count, position).reshape(3, request.side, -1))
            position += count
        else:
            answers.append(result)
    assert position == len(done.stdout)
    return answers


def resize_by_pillow(pixels, request):
    """Resize the whole box, then cut out the window: uint8 array of shape (3, side, side)."""
    left, top, side = request.left, request.top, request.side
    box = Image.fromarray(pixels).crop((left, top, left + request.width, top + request.height))
    (method,) = (RESAMPLING[name] for name, number in FILTERS.items() if number == request.filter)
    # Rows, then columns: in one step Pillow 13 takes the columns first where the height shrinks and the width does not.
    rows = box.resize((request.new_width, request.height), method)
    resized = np.asarray(rows.resize((request.new_width, request.new_height), method))
    window = resized[request.window_top :, request.window_left :][:side, :side]
    return (window[:, ::-1] if request.flip else window).transpose(2, 0, 1)


def requests(random, width, height):
    """For an image: the whole and boxes of it, made larger and smaller, and unchanged in one direction or both."""
    for turn in range(8):
        box_width, box_height = (width, height) if turn % 2 else random.integers(1, (width + 1, height + 1))
        left, top = random.integers(0, (width - box_width + 1, height - box_height + 1))
        new_width, new_height = (int(2 ** random.uniform(0, 8.5)) for _ in "wh")
        new_width, new_height = box_width if turn in (2, 4) else new_width, box_height if turn in (3, 4) else new_height
        side = random.integers(1, min(new_width, new_height) + 1)
        window = random.integers(0, (new_width - side + 1, new_height - side + 1))
        numbers = (1, left, top, box_width, box_height, new_width, new_height, *window, side)
        for kind in FILTERS.values():
            yield Request(*map(int, numbers), kind, turn // 2 % 2)


def test_every_byte_is_pillows(program):
    random = np.random.default_rng(3)
    sizes = [(1, 1), (1, 2), (2, 1), (1, 300), (300, 1), (1, 5000), (5000, 1), (2, 2), (3, 3)]
    sizes += [tuple(int(2 ** random.uniform(0, 9)) for _ in "wh") for _ in range(60)]
    cases = []
    for number, (width, height) in enumerate(sizes):
        # Black and white alone make sums pass both ends of a byte's range.
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        pixels = np.where(pixels < 128, 0, 255).astype(np.uint8) if number % 2 else pixels
        cases += [(pixels, request) for request in requests(random, width, height)]
    assert len(cases) > 1000
    for (pixels, request), planes in zip(cases, resize(program, cases)):
        wanted = resize_by_pillow(pixels, request)
        np.testing.assert_array_equal(planes, wanted, str([getattr(request, name) for name, _ in request._fields_]))


def test_a_lack_of_memory_is_reported(program):
    if program.name.endswith("_sanitized"):
        pytest.skip("AddressSanitizer needs terabytes of address space")
    # Four bytes for each of 1000 columns of a million rows are 4 GB, the image and the result 3 MB each.
    pixels = np.zeros((1_000_000, 1, 3), np.uint8)
    request = Request(1, 0, 0, 1, 1_000_000, 1000, 1000, 0, 0, 1000, FILTERS["bicubic"], 0)
    limit = (1 << 30, 1 << 30)
    set_limit = lambda: resource.setrlimit(resource.RLIMIT_AS, limit)  # noqa: E731
    assert resize(program, [(pixels, request)], preexec_fn=set_limit) == [NO_MEMORY]
