"""The training step as MindSpore compiles it for Ascend: what it launches and how much memory it takes.

No NPU is there and nothing is computed; see benchmarks/rehearsal.
"""

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
def test_one_of_eight_ranks_sends_all_gradients_in_one_message(standins, npu, tmp_path):
    """Nothing else has to run."""
    run = compile_step(environment_of(standins, 0, 8), tmp_path, "--distribute")
    assert (run.count("AllReduce"), run.count(kind="hccl_kernel")) == (1, 1)
    assert sum(run.kernels.values()) - sum(compile_step(npu, tmp_path).kernels.values()) <= 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "flags", "operators"),
    [
        ("b0", ["--amp_level", "O0"], {"Conv2DExt", "BatchNormExt", "SiLU"}),
        ("b0", ["--freeze", "3"], {"BatchNormExt", "SiLU"}),
        ("lite0", ["--images", "512"], {"BatchNormExt"}),
        ("b4", ["--images", "64", "--pixels", "380"], {"BatchNormExt", "SiLU"}),
    ],
)
def test_every_kind_of_step_compiles_with_nothing_on_the_ai_cpu(npu, tmp_path, variant, flags, operators):
    run = compile_step(npu, tmp_path, "--variant", variant, *flags)
    assert operators <= {operator for operator, _ in run.kernels}
    assert "RightShift" not in {operator for operator, _ in run.kernels}, "Ascend has it on the AI CPU only"
    assert run.peak_memory < 30000  # MiB, of the 32 GB that a 910 has
