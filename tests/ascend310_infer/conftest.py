"""The builds of the C++ program, and the folders of images that its tests share."""

import pytest

from tests.support import cpp_program as cpp
from tests.support.hard_images import bad_images, good_images


@pytest.fixture(scope="session")
def release():
    """Build folder of the program with both engines, and the double's package."""
    return cpp.build("tests")


@pytest.fixture(scope="session")
def sanitized():
    """The same under AddressSanitizer and UBSan, without OpenVINO."""
    return cpp.build("tests-address", "-DSANITIZE=address", openvino=False)


@pytest.fixture(scope="session")
def hard(tmp_path_factory):
    """Folder of a labelled folder `images`: those that the program reads."""
    folder = tmp_path_factory.mktemp("hard")
    files = {name: data for name, data in good_images() if not name.startswith("other/")}
    assert len(files) >= 300
    cpp.write_files(folder / "images", files)
    return folder


@pytest.fixture(scope="session")
def bad(tmp_path_factory):
    """Folder of a labelled folder `images`: those that nobody can use."""
    folder = tmp_path_factory.mktemp("bad")
    cpp.write_files(folder / "images", dict(bad_images()))
    return folder
