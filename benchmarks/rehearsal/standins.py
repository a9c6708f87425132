"""Stand-ins for CANN's libraries, with which MindSpore's Ascend plugin loads on any x86 machine.

The wheel of MindSpore carries the whole plugin; what it lacks are some 1,700 functions of CANN. They are made from the
plugin's own list of undefined symbols: each returns 0, but for the few in standins.cpp. Nothing of CANN is needed or
copied. MindSpore's dry run (MS_SIMULATION_LEVEL) then compiles for Ascend and allocates, and computes nothing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "standins.cpp")
# The names of CANN's libraries, which the plugin opens.
LIBRARIES = """
acl_dvpp acl_dvpp_mpi acl_dvpp_op acl_op_compiler acl_tdt_channel acl_tdt_queue aicpu_engine_common ascend_hal
ascendalog ascendcl atb c_sec cust_opapi error_manager exe_graph ge_runner graph hccl metadef mmpa msprofiler
msprofiler_fwk nnopbase opapi opapi_cv opapi_math opapi_nn opapi_transformer platform profapi register runtime
tiling_api tsdclient unified_dlog
""".split()
# The functions that the plugin looks up by name while it runs.
BY_NAME = re.compile(rb"(?<=\0)(?:acl|Hccl|rt[A-Z])[A-Za-z0-9]+(?=\0)")
# Tables of virtual functions, type information and the like: data, not functions.
DATA = ("_ZTV", "_ZTI", "_ZTS", "_ZGV")


def find_package() -> str:
    """The folder of the installed MindSpore, which is not imported."""
    spec = importlib.util.find_spec("mindspore")
    return os.path.dirname(spec.origin) if spec and spec.origin else ""


def why_not() -> str | None:
    """A sentence on why stand-ins cannot be made here; None where they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the stand-ins for CANN are made for Linux on x86-64, not {platform.system()} on {platform.machine()}"
    if not os.path.exists(os.path.join(find_package(), "lib", "plugin", "libmindspore_ascend.so.2")):
        return "the installed MindSpore has no Ascend plugin"
    missing = [tool for tool in ("gcc", "g++", "nm") if not shutil.which(tool)]
    return f"{', '.join(missing)} needed to make the stand-ins for CANN cannot be found" if missing else None


def create_standins(folder: str) -> dict[str, str]:
    """Write stand-ins for CANN's libraries and its Python package `hccl` below a folder, in some seconds.

    Returns:
        The environment of a process that shall find them, but for what `rehearsal.run` adds.
    """
    root = os.path.join(os.path.abspath(folder), "cann")  # MindSpore looks for "/cann/" in the paths
    libraries, packages = os.path.join(root, "lib64"), os.path.join(root, "python")
    plugin = os.path.join(find_package(), "lib", "plugin", "ascend")
    os.makedirs(libraries)
    with open(os.path.join(root, "standins.s"), "w") as file:
        file.write(write_assembly(find_missing_symbols() - find_written_symbols()))
    objects = [os.path.join(root, name) for name in ("standins.o", "written.o")]
    subprocess.run(["gcc", "-c", os.path.join(root, "standins.s"), "-o", objects[0]], check=True)
    # MindSpore's wheels are built with the old layout of std::string.
    flags = ["-D_GLIBCXX_USE_CXX11_ABI=0", "-fPIC", "-O1"]
    subprocess.run(["g++", *flags, "-c", SOURCE, "-o", objects[1]], check=True)
    shared = os.path.join(libraries, "standins.so")
    subprocess.run(["g++", "-shared", "-Wl,-z,noexecstack", "-o", shared, *objects], check=True)
    for name in LIBRARIES:
        os.link(shared, os.path.join(libraries, f"lib{name}.so"))
    write_hccl(packages)
    return {
        "ASCEND_HOME_PATH": root,
        "LD_LIBRARY_PATH": f"{libraries}:{plugin}",
        "PYTHONPATH": packages,
    }


def find_missing_symbols() -> set[str]:
    """The names of all functions that the plugin needs and that neither MindSpore nor the system has."""
    package = find_package()
    plugin = os.path.join(package, "lib", "plugin")
    ours = [os.path.join(plugin, name) for name in ("libmindspore_ascend.so.2", "libmindspore_ops_ascend.so")]
    ours += list_libraries(os.path.join(plugin, "ascend"))
    others = [path for folder in ("", "lib") for path in list_libraries(os.path.join(package, folder), deep=False)]
    there = {name for path in [*ours, *others] for name in read_symbols(path, "defined")}
    there |= {name for path in find_system_libraries(ours[0]) for name in read_symbols(path, "defined")}
    wanted = {name for path in ours for name in read_symbols(path, "undefined")}
    for path in ours:
        with open(path, "rb") as file:
            wanted |= {name.decode() for name in BY_NAME.findall(file.read())}
    wanted |= {name + "GetWorkspaceSize" for name in wanted if name.startswith("aclnn")}
    wanted |= {"aclnnInit", "aclnnFinalize"}
    return {name for name in wanted - there if not name.startswith(("__", "Py", "_Py"))}


def list_libraries(folder: str, deep: bool = True) -> list[str]:
    """The shared libraries in a folder, or also below it."""
    found = []
    for root, folders, names in os.walk(folder):
        found += [os.path.join(root, name) for name in names if re.search(r"\.so(\.\d+)*$", name)]
        if not deep:
            folders.clear()
    return found


def find_system_libraries(path: str) -> list[str]:
    """The libraries outside of MindSpore that a library asks for."""
    listed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return [found for found in re.findall(r"=> (/\S+)", listed) if "mindspore" not in found]


def read_symbols(path: str, kind: str) -> set[str]:
    """The dynamic symbols of a library, kind "defined" or "undefined"; those that may be missing are left out."""
    listed = subprocess.run(["nm", "-D", f"--{kind}-only", path], capture_output=True, text=True).stdout
    lines = [line.split() for line in listed.splitlines() if line.strip()]
    return {words[-1].partition("@")[0] for words in lines if kind == "defined" or words[-2] not in ("w", "v")}


def find_written_symbols() -> set[str]:
    """The functions that standins.cpp defines."""
    with open(SOURCE) as file:
        return set(re.findall(r"^(?:void \*|int |const char \*)(\w+)\(", file.read(), re.MULTILINE))


def write_assembly(names: set[str]) -> str:
    """Functions that return 0, and zeros for data."""
    lines = [".text"]
    for name in sorted(names):
        if name.startswith(DATA):
            lines += [".data", f".globl {name}", f".type {name},@object", f".size {name},256", ".align 16"]
            lines += [f"{name}: .zero 256", ".text"]
        else:
            lines += [
                f".globl {name}",
                f".type {name},@function",
                f"{name}: xorl %eax,%eax",
                "xorps %xmm0,%xmm0",
                "ret",
            ]
    return "\n".join([*lines, ""])


def write_hccl(folder: str) -> None:
    """A package `hccl`, which MindSpore asks for its version and to set up groups of ranks."""
    manage = os.path.join(folder, "hccl", "manage")
    os.makedirs(manage)
    texts = {
        os.path.join(folder, "hccl", "__init__.py"): "",
        os.path.join(folder, "hccl", "sys_version.py"): '__sys_version__ = "8.2.0"\n',
        os.path.join(manage, "__init__.py"): "",
        os.path.join(manage, "api.py"): "def __getattr__(name):\n    return lambda *args, **settings: 0\n",
    }
    for path, text in texts.items():
        with open(path, "w") as file:
            file.write(text)
