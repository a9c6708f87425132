"""train.py, eval.py and export.py from beginning to end on an Ascend back end that computes nothing: numbers are 0."""

import re
import signal

import onnx
import pytest

from benchmarks.rehearsal.run import rehearse, start
from tests.support.training_runs import checkpoint_path, saved, wait_for

pytestmark = pytest.mark.slow
FLAGS = "--device_target Ascend --image_size 32 --batch_size 4 --lr_max 0.003 --warmup_epochs 1".split()


def train_command(images, epochs, *more):
    """A run on 18 images that evaluates: some epochs of 4 steps."""
    paths = ["--dataset_path", str(images / "train"), "--eval_dataset_path", str(images / "val")]
    return ["train.py", *paths, *FLAGS, "--epoch_size", str(epochs), *more]


@pytest.fixture(scope="module")
def trained(npu, few_images, tmp_path_factory):
    """(folder, what a whole run of 3 epochs did)."""
    folder = tmp_path_factory.mktemp("trained")
    run = rehearse(train_command(few_images, 3, "--use_ema", "True"), npu, str(folder))
    assert run.code == 0, run.said[-3000:]
    return folder, run


class TestARunOnOneCard:
    def test_ends_with_all_its_files(self, trained):
        folder, run = trained
        assert saved(folder) == [(1, 4), (2, 4), (3, 4)]
        written = {path.name for path in (folder / "checkpoint" / "model_0").iterdir()}
        assert {"best.ckpt", "config.json", "curves.png", "metrics.csv", "report.html"} <= written
        assert "last checkpoint: ./checkpoint/model_0/Efficientnet_b0-rank0-3_4.ckpt" in run.said

    def test_says_what_computes_and_evaluates_after_each_epoch(self, trained):
        said = trained[1].said
        assert "device: Ascend 0 (Ascend910B2, float32 convolutions in hf32), amp level O3, data sink on" in said
        for epoch in (1, 2, 3):
            # Logits of 0 give both classes the same probability: ln 2 is 0.693.
            for kind in ("evaluation", "evaluation of the averaged weights"):
                assert f"epoch {epoch}: {kind}: loss: 0.693, top-1: 0.5000" in said

    def test_is_compiled_once_and_fetches_its_batches_on_the_device(self, trained):
        run = trained[1]
        assert run.count("GetNext") == 1
        assert run.jit_levels == {"O0"} and run.count(kind="aicpu_kernel") == 0

    def test_its_checkpoint_evaluates(self, trained, npu, few_images, tmp_path):
        command = ["eval.py", "--device_target", "Ascend", "--dataset_path", str(few_images / "val")]
        run = rehearse([*command, "--checkpoint_path", str(checkpoint_path(trained[0], 3, 4))], npu, str(tmp_path))
        assert run.code == 0, run.said[-3000:]
        assert "result: {'Loss': 0.6931471805599453, 'Top_1_Acc': 0.5, 'Top_5_Acc': 1.0}" in run.said
        assert run.count("SiLU") + run.count("Sigmoid") > 0, "the network was not compiled for the NPU"

    @pytest.mark.parametrize("file_format", ["MINDIR", "ONNX", "OM"])
    def test_its_checkpoint_exports_and_is_compared_on_the_cpu(self, trained, npu, tmp_path, file_format):
        flags = ["--soc_version", "Ascend310P3"] if file_format == "OM" else []
        command = ["export.py", "--device_target", "Ascend", "--file_format", file_format, "--file_name", "b0", *flags]
        run = rehearse([*command, "--checkpoint_path", str(checkpoint_path(trained[0], 3, 4))], npu, str(tmp_path))
        assert run.code == 0, run.said[-3000:]
        assert re.search(r"verified on seeded patterns: largest difference 0 .*same class for 4 of 4 images", run.said)
        assert sum(run.kernels.values()) == 0, "the reference was computed on the NPU"
        if file_format != "MINDIR":
            onnx.checker.check_model(str(tmp_path / ("b0.onnx" if file_format == "ONNX" else "b0.om.onnx")))


def test_a_signal_stops_a_run_with_a_checkpoint_and_the_next_start_goes_on_to_the_end(npu, few_images, tmp_path):
    command = train_command(few_images, 30, "--eval_interval", "30")
    with open(tmp_path / "log.txt", "w") as log:
        process = start(command, npu, str(tmp_path), log)
    try:
        wait_for(lambda: (2, 4) in saved(tmp_path), process, seconds=600)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=600)
    finally:
        process.kill()
    said = (tmp_path / "log.txt").read_text(errors="replace")
    assert code == 128 + signal.SIGTERM, said[-3000:]
    epoch, step = saved(tmp_path)[-1]
    done = 4 * (epoch - 1) + step
    assert done < 120
    assert f"stopped by signal 15 after step {done} of 120; --resume auto goes on" in said

    resumed = rehearse([*command, "--resume", "auto"], npu, str(tmp_path))
    assert resumed.code == 0, resumed.said[-3000:]
    assert f"resumed: ./checkpoint/model_0/Efficientnet_b0-rank0-{epoch}_{step}.ckpt, after step {done} of 120" in (
        resumed.said
    )
    assert "epoch 2:" not in resumed.said and f"epoch {epoch + 1}: " in resumed.said
    assert saved(tmp_path)[-1] == (30, 4)
