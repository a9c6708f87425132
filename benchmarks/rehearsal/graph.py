"""What each kernel of a compiled graph reads, writes and computes, from the shapes in MindSpore's dump of the graph.

A model: every kernel reads its inputs from the card's memory once and writes its outputs once, unless it is known to
read an input twice. Caches between kernels, layouts that CANN changes on the way and workspaces are left out.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import math
import os
import re

BYTES = {"Float16": 2, "BFloat16": 2, "Float32": 4, "Int32": 4, "Int64": 8, "UInt8": 1, "Int8": 1, "Bool": 1}
NODE = re.compile(r"  %\d+\(\w+\) = (?:PrimFunc_)?(\w+)\(")
TENSOR = re.compile(r"<(\w+?)x\w+\[const vector\]\{([^}]*)\}>")
# Nodes of the graph that are no kernels. Reshape is its input under another name.
NO_KERNELS = set("Load UpdateState TupleGetItem MakeTuple Depend Return Reshape ExpandDims".split())
# Inputs that are read twice: statistics first and normalisation afterwards, or for two gradients.
READ_TWICE = {"BatchNormExt": (0,), "BatchNormGradExt": (0, 1), "ConvolutionGrad": (0,)}


@dataclasses.dataclass(frozen=True)
class Node:
    """A kernel of the graph.

    Attributes:
        operator: its name.
        inputs, outputs: type and shape of each tensor.
    """

    operator: str
    inputs: list[tuple[str, tuple[int, ...]]]
    outputs: list[tuple[str, tuple[int, ...]]]

    @property
    def bytes(self) -> int:
        """What it reads and writes."""
        again = [self.inputs[index] for index in READ_TWICE.get(self.operator, ())]
        return sum(map(size, [*self.inputs, *self.outputs, *again]))

    @property
    def operations(self) -> int:
        """Multiplications and additions of convolutions and matrix products."""
        if self.operator in ("Conv2D", "Conv2DExt"):
            return 2 * elements(self.outputs[0]) * math.prod(self.inputs[1][1][1:])
        if self.operator == "Conv2DBackpropInput":
            return 2 * elements(self.inputs[0]) * math.prod(self.inputs[1][1][1:])
        if self.operator == "Conv2DBackpropFilter":
            return 2 * elements(self.inputs[0]) * math.prod(self.outputs[0][1][1:])
        if self.operator == "ConvolutionGrad":
            return 4 * elements(self.inputs[0]) * math.prod(self.inputs[2][1][1:])
        if self.operator in ("MatMul", "MatMulExt", "Dense"):
            left, right, out = (elements(tensor) for tensor in (*self.inputs[:2], self.outputs[0]))
            return 2 * out * math.isqrt(left * right // out)
        return 0


def elements(tensor: tuple[str, tuple[int, ...]]) -> int:
    """How many numbers a tensor has."""
    return math.prod(tensor[1])


def size(tensor: tuple[str, tuple[int, ...]]) -> int:
    """Its bytes."""
    return BYTES.get(tensor[0], 4) * elements(tensor)


def read_graph(folder: str) -> list[Node]:
    """The kernels of the largest graph that MindSpore has written to a folder, in order.

    Raises:
        FileNotFoundError: if there is none.
    """
    # One of several ranks writes to a folder of its own below it.
    paths = glob.glob(os.path.join(folder, "**", "graph_build_*.ir"), recursive=True)
    if not paths:
        raise FileNotFoundError(f"{folder}: MindSpore has written no graph_build_*.ir")
    with open(max(paths, key=os.path.getsize), encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    nodes = []
    for number, line in enumerate(lines):
        found = NODE.match(line)
        if found and found[1] not in NO_KERNELS:
            # The second of the lines below it gives types, layouts and shapes of the kernel's tensors.
            shapes = next((text for text in lines[number + 1 : number + 5] if TENSOR.search(text)), " -> ")
            nodes.append(Node(found[1], *map(read_tensors, shapes.split(" -> ", 1))))
    return nodes


def read_tensors(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Types and shapes in a part of a line of the dump; a scalar's shape is empty."""
    return [(kind, tuple(map(int, filter(str.strip, shape.split(","))))) for kind, shape in TENSOR.findall(text)]


def sum_by_operator(nodes: list[Node]) -> dict[str, tuple[int, int, int]]:
    """Kernels, bytes and operations of each operator, those with most bytes first."""
    found = collections.defaultdict(lambda: (0, 0, 0))
    for node in nodes:
        count, read, computed = found[node.operator]
        found[node.operator] = (count + 1, read + node.bytes, computed + node.operations)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def bound_seconds(nodes: list[Node], bandwidth: float, cube: float) -> float:
    """The least time for all kernels, one after the other: each waits for memory or for the matrix unit.

    Args:
        bandwidth: of the card's memory, bytes/s.
        cube: float16 operations/s of its matrix unit.
    """
    return sum(max(node.bytes / bandwidth, node.operations / cube) for node in nodes)
