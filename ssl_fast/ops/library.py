"""Registration of the ops with torch, and the direct call where torch need not know."""

import inspect
from typing import Any

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)
# Private names of torch. Where one is gone, each call is dispatched as an op, and saved gradients are copied: slower,
# otherwise the same.
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_functorch = getattr(torch._C, "_functorch", None)
_is_batched = getattr(_functorch, "is_legacy_batchedtensor", lambda _: True)  # by is_grads_batched
_is_tracing = getattr(torch._C, "_is_tracing", lambda: True)
_autograd = getattr(torch._C, "_autograd", None)
_keeps_graph = getattr(_autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _needs_dispatcher(arguments) -> bool:
    """True if torch has to see a call as that of an op: it compiles, exports, traces or watches, or a tensor is not
    what its memory holds. In transforms no op is called."""
    if torch.compiler.is_compiling() or _dispatch_modes() > 0 or _is_tracing():
        return True
    return not all(map(_is_plain, arguments))


def _is_plain(x: Tensor | None) -> bool:
    if x is None:
        return True
    usual = type(x) in PLAIN and (x.is_cpu or x.is_cuda) and x.layout == torch.strided
    return usual and not x.is_neg() and not x._is_zerotensor() and not _is_batched(x)


def may_return_saved(grad: Tensor) -> bool:
    """Whether a backward pass may look at the value of `grad` and return saved tensors themselves: torch does not trace
    or wrap the call, and neither a second derivative nor another backward pass of the graph follows."""
    return not (_needs_dispatcher([grad]) or torch.is_grad_enabled() or _keeps_graph())


class Op:
    """`torch.library.custom_op("ssl_fast::" + name)` of a function of tensors and plain values.

    torch's dispatcher takes some 50 microseconds over such an op, forward and backward: 14 % of a step of 8 x 8 pairs
    of 512 channels and 7 x 7 cells on one thread, 6 % of 32 x 32. So the function is called directly, as a plain
    `torch.autograd.Function`, unless torch has to see the op.

    outside: of a backward pass, how many of its first tensors are gradients that arrive or features; the others,
    outputs of the forward pass, are known to be plain. None: all have to be looked at.
    """

    def __init__(self, name: str, function, outside: int | None):
        self.op = torch.library.custom_op(f"ssl_fast::{name}", function, mutates_args=(), device_types=("cpu", "cuda"))
        self.register_fake = self.op.register_fake
        self.name, self.function, self.differentiable = name, function, None
        kinds = [parameter.annotation for parameter in inspect.signature(function).parameters.values()]
        self.looked_at = [i for i, kind in enumerate(kinds) if kind in (Tensor, Tensor | None)][:outside]

    def register_autograd(self, backward, *, setup_context, outputs: int | None = None) -> None:
        """outputs: how many of the first ones a direct call with gradients returns, as autograd takes time over each
        (None: all). The others are for the backward pass."""
        self.op.register_autograd(backward, setup_context=setup_context)

        def forward(ctx, *arguments):
            output = self.function(*arguments)
            setup_context(ctx, arguments, output)
            return output[:outputs]

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self.differentiable = type(self.name, (torch.autograd.Function,), members)

    def __call__(self, *arguments) -> Any:
        if _needs_dispatcher([arguments[i] for i in self.looked_at]):
            return self.op(*arguments)
        if self.differentiable:
            return self.differentiable.apply(*arguments)
        if torch.is_grad_enabled():  # a backward pass that is to be differentiated: torch says that there is no formula
            return self.op(*arguments)
        return self.function(*arguments)


def op(name: str, outside: int | None = None):
    return lambda function: Op(name, function, outside)
