"""What the kernel says of the processor."""

import os

from src.common.machine import count_cores, cpu_flags, cpu_name, usable_cores


def test_features_of_x86_and_arm(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\nbogomips\t: 1\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(path) == {"fpu", "avx2", "fma"}
    path.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert cpu_flags(path) == {"fp", "asimd"}
    assert cpu_flags(tmp_path / "nothing") == frozenset()


def test_cores_are_those_of_this_process():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == [min(before)] and count_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert count_cores() == len(before)


def test_the_processor_has_a_name():
    assert cpu_name()
