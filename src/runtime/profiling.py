"""Some steps of a run under MindSpore's profiler."""

from __future__ import annotations

import gc

import mindspore as ms
from mindspore.profiler import ProfilerActivity, profile, tensorboard_trace_handler

ACTIVITIES = {"CPU": ProfilerActivity.CPU, "Ascend": ProfilerActivity.NPU, "GPU": ProfilerActivity.GPU}


class StepProfiler(ms.Callback):
    """Records steps after the first ones, which compile the graph; `Model.train` calls it.

    Where a device is given groups of steps, whole groups are recorded.

    Args:
        steps: how many to record at least.
        folder: where the profiler writes a folder of its own, with trace_view.json for MindStudio Insight or
            chrome://tracing, and on NPUs the kernels' times and memory.
        target: the device, "Ascend", "GPU" or "CPU".
    """

    def __init__(self, steps: int, folder: str, target: str):
        super().__init__()
        self.steps, self.folder = steps, folder
        self.begun_after: int | None = None
        self.is_recording = False
        activities = list(dict.fromkeys([ACTIVITIES["CPU"], ACTIVITIES[target]]))
        written = tensorboard_trace_handler(folder)
        self.profiler = profile(activities=activities, start_profile=False, on_trace_ready=written)

    def on_train_step_end(self, run_context) -> None:
        """Begin after the first group of steps, end after enough of them."""
        done = run_context.original_args().cur_step_num
        if self.begun_after is None:
            self.begun_after = done
            self.is_recording = True
            self.profiler.start()
        elif self.is_recording:
            self.profiler.step()
            if done - self.begun_after >= self.steps:
                self.finish(done)

    def on_train_end(self, run_context) -> None:
        """End with a run that was too short, or was stopped."""
        self.finish(run_context.original_args().cur_step_num)

    def finish(self, done: int) -> None:
        """Write what was recorded, once."""
        if self.is_recording:
            self.is_recording = False
            # MindSpore forks a process to write the trace. A data set's iterator that is collected there waits without
            # end for its threads, which are in this process alone; what is frozen is not collected.
            gc.freeze()
            try:
                self.profiler.stop()
            finally:
                gc.unfreeze()
            print(
                f"profile: {done - self.begun_after} steps after step {self.begun_after}, in {self.folder}", flush=True
            )
