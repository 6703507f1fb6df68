"""Smoothing and sampling of blocks in Torch, as products with one matrix an axis: far quicker than convolving."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regnet_itk.networks.separable import along_axes
from regnet_itk.training.random_numbers import put_on


def smoothing_matrix(size: int, sigma: float | Tensor, device: torch.device | None = None) -> Tensor:
    """Return the (size, size) matrix of a Gaussian with `sigma` voxels, whose rows sum to 1 up to the border.

    Of several sigmas, shape (n,), the matrices have shape (n, size, size).
    """
    x = torch.arange(size, dtype=torch.float32, device=device)
    widths = put_on(x.device, torch.as_tensor(sigma, dtype=torch.float32).clamp(min=1e-2))
    matrix = gaussian((x[:, None] - x) / widths[..., None, None])
    return matrix / matrix.sum(dim=-1, keepdim=True)


def gaussian(x: Tensor) -> Tensor:
    """Return exp(-x^2 / 2), and 0 beyond 6: processors multiply the tiny numbers there many times slower."""
    return torch.where(x.abs() < 6.0, torch.exp(-0.5 * x * x), 0.0)


def smooth(image: Tensor, sigma: Sequence[float | Tensor]) -> Tensor:
    """Smooth images (n, channel, z, y, x) with a Gaussian of `sigma` voxels along z, y, x: numbers, or n of each."""
    sizes = zip(image.shape[2:], sigma, strict=True)
    return along_axes(image, [smoothing_matrix(n, s, image.device) for n, s in sizes])


def slice_matrix(
    size: int, thickness: float | Tensor, phase: float | Tensor, device: torch.device | None = None
) -> Tensor:
    """Return the (size, size) matrix of a scan in slices: averaged over each slice, and interpolated in between.

    Of several scans, whose thickness and phase have shape (n,), the matrices have shape (n, size, size).

    Parameters
    ----------
    size : int
        Voxels along the axis.
    thickness : float or Tensor
        Thickness and distance of the slices in voxels, at least 1.
    phase : float or Tensor
        From 0 to 1: where the first slice lies.
    """
    voxels = torch.arange(size, dtype=torch.float32, device=device)
    thickness, phase = (torch.as_tensor(value)[..., None, None] for value in (thickness, phase))
    count = int((size - 1) / float(thickness.min())) + 3
    thickness, phase = put_on(voxels.device, thickness), put_on(voxels.device, phase)
    centres = (torch.arange(count, dtype=torch.float32, device=device)[:, None] - 1 + phase) * thickness
    # the share of each voxel that lies in a slice
    average = ((thickness + 1) / 2 - (centres - voxels).abs()).clamp(0.0, 1.0)
    inside = average.sum(dim=-1, keepdim=True)
    average = average / inside.clamp(min=1e-6)
    between = (1 - (voxels[:, None] - centres.mT).abs() / thickness).clamp(min=0.0) * (inside > 1e-6).mT
    return (between / between.sum(dim=-1, keepdim=True)) @ average


def jacobian_determinant(displacement: Tensor, voxel_size: float) -> Tensor:
    """Return det(I + du/dx), shape (batch, 1, z, y, x), of displacements in mm (batch, 3, z, y, x)."""
    columns = [torch.gradient(displacement, spacing=voxel_size, dim=dim)[0] for dim in (4, 3, 2)]
    for axis, column in enumerate(columns):
        column[:, axis] += 1.0
    a, b, c = (column.unbind(dim=1) for column in columns)
    minors = (b[i] * c[j] - b[j] * c[i] for i, j in ((1, 2), (2, 0), (0, 1)))
    return torch.stack([x * minor for x, minor in zip(a, minors, strict=True)]).sum(dim=0)[:, None]
