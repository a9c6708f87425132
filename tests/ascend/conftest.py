"""MindSpore's Ascend back end with stand-ins for CANN, where they can be made."""

import pytest

from benchmarks.rehearsal.run import environment_of
from benchmarks.rehearsal.standins import create_standins, why_not


@pytest.fixture(scope="session")
def standins(tmp_path_factory):
    """The environment that `create_standins` made, or a skip with the reason."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    return create_standins(str(tmp_path_factory.mktemp("standins")))


@pytest.fixture(scope="session")
def npu(standins):
    """The environment of a run on one card."""
    return environment_of(standins)
