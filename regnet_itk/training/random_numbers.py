"""Random numbers of a training run: few single numbers from the CPU, many from the device that computes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def put_on(device: torch.device, few: Tensor) -> Tensor:
    """Return few numbers, drawn on the CPU, on a device.

    A graphics card is not waited for: it gets hundreds of such tensors for a block.
    """
    return few.to(device, non_blocking=device.type == "cuda")


class Random:
    """A source of random numbers that can be stopped and continued.

    Parameters
    ----------
    seed : int
    device : torch.device or str
        Where tensors are made. On the CPU there is one sequence of numbers only.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._numbers = torch.Generator().manual_seed(seed)
        on_cpu = self.device.type == "cpu"
        self._tensors = self._numbers if on_cpu else torch.Generator(self.device).manual_seed(seed)

    def state(self) -> list[Tensor]:
        """Return what :meth:`restore` needs to continue."""
        return [self._numbers.get_state(), self._tensors.get_state()]

    def restore(self, state: list[Tensor]) -> None:
        """Continue where `state` was taken."""
        numbers, tensors = state
        self._numbers.set_state(numbers)
        if self._tensors is not self._numbers and tensors.shape == self._tensors.get_state().shape:
            self._tensors.set_state(tensors)

    def uniform(self, limits: tuple[float, float] = (0.0, 1.0)) -> float:
        """Draw a number between two limits."""
        low, high = limits
        return low + (high - low) * float(torch.rand((), generator=self._numbers))

    def log_uniform(self, limits: tuple[float, float]) -> float:
        """Draw a number whose logarithm is uniform between two limits."""
        return math.exp(self.uniform((math.log(limits[0]), math.log(limits[1]))))

    def happens(self, share: float) -> bool:
        """Draw whether something happens that does in `share` of all cases."""
        return share > 0 and self.uniform() < share

    def numbers(self, count: int, limits: tuple[float, float] = (0.0, 1.0)) -> Tensor:
        """Draw `count` numbers between two limits, on the CPU."""
        low, high = limits
        return low + (high - low) * torch.rand(count, generator=self._numbers)

    def log_numbers(self, count: int, limits: tuple[float, float]) -> Tensor:
        """Draw `count` numbers whose logarithms are uniform between two limits, on the CPU."""
        return self.numbers(count, (math.log(limits[0]), math.log(limits[1]))).exp()

    def chances(self, count: int, share: float) -> Tensor:
        """Draw `count` times whether something happens that does in `share` of all cases, on the CPU."""
        return self.numbers(count) < share if share > 0 else torch.zeros(count, dtype=torch.bool)

    def sign(self) -> float:
        """Draw -1 or 1."""
        return 1.0 if self.integer(2) else -1.0

    def signs(self, count: int) -> Tensor:
        """Draw `count` times -1 or 1, on the CPU."""
        return torch.randint(2, (count,), generator=self._numbers) * 2.0 - 1.0

    def integer(self, end: int) -> int:
        """Draw a whole number from 0 to `end` - 1."""
        return int(torch.randint(end, (), generator=self._numbers))

    def permutation(self, count: int) -> Tensor:
        """Draw an order of `count` things, on the CPU."""
        return torch.randperm(count, generator=self._numbers)

    def normal(self, *shape: int) -> Tensor:
        """Draw a tensor of normal numbers, on the device."""
        return torch.randn(*shape, generator=self._tensors, device=self.device)

    def normal_small(self, *shape: int) -> Tensor:
        """Draw a small tensor of normal numbers, on the CPU."""
        return torch.randn(*shape, generator=self._numbers)

    def uniform_small(self, *shape: int) -> Tensor:
        """Draw a small tensor of numbers from -1 to 1, on the CPU."""
        return torch.rand(*shape, generator=self._numbers) * 2 - 1
