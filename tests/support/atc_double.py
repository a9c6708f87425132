"""A double of ATC, CANN's converter, for tests: `install` puts it on the path as `atc`.

It takes the options that ATC's documentation names and refuses others, reads the ONNX and the AIPP file as ATC does,
and writes an "OM" file: the magic number, then JSON with the options, AIPP's settings and the ONNX file.

    ATC_DOUBLE_FAILS=TEXT     says TEXT and fails
    ATC_DOUBLE_WRITES=other|broken|named
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import sys
from pathlib import Path

MAGIC = b"IMOD"
OPTIONS = set(
    "mode framework model output input_format input_shape soc_version insert_op_conf precision_mode output_type om json"
    " log dynamic_batch_size".split()
)
FORMATS = {"RGB888_U8": 3}
# Types and ranges of CANN's "configuration file template".
AIPP_SETTINGS = {
    "aipp_mode": lambda text: text in ("static", "dynamic"),
    "input_format": lambda text: text in FORMATS,
    **{f"src_image_size_{side}": lambda text: text.isdigit() and 2 <= int(text) <= 4096 for side in "wh"},
    **{name: lambda text: text in ("true", "false") for name in ("crop", "csc_switch", "rbuv_swap_switch")},
    **{f"mean_chn_{i}": lambda text: text.isdigit() and int(text) <= 255 for i in range(3)},
    **{f"min_chn_{i}": lambda text: 0 <= float(text) <= 255 for i in range(3)},
    **{f"var_reci_chn_{i}": lambda text: -65504 <= float(text) <= 65504 for i in range(3)},
}


def install(folder: Path) -> str:
    """Write the command `atc` to a folder; returns a PATH that begins with it."""
    folder.mkdir(parents=True, exist_ok=True)
    command = folder / "atc"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{os.path.abspath(__file__)}' \"$@\"\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def read_om(path: Path) -> dict:
    """What is in an "OM" file: `options`, `aipp` and the bytes `onnx`."""
    data = path.read_bytes()
    assert data[: len(MAGIC)] == MAGIC
    content = json.loads(data[len(MAGIC) :])
    return {**content, "onnx": base64.b64decode(content["onnx"])}


def read_aipp(text: str) -> dict[str, str]:
    """The settings of one `aipp_op` in protocol buffers' text form."""
    found = re.fullmatch(r"\s*aipp_op\s*\{(.*)\}\s*", re.sub(r"#.*", "", text), re.DOTALL)
    if not found:
        fail("E10001", "the AIPP file has no aipp_op")
    settings = {}
    for line in filter(None, map(str.strip, found[1].splitlines())):
        name, _, value = (part.strip() for part in line.partition(":"))
        if name not in AIPP_SETTINGS or name in settings or not AIPP_SETTINGS[name](value):
            fail("E10001", f"the AIPP file says '{line}'")
        settings[name] = value
    return settings


def fail(code: str, sentence: str):
    print("ATC run failed, Please check the detail log, Try 'atc --help' for more information")
    print(f"{code}: {sentence}")
    sys.exit(1)


def parse(arguments: list[str]) -> dict[str, str]:
    options = {}
    for argument in arguments:
        found = re.fullmatch(r"--(\w+)=(.+)", argument)
        if not found or found[1] not in OPTIONS or found[1] in options:
            fail("E10001", f"the option {argument} is not known")
        options[found[1]] = found[2]
    for name in ("model", "output", "insert_op_conf", "om", "json"):
        if not re.fullmatch(r"[\w./-]*", options.get(name, "")):
            fail("E10016", f"the path {options[name]} has other characters than letters, digits, _, - and .")
    return options


def convert(options: dict[str, str]) -> None:
    import onnx

    if not {"model", "output", "soc_version"} <= options.keys() or options.get("framework") != "5":
        fail("E10004", "an option is missing")
    model = onnx.load(options["model"])
    if len(model.opset_import) != 1 or model.opset_import[0].domain or not 11 <= model.opset_import[0].version <= 13:
        fail("E19010", "an opset or a domain that no parser is found for")
    (image,) = model.graph.input
    dimensions = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    name, _, shape = options["input_shape"].partition(":")
    wanted = [int(number) for number in shape.split(",")]
    if name != image.name:
        fail("E10016", f"Opname [{name}] specified in [input_shape] is not found in the model")
    if wanted[1:] != dimensions[1:] or wanted[0] < 1 or dimensions[0] not in (0, wanted[0]):
        fail("E10021", f"the shape {wanted} is not that of the model, {dimensions}")
    if options.get("precision_mode", "force_fp16") != "force_fp16" or options.get("output_type", "FP32") != "FP32":
        fail("E10007", "an option has a value that this double does not know")
    aipp = read_aipp(Path(options["insert_op_conf"]).read_text())
    if [int(aipp[f"src_image_size_{side}"]) for side in "hw"] != wanted[2:]:
        fail("E10030", "AIPP's image has another size than the model's")
    content = {"options": options, "aipp": aipp, "shape": [wanted[0], *wanted[2:], 3]}
    content["onnx"] = base64.b64encode(Path(options["model"]).read_bytes()).decode()
    written = os.environ.get("ATC_DOUBLE_WRITES")
    data = b"text" if written == "broken" else MAGIC + json.dumps(content).encode()
    output = options["output"] + ("_linux_aarch64" if written == "named" else "")
    Path(output + ".om").write_bytes(data)


def show(options: dict[str, str]) -> None:
    om = read_om(Path(options["om"]))
    dim = [1] if os.environ.get("ATC_DOUBLE_WRITES") == "other" else om["shape"]
    tensor = {"dtype": "DT_UINT8", "layout": "NHWC", "shape": {"dim": dim}}
    graph = {"name": "network", "op": [{"name": "image", "type": "Data", "input_desc": [tensor]}]}
    Path(options["json"]).write_text(json.dumps({"graph": [graph]}))


def main() -> None:
    if os.environ.get("ATC_DOUBLE_FAILS"):
        fail("E40000", os.environ["ATC_DOUBLE_FAILS"])
    options = parse(sys.argv[1:])
    if options.get("mode", "0") == "1":
        show(options)
    else:
        print("ATC start working now, please wait for a moment.")
        convert(options)
    print("ATC run success, welcome to the next use.")


if __name__ == "__main__":
    main()
