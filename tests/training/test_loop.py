"""What happens around the step, on a tiny network: evaluation, best score, early end, saving, numbers that are none."""

import csv
import gc
import json
import os
import re
import signal
from types import SimpleNamespace

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
import pytest
from mindspore import nn

from src.common.cli import RunError
from src.config import Config
from src.evaluation.metrics import Score
from src.loss import CrossEntropySmooth
from src.Monitor import Monitor
from src.runtime.profiling import StepProfiler
from src.training.history import History
from src.training.loop import LoopSettings, TrainingLoop
from src.training.run_folder import CheckpointFolder
from src.training.schedule import Progress
from src.training.step import StepSettings, TrainStep
from src.training.stop import StopRequest
from src.weights.checkpoint import BEST_NAME, parse_name, read_entries
from src.weights.model_info import ModelInfo

STEPS, EPOCHS, BATCH = 2, 6, 4


class Tiny(nn.Cell):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Dense(3, 2)

    def construct(self, x):
        return self.classifier(x.mean((2, 3)))


def batches(steps, overflowing=None, all_of_class_0=False):
    """Of so many steps; the images of step number `overflowing` are a hundred times as bright."""
    random = np.random.default_rng(0)
    images = random.standard_normal((steps, BATCH, 3, 4, 4)).astype(np.float32)
    labels = random.integers(0, 1 if all_of_class_0 else 2, (steps, BATCH)).astype(np.int32)
    if overflowing:
        images[overflowing - 1] *= 400
    return ds.NumpySlicesDataset((images, labels), ["image", "label"], shuffle=False)


class Run:
    """A run of `TrainingLoop`; `scores` are those of the evaluations to come, in hundredths."""

    def __init__(self, folder, scores=(), ema_scores=None, progress=None, on_evaluation=None, **flags):
        evaluation_loss, spoil = flags.pop("evaluation_loss", 0.5), flags.pop("spoil", 0.0)
        look, on_step = flags.pop("look", 1), flags.pop("on_step", None)
        others, smoothing = flags.pop("others", ()), flags.pop("smoothing", 0.1)
        all_of_class_0 = flags.pop("all_of_class_0", False)
        step_settings, overflowing = flags.pop("step", {}), flags.pop("overflowing", None)
        config = Config(**{"epoch_size": EPOCHS, "class_num": 2, "use_ema": ema_scores is not None, **flags})
        network = Tiny()
        if spoil:
            # Every image is of class 0 with much certainty, which is wrong for half of them.
            network.classifier.bias.set_data(ms.Tensor(np.array([spoil, 0], np.float32)))
        optimizer = nn.SGD(network.trainable_params(), learning_rate=[0.1] * STEPS * EPOCHS)
        ema_decay = 0.9 if ema_scores is not None else 0.0
        self.step_cell = TrainStep(
            network, CrossEntropySmooth(smoothing, 2), optimizer, StepSettings(ema_decay=ema_decay, **step_settings)
        ).set_train()
        self.progress = progress or Progress(STEPS, EPOCHS, BATCH * STEPS)
        self.evaluations = []
        coming = [score for pair in zip(scores, ema_scores) for score in pair] if ema_scores else list(scores)

        def evaluate(weights):
            self.evaluations.append(self.progress.epoch)
            if on_evaluation:
                on_evaluation(self)
            return Score(100, 100 * evaluation_loss, coming.pop(0), 90)

        self.folder = folder
        monitor = Monitor(
            steps_per_epoch=STEPS,
            epochs=EPOCHS,
            learning_rates=np.full(STEPS * EPOCHS, 0.1),
            steps_per_update=1,
            images_per_step=BATCH,
            log_interval=50,
            terminal=False,
        )
        with StopRequest() as self.stop:
            self.loop = TrainingLoop(
                step_cell=self.step_cell,
                progress=self.progress,
                monitor=monitor,
                settings=config.part(LoopSettings),
                checkpoints=CheckpointFolder(
                    str(folder), keep=config.keep_checkpoint_max, info=ModelInfo(num_classes=2), rank=0, run={}
                ),
                history=History(str(folder), self.progress.rows),
                evaluate=evaluate if scores else None,
                stop=self.stop,
            )
            self.loop.look = look
            self.shown = []
            show = monitor.step
            monitor.step = lambda step, loss: (show(step, loss), self.shown.append(step))
            if on_step:
                follow = self.loop.on_train_step_end
                self.loop.on_train_step_end = lambda context: (on_step(self), follow(context))
            stream = batches(self.progress.total_steps - self.progress.step, overflowing, all_of_class_0)
            self.loop.run(stream, None, others)

    def saved(self):
        return sorted(filter(None, map(parse_name, os.listdir(self.folder))))


def test_evaluates_every_interval_and_at_the_end(tmp_path):
    assert Run(tmp_path, [1, 2], eval_interval=4).evaluations == [4, 6]
    assert Run(tmp_path, [1, 2, 3], eval_interval=2).evaluations == [2, 4, 6]


def test_keeps_the_best_by_top_1_and_the_first_of_equals(tmp_path):
    run = Run(tmp_path, [10, 30, 20, 30, 5, 5], keep_checkpoint_max=1)
    assert run.progress.best == {"top_1": 0.3, "epoch": 2, "weights": "raw"}
    assert run.saved() == [(6, 2)]
    assert '"step": 4' in read_entries(str(tmp_path / BEST_NAME))["training_state"]


def test_the_best_may_be_the_averaged_weights(tmp_path):
    run = Run(tmp_path, [10, 30, 20, 5, 5, 5], [10, 29, 31, 30, 6, 6])
    assert run.progress.best == {"top_1": 0.31, "epoch": 3, "weights": "ema"}
    assert run.evaluations == [epoch for epoch in range(1, 7) for _ in range(2)]
    assert [row["ema_top_1"] for row in run.progress.rows] == [0.1, 0.29, 0.31, 0.3, 0.06, 0.06]


def test_stops_early_and_saves_where_it_stops(tmp_path, capsys):
    """The best is of epoch 2; after epochs 3 and 4 two evaluations have passed without a better one."""
    run = Run(tmp_path, [10, 30, 20, 25, 99, 99], early_stop=2, save_checkpoint_epochs=100)
    assert run.evaluations == [1, 2, 3, 4]
    assert run.saved() == [(1, 2), (2, 2), (4, 2)]
    assert run.progress.has_stagnated(2) and not run.progress.has_stagnated(3) and not run.progress.has_stagnated(None)
    assert "stopped early: no better top-1 in 2 evaluations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"save_checkpoint_epochs": 4}, [(4, 2), (6, 2)]),
        ({"save_checkpoint_epochs": 4, "save_checkpoint_steps": 1}, [(e, s) for e in (1, 2, 3) for s in (1,)]
         + [(4, 1), (4, 2), (5, 1), (6, 1), (6, 2)]),
        ({"save_checkpoint": False}, []),
        ({"keep_checkpoint_max": 2}, [(5, 2), (6, 2)]),
    ],
)  # fmt: skip
def test_saves_as_asked(tmp_path, flags, expected):
    assert Run(tmp_path, **{"keep_checkpoint_max": 50, **flags}).saved() == expected


def test_a_signal_stops_after_the_step_and_saves(tmp_path):
    run = Run(tmp_path, [1] * 6, on_evaluation=lambda run: run.progress.epoch == 2 and run.stop.receive(signal.SIGINT))
    assert run.progress.step == 4
    assert run.saved() == [(1, 2), (2, 2)]
    assert run.stop.exit_code == 130


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    """The loss of the step that spoils them is still a number. The evaluation, which comes before saving, does it."""

    def spoil(run):
        if run.progress.epoch == 3:
            for parameter in run.step_cell.network.get_parameters():
                parameter.set_data(ms.Tensor(np.full(parameter.shape, np.nan, np.float32)))

    with pytest.raises(RunError) as error:
        Run(tmp_path, [1] * 6, on_evaluation=spoil, amp_level="O3")
    sentence = str(error.value)
    assert sentence.startswith("classifier.weight became infinite or NaN at step 2 of epoch 3 with learning rate 0.1; ")
    assert "try a --loss_scale below 1024, --loss_scale_mode dynamic, a smaller --lr_max, " in sentence
    assert "--warmup_epochs" in sentence and "--clip_norm" in sentence
    assert sentence.endswith(f"(the last good checkpoint is {tmp_path}/Efficientnet_b0-rank0-2_2.ckpt)")
    assert sorted(filter(None, map(parse_name, os.listdir(tmp_path)))) == [(1, 2), (2, 2)]


def test_a_signal_is_acknowledged_at_once_in_one_line(tmp_path, capsys):
    run = Run(tmp_path, [1] * 6, on_evaluation=lambda run: run.stop.received or run.stop.receive(signal.SIGTERM))
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("stopping after this step; a second signal ends at once") == 1
    # It came during the evaluation after the first epoch, before that evaluation's own line.
    assert (
        lines.index("stopping after this step; a second signal ends at once")
        < [index for index, line in enumerate(lines) if line.startswith("epoch 1: evaluation")][0]
    )
    assert run.progress.step == STEPS


def test_a_closed_output_does_not_keep_the_second_signal_from_being_heard(tmp_path):
    stop = StopRequest()
    stop.say = lambda text: open(tmp_path / "missing" / "log")
    stop.receive(signal.SIGTERM)
    assert stop.received == signal.SIGTERM


class TestLossesAboveChance:
    """Guessing between two classes has the loss ln 2 = 0.693."""

    def warnings(self, capsys):
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]

    def test_a_training_that_leaves_chance_behind_upwards_is_said_after_the_epoch(self, tmp_path, capsys):
        Run(tmp_path, [1] * 6, spoil=20.0, epoch_size=6)
        (first, *_) = self.warnings(capsys)
        assert "is well above 0.693, that of guessing among 2 classes" in first
        assert "try a smaller --lr_max (the rate is 0.1), more --warmup_epochs or --clip_norm 5" in first

    def test_an_evaluation_that_explodes_is_said_with_the_momentum(self, tmp_path, capsys):
        Run(tmp_path, [1] * 6, evaluation_loss=1e28, eval_interval=6)
        (only,) = self.warnings(capsys)
        assert "the evaluation's loss 1e+28 is far above 0.693" in only
        assert "--norm_momentum (it is 0.99), a smaller --lr_max or more steps" in only

    def test_a_loss_that_is_no_number_is_far_above_too(self, tmp_path, capsys):
        Run(tmp_path, [1] * 6, evaluation_loss=float("nan"), eval_interval=6)
        # The little network's own loss may stand above chance too, depending on its random weights.
        assert any("the evaluation's loss nan is far above" in line for line in self.warnings(capsys))

    def test_a_training_and_an_evaluation_near_chance_are_not(self, tmp_path, capsys):
        Run(tmp_path, [1] * 6, evaluation_loss=0.75)
        assert self.warnings(capsys) == []


@pytest.mark.parametrize(("classes", "shown"), [(2, False), (5, False), (6, True)])
def test_top_5_is_told_where_it_says_something(tmp_path, capsys, classes, shown):
    run = Run(tmp_path, [1] * 6, class_num=classes)
    lines = [line for line in capsys.readouterr().out.splitlines() if "evaluation: " in line]
    assert len(lines) == 6
    assert all(("top-5" in line) == shown for line in lines)
    assert {row["top_5"] for row in run.progress.rows} == {0.9 if shown else None}


def test_a_resumed_run_counts_on(tmp_path, capsys):
    """From the middle of epoch 3: time and best score of earlier processes are part of it."""
    progress = Progress(STEPS, EPOCHS, 8, 5, 100.0, {"top_1": 0.9, "epoch": 1, "weights": "raw"}, 2)
    run = Run(tmp_path, [10] * 4, progress=progress, early_stop=4)
    assert run.evaluations == [3, 4]
    lines = [line for line in capsys.readouterr().out.splitlines() if "epoch time" in line]
    seconds = [float(re.search(r"epoch \d: epoch time: ([\d.]+)", line)[1]) / 1000 for line in lines]
    assert seconds[0] >= 100 > seconds[1]
    assert run.progress.best["epoch"] == 1 and run.progress.since_best == 4


def test_a_step_knows_its_epoch():
    places = [(step, Progress(4, 3, 16, step)) for step in (0, 1, 4, 5, 12)]
    assert [(p.epoch, p.step_in_epoch) for _, p in places] == [(1, 0), (1, 1), (1, 4), (2, 1), (3, 4)]
    assert places[0][1].total_steps == 12


class TestLooks:
    """With a data sink, reading the loss waits for all steps under way, so that it is not read after each."""

    def test_come_after_as_many_steps_as_asked_for_and_where_epochs_end(self, tmp_path):
        progress = Progress(5, 2, 20)
        assert Run(tmp_path, progress=progress, look=3).shown == [3, 5, 8, 10]

    def test_come_where_checkpoints_are_saved(self, tmp_path):
        run = Run(tmp_path, progress=Progress(5, 2, 20), look=100, save_checkpoint_steps=2)
        assert run.shown == [2, 4, 5, 7, 9, 10]
        assert run.saved() == [(1, 4), (1, 5), (2, 2), (2, 4), (2, 5)]

    def test_come_at_once_when_a_stop_is_asked_for(self, tmp_path):
        def ask(run):
            if run.progress.step == 3 and not run.stop.signal:
                run.stop.receive(signal.SIGTERM)

        run = Run(tmp_path, progress=Progress(5, 2, 20), look=100, on_step=ask)
        assert run.shown == [4] and run.saved() == [(1, 4)]

    def test_find_an_infinite_loss_that_came_between_them(self, tmp_path):
        def spoil(run):
            if run.progress.step == 2:
                run.step_cell.loss_sum.set_data(ms.Tensor(np.float32(np.inf)))

        with pytest.raises(RunError, match="the mean loss of the epoch became inf at step 5 of epoch 1"):
            Run(tmp_path, progress=Progress(5, 2, 20), look=100, on_step=spoil)


class TestOverflow:
    def test_a_saturated_loss_stops_the_run_as_an_infinite_one_does(self, tmp_path):
        """Logits of 65504, float16's largest number, and half of the labels wrong."""
        with pytest.raises(RunError) as error:
            Run(tmp_path, spoil=2 * 65504.0)
        assert "which is no less than float16's largest number, at step 1 of epoch 1" in str(error.value)

    def test_a_loss_of_0_is_what_saturation_makes_of_nan(self, tmp_path, monkeypatch):
        """Without smoothing it may be a perfect batch; in a DryRun nothing is computed."""
        everything_right = {"spoil": 1e4, "smoothing": 0.0, "all_of_class_0": True}
        with pytest.raises(RunError, match="the loss became 0, which smoothed labels do not allow"):
            Run(tmp_path, **everything_right)
        Run(tmp_path, **everything_right, use_label_smooth=False)
        monkeypatch.setenv("MS_SIMULATION_LEVEL", "1")
        Run(tmp_path, **everything_right)

    def test_updates_left_out_are_said_and_counted(self, tmp_path, capsys):
        """The images of step 3 give gradients beyond float32 at a scale of 2**126; those of the others do not."""
        run = Run(tmp_path, step={"loss_scale": 2.0**126, "loss_scale_mode": "dynamic"}, overflowing=3)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("overflow: ")]
        assert lines == [
            "overflow: 1 update left out up to step 3, 1 in all; the loss scale was 8.50706e+37 and is 4.25353e+37 now"
        ]
        assert run.progress.step == STEPS * EPOCHS
        assert read_entries(str(tmp_path / "Efficientnet_b0-rank0-6_2.ckpt"))["overflows"] == 1

    def test_gradients_that_overflow_at_the_smallest_scale_stop_the_run(self, tmp_path):
        def overflow(run):
            if run.progress.step == 2:
                run.step_cell.dynamic_scale.overflows.set_data(ms.Tensor(1, ms.int32))

        step = {"loss_scale": 1.0, "loss_scale_mode": "dynamic"}
        with pytest.raises(RunError, match="the gradients overflowed at a loss scale of 1 at step 1 of epoch 2"):
            Run(tmp_path, step=step, on_step=overflow)


@pytest.mark.parametrize(("asked", "recorded"), [(3, 3), (100, 9)])
def test_the_profiler_records_as_many_steps_after_the_first_as_asked_for_and_there_are(
    tmp_path, capsys, asked, recorded
):
    """Counted by what MindSpore wrote: the network has one dense layer, whose bias is added once a step."""
    Run(tmp_path, progress=Progress(5, 2, 20), others=[StepProfiler(asked, str(tmp_path / "profile"), "CPU")])
    assert f"profile: {recorded} steps after step 1, in {tmp_path}/profile" in capsys.readouterr().out
    (operators,) = (tmp_path / "profile").glob("*/FRAMEWORK/cpu_op_detail_info_0.csv")
    with open(operators, newline="") as file:
        counts = {row["op_type"]: int(row["op_occurrences"]) for row in csv.DictReader(file)}
    assert counts["BiasAdd"] == recorded
    (trace,) = (tmp_path / "profile").glob("*/ASCEND_PROFILER_OUTPUT/trace_view.json")
    assert any("MatMul" in event["name"] for event in json.loads(trace.read_text()))


def test_a_process_that_the_profiler_forks_collects_nothing_of_this_one(tmp_path):
    """There, a data set's iterator would wait for threads that it does not have, and the run for that process."""
    codes, parent = [], os.getpid()

    class Cycle:
        def __init__(self):
            self.itself = self

        def __del__(self):
            if os.getpid() != parent:
                os._exit(7)

    def stop():
        child = os.fork()
        if child == 0:
            gc.collect()
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    profiler = StepProfiler(1, str(tmp_path), "CPU")
    profiler.profiler = SimpleNamespace(stop=stop)
    profiler.begun_after, profiler.is_recording = 0, True
    Cycle()
    profiler.finish(1)
    assert codes == [0]
    assert gc.get_freeze_count() == 0
