"""What is read from MindSpore's log and graphs, from lines as MindSpore 2.10 writes them."""

import subprocess

import pytest

from benchmarks.rehearsal import standins
from benchmarks.rehearsal.graph import bound_seconds, read_graph, sum_by_operator
from benchmarks.rehearsal.run import read_log

LOG = """\
[INFO] X(1,7f,python):t [a/b.cc:1] GenerateKernelMod] kernel opname:Mul, kernel type:opapi_kernel
[INFO] X(1,7f,python):t [a/b.cc:1] GenerateKernelMod] kernel opname:Mul, kernel type:opapi_kernel
[INFO] X(1,7f,python):t [a/b.cc:1] GenerateKernelMod] kernel opname:Conv2D, kernel type:acl_kernel
[INFO] X(1,7f,python):t [a/b.cc:1] GenerateKernelMod] kernel opname:Reshape, kernel type:rt_kernel
[INFO] X(1,7f,python):t [a/c.cc:1] OptimizeNopNode] The reference relation of nopnode Reshape-op0, index: 0 to input
[INFO] X(1,7f,python):t [a/c.cc:2] Compile] The jit_level is: O0, and enable kernelbykernel executor.
epoch 1: step 4/4
Actual peak memory usage (with fragments): 123M
"""
GRAPH = """\
  %1(CNode_1) = Conv2D(%0, %para1) primitive_attrs: {}
      : (<Tensor[Float16], (2, 3, 4, 4)>, <Tensor[Float16], (5, 3, 1, 1)>) -> (<Tensor[Float16], (2, 5, 4, 4)>)
      : (<Float16xDefaultFormat[const vector]{2, 3, 4, 4}>, <Float16xNCHW[const vector]{5, 3, 1, 1}>) -> (<Float16xNCHW[const vector]{2, 5, 4, 4}>)
      : (Tensor, Tensor) -> (Tensor)
  %2(CNode_2) = PrimFunc_Reshape(%1, (I64(-1)))
      : (<Float16xNCHW[const vector]{2, 5, 4, 4}>, <Int64xDefaultFormat[const vector]{}>) -> (<Float16xNCHW[const vector]{160}>)
  %3(equiv_4_CNode) = PrimFunc_Mul(%1, %1)
      : (<Float16xNCHW[const vector]{2, 5, 4, 4}>, <Float32xDefaultFormat[const vector]{}>) -> (<Float16xNCHW[const vector]{2, 5, 4, 4}>)
  %4(CNode_5) = PrimFunc_ConvolutionGrad(%3, %0, %para1)
      : (<Float16xNCHW[const vector]{2, 5, 4, 4}>, <Float16xNCHW[const vector]{2, 3, 4, 4}>, <Float16xNCHW[const vector]{5, 3, 1, 1}>) -> (<Float16xNCHW[const vector]{2, 3, 4, 4}>, <Float16xNCHW[const vector]{5, 3, 1, 1}>)
"""  # noqa: E501  as MindSpore writes it


def test_a_log_tells_kernels_without_those_that_are_passed_over():
    run = read_log(LOG, 3)
    assert dict(run.kernels) == {("Mul", "opapi_kernel"): 2, ("Conv2D", "acl_kernel"): 1}
    assert (run.count("Mul"), run.count(kind="acl_kernel"), run.names("opapi_kernel")) == (2, 1, {"Mul"})
    assert (run.code, run.jit_levels, run.peak_memory) == (3, {"O0"}, 123)
    assert run.said.splitlines()[0] == "epoch 1: step 4/4"


def test_a_graph_tells_bytes_and_operations(tmp_path):
    """By hand: 160 numbers out of 96 by a 1x1 convolution of 15 weights: 160 products of 3 channels each."""
    (tmp_path / "rank_0").mkdir()
    (tmp_path / "rank_0" / "graph_build_0_0001.ir").write_text(GRAPH)
    nodes = read_graph(str(tmp_path))
    assert [node.operator for node in nodes] == ["Conv2D", "Mul", "ConvolutionGrad"]
    assert [node.operations for node in nodes] == [2 * 160 * 3, 0, 4 * 160 * 3]
    # The gradient's input is read for both of its results.
    assert [node.bytes for node in nodes] == [2 * (96 + 15 + 160), 2 * 320 + 4, 2 * (2 * 160 + 2 * 96 + 2 * 15)]
    assert list(sum_by_operator(nodes)) == ["ConvolutionGrad", "Mul", "Conv2D"]
    # 100 bytes/s: all three wait for memory; an operation/s: the convolutions wait for the matrix unit.
    assert bound_seconds(nodes, 100, 1e9) == pytest.approx((542 + 644 + 1084) / 100)
    assert bound_seconds(nodes, 100, 1) == pytest.approx(960 + 6.44 + 1920)


def test_stand_ins_are_functions_that_return_0_and_zeros_for_data(tmp_path):
    reason = standins.why_not()
    if reason:
        pytest.skip(reason)
    (tmp_path / "made.s").write_text(standins.write_assembly({"aclrtFree", "_ZTV4Some"}))
    (tmp_path / "main.c").write_text(
        "int aclrtFree(void); extern char _ZTV4Some[256]; int main(void) { return aclrtFree() + _ZTV4Some[255]; }"
    )
    subprocess.run(
        ["gcc", "-no-pie", "made.s", "main.c", "-o", "program"], cwd=tmp_path, check=True, capture_output=True
    )
    assert subprocess.run([tmp_path / "program"]).returncode == 0
