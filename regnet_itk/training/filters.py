"""Smoothing and sampling of blocks in Torch, as products with one matrix an axis: far quicker than convolving."""

from __future__ import annotations

import torch
from torch import Tensor


def along_axes(image: Tensor, matrices: list[Tensor]) -> Tensor:
    """Multiply each of the axes z, y, x by a matrix of shape (after, before).

    Parameters
    ----------
    image : Tensor, shape (batch, channel, z, y, x)
    matrices : list of Tensor
        In the order z, y, x.
    """
    z, y, x = matrices
    image = image @ x.T
    image = (image.transpose(-1, -2) @ y.T).transpose(-1, -2)
    return torch.einsum("az,bczyx->bcayx", z, image)


def smoothing_matrix(size: int, sigma: float, device: torch.device | None = None) -> Tensor:
    """Return the (size, size) matrix of a Gaussian with `sigma` voxels, whose rows sum to 1 up to the border."""
    x = torch.arange(size, dtype=torch.float32, device=device)
    matrix = torch.exp(-0.5 * ((x[:, None] - x) / max(sigma, 1e-2)) ** 2)
    return matrix / matrix.sum(dim=1, keepdim=True)


def smoothed(image: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    """Smooth an image with a Gaussian of `sigma` voxels along z, y, x."""
    sizes = zip(image.shape[2:], sigma, strict=True)
    return along_axes(image, [smoothing_matrix(n, s, image.device) for n, s in sizes])


def slice_matrix(size: int, thickness: float, phase: float, device: torch.device | None = None) -> Tensor:
    """Return the (size, size) matrix of a scan in slices: averaged over each slice, and interpolated in between.

    Parameters
    ----------
    size : int
        Voxels along the axis.
    thickness : float
        Thickness and distance of the slices in voxels, at least 1.
    phase : float
        From 0 to 1: where the first slice lies.
    """
    voxels = torch.arange(size, dtype=torch.float32, device=device)
    count = int((size - 1) / thickness) + 3
    centres = (torch.arange(count, dtype=torch.float32, device=device) - 1 + phase) * thickness
    # the share of each voxel that lies in a slice
    average = ((thickness + 1) / 2 - (centres[:, None] - voxels).abs()).clamp(0.0, 1.0)
    inside = average.sum(dim=1, keepdim=True)
    average = average / inside.clamp(min=1e-6)
    between = (1 - (voxels[:, None] - centres).abs() / thickness).clamp(min=0.0) * (inside > 1e-6).T
    return (between / between.sum(dim=1, keepdim=True)) @ average


def jacobian_determinant(displacement: Tensor, voxel_size: float) -> Tensor:
    """Return det(I + du/dx), shape (batch, 1, z, y, x), of displacements in mm (batch, 3, z, y, x)."""
    rows = [torch.gradient(displacement, spacing=voxel_size, dim=dim)[0] for dim in (4, 3, 2)]
    j = torch.stack(rows, dim=2)  # (batch, component, axis, z, y, x)
    unit = torch.eye(3, device=displacement.device)
    a, b, c = (j[:, i] + unit[i].view(1, 3, 1, 1, 1) for i in range(3))
    return (a * torch.linalg.cross(b, c, dim=1)).sum(dim=1, keepdim=True)
