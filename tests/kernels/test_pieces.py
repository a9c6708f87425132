"""Many tensors joined to one and parted again."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.kernels.pieces import Pieces


def test_tensors_come_back_as_they_were_from_one_vector():
    shapes = [(3, 2, 1, 1), (4,), (), (2, 5)] * 180  # B7 has 711 parameters
    arrays = [np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)]

    class Twice(nn.Cell):
        def __init__(self):
            super().__init__()
            self.pieces = Pieces(shapes)

        @ms.jit
        def construct(self, *tensors):
            vector = self.pieces.join(tensors)
            return vector, self.pieces.part(vector * 2, tensors)

    vector, parts = Twice()(*map(Tensor, arrays))
    np.testing.assert_array_equal(vector.asnumpy(), np.concatenate([array.ravel() for array in arrays]))
    for part, array in zip(parts, arrays):
        np.testing.assert_array_equal(part.asnumpy(), array * 2)
