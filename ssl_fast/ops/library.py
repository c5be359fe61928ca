"""How an op is known to torch, and how it is called where torch need not know."""

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)


def _seen_by_torch(arguments) -> bool:
    """Whether torch has to see a call as that of an op: it compiles, exports, traces, transforms or watches, or a
    tensor is not what its memory holds."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or any(isinstance(x, Tensor) and not _is_plain(x) for x in arguments)
    )


def _is_plain(x: Tensor) -> bool:
    usual = type(x) in PLAIN and (x.is_cpu or x.is_cuda) and x.layout == torch.strided
    return usual and not x.is_neg() and not x._is_zerotensor()


class Op:
    """`torch.library.custom_op("ssl_fast::" + name)` of a function of tensors and plain values.

    torch's dispatcher takes longer over such an op, forward and backward, than the kernels over a small batch. So the
    function is called directly, as a plain `torch.autograd.Function`, unless torch has to see the op.
    """

    def __init__(self, name: str, function):
        self.op = torch.library.custom_op(f"ssl_fast::{name}", function, mutates_args=(), device_types=("cpu", "cuda"))
        self.register_fake = self.op.register_fake
        self.name, self.function, self.differentiable = name, function, None

    def register_autograd(self, backward, *, setup_context) -> None:
        self.op.register_autograd(backward, setup_context=setup_context)

        def forward(ctx, *arguments):
            output = self.function(*arguments)
            setup_context(ctx, arguments, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self.differentiable = type(self.name, (torch.autograd.Function,), members)

    def __call__(self, *arguments):
        if _seen_by_torch(arguments):
            return self.op(*arguments)
        if self.differentiable:
            return self.differentiable.apply(*arguments)
        if torch.is_grad_enabled():  # a backward pass that is to be differentiated: torch says that there is no formula
            return self.op(*arguments)
        return self.function(*arguments)


def op(name: str):
    return lambda function: Op(name, function)
