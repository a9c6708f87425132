"""Ctrl-C under a library that installs a handler of its own in C, as MindSpore does; and what processes inherit."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.terminal import Terminal

ROOT = Path(__file__).parent.parent.parent
BEGIN = """
import ctypes, os, signal, subprocess, sys, threading, time, warnings
from src.common import files, interrupt
interrupt.listen()
STATUS = "[line for line in open('/proc/self/status') if line.startswith('SigBlk')][0].split()[1]"
"""


def program(tmp_path, text):
    """The command of a program that listens to Ctrl-C and then runs `text`."""
    path = tmp_path / "program.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{BEGIN}\n{text}")
    return [sys.executable, str(path)]


def press_ctrl_c(tmp_path, text, shown="ready"):
    """Run `text` in a terminal, press Ctrl-C once it has shown something; see `Terminal.finish`."""
    terminal = Terminal(program(tmp_path, text), tmp_path)
    while shown not in terminal.read():
        assert terminal.process.poll() is None, terminal.text
    terminal.press_ctrl_c()
    return terminal.finish()


@pytest.mark.parametrize("handler", ["handler", "0"], ids=["MindSpore's handler", "the system's"])
def test_it_ends_with_a_sentence_while_the_main_thread_is_in_c_under_another_handler(tmp_path, handler):
    """MindSpore's handler sends SIGTERM, the system's kills: each would end the process without a word."""
    text = f"""
handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: os.kill(os.getpid(), signal.SIGTERM))
ctypes.CDLL(None).signal(signal.SIGINT, {handler})
with files.atomic_path("result") as unfinished, files.scratch_folder(dir=".") as folder:
    open(os.path.join(folder, "part"), "w").close()
    print("ready", end="")
    sys.stdout.flush()
    print("ed", end="")
    ctypes.CDLL(None).sleep(60)
"""
    code, text, as_found = press_ctrl_c(tmp_path, text)
    assert (code, as_found) == (130, True)
    assert text.replace("^C", "").split("\n") == ["readyed\r", "error: stopped by the user\r", ""]
    assert os.listdir(tmp_path) == ["program.py"]


def test_it_ends_at_once_while_modules_load(tmp_path):
    """Python raises nothing there, which C++ code that is importing would not survive."""
    (tmp_path / "slow.py").write_text(
        "try:\n    print('ready', flush=True)\n    while True:\n        pass\nexcept: pass"
    )
    code, text, _ = press_ctrl_c(tmp_path, "import slow")
    assert (code, text.splitlines()[-1]) == (130, "error: stopped by the user")


def test_a_folder_that_is_being_filled_goes_and_never_gets_its_name(tmp_path):
    text = """
aside = ".aside"
interrupt.unfinished.add(aside)
for number in range(20_000):
    os.makedirs(f"{aside}/{number % 7}", exist_ok=True)
    open(f"{aside}/{number % 7}/{number}", "w").close()
os.replace(aside, "whole")
"""
    command = program(tmp_path, text)
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        terminal = Terminal(command, folder)
        while not any(folder.iterdir()):
            assert terminal.process.poll() is None
        terminal.press_ctrl_c()
        assert terminal.finish()[0] == 130
        assert list(folder.iterdir()) == []


def test_a_reader_that_does_not_read_cannot_hold_it(tmp_path):
    text = "print('.' * 200_000, end='')\nsys.stdout.flush()"
    process = subprocess.Popen(program(tmp_path, text), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1) == b"."
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stderr.read() == b"error: stopped by the user\n"


def test_a_block_can_do_something_else_with_it(tmp_path):
    text = """
heard = threading.Event()
with interrupt.acting(heard.set):
    print("ready", flush=True)
    assert heard.wait(60)
print("went on", flush=True)
time.sleep(60)
"""
    terminal = Terminal(program(tmp_path, text), tmp_path)
    for shown in ("ready", "went on"):
        while shown not in terminal.read():
            assert terminal.process.poll() is None, terminal.text
        terminal.press_ctrl_c()
    assert terminal.finish()[0] == 130


def test_processes_that_it_starts_hear_it(tmp_path):
    """Started in the main thread, in another one, by `fork`; the last one shows that they would not by themselves."""
    text = """
show = [sys.executable, "-c", f"print(int({STATUS}, 16))"]
def start():
    print(subprocess.check_output(show, text=True).strip(), flush=True)
def start_hearing():
    with interrupt.heard_by_children():
        start()
start_hearing()
thread = threading.Thread(target=start_hearing)
thread.start()
thread.join()
# Python 3.12 warns of threads that a fork leaves behind.
warnings.simplefilter("ignore", DeprecationWarning)
number = os.fork()
if not number:
    print(int(eval(STATUS), 16), flush=True)
    os._exit(0)
os.waitpid(number, 0)
start()
"""
    done = subprocess.run(program(tmp_path, text), capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n0\n0\n2\n", "")


def test_it_stays_ignored_where_the_caller_ignores_it(tmp_path):
    """Shells let commands in the background ignore it: Ctrl-C is meant for another program. MindSpore does not care."""
    text = "signal.signal(signal.SIGINT, signal.SIG_DFL)\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.2)"
    command = program(tmp_path, f"{text}\nprint('went on')")
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    assert subprocess.run(command, capture_output=True, text=True, **ignored).stdout == "went on\n"


class TestALibraryThatCannotBeLoaded:
    @pytest.mark.parametrize("listens", ["listen", "leave_while_loading"])
    @pytest.mark.parametrize(
        ("statement", "sentence"),
        [
            (
                "import nosuchlibrary",
                "No module named 'nosuchlibrary'; pip install -r requirements.txt installs what is",
            ),
            (
                "raise ImportError('a.so: failed to map segment from shared object')",
                "there is not enough memory to load",
            ),
            ("raise ImportError('cannot import name a from b')", "cannot import name a from b"),
            ("raise MemoryError", "there is not enough memory to load the program"),
        ],
    )
    def test_is_told_in_a_sentence(self, tmp_path, listens, statement, sentence):
        command = program(tmp_path, f"interrupt.{listens}()\nprint('said before')\n{statement}")
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "said before\n")
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and sentence in done.stderr

    @pytest.mark.parametrize("statement", ["import src.nosuchmodule", "1 / 0"])
    def test_errors_of_ours_are_not_hidden(self, tmp_path, statement):
        done = subprocess.run(program(tmp_path, statement), capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" in done.stderr

    def test_for_want_of_address_space_is_told_before_it_is_tried(self, tmp_path):
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))

        command = program(tmp_path, "print('others are loaded')\nimport csv, mindspore\nprint('it goes on')")
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
        sentence = "error: MindSpore does not fit into 700 MiB, the shell's limit (ulimit -v); raise the limit"
        assert (done.returncode, done.stdout, done.stderr) == (1, "others are loaded\n", sentence + "\n")
