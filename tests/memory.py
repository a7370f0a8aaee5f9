"""A device with little memory, feigned: what asks for too much gets the error that a GPU gives."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LittleMemory(TorchDispatchMode):
    """Raises `torch.OutOfMemoryError` where an operation makes a tensor of more than `limit` numbers.

    Tensors made empty are not counted: so the host's own memory is asked for.
    """

    def __init__(self, limit: int):
        super().__init__()
        self.limit, self.refused, self.largest = limit, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        tensors = [it for it in made if isinstance(it, torch.Tensor)]
        known = {it.untyped_storage().data_ptr() for it in args if isinstance(it, torch.Tensor)}
        sizes = [it.numel() for it in tensors if it.untyped_storage().data_ptr() not in known]
        if func is not torch.ops.aten.empty.memory_format and not func._schema.name.endswith("_"):
            self.largest = max([self.largest, *(size for size in sizes if size <= self.limit)])
            if any(size > self.limit for size in sizes):
                self.refused += 1
                raise torch.OutOfMemoryError(f"{max(sizes)} numbers asked for, {self.limit} are free")
        return out
