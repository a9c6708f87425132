"""Parameters: the model card's names and defaults, flags that are checked, and help."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from src.common.cli import UsageError, create_parser
from src.config import Config, add_config_flag, add_parameters, config, read_config_file, take_parameters
from src.models.family import VARIANTS
from src.parameters import PARAMETERS, path_parameters

ROOT = Path(__file__).parent.parent
# As the published model card lists them.
MODEL_CARD = {
    "class_num": 1000,
    "batch_size": 256,
    "loss_scale": 1024,
    "momentum": 0.9,
    "weight_decay": 1e-5,
    "epoch_size": 350,
    "save_checkpoint": True,
    "save_checkpoint_epochs": 1,
    "keep_checkpoint_max": 5,
    "save_checkpoint_path": "./checkpoint",
    "opt": "rmsprop",
    "opt_eps": 0.001,
    "warmup_epochs": 2,
    "lr_decay_mode": "liner",
    "use_label_smooth": True,
    "label_smooth_factor": 0.1,
    "lr_init": 0.0001,
    "lr_max": 0.2,
    "lr_end": 0.00001,
}


def parse(*arguments, names=None):
    parser = create_parser("a test")
    add_parameters(parser, names)
    return take_parameters(parser.parse_args(list(arguments)))


def test_defaults_are_the_model_cards():
    assert {name: getattr(config, name) for name in MODEL_CARD} == MODEL_CARD
    assert config.image_size == 224


def test_the_stem_the_seven_stages_and_the_head_can_be_frozen_and_no_more():
    assert parse("--freeze", "9").freeze == 9
    with pytest.raises(UsageError, match="--freeze: expected a whole number of at least 0 and at most 9"):
        parse("--freeze", "10")


@pytest.mark.parametrize("name", [name for name in PARAMETERS if PARAMETERS[name].default is not None])
def test_every_parameter_is_a_flag_that_reads_its_own_default_back(name):
    default = PARAMETERS[name].default
    text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    parsed = parse(f"--{name}", text)
    assert getattr(parsed, name) == default
    assert parsed.given == {name}


def test_a_flag_changes_its_parameter_and_no_other():
    parsed = parse("--batch_size", "64", "--mean", "123.675,116.28,103.53", "--std", "58", "--flip", "False")
    changed = {name for name in PARAMETERS if getattr(parsed, name) != getattr(config, name)}
    assert changed == {"batch_size", "mean", "std", "flip"}
    assert parsed.batch_size == 64
    assert parsed.mean == (123.675, 116.28, 103.53)
    assert parsed.std == (58.0, 58.0, 58.0)
    assert parsed.flip is False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batch_size", "0"], "--batch_size: expected a whole number of at least 1, not '0'"),
        (["--batch_size", "2.5"], "--batch_size: expected a whole number of at least 1, not '2.5'"),
        (["--momentum", "1"], "--momentum: expected a number of at least 0 and at most 0.99, not '1'"),
        (["--lr_max", "0"], "--lr_max: expected a number above 0, not '0'"),
        (["--lr_max", "nan"], "--lr_max: expected a number above 0, not 'nan'"),
        (["--weight_decay", "-1e-5"], "--weight_decay"),
        (["--opt", "adam"], "--opt: expected one of rmsprop, sgd, not 'adam'"),
        (["--lr_decay_mode", "up"], "expected one of liner, linear, cosine, poly, steps, exponential, not 'up'"),
        (["--flip", "maybe"], "--flip: expected True or False, not 'maybe'"),
        (["--mean", "1,2"], "--mean: expected a number, or three separated by commas, not '1,2'"),
        (["--mean", "inf"], "--mean: expected a number, or three separated by commas, not 'inf'"),
        (["--image_size", "16"], "--image_size: expected a whole number of at least 32 and at most 2048, not '16'"),
        (["--variant", "b8"], "--variant: expected one of b0"),
        (["--batch", "3"], "unrecognized arguments: --batch 3; did you mean --batch_size?"),
        (["--bach_size", "8"], "unrecognized arguments: --bach_size 8; did you mean --batch_size? (see "),
        (["--batch-size=8"], "unrecognized arguments: --batch-size=8; did you mean --batch_size?"),
        (["--EPOCH_SIZE", "8"], "did you mean --epoch_size?"),
        (["--wheels", "4"], "unrecognized arguments: --wheels 4 (see "),
        (["--keep_grap", "4"], "unrecognized arguments: --keep_grap 4 (see "),
        (["--lr_decay_mode", "cosin"], "steps, exponential, not 'cosin'; did you mean cosine?"),
        (["--device_target", "cpu"], "expected one of Ascend, GPU, CPU, not 'cpu'; did you mean CPU?"),
        (["--keep_graph", "False"], "--keep_graph is gone: compiled training steps are no longer kept; leave it out"),
        (["--batch_size"], "--batch_size: expected one argument"),
        (["--std", "0"], "--std must be above 0"),
        (["--epoch_size", "1", "--warmup_epochs", "2"], "--warmup_epochs 2 is more than --epoch_size 1"),
        (["--lr_end", "0.3"], "--lr_end 0.3 is above --lr_max 0.2"),
        (["--lr_init", "0.3"], "--lr_init 0.3 is above --lr_max 0.2"),
    ],
)
def test_wrong_flags_are_one_sentence(arguments, sentence):
    with pytest.raises(UsageError) as error:
        parse(*arguments)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "flags, name, value",
    [
        (["--epoch_size", "1"], "warmup_epochs", 0.2),
        (["--lr_max", "0.00001"], "lr_init", 0.00001),
        (["--lr_max", "0.000001"], "lr_end", 0.000001),
    ],
)
def test_a_default_that_was_not_given_gives_way(flags, name, value):
    assert getattr(parse(*flags), name) == pytest.approx(value)


def nested(levels):
    """A list of nine times a list of nine times ..., in a line for each level: 9 ** levels texts when spelt out."""
    lines = [f"  - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(["mean:", "  - &a0 [x]", *lines])


def test_nothing_is_held_fixed_unless_asked():
    assert Config().freeze == parse("--freeze", "0").freeze == 0


class TestConfigFile:
    def read(self, tmp_path, text, *flags):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        parser = create_parser("")
        add_config_flag(parser)
        add_parameters(parser)
        return take_parameters(parser.parse_args(["--config", str(path), *flags]))

    def test_its_entries_are_parameters_and_flags_override_them(self, tmp_path):
        text = "batch_size: 8\nlr_max: 1e-3\nflip: no\nmean: [1, 2, 3]\nvariant: lite0\n"
        config = self.read(tmp_path, text, "--batch_size", "16")
        assert (config.batch_size, config.lr_max, config.flip) == (16, 0.001, False)
        assert (config.mean, config.variant) == ((1.0, 2.0, 3.0), "lite0")
        assert config.given == {"batch_size", "lr_max", "flip", "mean", "variant"}

    def test_the_json_that_a_run_writes_is_one(self, tmp_path):
        before = Config(batch_size=8, mean=(1.0, 2.0, 3.0), sync_bn=True)
        assert self.read(tmp_path, before.to_json()).as_dict() == before.as_dict()

    @pytest.mark.parametrize(
        "text, sentence",
        [
            ("bach_size: 8", "there is no parameter 'bach_size'; did you mean batch_size?"),
            ("batch_size: many", "batch_size: expected a whole number of at least 1, not 'many'"),
            ("keep_graph: True", "keep_graph is gone"),
            ("- 1", "it holds no names of parameters"),
            ("", "it holds no names of parameters"),
            ("a: [", "it is neither YAML nor JSON"),
            ("\x00", "it is neither YAML nor JSON"),
            ("!!python/object/apply:os.system [true]", "it is neither YAML nor JSON"),
            ("2001-02-30: 1", "it is neither YAML nor JSON"),
            ("batch_size: !!timestamp never", "it is neither YAML nor JSON"),
            ("batch_size: !!int ''", "it is neither YAML nor JSON"),
            ("batch_size: {a: 1}", "batch_size: expected a value or a list of values"),
            (nested(20), "mean: expected a value or a list of values"),
        ],
    )
    def test_others_are_refused_in_a_sentence(self, tmp_path, text, sentence):
        with pytest.raises(UsageError) as error:
            self.read(tmp_path, text)
        assert f"--config {tmp_path / 'run.yaml'}: {sentence}" in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_missing_file_is_refused_in_a_sentence(self, tmp_path):
        with pytest.raises(UsageError, match=f"^--config {tmp_path}/no.yaml: there is no such file or directory$"):
            read_config_file(f"{tmp_path}/no.yaml")


def test_train_py_reports_them_with_exit_code_2(tmp_path):
    command = [sys.executable, ROOT / "train.py", "--dataset_path", tmp_path, "--batch_size", "many"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: argument --batch_size: expected .* not 'many' \(see train.py --help\)\n", done.stderr)


AUTOMATIC = {
    "class_num": "the folder", "image_size": "the variant", "dropout_rate": "the variant", "amp_level": "the device",
    "device_target": "what there is", "device_id": "DEVICE_ID", "num_workers": "the cores", "jit_level": "the device",
    "conv_precision": "the card",
}  # fmt: skip


def test_help_names_every_parameter_with_its_choices_and_its_default():
    """A value is called automatic where something is found, and nowhere else."""
    parser = create_parser("a test")
    add_parameters(parser)
    text = " ".join(parser.format_help().split())
    for name, parameter in PARAMETERS.items():
        shown = "automatic" if name in AUTOMATIC else "none" if parameter.default is None else parameter.default
        line = re.split(rf" --{name} {name.upper()} ", text)[1].partition(" --")[0]
        assert line.startswith(parameter.help) and f" (default: {shown})" in line, name
    for name in ("resume", "pretrained", "data_url", "early_stop", "save_checkpoint_steps", "eval_dataset_path"):
        assert re.search(rf"--{name} [^()]*\(default: none\)", text), name


def test_help_names_the_values_of_a_choice():
    parser = create_parser("a test")
    add_parameters(parser)
    text = " ".join(parser.format_help().split())
    assert "the zoo's linear; one of liner, linear, cosine, poly, steps, exponential (default: liner)" in text
    assert f"member of the family; one of {', '.join(VARIANTS)} (default: b0)" in text
    assert "optimiser; one of rmsprop, sgd (default: rmsprop)" in text
    # This text names them already.
    assert "same is TensorFlow's, symmetric is PyTorch's (default: same)" in text


def test_a_script_takes_only_the_parameters_that_it_names():
    assert parse("--batch_size", "8", names=["batch_size"]).batch_size == 8
    with pytest.raises(UsageError, match="unrecognized arguments: --opt sgd"):
        parse("--opt", "sgd", names=["batch_size"])


def test_unknown_parameters_are_refused():
    with pytest.raises(AttributeError, match="there is no parameter bach_size"):
        Config(bach_size=8)


def test_replacing_values_leaves_the_original_and_what_was_given():
    given = Config(batch_size=8)
    other = given.replace(batch_size=16, seed=5)
    assert (given.batch_size, other.batch_size, other.seed) == (8, 16, 5)
    assert other.given == {"batch_size"}


def test_json_holds_every_parameter():
    values = json.loads(Config(batch_size=8).to_json())
    assert values.keys() == PARAMETERS.keys()
    assert values["batch_size"] == 8
    assert values["mean"] == [127.5, 127.5, 127.5]


def test_preprocessing_follows_size_ratio_and_statistics():
    preprocess = Config(image_size=300, crop_ratio=0.904, interpolation="bilinear", mean=(1.0, 2.0, 3.0)).preprocess
    assert (preprocess.image_size, preprocess.resize, preprocess.interpolation) == (300, 332, "bilinear")
    assert (preprocess.mean, preprocess.std) == ((1.0, 2.0, 3.0), (127.5, 127.5, 127.5))


def test_what_is_known_of_a_flag_stands_with_it():
    assert path_parameters() == (
        "dataset_path", "eval_dataset_path", "pretrained", "save_checkpoint_path", "resume"
    )  # fmt: skip
    assert not PARAMETERS["lr_max"].resumable and PARAMETERS["num_workers"].resumable
    assert {name for name, parameter in PARAMETERS.items() if parameter.by_launcher} == {
        "dataset_path", "device_id", "run_distribute"
    }  # fmt: skip


def test_a_part_has_the_parameters_of_its_fields():
    @dataclasses.dataclass
    class Part:
        momentum: float
        seed: int
        rank: int

    assert Config(momentum=0.5, seed=3).part(Part, rank=2) == Part(0.5, 3, 2)
    assert Config(momentum=0.5).part(Part, momentum=0.1, rank=0) == Part(0.1, 1, 0)
