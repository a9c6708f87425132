"""The scripts' edges: sentences and exit codes, flags, files that appear whole or not at all."""

import argparse
import errno
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.common import cli
from src.common.cli import (
    NO_MEMORY,
    ArgumentParser,
    RunError,
    UsageError,
    boolean,
    choice,
    describe_os_error,
    positive_int,
    run_cli,
)
from src.common.files import atomic_write

ROOT = Path(__file__).parent.parent.parent


def raises(error):
    def main(argv):
        raise error

    return main


class TestExitCodes:
    @pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
    def test_what_main_returns(self, returned, code):
        assert run_cli(lambda argv: returned) == code

    @pytest.mark.parametrize(
        ("error", "code", "sentence"),
        [
            (UsageError("--a and --b contradict each other"), 2, "--a and --b contradict each other"),
            (RunError("x.ckpt: it is empty"), 1, "x.ckpt: it is empty"),
            (RunError("two\n  lines"), 1, "two lines"),
            (KeyboardInterrupt(), 130, "stopped by the user"),
            (MemoryError(), 1, "not enough memory; a smaller --batch_size needs less"),
            (RuntimeError("\n---\n- Memory not enough:\nMemory isn't enough and alloc failed"), 1, NO_MEMORY),
            (RuntimeError("Resource temporarily unavailable"), 1, NO_MEMORY),
            (OSError(errno.ENOSPC, "", "out.onnx"), 1, "out.onnx: there is no space left on the device"),
            (OSError(errno.EACCES, "", "out.onnx"), 1, "out.onnx: permission was denied"),
        ],
    )
    def test_errors_are_one_sentence_on_standard_error(self, capsys, monkeypatch, error, code, sentence):
        monkeypatch.setattr(cli.atexit, "register", lambda *arguments: None)
        assert run_cli(raises(error)) == code
        assert capsys.readouterr() == ("", f"error: {sentence}\n")

    def test_without_memory_nothing_else_is_done_at_the_end(self):
        """Such as MindSpore's own work, which would abort the process."""
        code = (
            "import atexit, os, sys; from src.common.cli import run_cli\natexit.register(os.abort)\n"
            "def main(argv):\n    print('before')\n    raise RuntimeError(\"can't start new thread\")\n"
            "sys.exit(run_cli(main))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (1, "before\n", f"error: {NO_MEMORY}\n")

    def test_an_error_of_ours_in_the_program_is_not_hidden(self):
        with pytest.raises(ZeroDivisionError):
            run_cli(raises(ZeroDivisionError()))

    def test_a_reader_that_leaves_is_no_error_message(self):
        code = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from src.common.cli import run_cli\n"
            "def main(argv):\n"
            "    for i in range(100000): print('line', i)\n"
            "sys.exit(run_cli(main))\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(ROOT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "line 0\n"
            process.stdout.close()
            assert process.stderr.read() == ""
        assert process.returncode == 1


def test_an_error_without_a_file_name_is_described():
    assert describe_os_error(OSError(errno.ENOSPC, "No space")) == "there is no space left on the device"
    assert describe_os_error(OSError(errno.EIO, "Input/output error", "x")) == "x: Input/output error"


class TestFlags:
    def test_one_number_stands_for_all_channels(self):
        assert (cli.three_floats("2"), cli.three_floats("1,2,3")) == ((2.0, 2.0, 2.0), (1.0, 2.0, 3.0))
        for text in ("1,2", "1,2,3,4", "inf", "x", ""):
            with pytest.raises(argparse.ArgumentTypeError):
                cli.three_floats(text)

    @pytest.mark.parametrize(
        ("read", "taken", "refused"),
        [
            (cli.positive_int, ["1", "7"], ["0", "-1", "1.5", "nan"]),
            (cli.non_negative_int, ["0", "7"], ["-1", "0.5"]),
            (cli.positive_float, ["0.001", "1e9"], ["0", "-1", "nan", "x"]),
            (cli.non_negative_float, ["0", "0.5"], ["-0.001", "nan"]),
            (cli.fraction, ["0", "0.5", "1"], ["-0.001", "1.001"]),
            (cli.fraction_below_one, ["0", "0.99"], ["-0.001", "0.991", "1"]),
        ],
    )
    def test_numbers_have_bounds(self, read, taken, refused):
        assert [read(text) for text in taken] == [float(text) for text in taken]
        for text in refused:
            with pytest.raises(argparse.ArgumentTypeError):
                read(text)

    @pytest.mark.parametrize("text", ["True", "true", "1", "yes", "TRUE"])
    def test_true(self, text):
        assert boolean(text) is True

    @pytest.mark.parametrize("text", ["False", "false", "0", "no"])
    def test_false(self, text):
        assert boolean(text) is False

    @pytest.mark.parametrize(
        ("read", "text"),
        [(boolean, "2"), (boolean, ""), (positive_int, "0"), (positive_int, "1.5")],
    )
    def test_anything_else_is_refused(self, read, text):
        with pytest.raises(argparse.ArgumentTypeError, match=f"not '{text}'"):
            read(text)

    def test_abbreviations_are_refused(self):
        parser = ArgumentParser()
        parser.add_argument("--batch_size")
        with pytest.raises(UsageError, match="unrecognized arguments: --batch 3"):
            parser.parse_args(["--batch", "3"])


class TestSlips:
    """A flag that there is not comes with the nearest one, in every script whose parser this is."""

    SCRIPTS = {
        "train": ((), "--dataset_pth", "--dataset_path"),
        "eval": (("--checkpoint_path", "x"), "--skip_bad_image", "--skip_bad_images"),
        "export": (("--checkpoint_path", "x"), "--file_fromat", "--file_format"),
        "infer_onnx": (("--onnx_path", "x"), "--top-k", "--top_k"),
        "convert_weights": ((), "--sorce", "--source"),
        "create_imagenet2012_label": (("--img_path", "x"), "--label_pth", "--label_path"),
        "postprocess": (("--result_path", "x", "--label_path", "x"), "--hlep", "--help"),
    }

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_the_nearest_flag_is_suggested(self, script, capsys):
        needed, slip, meant = self.SCRIPTS[script]
        assert run_cli(importlib.import_module(script).main, [*needed, slip, "x"]) == 2
        sentence = f"error: unrecognized arguments: {slip} x; did you mean {meant}? (see "
        assert capsys.readouterr().err.startswith(sentence)

    def test_two_slips_get_two_suggestions_and_a_hidden_flag_is_none(self):
        parser = ArgumentParser()
        parser.add_argument("--epochs")
        parser.add_argument("--rate")
        parser.add_argument("--secret", help=argparse.SUPPRESS)
        with pytest.raises(UsageError, match=r"did you mean --epochs and --rate\?"):
            parser.parse_args(["--epoch", "3", "--raet=2"])
        with pytest.raises(UsageError, match=r"unrecognized arguments: --secrt 2 \(see"):
            parser.parse_args(["--secrt", "2"])

    def test_help_names_the_values_of_a_choice_once(self):
        parser = ArgumentParser()
        parser.add_argument("--colour", type=choice("red", "blue"), default="red", help="of the bar")
        parser.add_argument("--shape", type=choice("line", "dot"), metavar="line|dot", help="of the mark")
        text = " ".join(parser.format_help().split())
        assert "of the bar; one of red, blue (default: red)" in text
        assert "--shape line|dot of the mark (default: None)" in text


def test_a_parent_that_is_a_file_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")

    def main(argv):
        with atomic_write(tmp_path / "file" / "below"):
            pass

    assert run_cli(main) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(tmp_path / "file") in error


def test_what_takes_minutes_is_told_each_minute_until_it_ends(monkeypatch, capsys):
    monkeypatch.setattr(cli, "SECONDS_BETWEEN_LINES", 0.01)

    @cli.tell_each_minute("evaluation")
    def work():
        while "evaluation: going on for 0 s" not in capsys.readouterr().err:
            time.sleep(0.01)

    work()
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""
