"""Which device is found and how it is set up; NPUs are doubles, CANN's library is one that is compiled here."""

import os
import pathlib
import subprocess
import sys

import mindspore as ms
import pytest

from src.common.cli import UsageError
from src.runtime import device as device_module
from src.runtime.device import Device, count_devices, find_card, find_target, prepare_device
from src.training.configuration import check_card, check_transfer

ROOT = pathlib.Path(__file__).parent.parent.parent
CARD = 'extern "C" const char *aclrtGetSocName() { return "%s"; }\n'


@pytest.fixture
def npus(monkeypatch):
    """A function that makes a host of so many NPUs with that name; records what MindSpore and CANN are told."""
    told = {}

    def make(count, card, available=True):
        ascend = ms.device_context.ascend
        monkeypatch.setattr(ascend, "is_available", lambda: available)
        monkeypatch.setattr(ascend, "device_count", lambda: count)
        monkeypatch.setattr(ascend.op_precision, "conv_allow_hf32", lambda value: told.update(conv_allow_hf32=value))
        monkeypatch.setattr(ascend.op_precision, "precision_mode", lambda value: told.update(precision_mode=value))
        monkeypatch.setattr(ms.runtime, "dispatch_threads_num", lambda value: told.update(runtime_threads=value))
        monkeypatch.setattr(device_module, "find_card", lambda: card)
        monkeypatch.setattr(ms, "set_device", lambda target, number: told.update(device=(target, number)))
        monkeypatch.setattr(ms, "set_context", lambda **values: told.update(values))
        return told

    return make


class TestFinding:
    def test_a_plugin_that_loads_is_not_yet_a_device(self, npus):
        npus(0, "")
        assert count_devices("Ascend") == 0 and find_target() == "CPU"
        with pytest.raises(UsageError, match="--device_target is Ascend, but this MindSpore finds no Ascend device"):
            prepare_device("Ascend")

    def test_an_npu_is_taken_without_being_asked_for(self, npus):
        told = npus(8, "Ascend910B2")
        assert prepare_device(device_id=3) == Device("Ascend", 3, card="Ascend910B2")
        assert told["device"] == ("Ascend", 3) and told["runtime_threads"] == 5, "MindSpore's documented default"
        with pytest.raises(UsageError, match="--device_id is 8, but this host has 8 Ascend devices"):
            prepare_device(device_id=8)

    def test_an_inference_card_computes_only_when_asked_for_and_never_trains(self, npus, capsys):
        npus(1, "Ascend310P3")
        assert find_target() == "CPU"
        assert "note: the NPU here is an Ascend310P3, which is for exported models only" in capsys.readouterr().out
        device = prepare_device("Ascend")
        with pytest.raises(UsageError, match="the NPU here is an Ascend310P3, which runs exported models and cannot"):
            check_card(device)
        check_card(Device("Ascend", card="Ascend910B2"))
        check_card(Device("CPU"))

    def test_in_a_dry_run_the_devices_are_those_that_are_compiled_for(self, npus, monkeypatch):
        npus(0, "")
        monkeypatch.setenv("MS_SIMULATION_LEVEL", "1")
        assert count_devices("Ascend") == 16 and count_devices("CPU") == 1

    @pytest.mark.parametrize("card", ["Ascend910B2", "Ascend310P3"])
    def test_the_cards_name_is_that_of_cann(self, tmp_path, card):
        (tmp_path / "card.cpp").write_text(CARD % card)
        library = tmp_path / "libascendcl.so"
        subprocess.run(["c++", "-shared", "-fPIC", "-o", library, tmp_path / "card.cpp"], check=True)
        assert find_card(str(library)) == card
        assert find_card(str(tmp_path / "none.so")) == ""


class TestSettings:
    def test_an_npu_launches_kernels_one_by_one_unless_told_otherwise(self, npus):
        told = npus(8, "Ascend910B2")
        prepare_device("Ascend")
        assert told["jit_config"] == {"jit_level": "O0"} and told["mode"] == ms.GRAPH_MODE
        prepare_device("Ascend", jit_level="O2")
        assert told["jit_config"] == {"jit_level": "O2"}

    def test_a_rank_table_rules_out_all_but_ge(self, npus, monkeypatch):
        """In the rehearsal MindSpore 2.10 loads GE with a rank table in the environment, whatever level is set."""
        told = npus(8, "Ascend910B2")
        monkeypatch.setenv("RANK_TABLE_FILE", "table.json")
        prepare_device("Ascend")
        assert told["jit_config"] == {"jit_level": "O2"}
        with pytest.raises(
            UsageError, match="--jit_level O0: with a rank table .* MindSpore takes O2; start the ranks"
        ):
            prepare_device("Ascend", jit_level="O0")

    def test_a_cpu_is_left_to_mindspore_and_has_no_ge(self, npus):
        told = npus(0, "")
        prepare_device("CPU")
        assert "jit_config" not in told
        with pytest.raises(UsageError, match="--jit_level O2 is the back end GE, which NPUs alone have; on a CPU"):
            prepare_device("CPU", jit_level="O2")

    @pytest.mark.parametrize(
        ("precision", "hf32", "mode"),
        [
            ("fp32", False, "must_keep_origin_dtype"),
            ("hf32", True, "must_keep_origin_dtype"),
            ("fp16", False, "allow_fp32_to_fp16"),
        ],
    )
    def test_convolutions_have_the_precision_that_is_chosen_and_the_log_says_it(self, npus, precision, hf32, mode):
        told = npus(8, "Ascend910B2")
        device = prepare_device("Ascend", conv_precision=precision)
        assert (told["conv_allow_hf32"], told["precision_mode"]) == (hf32, mode)
        assert device.describe() == f"Ascend 0 (Ascend910B2, float32 convolutions in {precision})"

    def test_without_a_choice_the_log_says_what_the_card_does(self, npus):
        told = npus(8, "Ascend910B2")
        assert prepare_device("Ascend").describe() == "Ascend 0 (Ascend910B2, float32 convolutions in hf32)"
        assert "conv_allow_hf32" not in told
        assert "fp32 where the card can" in Device("Ascend", card="Ascend910A").describe()

    def test_a_cpu_has_no_such_choice(self, npus):
        npus(0, "")
        with pytest.raises(UsageError, match="--conv_precision is for NPUs; a CPU computes"):
            prepare_device("CPU", conv_precision="fp16")


def test_a_process_with_few_of_a_hosts_cores_has_as_few_threads_of_mindspores(tmp_path):
    """A host with 16 cores, as a library says that is loaded before all others; the process is bound to two of them."""
    names = ("get_nprocs", "get_nprocs_conf")
    (tmp_path / "host.c").write_text("".join(f"int {name}(void) {{ return 16; }}\n" for name in names))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "host.so", tmp_path / "host.c"], check=True)
    program = """
import pathlib
from src.runtime.device import prepare_device
prepare_device("CPU")
import mindspore as ms, numpy as np
ms.nn.Dense(4, 4)(ms.Tensor(np.ones((2, 4), np.float32))).asnumpy()
threads = [task.read_text() for task in pathlib.Path("/proc/self/task").glob("*/comm")]
print("threads:", sum(name.startswith("KernelThread") for name in threads))
"""
    cores = list(os.sched_getaffinity(0))[:2]
    environment = {**os.environ, "LD_PRELOAD": str(tmp_path / "host.so")}
    settings = {"cwd": ROOT, "env": environment, "preexec_fn": lambda: os.sched_setaffinity(0, cores)}
    found = []
    for text in (program, program.replace('prepare_device("CPU")', "")):
        out = subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, **settings).stdout
        found.append(int(out.partition("threads: ")[2]))
    assert found[0] <= 2 < found[1], "left to itself MindSpore takes more"


def test_a_batch_that_a_data_sink_cannot_send_is_refused_with_one_that_it_can():
    """256 MB at once; 256 images of B7 are 276 MB."""
    check_transfer(256, 528)
    with pytest.raises(UsageError, match="--batch_size 256 makes 276 MB of images of 600 pixels, .* at most 237,"):
        check_transfer(256, 600)
    check_transfer(237, 600)
