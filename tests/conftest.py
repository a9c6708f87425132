"""What every test finds prepared: quiet logs, the fast convolution set-up, the digits, a training run."""

import os
import signal

# A shell's background processes ignore Ctrl-C, and so would those that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# MindSpore reads both while it loads or first runs: errors only in the log, no slow reference convolutions on CPU.
os.environ.setdefault("GLOG_v", "3")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# Pictures are drawn into files.
os.environ.setdefault("MPLBACKEND", "Agg")

import mindspore
import pytest

# MindSpore lets the device be chosen before it first computes only; scripts choose it again in tests that come later.
mindspore.set_device("CPU")

from tests.support.training_runs import few_images, training_run  # noqa: F401  fixtures that several files share


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Folder with train/ and val/ of the embedded data set."""
    from src.preparation.digits import write_digits

    root = tmp_path_factory.mktemp("data") / "digits"
    write_digits(str(root))
    return root


@pytest.fixture(autouse=True)
def mode_of_a_new_process():
    """Every test begins in MindSpore's default mode; scripts that earlier tests called here leave another."""
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
