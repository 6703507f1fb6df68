"""Where a network runs: the device, the number type of its convolutions, the threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from regnet_itk.errors import ParameterError
from regnet_itk.threads import use_torch

Precision = Literal["auto", "float32", "bfloat16"]


def find_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the fastest that is there.

    Raises
    ------
    ParameterError
        If the name is unknown, or the device is not there.
    RegistrationError
        In a process that was forked from one in which Torch had worked.
    """
    use_torch(torch.get_num_threads(), works=False)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ParameterError(f"unknown device '{name}'; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ParameterError(f"there is no CUDA device '{name}' here; use `device` auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ParameterError("there is no Apple GPU (mps) here; use `device` auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ParameterError(f"unknown device '{name}'; use auto, cpu, cuda, cuda:N or mps")
    return device


def find_precision(name: Precision, device: torch.device) -> torch.dtype:
    """Return the number type of the convolutions: bfloat16 only where the hardware computes with it."""
    if name == "float32":
        return torch.float32
    if name == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return torch.bfloat16 if any(getattr(torch.cpu, flag, bool)() for flag in flags) else torch.float32
    return torch.float32


@contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Let Torch use `count` CPU threads inside of a block; None changes nothing.

    Raises
    ------
    RegistrationError
        In a process that was forked from one in which Torch had worked.
    """
    before = torch.get_num_threads()
    use_torch(count or before)
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
