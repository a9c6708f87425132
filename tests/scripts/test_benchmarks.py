"""All benchmarks in one table, also where one of them fails."""

from benchmarks import run_all
from src.common.cli import run_cli


def test_the_figures_of_each_and_a_sentence_on_those_that_failed(tmp_path, monkeypatch, capsys):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "train_step.py").write_text("print('step 1')\nprint('{\"step_224\": 0.54, \"n\": 2}')\n")
    (tmp_path / "benchmarks" / "inference.py").write_text("print('{\"share\": 1}')\nraise SystemExit(1)\n")
    monkeypatch.setattr(run_all, "ROOT", str(tmp_path))
    out = tmp_path / "table.md"
    assert run_cli(run_all.main, ["--out", str(out), "train_step", "inference"]) == 1
    assert out.read_text().splitlines()[2:] == [
        "| benchmark | figure | value |",
        "| --- | --- | --- |",
        "| `train_step.py` | step_224 | 0.54 |",
        "| `train_step.py` | n | 2 |",
        "| `inference.py` | failed |  |",
    ]
    assert "cores; Python" in out.read_text().splitlines()[0]
    said = capsys.readouterr()
    assert "step 1\n" in said.out
    assert said.err == "error: no figures from: inference; see what each printed above\n"
