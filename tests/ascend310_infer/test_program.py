"""The C++ program against Pillow, ONNX Runtime and hand calculation, and against what goes wrong."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from src.data.image_folder import read_image_folder
from src.evaluation.metrics import Score
from src.images.bad_images import ImageError
from src.images.preprocess import Preprocess, crop_for_evaluation, load_image, normalise
from src.inference.model import open_model
from src.inference.result_files import result_names
from src.inference.settings import GivenSettings
from src.weights.model_info import ModelInfo
from tests.support import cpp_program as cpp
from tests.support.hard_images import bad_images, draw, encode, other_images
from tests.support.loading import read_image

ROOT = cpp.ROOT


@pytest.fixture
def case(tmp_path, release):
    """A folder with three classes, 11 images and a model of the double for batches of 4."""
    return Case(tmp_path, release)


class Case:
    """A small labelled folder, a model for it, and runs of the program on both."""

    def __init__(self, folder, build):
        self.folder = folder
        self.build, self.package = build
        self.data = folder / "data"
        self.results = folder / "result_Files"
        self.model = folder / "model.mindir"
        self.log = folder / "calls.log"
        self.names = [f"cat/{i}.jpg" for i in range(4)] + ["dog/0.jpg", "dog/1.png", "dog/deep/er/x.jpg"]
        self.names += [f"owl/{i}.jpg" for i in range(4)]
        for i, name in enumerate(self.names):
            kind = "PNG" if name.endswith("png") else "JPEG"
            cpp.write_files(self.data, {name: encode(draw(50 + 3 * i, 70 - 2 * i, i), kind)})
        self.info = cpp.small_info(["cat", "dog", "owl"])
        cpp.write_double_model(self.model, self.info)

    def command(self, *flags, model=None, data=None):
        start = [self.build / "main", "--model_path", model or self.model, "--dataset_path", data or self.data]
        return [str(part) for part in (*start, *flags)]

    def environment(self, **more):
        return {**os.environ, "LITE_DOUBLE_LOG": str(self.log), **more}

    def run(self, *flags, model=None, data=None, **environment):
        command = self.command(*flags, model=model, data=data)
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, env=self.environment(**environment), timeout=120
        )

    def fails(self, sentence, *flags, code=1, **options):
        """Run, and check that it ends with one sentence (after those on single images) and this code."""
        done = self.run(*flags, **options)
        lines = done.stderr.splitlines()
        assert done.returncode == code, done.stderr
        assert lines and all(line.startswith("error: ") for line in lines), done.stderr
        assert sentence in lines[-1], done.stderr
        return done

    def expected(self, name):
        return cpp.expected_logits(self.data / name, self.info)

    def check_results(self, names=None):
        """Every result file is there, nothing else, and what is in it is right."""
        names = self.names if names is None else names
        files = {path.relative_to(self.results).as_posix() for path in self.results.rglob("*") if path.is_file()}
        assert {name for name in files if not name.startswith(".")} == set(result_names(names))
        for name, result in zip(names, result_names(names)):
            logits = np.fromfile(self.results / result, "<f4")
            np.testing.assert_allclose(logits, self.expected(name), rtol=1e-5, atol=1e-4)

    def calls(self):
        return self.log.read_text().splitlines()


REASONS = {
    "empty.jpg": "the image file is empty",
    "text.jpg": "not an image that can be decoded (neither JPEG nor PNG)",
    "jpeg_cut_to_50_percent.jpg": "truncated",
    "progressive_cut.jpg": "truncated",
    "jpeg_without_its_end.jpg": "truncated",
    "only_the_start.jpg": "truncated",
    "png_cut_to_50_percent.png": "truncated",
    "png_cut_to_1_percent.png": "not an image",
    "png_with_a_wrong_checksum.png": "CRC",
    "jpeg_of_no_height.jpg": "JPEG: ",
    "bomb_65000x65000.jpg": "refused, it has 65000 x 65000 pixels",
    "bomb_20000x20000.png": "refused, it has 20000 x 20000 pixels",
    "bomb_2147483647x1.png": "refused, it has 2147483647 x 1 pixels",
    "sliver_1x5000.png": "too elongated",
}
"""What the program says of some of the bad images."""


class TestPixels:
    @pytest.mark.parametrize(("size", "interpolation"), [(32, "bicubic"), (224, "bicubic"), (48, "bilinear")])
    def test_every_hard_image_has_the_bytes_of_pillow(self, release, hard, size, interpolation):
        info = cpp.small_info(["a"], size, interpolation=interpolation)
        cpp.write_double_model(hard / "model.mindir", info)
        assert compare_pixels(release[0], hard, info.preprocess) == []

    def test_a_resize_that_changes_one_side_or_none(self, release, tmp_path):
        info = ModelInfo(preprocess=Preprocess(image_size=40, resize=40))
        cpp.write_double_model(tmp_path / "model.mindir", info)
        sizes = [(40, 40), (40, 41), (41, 40), (40, 200), (80, 80), (39, 40)]
        files = {f"{w}x{h}.png": encode(draw(w, h), "PNG") for w, h in sizes}
        cpp.write_files(tmp_path / "images", files)
        assert compare_pixels(release[0], tmp_path, info.preprocess) == []

    def test_what_nobody_can_use_is_refused_with_the_reason(self, sanitized, bad):
        cpp.write_double_model(bad / "model.mindir", ModelInfo())
        for path, answer in run_pixels(sanitized[0], bad, Preprocess()).items():
            assert isinstance(answer, str) and answer.startswith(f"{path}: "), path
            assert REASONS.get(path.name, "") in answer, answer
            with pytest.raises(ImageError):
                crop_for_evaluation(read_image(str(path)), Preprocess())

    def test_other_formats_are_refused_by_name(self, release, tmp_path):
        files = dict(other_images())
        cpp.write_files(tmp_path / "images", files)
        cpp.write_double_model(tmp_path / "model.mindir", ModelInfo())
        kinds = {".bmp": "BMP", ".gif": "GIF", ".webp": "WebP", ".tif": "TIFF", ".ppm": "PPM"}
        answers = run_pixels(release[0], tmp_path, Preprocess())
        assert len(answers) == len(files) > 20
        for path, answer in answers.items():
            assert f"it is a {kinds[path.suffix]} image; this program reads JPEG and PNG" in answer


def run_pixels(build, folder, preprocess):
    """What the C++ program makes of the files below folder/images: by path (crop, values), or the sentence."""
    paths = sorted(path for path in (folder / "images").rglob("*") if path.is_file())
    (folder / "list").write_text("".join(f"{path}\n" for path in paths))
    cpp.check([build / "tests" / "pixels", folder / "model.mindir", folder / "list", folder / "out"])
    data = (folder / "out").read_bytes()
    side, position, answers = preprocess.image_size, 0, {}
    for path in paths:
        if data[position : position + 1] == b"y":
            count = side * side * 3
            crop = np.frombuffer(data, np.uint8, count, position + 1).reshape(3, side, side).transpose(1, 2, 0)
            values = np.frombuffer(data, np.uint8, 4 * count, position + 1 + count).view("<f4").reshape(3, side, side)
            answers[path] = crop, values
            position += 1 + 5 * count
        else:
            end = data.index(b"\n", position)
            answers[path] = data[position + 1 : end].decode()
            position = end + 1
    return answers


def compare_pixels(build, folder, preprocess):
    """The images of which the C++ program does not make exactly what Pillow does."""
    wrong = []
    for path, answer in run_pixels(build, folder, preprocess).items():
        crop = crop_for_evaluation(read_image(str(path)), preprocess)
        values = normalise(crop, preprocess)
        if isinstance(answer, str) or not (np.array_equal(answer[0], crop) and np.array_equal(answer[1], values)):
            wrong.append(path.name)
    return wrong


class TestMindSporeLite:
    def test_every_image_gets_its_own_logits(self, case):
        done = case.run()
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        case.check_results()

    def test_the_library_is_called_as_its_documentation_says(self, case):
        assert case.run("--device_id", "1").returncode == 0
        calls = case.calls()
        assert calls[:2] == ["Model", "Build on Ascend 1 with enforce_fp16"] and calls[-1] == "~Model"
        # 11 images in batches of 4, and one run at the start that shows the output's shape.
        assert calls[2:-1] == ["Predict 4,3,32,32"] * 4

    def test_on_the_cpu(self, case):
        assert case.run("--device_target", "CPU").returncode == 0
        assert "Build on CPU" in case.calls()
        case.check_results()

        assert case.run("--device_target", "CPU", "--engine_threads", "3").returncode == 0
        assert "Build on CPU with 3 threads" in case.calls()

    def test_of_two_outputs_the_logits_are_taken(self, case):
        cpp.write_double_model(case.model, case.info, probabilities=1)
        assert case.run().returncode == 0
        case.check_results()

    def test_the_precision_is_asked_for(self, case):
        done = case.run("--precision", "fp32")
        assert done.returncode == 0 and "Build on Ascend 0 with enforce_fp32" in case.calls()
        assert "MindSpore Lite was asked to compute in float32" in done.stdout
        case.fails("--precision is for an NPU", "--precision", "fp16", "--device_target", "CPU", code=2)
        cpp.write_onnx_model(case.folder / "model.onnx", case.info)
        case.fails("openvino computes in float32", "--precision", "fp16", model=case.folder / "model.onnx", code=2)

    def test_a_model_that_converter_lite_has_not_prepared_is_named(self, case):
        sentence = "it optimises " + str(case.model) + " at each start, because converter_lite"
        assert sentence in case.run().stdout
        assert "at each start" not in case.run("--device_target", "CPU").stdout
        cpp.write_double_model(case.model, case.info, isOptimized=1)
        done = case.run()
        assert done.returncode == 0 and "float16" in done.stdout and "at each start" not in done.stdout

    @pytest.mark.parametrize("suffix", [".mindir", ".ms"])
    def test_converter_lite_puts_the_channels_last(self, case, suffix):
        case.model = case.model.with_suffix(suffix)
        cpp.write_double_model(case.model, case.info, channels_last=True)
        done = case.run()
        assert done.returncode == 0, done.stderr
        for name, result in zip(case.names, result_names(case.names)):
            values = load_image(str(case.data / name), case.info.preprocess).transpose(1, 2, 0)
            logits = np.fromfile(case.results / result, "<f4")
            np.testing.assert_allclose(logits, cpp.double_logits(values, 3), rtol=1e-5, atol=1e-4)

    def test_a_batch_of_any_size_gets_the_one_that_is_asked_for(self, case):
        cpp.write_double_model(case.model, case.info, batch=-1)
        assert case.run("--batch_size", "5").returncode == 0
        assert "Resize to 5,3,32,32" in case.calls()
        case.check_results()

    def test_a_model_that_normalises_itself_gets_bytes(self, case):
        cpp.write_double_model(case.model, case.info, kind="uint8")
        assert case.run().returncode == 0
        for name, result in zip(case.names, result_names(case.names)):
            crop = crop_for_evaluation(read_image(str(case.data / name)), case.info.preprocess)
            logits = np.fromfile(case.results / result, "<f4")
            np.testing.assert_allclose(logits, cpp.double_logits(crop, 3), rtol=1e-5)

    def test_one_image_in_a_batch_of_many(self, case):
        for name in case.names[1:]:
            (case.data / name).unlink()
        cpp.write_double_model(case.model, case.info, batch=64)
        assert case.run().returncode == 0
        case.check_results(case.names[:1])

    def test_images_of_one_stem_keep_their_suffix(self, case):
        cpp.write_files(case.data, {"cat/0.png": encode(draw(30, 30, 99), "PNG")})
        assert case.run().returncode == 0
        case.names.append("cat/0.png")
        assert (case.results / "cat" / "0.jpg_0.bin").exists() and (case.results / "cat" / "0.png_0.bin").exists()
        case.check_results(sorted(case.names))

    def test_odd_names(self, case):
        odd = ["cat/with space.jpg", "dog/ёж 猫.JPG", "owl/line\nbreak.jpeg", "owl/'quote\".jpg", "owl/-flag.jpg"]
        image = encode(draw(40, 40), "JPEG")
        cpp.write_files(case.data, {name: image for name in odd})
        cpp.write_files(case.data, {"cat/.hidden.jpg": image, "cat/notes.txt": b"text", ".cache/a.jpg": image})
        os.symlink(case.data / "dog", case.data / "cat" / "linked")
        assert case.run().returncode == 0
        linked = [name.replace("dog/", "cat/linked/") for name in case.names + odd if name.startswith("dog/")]
        case.check_results(sorted(case.names + odd + linked))

    def test_a_device_that_does_not_exist(self, case):
        case.fails("on Ascend device 7: there is no Ascend device 7", "--device_id", "7")
        assert not case.results.exists() or not list(case.results.rglob("*_0.bin"))

    def test_a_device_that_fails_half_way_leaves_whole_results(self, case):
        cpp.write_double_model(case.model, case.info, fail_at=3)
        case.fails("the device was lost")
        results = list(case.results.rglob("*_0.bin"))
        assert len(results) == 4 and all(path.stat().st_size == 12 for path in results)
        assert not (case.folder / "time_Result").exists()


class TestOpenVino:
    @pytest.mark.parametrize(
        ("batch", "kind", "softmax"),
        [(None, "float32", False), (4, "float32", True), (None, "uint8", True), (None, "float16", False)],
    )
    def test_logits_are_those_of_onnx_runtime(self, case, batch, kind, softmax):
        import onnxruntime

        model = case.folder / "model.onnx"
        cpp.write_onnx_model(model, case.info, batch, kind, softmax=softmax)
        case.model.unlink()
        case.model.with_suffix(".json").unlink()
        done = case.run(model=model)
        assert done.returncode == 0, done.stderr
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        for name, result in zip(case.names, result_names(case.names)):
            image = crop_for_evaluation(read_image(str(case.data / name)), case.info.preprocess)
            if kind != "uint8":
                image = normalise(image, case.info.preprocess).astype(kind)
            expected = session.run(["logits"], {"image": np.repeat(image[None], batch or 1, 0)})[0][0]
            logits = np.fromfile(case.results / result, "<f4")
            # float16 sums in float16 here and in float32 there; uint8 makes logits of hundreds.
            np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=5e-2 if kind == "float16" else 1e-3)

    def test_it_runs_on_the_cpu_only(self, case):
        model = case.folder / "model.onnx"
        cpp.write_onnx_model(model, case.info)
        case.fails("runs on the CPU", "--device_target", "Ascend", model=model, code=2)
        case.fails("there is one CPU: 0", "--device_id", "1", model=model, code=2)

    def test_a_file_that_is_no_model(self, case):
        model = case.folder / "model.onnx"
        model.write_bytes(b"hello" * 100)
        case.fails("it is no ONNX file", model=model)
        cpp.write_onnx_model(model, case.info)
        model.write_bytes(model.read_bytes()[:2000])
        case.fails("model.onnx: ", model=model)

    def test_a_model_that_is_replaced_while_it_is_read_is_never_mixed_with_the_other(self, case):
        """Two models of other weights and means, one put in the other's place at a random moment."""
        import onnx
        from onnx import numpy_helper

        model, draw = case.folder / "model.onnx", random.Random(0)
        other_info = cpp.small_info(["cat", "dog", "owl"], interpolation="bilinear")
        for name, info, factor in (("one", case.info, 1), ("other", other_info, -3)):
            cpp.write_onnx_model(case.folder / name, info)
            changed = onnx.load(case.folder / name)
            weights = numpy_helper.to_array(changed.graph.initializer[0]) * np.float32(factor)
            changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
            onnx.save(changed, case.folder / name)
        results, refused = [], 0
        for moment in (0, 5, *(draw.uniform(0.001, 0.04) for _ in range(10))):
            shutil.copy(case.folder / "one", model)
            shutil.copy(case.folder / "other", case.folder / "new")
            process = subprocess.Popen(
                case.command("--threads", "1", model=model),
                cwd=case.folder,
                stdout=subprocess.DEVNULL,
                stderr=-1,
                text=True,
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            (case.folder / "new").replace(model)
            _, error = process.communicate(timeout=60)
            assert (
                process.returncode == 0 or error == f"error: {model}: it was replaced while it was read; start again\n"
            )
            if process.returncode:
                refused += 1
            else:
                results.append(np.fromfile(case.results / result_names(case.names)[0], "<f4").tobytes())
        assert len(set(results)) <= 2, "one model's description with the other's weights"
        print(f"{refused} of 12 refused")

    def test_metadata_may_be_missing_where_a_description_lies_beside(self, case):
        model = case.folder / "other.onnx"
        cpp.write_onnx_model(model, case.info, metadata=False)
        case.fails("nothing says what the model expects", model=model)
        (case.folder / "other.json").write_text(case.info.to_json())
        assert case.run(model=model).returncode == 0


@pytest.fixture(scope="module")
def held_out(digits, tmp_path_factory):
    """Six held-out digits of each class."""
    root = tmp_path_factory.mktemp("digits") / "data"
    for folder in (digits / "val").iterdir():
        names = sorted(path.name for path in folder.iterdir())[:6]
        cpp.write_files(root / folder.name, {name: (folder / name).read_bytes() for name in names})
    return root


@pytest.fixture(scope="module")
def checkpoint(held_out):
    """A random B0 whose logits of these digits are of order 1, as large as a trained one's."""
    from benchmarks.peers import create_peer, randomise
    from src.weights.checkpoint import write_checkpoint
    from src.weights.names import to_ours
    from tests.support.peer_networks import tensors

    info = ModelInfo(num_classes=10, class_names=tuple("0123456789"), preprocess=Preprocess.for_image_size(64))
    folder = read_image_folder(str(held_out))
    images = np.stack([load_image(folder.full_path(i), info.preprocess) for i in range(len(folder))])
    peer = randomise(create_peer("timm_tf", "b0", num_classes=10), images)
    path = held_out.parent / "b0.ckpt"
    write_checkpoint(str(path), to_ours(tensors(peer), "peer").weights, info)
    return path


@pytest.fixture(scope="module")
def programs(held_out, checkpoint):
    """Logits of shape (60, 10) and top-1 by eval.py and by infer_onnx.py, and the ONNX file."""
    import eval as evaluation
    import export
    import infer_onnx

    onnx = checkpoint.with_suffix(".onnx")
    source = ["--checkpoint_path", str(checkpoint), "--device_target", "CPU"]
    flags = ["--file_format", "ONNX", "--file_name", str(onnx)]
    export.main([*source, *flags])
    expected = record_scores(evaluation.main, [*source, "--dataset_path", str(held_out), "--batch_size", "30"])
    runner = record_scores(infer_onnx.main, ["--onnx_path", str(onnx), "--dataset_path", str(held_out)])
    pixels = checkpoint.with_name("pixels.onnx")
    more = ["--include_preprocessing", "True", "--include_softmax", "True"]
    export.main([*source, *flags[:-1], str(pixels), *more])
    return onnx, pixels, expected, runner


class TestDigits:
    """The same network by three programs: MindSpore, ONNX Runtime, OpenVINO."""

    def test_python_programs_agree(self, programs):
        _, _, (expected, top_1), (logits, runner_top_1) = programs
        assert expected.shape == (60, 10) and expected.std() > 0.3
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
        assert top_1 == runner_top_1

    @pytest.mark.parametrize("kind", ["floats", "pixels"])
    def test_the_cpp_program_agrees(self, release, held_out, programs, tmp_path, kind):
        onnx, pixels, (expected, top_1), _ = programs
        done = run_infer_310(release, tmp_path, onnx if kind == "floats" else pixels, held_out, DEVICE_TARGET="CPU")
        assert done.returncode == 0, done.stderr
        names = result_names(read_image_folder(str(held_out)).paths)
        logits = np.stack([np.fromfile(tmp_path / "result_Files" / name, "<f4") for name in names])
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
        assert f"top-1 {top_1} " in (tmp_path / "acc.log").read_text()


def run_infer_310(build, folder, *arguments, **environment):
    """Run the script in a folder with a build of these tests, which is reused: it keeps its options."""
    command = ["bash", str(ROOT / "scripts" / "run_infer_310.sh"), *map(str, arguments)]
    environment = {**os.environ, **cpp.build_environment(build[0]), **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def record_scores(main, arguments):
    """Run a program that scores a folder: the logits that it scored, in order, and how many were right at once."""
    rows, scores, add = [], set(), Score.add

    def record(self, logits, *others):
        rows.append(np.array(logits))
        scores.add(self)
        return add(self, logits, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Score, "__hash__", object.__hash__)
        patch.setattr(Score, "add", record)
        assert not main(arguments)
    (score,) = scores
    return np.concatenate(rows), score.top_1


class TestRun:
    def test_timings_as_text_and_as_json(self, case):
        assert case.run("--benchmark_batches", "3").returncode == 0
        text = (case.folder / "time_Result" / "test_perform_static.txt").read_text()
        assert re.match(r"NN inference cost average time: \d+\.\d+ ms of infer_count 11\n", text)
        timings = cpp.read_timings(case.folder / "time_Result")
        assert (timings["images"], timings["batch_size"], timings["engine"]) == (11, 4, "mindspore_lite")
        assert 0 < timings["batch_ms_p50"] <= timings["batch_ms_p99"]
        assert timings["images_per_second"] == pytest.approx(11 / timings["seconds"])
        assert timings["engine_images_per_second"] > 0

    def test_a_repeated_run_gives_the_same(self, case):
        assert case.run("--repeat", "3", "--threads", "5").returncode == 0
        assert cpp.read_timings(case.folder / "time_Result")["images"] == 33
        case.check_results()

    def test_a_killed_run_goes_on_where_it_was(self, case):
        cpp.write_double_model(case.model, case.info, batch=1, milliseconds=60)
        process = subprocess.Popen(case.command("--threads", "1"), cwd=case.folder, env=case.environment())
        while process.poll() is None and len(list(case.results.rglob("*_0.bin"))) < 3:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        left = {path: path.stat().st_mtime_ns for path in case.results.rglob("[!.]*_0.bin")}
        assert 3 <= len(left) < 11 and all(path.stat().st_size == 12 for path in left)
        done = case.run("--skip_existing")
        assert done.returncode == 0 and f"{len(left)} with a result already" in done.stdout
        case.check_results()
        assert {path: path.stat().st_mtime_ns for path in left} == left
        timings = cpp.read_timings(case.folder / "time_Result")
        assert (timings["images"], timings["images_skipped"]) == (11 - len(left), len(left))
        done = case.run("--skip_existing")
        assert done.returncode == 0 and "11 with a result already" in done.stdout

    def test_half_a_result_is_not_taken_for_a_whole_one(self, case):
        assert case.run().returncode == 0
        (case.results / "cat" / "0_0.bin").write_bytes(b"12345")
        assert case.run("--skip_existing").returncode == 0
        case.check_results()

    def test_another_models_results_are_not_continued(self, case):
        assert case.run().returncode == 0
        cpp.write_double_model(case.model, cpp.small_info(["cat", "dog", "owl"], 40))
        case.fails("its results are another model's", "--skip_existing")
        assert case.run().returncode == 0

    def test_a_new_run_leaves_nothing_of_an_old_one(self, case):
        cpp.write_files(case.data, {"owl/extra.jpg": encode(draw(40, 40), "JPEG")})
        assert case.run().returncode == 0
        (case.data / "owl" / "extra.jpg").unlink()
        assert case.run().returncode == 0
        case.check_results()

    def test_old_results_are_written_over_but_not_what_else_has_their_bytes(self, case):
        assert case.run().returncode == 0
        long, linked, protected, pipe = (case.results / "cat" / f"{number}_0.bin" for number in range(4))
        long.write_bytes(b"x" * 100)
        linked.write_bytes(b"old old old!")
        os.link(linked, case.folder / "kept.bin")
        protected.chmod(0o444)
        pipe.unlink()
        os.mkfifo(pipe)
        assert case.run().returncode == 0
        case.check_results()
        assert (case.folder / "kept.bin").read_bytes() == b"old old old!"
        assert not list(case.results.rglob(".*.tmp"))

    def test_files_that_are_no_results_of_ours_are_left_alone(self, case):
        cpp.write_files(case.results, {"mine_0.bin": b"mine"})
        assert case.run().returncode == 0
        assert (case.results / "mine_0.bin").read_bytes() == b"mine"

    def test_two_runs_do_not_share_a_folder(self, case):
        cpp.write_double_model(case.model, case.info, batch=1, milliseconds=200)
        process = subprocess.Popen(case.command(), cwd=case.folder, env=case.environment(), stdout=subprocess.DEVNULL)
        try:
            while not list(case.results.rglob("*_0.bin")):
                time.sleep(0.005)
            case.fails("another run is writing its results there")
        finally:
            assert process.wait() == 0
        case.check_results()

    def test_broken_images_are_named_and_the_others_classified(self, case):
        broken = {name.replace("bad/", ""): data for name, data in bad_images()}
        cpp.write_files(case.data, {f"dog/{name}": data for name, data in broken.items()})
        os.mkfifo(case.data / "dog" / "pipe.jpg")
        os.symlink("nowhere.jpg", case.data / "dog" / "dangling.jpg")
        done = case.fails(f"{len(broken) + 2} images could not be used")
        for name in broken:
            reason = REASONS.get(name, "")
            assert any(f"dog/{name}: " in line and reason in line for line in done.stderr.splitlines()), name
        assert "pipe.jpg: it is not a regular file" in done.stderr
        assert "dangling.jpg: there is no such file" in done.stderr
        case.check_results()

    def test_only_broken_images(self, case):
        for name in case.names:
            (case.data / name).write_bytes(b"\xff\xd8\xff")
        case.fails("11 images could not be used")
        assert cpp.read_timings(case.folder / "time_Result")["images"] == 0

    @pytest.mark.parametrize("writes", [0, 1, 6])
    def test_a_full_disk_ends_the_run_and_keeps_what_is_whole(self, case, tmp_path, writes):
        shim = tmp_path / "full_disk.so"
        cpp.check(["cc", "-shared", "-fPIC", "-o", shim, ROOT / "tests/cpp/full_disk.c", "-ldl"])
        case.fails("there is no space left on the device", LD_PRELOAD=str(shim), FULL_DISK_AFTER=str(writes))
        results = list(case.results.rglob("[!.]*_0.bin"))
        assert len(results) == max(0, writes - 2)  # one write is the model's note, the last is cut short
        assert all(path.stat().st_size == 12 for path in results)
        assert not list(case.results.rglob(".*.tmp"))
        assert case.run("--skip_existing").returncode == 0
        case.check_results()


class TestWrongUse:
    def test_there_is_no_model(self, case):
        case.fails("nothing.mindir: there is no such file", model="nothing.mindir")
        case.fails("it is a directory", model=make_folder(case.folder / "folder.mindir"))
        case.fails("ends in .mindir, .om or .onnx", model="model.pt", code=2)

    def test_the_model_is_another_kind_of_file(self, case):
        case.model.write_text("not a model")
        case.fails("MindSpore Lite cannot load it on Ascend device 0: it is no model")

    def test_there_is_no_description(self, case):
        case.model.with_suffix(".json").unlink()
        case.fails("model.json: there is no such file")

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ("{", "is broken"),
            ("[]", "no object"),
            ("[" * 100000, "is broken"),
            ('"\xff"', "last read: '\"\\xff'"),
            ({"format": 2}, "another format than 1"),
            ({"format": None}, "another format than 1"),
            ({"num_classes": 0}, "num_classes is 0"),
            ({"num_classes": 3.5}, "num_classes is 3.5"),
            ({"num_classes": 4}, "4 classes and 3 class names"),
            ({"class_names": "cat"}, "is broken"),
            ({"colour": 1}, "no setting 'colour'"),
            ({"preprocess": 1}, "preprocess is no object"),
            ({"preprocess": {"image_size": 0}}, "image_size is 0"),
            ({"preprocess": {"image_size": -5}}, "image_size is -5"),
            ({"preprocess": {"image_size": 10**30}}, "image_size is 1e+30"),
            ({"preprocess": {"image_size": 64, "resize": 32}}, "resize is 32"),
            ({"preprocess": {"interpolation": "nearest"}}, 'interpolation is "nearest"'),
            ({"preprocess": {"mean": [1, 2]}}, "not three numbers"),
            ({"preprocess": {"std": [1, 0, 1]}}, "must be above 0"),
            ({"preprocess": {"crop": 1}}, "no setting 'crop'"),
        ],
    )
    def test_the_description_is_broken(self, case, change, sentence):
        path = case.model.with_suffix(".json")
        text = change if isinstance(change, str) else json.dumps({**json.loads(case.info.to_json()), **change})
        path.write_bytes(text.encode("latin-1"))
        case.fails(sentence)

    def test_the_description_may_tell_of_published_weights(self, case):
        path = case.model.with_suffix(".json")
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "origin": {"name": "timm/efficientnet_b0.ra_in1k"}})
        )
        assert case.run().returncode == 0
        case.check_results()

    def test_the_description_is_another_models(self, case):
        other = cpp.small_info(["cat", "dog", "owl"], 40)
        case.model.with_suffix(".json").write_text(other.to_json())
        case.fails("takes images of 32 pixels, but its description says 40")
        cpp.write_double_model(case.model, ModelInfo(num_classes=4, preprocess=case.info.preprocess))
        case.model.with_suffix(".json").write_text(case.info.to_json())
        case.fails("gives 4 logits, but its description says 3 classes")

    def test_the_folder_is_another_data_set(self, case):
        case.fails("has 1 class folders, but", data=case.data / "dog", code=2)
        (case.data / "owl").rename(case.data / "ant")
        case.fails("class 0 is 'ant', but", code=2)

    def test_the_folder_is_missing_or_empty(self, case):
        case.fails("there is no such folder", data="nowhere")
        case.fails("it is a file, not a folder", data=case.model)
        case.fails("no class folders", data=make_folder(case.folder / "empty"))
        case.fails("hold no image", data=make_folder(case.folder / "bare" / "cat").parent)

    def test_the_folder_is_unreadable(self, case):
        (case.data / "dog").chmod(0)
        command = case.command()
        if os.geteuid() == 0:  # root reads everything, unless it lays that down
            dropped = "-dac_override,-dac_read_search"
            command = ["setpriv", f"--inh-caps={dropped}", f"--bounding-set={dropped}", *command]
        done = subprocess.run(command, cwd=case.folder, capture_output=True, text=True)
        (case.data / "dog").chmod(0o755)
        assert done.returncode == 1
        assert done.stderr == f"error: {case.data}/dog: permission was denied\n"

    def test_the_results_cannot_be_written(self, case):
        case.fails("a file where a folder is needed", "--result_path", case.model)
        (case.results / "cat" / "0_0.bin").mkdir(parents=True)
        case.fails("cat/0_0.bin: it is a directory")

    def test_the_batch_size_contradicts_the_model(self, case):
        case.fails("--batch_size is 8, but", "--batch_size", "8", code=2)

    def test_a_model_that_takes_no_images(self, case):
        text = case.model.read_text()
        case.model.write_text(text.replace("4 3 32 32", "4 3 32 48"))
        case.fails("its input has the shape (4, 3, 32, 48)")
        case.model.write_text(text.replace("float32", "int32"))
        case.fails("neither float32 nor uint8")

    @pytest.mark.parametrize(
        "flags",
        [
            ["--batch", "4"],
            ["--batch_size", "0"],
            ["--batch_size", "four"],
            ["--threads", "-1"],
            ["--device_target", "TPU"],
            ["--device_id", "x"],
            ["--engine", "torch"],
            ["--precision", "int8"],
            ["--skip_existing", "--repeat", "2"],
            ["extra"],
            ["--skip_existing=yes"],
            ["--batch_size"],
        ],
    )
    def test_wrong_flags(self, case, flags):
        done = case.run(*flags)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert flags[0].partition("=")[0] in done.stderr
        assert not case.results.exists()

    def test_a_value_stands_behind_the_flag_or_an_equals_sign_and_the_last_one_counts(self, case):
        assert case.run("--threads", "0x", "--threads", "2").returncode == 2
        assert case.run("--threads", "3", "--threads=2", "--result_path=of=mine").returncode == 0
        assert (case.folder / "of=mine" / "cat" / "0_0.bin").exists()

    def test_help(self, case):
        done = case.run("--help")
        assert (
            done.returncode == 0
            and "--skip_existing" in done.stdout
            and "ascendcl, mindspore_lite, openvino" in done.stdout
        )


def make_folder(path):
    path.mkdir(parents=True)
    return path


class TestSanitizers:
    def test_unit_tests(self, release, sanitized):
        for folder, _ in (release, sanitized):
            cpp.check([folder / "tests" / "unit_tests"])

    def test_a_run_on_all_images_good_and_bad(self, sanitized, tmp_path, hard, bad):
        case = Case(tmp_path, sanitized)
        for folder in (*(hard / "images").iterdir(), bad / "images" / "bad"):
            if folder.name != "large":
                os.symlink(folder, case.data / "cat" / folder.name)
        done = case.fails(f"{len(os.listdir(bad / 'images' / 'bad'))} images could not be used", "--threads", "3")
        assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr
        assert case.fails("the device was lost", model=self.failing_model(case)).returncode == 1

    def failing_model(self, case):
        model = case.folder / "failing.mindir"
        cpp.write_double_model(model, case.info, fail_at=2)
        return model

    @pytest.mark.slow
    def test_threads(self, tmp_path, hard):
        build = cpp.build("tests-thread", "-DSANITIZE=thread", openvino=False)
        cpp.check([build[0] / "tests" / "unit_tests"])
        case = Case(tmp_path, build)
        os.symlink(hard / "images" / "jpeg", case.data / "cat" / "jpeg")
        done = case.run("--threads", "4", "--repeat", "3")
        assert done.returncode == 0, done.stderr
        done = case.fails("the device was lost", "--threads", "4", model=self.failing_model(case))
        assert "ThreadSanitizer" not in done.stderr


class TestSoak:
    @pytest.mark.slow
    @pytest.mark.parametrize("engine", ["ascendcl", "mindspore_lite", "openvino"])
    def test_a_hundred_thousand_classifications_in_flat_memory(self, case, engine):
        model = case.model
        if engine == "openvino":
            model = case.folder / "model.onnx"
            cpp.write_onnx_model(model, case.info)
        elif engine == "ascendcl":
            model = case.folder / "model.om"
            cpp.write_double_model(model, case.info, kind="uint8")
        for i in range(89):
            cpp.write_files(case.data, {f"owl/more_{i}.jpg": encode(draw(64, 48 + i % 9, i), "JPEG")})
        rounds = 1000
        with open(case.folder / "log", "w") as log:
            command = case.command("--repeat", rounds, model=model)
            # Without the log of calls, which would be a hundred thousand lines.
            process = subprocess.Popen(command, cwd=case.folder, stdout=log, stderr=log)
            resident = []
            while process.poll() is None:
                resident.append(read_resident(process.pid))
                time.sleep(0.05)
        assert process.returncode == 0, (case.folder / "log").read_text()
        timings = cpp.read_timings(case.folder / "time_Result")
        assert timings["images"] == rounds * 100 == 100_000
        resident = [value for value in resident if value]
        tenth = len(resident) // 10
        before, after = max(resident[tenth : 2 * tenth]), max(resident[-tenth:])
        print(f"{engine}: {before:.1f} MiB after a tenth, {after:.1f} MiB at the end, {timings['seconds']:.0f} s")
        assert tenth > 10 and after < before + 4


def read_resident(pid):
    """MiB of memory that a process occupies; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    except (OSError, IndexError):
        return 0


class TestScripts:
    def run_script(self, case, *arguments, **environment):
        build = case.build, case.package
        return run_infer_310(build, case.folder, *arguments, LITE_DOUBLE_LOG=str(case.log), **environment)

    def test_on_a_device_from_any_folder(self, case):
        done = self.run_script(case, "model.mindir", "data", "1")
        assert done.returncode == 0, done.stderr
        assert "Build on Ascend 1 with enforce_fp16" in case.calls()
        case.check_results()
        hits = sum(int(case.expected(name).argmax() == "cdo".index(name[0])) for name in case.names)
        log = (case.folder / "acc.log").read_text()
        assert log.startswith(f"accuracy:{hits / 11:.3f}\n")
        assert json.loads((case.folder / "imagenet_label.json").read_text())["dog/deep/er/x.jpg"] == 1
        assert {"build.log", "infer.log", "time_Result"} <= set(os.listdir(case.folder))

    def test_int8_has_the_logits_of_infer_onnx_by_openvino(self, case):
        """Which come nearer to float32 than ONNX Runtime's, see tests/inference/test_openvino.py."""
        prepared = np.stack([load_image(str(case.data / name), case.info.preprocess) for name in case.names])
        cpp.write_int8_model(case.folder / "int8.onnx", case.info, prepared)
        assert case.run(model=case.folder / "int8.onnx").returncode == 0
        found = np.stack([np.fromfile(case.results / name, "<f4") for name in result_names(case.names)])
        model = str(case.folder / "int8.onnx")
        by_openvino, by_onnxruntime = (
            open_model(model, GivenSettings(), "CPU", engine=engine).run(prepared)
            for engine in ("openvino", "onnxruntime")
        )
        np.testing.assert_allclose(found, by_openvino, rtol=1e-4, atol=1e-4)
        assert np.abs(found - by_onnxruntime).max() > 1e-3

    def test_a_rehearsal_on_the_cpu(self, case):
        cpp.write_onnx_model(case.folder / "model.onnx", case.info)
        done = self.run_script(case, "model.onnx", "data")
        assert done.returncode == 0, done.stderr
        assert re.match(r"accuracy:\d\.\d{3}\n", (case.folder / "acc.log").read_text())
        assert "engine openvino on CPU 0" in (case.folder / "infer.log").read_text()

    def test_broken_images_count_as_wrong_and_fail_the_run(self, case):
        (case.data / "owl" / "0.jpg").write_bytes(b"no image")
        done = self.run_script(case, "model.mindir", "data")
        assert done.returncode == 1
        assert "owl/0.jpg: it is not an image" in done.stderr and "missing: owl/0_0.bin" in done.stderr
        assert "of 11 images" in (case.folder / "acc.log").read_text()

    def test_a_failed_run_leaves_no_accuracy(self, case):
        assert self.run_script(case, "model.mindir", "data").returncode == 0
        done = self.run_script(case, "model.mindir", "data", "9")
        assert done.returncode == 1
        assert "there is no Ascend device 9" in done.stderr
        assert not (case.folder / "acc.log").exists()

    def test_further_flags_reach_the_program(self, case):
        assert self.run_script(case, "model.mindir", "data").returncode == 0
        done = self.run_script(case, "model.mindir", "data", "0", "--skip_existing")
        assert done.returncode == 0 and "11 with a result already" in (case.folder / "infer.log").read_text()
        assert self.run_script(case, "model.mindir", "data", "--batch_size", "3").returncode == 2

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ([], "usage: "),
            (["model.mindir"], "usage: "),
            (["nothing.mindir", "data"], "there is no file 'nothing.mindir'"),
            (["model.mindir", "nowhere"], "there is no 'nowhere'"),
            (["model.mindir", "data", "first"], "DEVICE_ID is 'first'"),
        ],
    )
    def test_wrong_arguments(self, case, arguments, sentence):
        done = self.run_script(case, *arguments)
        assert done.returncode == 2 and sentence in done.stderr

    def test_a_wrong_device_target(self, case):
        done = self.run_script(case, "model.mindir", "data", DEVICE_TARGET="TPU")
        assert done.returncode == 2 and "DEVICE_TARGET is 'TPU'" in done.stderr

    def test_a_second_build_does_nothing(self, release):
        before = (release[0] / "main").stat().st_mtime_ns
        cpp.build("tests")
        assert (release[0] / "main").stat().st_mtime_ns == before

    def build_elsewhere(self, tmp_path, **environment):
        where = {"BUILD_DIR": str(tmp_path / "build"), "LITE_HOME": "", "ASCEND_HOME_PATH": "", **environment}
        where.setdefault("ASCEND_TOOLKIT_HOME", "")
        return subprocess.run(
            ["/bin/sh", str(ROOT / "ascend310_infer" / "build.sh")],
            capture_output=True,
            text=True,
            env={**os.environ, **where},
        )

    def test_the_build_names_what_is_missing(self, tmp_path):
        done = self.build_elsewhere(tmp_path, WITH_OPENVINO="OFF")
        assert (
            done.returncode == 1
            and "there is no engine to build: source CANN's set_env.sh, set LITE_HOME" in done.stderr
        )
        done = self.build_elsewhere(tmp_path, LITE_HOME="/nowhere")
        assert done.returncode == 1 and "LITE_HOME is '/nowhere', but there is no such folder" in done.stderr
        done = self.build_elsewhere(tmp_path, LITE_HOME=str(tmp_path), WITH_OPENVINO="OFF")
        assert done.returncode == 1 and "cloud-side package" in done.stderr
        tools = make_folder(tmp_path / "bin")
        for name in ("dirname", "sh"):
            (tools / name).symlink_to(f"/usr/bin/{name}")
        done = self.build_elsewhere(tmp_path, PATH=str(tools))
        assert done.returncode == 1 and "missing: cmake make g++" in done.stderr


def test_cpp_and_python_list_the_same_images(case):
    image = encode(draw(9, 9), "JPEG")
    deep = "owl/" + "deep/" * 30 + "x.jpg"
    cpp.write_files(case.data, {name: image for name in ("cat/A.PNG", "cat/a.b.Jpeg", "cat/.hidden/x.jpg", deep)})
    cpp.write_files(case.data, {name: b"text" for name in ("cat/x.txt", "x.jpg", "dog/folder.jpg/y.jpg")})
    links = {"dog/circle": "cat", "dog/up": "..", "cat/dog": "dog", "owl/nothing": "nothing", "owl/self": "owl/self"}
    for link, target in links.items():
        os.symlink(case.data / target, case.data / link)
    folder = read_image_folder(str(case.data))
    assert deep in folder.paths and "dog/circle/dog/0.jpg" not in folder.paths and "dog/circle/0.jpg" in folder.paths
    case.run()
    broken = {"dog/folder.jpg/y.jpg", "cat/dog/folder.jpg/y.jpg"}
    names = {path.relative_to(case.results).as_posix() for path in case.results.rglob("[!.]*_0.bin")}
    assert names == {name for path, name in zip(folder.paths, result_names(folder.paths)) if path not in broken}
