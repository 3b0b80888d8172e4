"""Several small numbers in a byte."""

import pytest
import torch

from workbench.engine.communication.packing import pack, unpack


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 1001])
def test_what_is_packed_is_unpacked(bits, length):
    values = torch.randint(2**bits, (length,), generator=torch.Generator().manual_seed(length))
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8 and len(packed) == -(-length * bits // 8)
    assert unpack(packed, bits, length).tolist() == values.tolist()


def test_the_first_is_in_the_lowest_bits():
    assert pack(torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 1, 1]), 1).tolist() == [1, 3]
    assert pack(torch.tensor([1, 2]), 4).tolist() == [1 + 2 * 16]
