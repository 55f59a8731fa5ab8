"""A pretended GPU: tensors that say they lie on ``cuda`` and keep their values in host memory.

Inside ``pretend_cuda`` the engine's own loop runs with real values where there is no GPU. What it
would refuse is refused: an operation on tensors of both devices raises, and so does reading a value
back where sync_guard.py does not name the wait, or using what another stream made before waiting
for it. Speed and the kernels themselves are not pretended (pretend_ops.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from streams import MAIN, Stream, current, pretended_streams, replaced
from sync_guard import SyncGuard
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_flatten, tree_map

# A PyTorch without CUDA cannot even slice what says it lies there, so the name is another one.
DEVICE = torch.device("cuda", 0) if torch.version.cuda else torch.device("meta")

_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
_READS = (
    _aten._local_scalar_dense.default,
    _aten.item.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
)
_SIZED_BY_DATA = (
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.unique_consecutive.default,
    _aten._unique2.default,
)
# Operands that PyTorch lets lie on the host: indices are sent there, a copy's source is its point.
_TAKES_HOST_INDICES = (
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
    _aten._index_put_impl_.default,
)
_ONE_KERNEL = (_aten.rms_norm.default,)
_NO_KERNEL = (
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten._unsafe_view.default,
    _aten._local_scalar_dense.default,
)
_FLOAT32_SUMS = (_aten.mm.dtype, _aten.bmm.dtype)
_COPIES = (_aten.copy_.default, _aten._to_copy.default)


class MixedDevicesError(RuntimeError):
    """An operation got tensors of the host and of the device."""


class StreamOrderError(RuntimeError):
    """An operation got a tensor that another stream may still be making."""


def check_streams(func: Any, tensors: list[Any]) -> None:
    now = current()
    for t in tensors:
        if isinstance(t, DeviceTensor) and t.stream not in (now, MAIN):
            raise StreamOrderError(f"{func}: {list(t.shape)} comes from a stream nobody waited for")


class DeviceTensor(Tensor):
    """``host``: the tensor of host memory that holds the values. ``stream``: the one that makes
    it, until the main stream has waited for that."""

    host: Tensor
    stream: Stream
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> DeviceTensor:
        # A meta tensor that says "cuda" when asked: PyTorch guards a true CUDA device.
        with torch.inference_mode(False):  # views of several outputs want a version counter
            made = Tensor._make_wrapper_subclass(
                cls,
                host.size(),
                strides=host.stride(),
                storage_offset=host.storage_offset(),
                dtype=host.dtype,
                device=torch.device("meta"),
                dispatch_device=True,
                requires_grad=False,
            )
        made.host = host
        made.stream = current()
        if made.stream is not MAIN:
            made.stream.made.append(made)
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": DEVICE, **kwargs})

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"on cuda: {self.host!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:
            return DEVICE
        raise RuntimeError(f"{func}: a pretended CUDA tensor outside of pretend_cuda")


def to_device(x: Tensor) -> Tensor:
    """A copy on the pretended GPU."""
    return DeviceTensor(x.detach().clone())


def to_host(x: Any) -> Any:
    return x.host if isinstance(x, DeviceTensor) else x


def on_device(module: torch.nn.Module) -> torch.nn.Module:
    """Moves a module's parameters and buffers, tied ones together."""
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    moved[id(tensor)] = to_device(tensor)
                table[name] = moved[id(tensor)]
    return module


def launches(func: Any) -> bool:
    """Does an operation on the device start a kernel? Views and allocations do not. One operation
    counts once, though a sort, say, is several kernels."""
    views = any(
        r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
    )
    return not views and func not in _NO_KERNEL


class CapturedError(RuntimeError):
    """An operation that a CUDA graph cannot hold."""


class PretendCuda(SyncGuard):
    """Does what is asked of device tensors on the host (``pretend_cuda`` makes one). ``hot``: are
    waits refused that nobody named (loading may wait)? ``counts``: "launches", those
    "captured", "waits" and "to_device" (copies of host tensors, indices too) since it was cleared;
    ``steps``: operations and shapes since it was cleared, while capturing."""

    def __init__(self) -> None:
        super().__init__()
        self.hot = False
        self.capturing = False
        self.counts: Counter[str] = Counter()
        self.steps: list[tuple[str, tuple[Any, ...]]] = []

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Until the end of the block nothing may wait, named or not, nor may a tensor of the host
        take part: a graph would hold what it was when it was captured."""
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:
            return DEVICE
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        if not any(isinstance(t, DeviceTensor) for t in tensors) and not _is_there(kwargs):
            return func(*args, **kwargs)
        if func not in _READS and func not in _ONE_KERNEL:
            with self:
                whole = func.decompose(*args, **kwargs)
            if whole is not NotImplemented:
                return whole
        self._refuse(func, args, tensors, kwargs)
        self._count(func, tensors)
        check_streams(func, tensors)
        device = kwargs.get("device")
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        if func in _FLOAT32_SUMS:  # bf16 in, float32 out: CUDA only
            return DeviceTensor(args[0].host.float() @ args[1].host.float())
        own = {id(t.host): t for t in tensors if isinstance(t, DeviceTensor)}
        out = func(*tree_map(to_host, args), **tree_map(to_host, kwargs))
        if func is _aten.copy_.default:
            return args[0]
        if device is not None and torch.device(device).type != DEVICE.type:
            return out.clone() if any(out is t.host for t in own.values()) else out
        return tree_map(lambda t: _on_device(t, own), out)

    def _count(self, func: Any, tensors: list[Tensor]) -> None:
        self.counts["captured" if self.capturing else "launches"] += launches(func)
        sent = sum(t.dim() > 0 and not isinstance(t, DeviceTensor) for t in tensors)
        reads = func in _READS or func in _SIZED_BY_DATA
        self.counts["to_device"] += 0 if reads else sent
        if self.capturing:
            if sent:
                raise CapturedError(f"{func}: a tensor of the host in what a graph holds")
            self.steps.append((str(func), tuple(tuple(t.shape) for t in tensors)))

    def note_op(self, name: str, tensors: list[Tensor], launches: int) -> None:
        """An op with a kernel of its own, which is done below the modes."""
        self.counts["captured" if self.capturing else "launches"] += launches
        if self.capturing:
            self.steps.append((name, tuple(tuple(t.shape) for t in tensors)))

    def _judge(self, what: str) -> None:
        self.counts["waits"] += 1
        if self.capturing:
            raise CapturedError(f"{what} waits for the device, in what a graph holds")
        if self.hot:
            super()._judge(what)

    def _refuse(self, func: Any, args: Any, tensors: list[Tensor], kwargs: dict[str, Any]) -> None:
        away = kwargs.get("device") is not None and not _is_there(kwargs)
        if func is _aten.copy_.default:
            away = not isinstance(args[0], DeviceTensor)
        if func in _READS or func in _SIZED_BY_DATA:
            self._judge(str(func))
        elif away:
            self._judge("a copy to the host")
        elif func is _aten.index.Tensor and any(
            isinstance(i, DeviceTensor) and i.dtype == torch.bool for i in args[1]
        ):
            self._judge("indexing by a boolean tensor")
        elif func in _TAKES_HOST_INDICES:
            tensors = [t for t in (args[0], *args[2:3]) if isinstance(t, Tensor)]
        if func in _COPIES:
            return
        strangers = [t for t in tensors if not isinstance(t, DeviceTensor) and t.dim() > 0]
        if strangers and (len(strangers) < len(tensors) or _is_there(kwargs)):
            shapes = [f"{list(t.shape)} on {t.device}" for t in tensors]
            raise MixedDevicesError(f"{func}: {', '.join(shapes)}")


def note_op(name: str, tensors: list[Tensor], launches: int) -> None:
    """See ``PretendCuda.note_op``."""
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, PretendCuda):
            mode.note_op(name, tensors, launches)


_host_tensor = torch.tensor


def _tensor(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
    made = _host_tensor(data, **kwargs)
    return made if device is None else made.to(device)


def _is_there(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == DEVICE.type


def _on_device(t: Any, own: dict[int, DeviceTensor]) -> Any:
    """A result of the host as one of the device; what was written in place stays itself."""
    if not isinstance(t, Tensor):
        return t
    return own[id(t)] if id(t) in own else DeviceTensor(t)


@contextmanager
def pretend_cuda() -> Iterator[PretendCuda]:
    """A pretended GPU and its streams, until the end of the block."""
    # PyTorch wakes the driver before it asks any mode, and makes tensors of lists below the modes.
    stand_ins: dict[tuple[Any, str], Any] = {
        (torch, "tensor"): _tensor,
        (torch.cuda, "_lazy_init"): lambda: None,
    }
    torch._C._ensureCUDADeviceGuardSet()
    with replaced(stand_ins), pretended_streams(), PretendCuda() as mode:
        yield mode
