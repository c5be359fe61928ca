"""The wrappers of ldmatrix and mma against what the PTX manual says of their operands: products of small integers,
which are exact in every dtype. Of a library that has tests/cuda_emulation/ptx_wrappers.cu."""

import ctypes

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # float32: rounded to tf32


def _call(function, *args) -> None:
    function.restype = ctypes.c_char_p
    error = function(*(ctypes.c_void_p(x.data_ptr()) if isinstance(x, torch.Tensor) else x for x in args))
    assert error is None, error.decode()


def check_ldmatrix(library: ctypes.CDLL, device: str) -> None:
    """Lane l gets in register i bytes 4 (l % 4) .. of row l / 4 of matrix i, whose rows are those of lanes 8 i ..."""
    matrices = torch.arange(4 * 8 * 4, dtype=torch.int32, device=device) * 0x01030507
    registers = torch.zeros(32, 4, dtype=torch.int32, device=device)
    _call(library.test_ldmatrix, matrices, registers)
    assert torch.equal(registers, matrices.view(4, 32).t())  # [matrix, row, word] -> [row * 4 + word, matrix]


def _registers(numbers: torch.Tensor) -> torch.Tensor:
    """(32, registers, numbers in each) -> (32, registers) int32, the first number in the lowest bits."""
    return numbers.contiguous().view(torch.int32).flatten(1)


def check_mma(library: ctypes.CDLL, device: str, dtype: torch.dtype) -> None:
    """With g = lane / 4 and q = lane % 4, registers of a lane hold, of numbers k beside each other:

        a   A[g, k], A[g + 8, k], A[g, k'], A[g + 8, k']     b   B[k, g], B[k', g]
        acc C[g, 2 q], C[g, 2 q + 1], C[g + 8, 2 q], C[g + 8, 2 q + 1]

    k = 2 q, 2 q + 1 and k' = k + 8 of 16 bits; k = q and k' = q + 4 of tf32.
    """
    each = 4 // dtype.itemsize
    depth = 8 * each
    generator = torch.Generator().manual_seed(depth)
    A = torch.randint(-7, 8, (16, depth), generator=generator)
    B = torch.randint(-7, 8, (depth, 8), generator=generator)
    C = torch.randint(-99, 100, (16, 8), generator=generator)
    lane = torch.arange(32)
    g, q = lane // 4, lane % 4
    k = (q[:, None] * each + torch.arange(each))[:, None]  # (32, 1, each)
    rows = torch.stack([g, g + 8, g, g + 8], 1)[:, :, None]
    ks = torch.cat([k, k, k + depth // 2, k + depth // 2], 1)
    a = _registers(A.to(dtype)[rows, ks])
    b = _registers(B.to(dtype)[torch.cat([k, k + depth // 2], 1), g[:, None, None]])
    row, column = torch.stack([g, g, g + 8, g + 8], 1), torch.stack([2 * q, 2 * q + 1] * 2, 1)
    acc = C.float()[row, column].to(device)
    _call(library.test_mma, dtype.itemsize, dtype == torch.bfloat16, a.to(device), b.to(device), acc)
    assert torch.equal(acc.cpu(), (C + A @ B).float()[row, column])
