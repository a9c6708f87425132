"""Runs that are stopped and go on: real processes, stopped at any moment, end as the undisturbed run does."""

import csv
import json
import os
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest

from src.common.cli import RunError
from src.config import Config
from src.training.resume import STATE_FORMAT, check_state, merge_resumed
from src.training.schedule import Progress
from src.weights.checkpoint import Checkpoint, read_entries
from tests.support.terminal import Terminal
from tests.support.training_runs import (
    EPOCHS,
    ROOT,
    STEPS,
    assert_same_state,
    checkpoint_path,
    finish,
    flip_bit,
    run,
    saved,
    start,
    train_command,
    wait_for,
)

KILLS = 28
LONG = 30
"""Epochs of the run that is killed so often."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the run that is stopped writes."""
    return tmp_path_factory.mktemp("stopped")


class TestARunThatIsStopped:
    """One run, stopped by SIGTERM, by Ctrl-C at a terminal and by SIGKILL; each start goes on with --resume auto."""

    def flags(self, few_images):
        return {"dataset_path": few_images / "train", "eval_dataset_path": few_images / "val", "resume": "auto"}

    def test_sigterm_finishes_the_step_saves_it_and_says_so_in_the_exit_code(self, folder, few_images):
        """Only the signal saves: no checkpoints of steps. The first start finds nothing and begins."""
        process = start(folder, **self.flags(few_images), save_checkpoint_steps=None)
        wait_for(lambda: "epoch 1: step 2/4" in (folder / "log.txt").read_text(), process)
        process.send_signal(signal.SIGTERM)
        code, out, err = finish(process, folder)
        assert (code, err) == (128 + signal.SIGTERM, "")
        stop = re.search(r"^stopped by signal 15 after step (\d+) of 12; --resume auto goes on$", out, re.MULTILINE)
        assert stop, out
        assert out.count("\nstopping after this step; a second signal ends at once\n") == 1
        nothing = "resume: there is no checkpoint in ./checkpoint/model_0 to go on from, so the run begins"
        assert nothing in out.splitlines()
        assert divmod(int(stop[1]) - 1, STEPS) == (saved(folder)[-1][0] - 1, saved(folder)[-1][1] - 1)
        assert int(stop[1]) < EPOCHS * STEPS

    def test_ctrl_c_at_a_terminal_does_so_too_and_a_bar_shows_the_progress(self, folder, few_images):
        before = len(saved(folder))
        terminal = Terminal(train_command(**self.flags(few_images)), folder)
        wait_for(lambda: terminal.read() and len(saved(folder)) > before + 2, terminal.process)
        terminal.press_ctrl_c()
        code, text, as_found = terminal.finish()
        assert (code, as_found) == (128 + signal.SIGINT, True), text
        assert re.search(r"epoch \d/3: +\d+%\|.*\| \d/4 \[\d\d:\d\d<.*, loss [\d.]+, lr [\d.]+, \d+ images/s\]", text)
        assert not re.search(r"step \d/4, loss: ", text)
        assert re.search(r"stopped by signal 2 after step \d+ of 12; --resume auto goes on", text)

    def test_sigkill_leaves_the_checkpoint_of_a_step(self, folder, few_images):
        before = saved(folder)
        process = start(folder, **self.flags(few_images))
        wait_for(lambda: saved(folder) > before and saved(folder)[-1] >= (2, 3), process)
        process.kill()
        code, out, err = finish(process, folder)
        assert code == -signal.SIGKILL
        assert f"resumed: ./checkpoint/model_0/{checkpoint_path(folder, *before[-1]).name}, after step " in out
        assert "resume: " not in out
        assert saved(folder)[-1] < (EPOCHS, STEPS)

    def test_it_passes_over_a_damaged_checkpoint_and_ends_as_the_undisturbed_run(
        self, folder, few_images, training_run
    ):
        *_, before, newest = saved(folder)
        flip_bit(checkpoint_path(folder, *newest))
        code, out, err = run(folder, **self.flags(few_images))
        assert (code, err) == (0, "")
        assert f"passed over: ./checkpoint/model_0/{checkpoint_path(folder, *newest).name}: the checkpoint is" in out
        assert f"resumed: ./checkpoint/model_0/{checkpoint_path(folder, *before).name}, after step " in out
        assert_same_state(checkpoint_path(folder, EPOCHS, STEPS), checkpoint_path(training_run[0], EPOCHS, STEPS))

    def test_its_history_is_whole(self, folder, training_run):
        """Every epoch once, with the undisturbed run's numbers but the speed."""

        def rows(folder):
            lines = (folder / "checkpoint" / "model_0" / "metrics.csv").read_text().splitlines()
            speed = lines[0].split(",").index("images_per_second")
            return [[cell for i, cell in enumerate(line.split(",")) if i != speed] for line in lines]

        assert len(rows(folder)) == 1 + EPOCHS
        assert rows(folder) == rows(training_run[0])

    def test_its_best_checkpoint_is_the_undisturbed_runs(self, folder, training_run):
        first, second = (where / "checkpoint" / "model_0" / "best.ckpt" for where in (folder, training_run[0]))
        assert_same_state(first, second)


PREVIOUS = "tests/data/previous_version/model_0/Efficientnet_b0-rank0-39_2.ckpt"


class TestStateOfAnotherVersion:
    """The training state in a checkpoint as `check_state` takes it."""

    @pytest.fixture
    def state(self):
        return json.loads(read_entries(str(ROOT / PREVIOUS))["training_state"])

    def check(self, state):
        return check_state(Checkpoint("a.ckpt", None, {}, None, {}, state)).state

    def test_this_versions_has_a_number(self, training_run):
        state = json.loads(read_entries(str(checkpoint_path(training_run[0], 2, 1)))["training_state"])
        assert state["format"] == STATE_FORMAT == 1
        assert self.check(state)["progress"] == state["progress"]

    def test_the_last_versions_without_a_number_goes_on(self, state):
        assert "format" not in state
        checked = self.check(state)
        assert Progress.from_dict(checked["progress"]).step == 154
        assert checked["config"]["epoch_size"] == 40

    def test_a_field_that_it_lacks_has_its_default_and_one_that_is_new_is_passed_over(self, state):
        del state["progress"]["since_best"], state["progress"]["epoch_seconds"], state["config"]["mixup"]
        state["progress"]["of_a_later_version"] = state["config"]["of_a_later_version"] = 1
        state["progress"]["rows"][0]["of_a_later_version"] = 1
        read = Progress.from_dict(self.check(state)["progress"])
        assert (read.step, read.since_best, read.epoch_seconds) == (state["progress"]["step"], 0, 0.0)
        merged = merge_resumed(Config(), Checkpoint("a.ckpt", None, {}, None, {}, self.check(state)), 1)
        assert merged.cutmix == state["config"]["cutmix"] and merged.mixup == Config().mixup

    @pytest.mark.parametrize("number", [2, 0, "1", None, [1]])
    def test_another_number_is_refused(self, state, number):
        with pytest.raises(RunError) as error:
            self.check({**state, "format": number})
        assert str(error.value) == (
            f"--resume a.ckpt: its training state is of format {number}, and this program knows format 1; go on with "
            "the version that wrote it"
        )

    @pytest.mark.parametrize(
        "change",
        [
            lambda state: state["progress"].pop("images"),
            lambda state: state["progress"].update(step=-1),
            lambda state: state["progress"].update(step=10**9),
            lambda state: state["progress"].update(step="7"),
            lambda state: state["progress"].update(steps_per_epoch=0),
            lambda state: state["progress"].update(epoch_seconds=[]),
            lambda state: state["progress"].update(best={"top_1": 0.5}),
            lambda state: state["progress"].update(best=7),
            lambda state: state["progress"].update(best={"top_1": 0.5, "epoch": 1, "weights": "other"}),
            lambda state: state["progress"].update(rows={}),
            lambda state: state["progress"].update(rows=[1]),
            lambda state: state["progress"].update(rows=[{"epoch": 1}]),
            lambda state: state["progress"].update(rows=[{"epoch": 1, "step": 1, "loss": "low"}]),
            lambda state: state["config"].pop("epoch_size"),
            lambda state: state["config"].update(batch_size="many"),
            lambda state: state["config"].update(mean=[1, 2]),
            lambda state: state["config"].update(lr_max=None),
            lambda state: state["config"].update(use_ema={}),
            lambda state: state.update(rank_size="two"),
        ],
    )
    def test_one_without_sense_is_one_sentence(self, state, change):
        change(state)
        with pytest.raises(RunError, match="^--resume a.ckpt: its training state is damaged [(].*[)]$"):
            self.check(state)


def test_a_finished_run_can_be_made_longer(few_images, training_run, tmp_path):
    shutil.copytree(training_run[0] / "checkpoint", tmp_path / "checkpoint")
    flags = {"dataset_path": few_images / "train", "eval_dataset_path": few_images / "val", "resume": "auto"}
    code, out, err = run(tmp_path, **flags, epoch_size=EPOCHS + 1)
    assert (code, err) == (0, "")
    sentence = f"the run was to end after epoch {EPOCHS}; from here on its rates are those of {EPOCHS + 1} epochs"
    assert sentence in out and f"epoch {EPOCHS}:" not in out
    assert saved(tmp_path)[-1] == (EPOCHS + 1, STEPS)
    with open(tmp_path / "checkpoint" / "model_0" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 2))
    # Linear from 0.003 after the first epoch to 0.00001 at the end of the longer run; updates have two steps.
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[-1] < rates[-2] <= rates[0]
    code, out, err = run(tmp_path, **flags, epoch_size=EPOCHS)
    assert code == 2 and f"--epoch_size {EPOCHS} contradicts the resumed run, which has epoch_size {EPOCHS + 1}" in err


def test_a_second_signal_leaves_at_once(few_images, tmp_path):
    """Both come while the graph is compiled, which holds the main thread for seconds."""
    process = start(tmp_path, few_images / "train")
    wait_for(lambda: list(tmp_path.glob("checkpoint/model_0/tensorboard/*")), process)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code, out, err = finish(process, tmp_path)
    assert time.monotonic() - began < 10
    assert (code, err) == (128 + signal.SIGTERM, "")
    assert "epoch 1" not in out
    assert "stopping after this step; a second signal ends at once" in out.splitlines()
    assert saved(tmp_path) == []


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_as_the_undisturbed_run(few_images, tmp_path):
    """SIGKILL at random moments, some of them while a checkpoint is written; see docs/training.md for how often.

    Whatever loads afterwards must be what the undisturbed run had at that step.
    """
    flags = {"dataset_path": few_images / "train", "epoch_size": LONG, "warmup_epochs": 2, "accumulate_steps": None}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    assert run(undisturbed, **flags, keep_checkpoint_max=LONG * STEPS)[0] == 0
    draw = random.Random(1)
    kills = while_saving = 0
    model_0 = killed / "checkpoint" / "model_0"
    while kills < KILLS:
        reached = saved(killed)
        process = start(killed, **flags, resume="auto", keep_checkpoint_max=3)
        if kills % 2:
            # While a checkpoint is written: its temporary file is there.
            wait_for(lambda before=reached: saved(killed) != before, process)
            wait_for(lambda: any(".tmp-" in name for name in os.listdir(model_0)), process)
            time.sleep(draw.uniform(0, 0.03))
        else:
            # At any moment of the start or of the first steps.
            if kills % 4:
                wait_for(lambda before=reached: saved(killed) != before, process)
            time.sleep(draw.uniform(0, 0.5 if kills % 4 else 10))
        process.kill()
        process.wait()
        kills += 1
        while_saving += any(".tmp-" in name for name in os.listdir(model_0)) if model_0.exists() else 0
        found = saved(killed)
        assert len(found) <= 4
        assert found[-1:] < [(LONG, STEPS)], "the run was over before it had been killed often enough"
        for position in found:
            assert_same_arrays(checkpoint_path(killed, *position), checkpoint_path(undisturbed, *position))
        assert not reached or found[-1] >= reached[-1]
    code, out, err = run(killed, **flags, resume="auto", keep_checkpoint_max=3)
    assert (code, err) == (0, "")
    assert_same_arrays(checkpoint_path(killed, LONG, STEPS), checkpoint_path(undisturbed, LONG, STEPS))
    assert not [name for name in os.listdir(model_0) if ".tmp-" in name]
    print(f"{kills} kills, {while_saving} of them while a checkpoint was written; all that loaded was right")
    assert while_saving >= KILLS // 5


def assert_same_arrays(path, reference):
    """A checkpoint cannot be loaded, or holds bit for bit what the reference does."""
    try:
        found = read_entries(str(path))
    except RunError:
        raise AssertionError(f"{path} appeared under its name without being whole") from None
    expected = read_entries(str(reference))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert isinstance(value, str) or np.array_equal(found[name], value), name
