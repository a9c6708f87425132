"""The training step as MindSpore compiles it for Ascend: what it launches and how much memory it takes.

No NPU is there and nothing is computed; see benchmarks/rehearsal.
"""

import json
import re

import pytest

from benchmarks.rehearsal.graph import read_graph
from benchmarks.rehearsal.run import environment_of, rehearse

STEP = "benchmarks/rehearsal/step.py"
# Older operators that CANN has on the AI Core; any other must be looked up, because those of the AI CPU are slow.
AI_CORE = set(
    "AddN ApplyRMSProp Assign AssignAdd BiasAdd BiasAddGrad BitwiseAnd BitwiseXor Conv2D Conv2DBackpropFilter"
    " Conv2DBackpropInput Gather OneHot RealDiv ReduceMean TensorMove".split()
)
# The step before swish was one operator, masks were drawn at once and gradients scaled at once.
GIGABYTES_BEFORE = 121.6


def compile_step(environment, folder, *flags):
    """A step that must compile and run."""
    run = rehearse([STEP, *flags], environment, str(folder))
    assert run.code == 0, run.said[-3000:]
    assert run.jit_levels == {"O0"}
    assert run.count(kind="aicpu_kernel") == 0
    return run


def test_the_step_of_b0_keeps_to_its_budget_of_kernels_memory_and_bytes(npu, tmp_path):
    """256 images of 224 pixels in amp O3 on one card."""
    run = compile_step(npu, tmp_path, "--graphs", str(tmp_path))
    assert sum(run.kernels.values()) <= 1100
    assert run.count(kind="acl_kernel") <= 300
    assert run.names("acl_kernel") <= AI_CORE
    assert 8000 < run.peak_memory <= 12000  # MiB
    nodes = read_graph(str(tmp_path))
    assert sum(node.bytes for node in nodes) <= 0.7 * GIGABYTES_BEFORE * 1e9
    # 0.39 GMAC an image (the paper's table 1), which the two gradients need once more each, but for the images' own.
    assert sum(node.operations for node in nodes) == pytest.approx(256 * 2 * 3 * 0.39e9, rel=0.05)
    # Moving statistics are float32 where they are updated; those of a cast copy would never move.
    norms = [node for node in nodes if node.operator == "BatchNormExt"]
    assert len(norms) == 49
    assert {kind for node in norms for kind, _ in node.inputs[1:5]} == {"Float32"}


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--accumulate_steps", "2", "--clip_norm", "5"]], ids=" ".join)
def test_one_of_eight_ranks_sends_all_gradients_in_one_message(standins, npu, tmp_path, flags):
    """Of a dynamic cluster; nothing else has to run."""
    graphs = ["--graphs", str(tmp_path)]
    run = compile_step(environment_of(standins, 0, 8), tmp_path, "--distribute", *flags, *graphs)
    assert (run.count("AllReduce"), run.count(kind="hccl_kernel")) == (1, 1)
    messages = [node for node in read_graph(str(tmp_path)) if node.operator == "AllReduce"]
    assert [message.outputs for message in messages] == [[("Float32", (5288548,))]], "B0's parameters"
    assert sum(run.kernels.values()) - sum(compile_step(npu, tmp_path, *flags).kernels.values()) <= 20


@pytest.mark.slow
def test_one_of_eight_ranks_of_a_rank_table_joins_and_is_left_to_ge(standins, tmp_path):
    """GE is a part of CANN, which is not there: only MindSpore's front end works on the graph."""
    devices = [{"device_id": str(i), "device_ip": f"192.168.100.{i}", "rank_id": str(i)} for i in range(8)]
    table = {"version": "1.0", "server_count": "1", "server_list": [{"server_id": "10.0.0.1", "device": devices}]}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**table, "status": "completed"}))
    environment = environment_of(standins, 0, 8, rank_table=str(path))
    run = rehearse([STEP, "--distribute", "--jit_level", "O2"], environment, str(tmp_path))
    assert run.code == 0, run.said[-3000:]
    assert run.jit_levels == {"O2"}
    assert "Set jit level to O2 for rank table startup method" in run.log
    assert re.search(r"group name: hccl_world_group, group ranks: .*\{0, 1, 2, 3, 4, 5, 6, 7\}", run.log)
    refused = rehearse([STEP, "--distribute", "--jit_level", "O0"], environment, str(tmp_path))
    assert "--jit_level O0: with a rank table (RANK_TABLE_FILE) MindSpore takes O2" in refused.said


AVERAGED = ["--amp_level", "O2", "--ema_decay", "0.9999", "--mixed"]
ACCUMULATED = ["--accumulate_steps", "2", "--clip_norm", "5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "flags"),
    [
        ("b0", ["--amp_level", "O0"]),
        ("b0", AVERAGED),
        ("b0", ACCUMULATED),
        ("b0", ["--freeze", "3"]),
        ("lite0", ["--images", "512"]),
        ("lite0", AVERAGED),
        ("lite0", ACCUMULATED),
        ("b4", ["--images", "64", "--pixels", "380"]),
        ("b4", [*AVERAGED, "--images", "64", "--pixels", "380"]),
        ("b4", [*ACCUMULATED, "--images", "64", "--pixels", "380"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_every_kind_of_step_compiles_with_nothing_on_the_ai_cpu(npu, tmp_path, variant, flags):
    run = compile_step(npu, tmp_path, "--variant", variant, *flags)
    found = {operator for operator, _ in run.kernels}
    assert {"Conv2DExt", "BatchNormExt"} <= found
    assert ("SiLU" in found) == (variant != "lite0")
    assert "RightShift" not in found, "Ascend has it on the AI CPU only"
    assert ("ConditionSwitch" in found) == (flags[0] == "--accumulate_steps"), "an update after every second step"
    if "--accumulate_steps" not in flags:
        assert run.count("Assign") < 20, "averages are updated one by one"
    assert run.peak_memory < 30000  # MiB, of the 32 GB that a 910 has


@pytest.mark.slow
def test_jit_level_o1_fuses_kernels(npu, tmp_path):
    """MindSpore's own compiler of fused kernels (DVM) makes them for the card's name and CANN's version."""
    plain = compile_step(npu, tmp_path)
    fused = rehearse([STEP, "--jit_level", "O1"], npu, str(tmp_path))
    assert fused.code == 0, fused.said[-3000:]
    assert "O1" in fused.jit_levels and fused.count(kind="aicpu_kernel") == 0
    assert fused.count(kind="akg_kernel") > 200
    assert sum(fused.kernels.values()) < 0.9 * sum(plain.kernels.values())
