"""The C++ program's engine for OM files against a double of AscendCL, which refuses what the documentation forbids."""

import json
import os

import numpy as np
import pytest

from src.images.preprocess import crop_for_evaluation
from src.inference.result_files import result_names
from tests.ascend310_infer.test_program import Case, run_infer_310
from tests.support import cpp_program as cpp
from tests.support.loading import read_image

BATCHES = "3 1 4 8"
"""As the double wants them: three sizes, and which."""


class OmCase(Case):
    """The labelled folder with an OM file of float32 images."""

    def __init__(self, folder, build):
        super().__init__(folder, build)
        self.model.unlink()
        self.model.with_suffix(".json").unlink()
        self.model = folder / "model.om"
        cpp.write_double_model(self.model, self.info)

    def environment(self, **more):
        return {**os.environ, "ACL_DOUBLE_LOG": str(self.log), **more}

    def check_pixels(self, **tolerance):
        """Every image was fed as uint8 pixels, channels last."""
        for name, result in zip(self.names, result_names(self.names)):
            crop = crop_for_evaluation(read_image(str(self.data / name)), self.info.preprocess)
            logits = np.fromfile(self.results / result, "<f4")
            np.testing.assert_allclose(logits, cpp.double_logits(crop, 3), **tolerance)

    def check_tidy(self):
        """The library was never used wrongly, and got everything back."""
        calls = self.calls()
        assert calls[-1] == "aclFinalize, 0 things are left"
        assert [call for call in calls if call.startswith("refused")] == []


@pytest.fixture
def case(tmp_path, release):
    """A folder with three classes, 11 images and an OM file of the double for batches of 4."""
    return OmCase(tmp_path, release)


class TestRuns:
    def test_every_image_gets_its_own_logits(self, case):
        done = case.run()
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert "engine ascendcl on Ascend 0, batches of 4" in done.stdout
        case.check_results()
        case.check_tidy()

    def test_the_library_is_called_as_its_documentation_says(self, case):
        assert case.run("--device_id", "1", "--engine_threads", "1").returncode == 0
        # 11 images in batches of 4, and one run at the start.
        runs = ["aclmdlExecute 4,3,32,32 by model 1"] * 4
        assert case.calls() == [
            *("aclInit", "aclrtSetDevice 1", "aclrtCreateContext on 1", "aclmdlLoadFromFile"),
            *runs,
            *("aclmdlUnload", "aclrtDestroyContext", "aclrtResetDevice 1", "aclFinalize, 0 things are left"),
        ]

    @pytest.mark.parametrize(("flags", "lanes"), [([], 2), (["--engine_threads", "5"], 5)])
    def test_each_lane_has_a_context_and_a_model_of_its_own(self, case, flags, lanes):
        cpp.write_double_model(case.model, case.info, batch=1, milliseconds=20)
        assert case.run(*flags, "--threads", "2").returncode == 0
        calls = case.calls()
        assert calls.count("aclrtCreateContext on 0") == calls.count("aclmdlLoadFromFile") == lanes
        runs = [call for call in calls if call.startswith("aclmdlExecute")]
        assert len(runs) == 11 + lanes and len(set(runs)) == lanes
        case.check_results()
        case.check_tidy()

    def test_pixels_are_fed_where_aipp_normalises(self, case):
        cpp.write_double_model(case.model, case.info, kind="uint8")
        done = case.run()
        assert done.returncode == 0, done.stderr
        case.check_pixels(rtol=1e-5)
        case.check_tidy()

    @pytest.mark.parametrize(("flags", "batch"), [([], 8), (["--batch_size", "1"], 1), (["--batch_size", "4"], 4)])
    @pytest.mark.parametrize("kind", ["float32", "uint8"])
    def test_a_model_for_several_batch_sizes(self, case, flags, batch, kind):
        cpp.write_double_model(case.model, case.info, batch=-1, kind=kind, batches=BATCHES)
        done = case.run(*flags)
        assert done.returncode == 0, done.stderr
        assert f"batches of {batch}," in done.stdout
        case.check_results() if kind == "float32" else case.check_pixels(rtol=1e-5)
        case.check_tidy()

    def test_logits_in_float16(self, case):
        cpp.write_double_model(case.model, case.info, kind="uint8", half=1)
        assert case.run().returncode == 0
        case.check_pixels(rtol=2**-10)

    def test_of_two_outputs_the_logits_are_taken(self, case):
        cpp.write_double_model(case.model, case.info, probabilities=1)
        assert case.run().returncode == 0
        case.check_results()
        case.check_tidy()

    def test_on_a_board_memory_is_copied_within_the_device(self, case):
        assert case.run(ACL_DOUBLE_RUN_MODE="device").returncode == 0
        case.check_results()
        case.check_tidy()

    def test_the_engine_alone_is_timed_with_all_lanes(self, case):
        assert case.run("--benchmark_batches", "6").returncode == 0
        assert cpp.read_timings(case.folder / "time_Result")["engine_images_per_second"] > 0
        case.check_tidy()

    def test_a_run_goes_on_where_it_stopped(self, case):
        assert case.run().returncode == 0
        (case.results / "dog" / "0_0.bin").unlink()
        done = case.run("--skip_existing")
        assert done.returncode == 0 and "10 with a result already" in done.stdout
        case.check_results()


class TestWrongUse:
    def test_a_device_that_does_not_exist(self, case):
        case.fails("there is no Ascend device 7: AscendCL finds 2", "--device_id", "7")
        assert case.calls()[-1] == "aclFinalize, 0 things are left"

    def test_the_device_fails_half_way(self, case):
        cpp.write_double_model(case.model, case.info, fail_at=4)
        case.fails("AscendCL failed: AscendCL's error 507011: the device was lost")
        results = list(case.results.rglob("*_0.bin"))
        assert all(path.stat().st_size == 12 for path in results)
        assert case.calls()[-1] == "aclFinalize, 0 things are left"
        assert not (case.folder / "time_Result").exists()

    def test_the_device_has_too_little_memory(self, case):
        case.fails("the device has no room for 49152 bytes", ACL_DOUBLE_MEMORY="60000")
        assert case.calls()[-1] == "aclFinalize, 0 things are left"

    def test_the_model_is_another_kind_of_file(self, case):
        case.model.write_text("not a model")
        case.fails("model.om: AscendCL cannot load it: AscendCL's error 545000: it is no model")
        assert case.calls()[-1] == "aclFinalize, 0 things are left"

    def test_there_is_no_description(self, case):
        case.model.with_suffix(".json").unlink()
        case.fails("model.json: there is no such file")

    def test_the_description_contradicts_the_model(self, case):
        path = case.model.with_suffix(".json")
        description = json.loads(path.read_text())
        path.write_text(json.dumps({**description, "aipp": True}))
        case.fails("its description says that AIPP normalises, but it takes float32")
        cpp.write_double_model(case.model, case.info, kind="uint8")
        path.write_text(json.dumps(description))
        case.fails("it takes pixels, but its description does not say that AIPP normalises them")
        path.write_text(json.dumps({**description, "aipp": "yes"}))
        case.fails("the description of the model is broken")

    def test_the_batch_size_contradicts_the_model(self, case):
        case.fails("--batch_size is 8, but", "--batch_size", "8", code=2)
        cpp.write_double_model(case.model, case.info, batch=-1, batches=BATCHES)
        case.fails("model.om was converted for 1, 4, 8", "--batch_size", "5", code=2)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (("4 3 32 32", "4 3 32 48"), "its input has the shape (4, 3, 32, 48)"),
            (("float32", "int32"), "neither float32 nor uint8"),
            (("classes", "images 2\nclasses"), "it has 2 inputs, not one"),
            (("classes", "images 0\nclasses"), "it has 0 inputs, not one"),
            (("classes 3", "classes 4"), "gives 4 logits, but its description says 3 classes"),
        ],
    )
    def test_a_model_that_takes_no_images_of_this_kind(self, case, change, sentence):
        case.model.write_text(case.model.read_text().replace(*change))
        case.fails(sentence)

    def test_on_a_cpu(self, case):
        case.fails("the engine ascendcl runs on an NPU", "--device_target", "CPU", code=2)
        case.fails("--precision is for mindspore_lite", "--precision", "fp16", code=2)


class TestSanitizers:
    def test_a_run_on_all_images_good_and_bad(self, sanitized, tmp_path, hard, bad):
        case = OmCase(tmp_path, sanitized)
        cpp.write_double_model(case.model, case.info, kind="uint8")
        for folder in (*(hard / "images").iterdir(), bad / "images" / "bad"):
            if folder.name != "large":
                os.symlink(folder, case.data / "cat" / folder.name)
        done = case.fails(f"{len(os.listdir(bad / 'images' / 'bad'))} images could not be used", "--threads", "3")
        assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr
        case.check_tidy()
        cpp.write_double_model(case.model, case.info, kind="uint8", fail_at=4)
        case.fails("the device was lost")

    @pytest.mark.slow
    def test_threads(self, tmp_path, hard):
        case = OmCase(tmp_path, cpp.build("tests-thread", "-DSANITIZE=thread", openvino=False))
        os.symlink(hard / "images" / "jpeg", case.data / "cat" / "jpeg")
        done = case.run("--threads", "4", "--repeat", "3", "--engine_threads", "3")
        assert done.returncode == 0, done.stderr
        cpp.write_double_model(case.model, case.info, fail_at=5)
        assert "ThreadSanitizer" not in case.fails("the device was lost", "--threads", "4").stderr


class TestScript:
    def test_the_suffix_chooses_the_engine(self, case):
        done = run_infer_310((case.build, case.package), case.folder, "model.om", "data", "1")
        assert done.returncode == 0, done.stderr
        assert "engine ascendcl on Ascend 1" in (case.folder / "infer.log").read_text()
        case.check_results()
        assert (case.folder / "acc.log").read_text().startswith("accuracy:")
