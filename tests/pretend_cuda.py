"""Tensors that say they are on a GPU while their numbers stay on the processor, so that machines without one can test where tensors live.

Inside `pretend_cuda()` a tensor made on or moved to "cuda" is a `Pretend`. Operations on it run on the processor, and fail as on a GPU where
tensors of different devices meet, where a generator of the processor is asked for random numbers on the GPU, and where NumPy is to read it.
Speed, kernels and rounding on a real GPU are not tested this way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_GPU = torch.device("cuda", 0)
_aten = torch.ops.aten
_MAY_MIX = {_aten._to_copy.default, _aten.copy_.default, _aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default}
"""Operations that read tensors of both devices on a real GPU: copies, and look-ups by positions that lie on the processor."""

_BELIEVES = {_aten._to_copy.default, _aten.new_zeros.default}
"""Operations that PyTorch calls itself, with a device."""


class Pretend(torch.Tensor):
    """A tensor that claims to be on the GPU; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretend:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype
        )
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretend({self.inner})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Not what PyTorch itself believes, which could not index a tensor of a device that is not there."""
        return _GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """As on a GPU."""
        return True

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the operations that no `Pretend` takes part in: those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Sees calls from Python that PyTorch would decide by the device it believes in."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return _moved(func, *args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return _moved(torch.Tensor.to, func(*args, **kwargs), device)
        if func in (torch.Tensor.tolist, torch.Tensor.numpy) and isinstance(args[0], Pretend):
            if func is torch.Tensor.tolist:
                return args[0].inner.tolist()
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    ours = [leaf for leaf in leaves if isinstance(leaf, Pretend)]
    theirs = [leaf for leaf in leaves if not isinstance(leaf, Pretend) and leaf.dim() > 0]
    # What was moved by name went through `_Move`; here, and where derivatives are made, PyTorch names the device that it believes a tensor to be on.
    asked = None if func in _BELIEVES else kwargs.get("device")
    device = torch.device(asked) if asked is not None else (_GPU if ours else torch.device("cpu"))
    on_gpu = device.type == "cuda"
    if ours and theirs and not (func in _MAY_MIX and _mixes_well(func, args)):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu")
    if on_gpu and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: expected a 'cuda' device type for generator but found 'cpu'")
    plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
    if plain_kwargs.get("device") is not None:
        plain_kwargs["device"] = torch.device("cpu")
    found = func(*plain_args, **plain_kwargs)
    if func._schema.is_mutable and func._schema.returns and isinstance(found, torch.Tensor):
        changed = kwargs.get("out", args[0] if args else None)
        return changed
    return tree_map(lambda value: Pretend(value) if on_gpu and isinstance(value, torch.Tensor) else value, found)


class _Move(torch.autograd.Function):
    """From one device to the other, and the gradient back."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        ctx.origin = tensor.device, tensor.dtype
        copied = _plain(tensor).clone().to(dtype)
        return Pretend(copied) if device.type == "cuda" else copied

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return _Move.apply(gradients[0], *ctx.origin), None, None  # type: ignore[no-untyped-call]


def _moved(func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Tensor.to and Tensor.cpu, by the devices that tensors claim."""
    device, dtype = tensor.device, tensor.dtype
    if func is torch.Tensor.cpu:
        device = torch.device("cpu")
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, str | torch.device):
            device = torch.device(value)
    if device.type == tensor.device.type:
        return tensor if dtype == tensor.dtype and not kwargs.get("copy") else torch.ops.aten._to_copy.default(tensor, dtype=dtype)
    return _Move.apply(tensor, device, dtype)  # type: ignore[no-any-return,no-untyped-call]


def _mixes_well(func: Any, args: Any) -> bool:
    """Positions may lie on the processor when what is looked up in does not, never the other way round; values must lie with it."""
    if func in (_aten._to_copy.default, _aten.copy_.default):
        return True
    if func is _aten.index_put.default and not isinstance(args[0], Pretend):
        return True  # the gradient of a look-up: PyTorch makes the zeros it adds to where it believes the values to be
    values = [value for value in args[2:3] if isinstance(value, torch.Tensor) and value.dim() > 0]
    return isinstance(args[0], Pretend) and all(isinstance(value, Pretend) for value in values)


def _plain(value: Any) -> Any:
    return value.inner if isinstance(value, Pretend) else value


@contextmanager
def pretend_cuda() -> Iterator[None]:
    """Let "cuda" be a device of this process."""
    with mock.patch("torch.cuda.is_available", return_value=True), mock.patch("torch.cuda._lazy_init"), _Mode(), _Calls():
        yield
