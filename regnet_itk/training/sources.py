"""The images that blocks are cut from: prepared once, kept in a cache on disk, read from there piece by piece."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from regnet_itk.anatomy.lungs import lung_mask
from regnet_itk.data.image import Image, bounding_box
from regnet_itk.data.image_files import read_image
from regnet_itk.data.suffixes import IMAGE_SUFFIXES
from regnet_itk.errors import ImageError, did_you_mean
from regnet_itk.outputs import staged_folder
from regnet_itk.training.appearance import AIR
from regnet_itk.training.config import TrainingConfig
from regnet_itk.training.filters import smoothed
from regnet_itk.training.random import Random

_MARGIN = 80.0
"""mm kept around the lungs: half a block, its rotation, and a displacement."""

_CACHE_VERSION = 1
_SMALLEST_IMAGE = 54.0  # mm: a patch of the paper's network
_MOST = 4000.0  # HU above air


@dataclass(frozen=True)
class Source:
    """An image to cut blocks from.

    Parameters
    ----------
    values : Tensor, shape (z, y, x), int16
        Intensities above air (HU + 1000). Usually a file that is read where it is needed.
    lungs : Tensor, shape (z, y, x), uint8
        The mask that blocks are drawn from and weighted by.
    spacing : Tensor, shape (3,)
        x, y, z in mm.
    centres : Tensor, shape (n, 3)
        Positions inside the mask, mm from voxel 0 along the image's axes.
    """

    values: Tensor
    lungs: Tensor
    spacing: Tensor
    centres: Tensor

    @classmethod
    def from_image(cls, image: Image, lungs: Image, smoothing: float = 0.0) -> Source:
        """Take a CT and its lung mask.

        Parameters
        ----------
        image, lungs : Image
            On one grid.
        smoothing : float
            Standard deviation in mm of a Gaussian that takes away the scan's own noise: both images of a pair would
            share it, and a network would learn to match it.
        """
        values, mask = _cropped(image, lungs)
        if smoothing:
            values = ndimage.gaussian_filter(values, [smoothing / s for s in image.grid.spacing[::-1]])
        above_air = np.clip(values - AIR, 0.0, _MOST)
        spacing = torch.tensor(image.grid.spacing)
        return cls(
            torch.from_numpy(above_air.astype(np.int16)), torch.from_numpy(mask), spacing, _centres(mask, spacing)
        )

    @classmethod
    def texture(cls, size: int, random: Random) -> Source:
        """Make band-limited random texture on voxels of 1 mm, everywhere inside the mask.

        Every voxel of it says where it is, which makes a network find out quickly how to match.
        """
        values = torch.zeros(size, size, size, device=random.device)
        for sigma in (0.8, 1.4, 2.5):
            term = smoothed(random.normal(1, 1, size, size, size), (sigma,) * 3)[0, 0]
            values += term / term.std()
        values = (400.0 + 150.0 * values).clamp_(0.0, 1400.0).to(torch.int16)
        margin = size // 4
        centres = (random.uniform_small(256, 3) * 0.5 + 0.5) * (size - 2 * margin) + margin
        return cls(values, torch.ones_like(values, dtype=torch.uint8), torch.ones(3), centres)

    def sampled(self, matrix: Tensor, centre: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Interpolate intensities (above air; 0 outside of the image) and mask linearly at matrix x + centre.

        Parameters
        ----------
        matrix, centre : Tensor, shape (3, 3) and (3,)
            Map the block's coordinates to the image's, in mm.
        positions : Tensor, shape (1, 3, z, y, x)
            x, in mm.

        Returns
        -------
        tuple of Tensor, shape (1, 1, z, y, x)
        """
        device = positions.device
        matrix = (matrix / self.spacing[:, None]).to(device)
        index = torch.einsum("ij,bjzyx->bizyx", matrix, positions) + (centre / self.spacing).to(device).view(3, 1, 1, 1)
        lowest, highest = (torch.stack(ends) for ends in zip(*(i.aminmax() for i in index[0]), strict=True))
        shape = torch.tensor(self.values.shape).flip(0)
        low = torch.minimum(lowest.floor().long().cpu().clamp(min=0), shape - 2)
        high = torch.maximum(torch.minimum(highest.ceil().long().cpu() + 1, shape), low + 2)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low.flip(0), high.flip(0), strict=True))
        both = torch.stack([part[box].to(device, torch.float32) for part in (self.values, self.lungs)])
        scale = (2 / (high - low - 1)).to(device).view(3, 1, 1, 1)
        where = (index - low.to(device).view(3, 1, 1, 1)) * scale - 1
        found = functional.grid_sample(
            both[None], where.permute(0, 2, 3, 4, 1), padding_mode="zeros", align_corners=True
        )
        return found[:, :1], found[:, 1:]


def _cropped(image: Image, lungs: Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the part around the lungs; positions count from its first voxel."""
    mask = lungs.array > 0
    box = bounding_box(mask, [int(np.ceil(_MARGIN / s)) for s in reversed(image.grid.spacing)])
    return image.array[box].astype(np.float32), np.ascontiguousarray(mask[box].astype(np.uint8))


def _centres(mask: np.ndarray, spacing: Tensor) -> Tensor:
    return torch.from_numpy(np.argwhere(mask[::2, ::2, ::2])[:, ::-1].copy()) * (2 * spacing)


def find_images(folder: str | Path, names: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of the named images in a folder.

    Raises
    ------
    ImageError
        If one is not there.
    """
    found = {}
    for name in names:
        paths = [Path(folder) / (name + suffix) for suffix in IMAGE_SUFFIXES]
        there = [path for path in paths if path.exists()]
        if not there:
            hint = did_you_mean(name, all_images(folder))
            raise ImageError(f"training image '{name}' is not in '{folder}' ({', '.join(IMAGE_SUFFIXES)}){hint}")
        found[name] = there[0]
    return found


def all_images(folder: str | Path) -> dict[str, Path]:
    """Return every image file in a folder, by its name without suffix, in the names' order."""
    found = {}
    folder = Path(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        suffix = next((s for s in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if path.name.endswith(s)), None)
        if suffix and path.is_file():
            found[path.name.removesuffix(suffix)] = path
    return found


def with_images(config: TrainingConfig, folder: str | Path, held_out: tuple[str, ...] = ()) -> TrainingConfig:
    """Return the configuration with a folder's images divided into those to train on and those to judge by.

    Parameters
    ----------
    config : TrainingConfig
        Names images: then it stays as it is, and the images must be there.
    folder : str or Path
    held_out : tuple of str
        The images to judge by; by default every eighth, drawn with the configuration's seed.

    Raises
    ------
    ImageError
        If the folder has no images, or too few, or one of `held_out` is not there.
    """
    if config.train and not held_out:
        find_images(folder, (*config.train, *config.validation))
        return config
    there = [name for name in all_images(folder) if name not in config.test]
    if not there:
        raise ImageError(f"there is no image in '{folder}' ({', '.join(IMAGE_SUFFIXES)})")
    find_images(folder, held_out)
    if not held_out:
        drawn = np.random.default_rng(config.seed).permutation(len(there))[: max(len(there) // 8, 1)]
        held_out = tuple(there[i] for i in sorted(drawn))
    train = tuple(name for name in there if name not in held_out)
    if not train:
        raise ImageError(
            f"'{folder}' holds {len(there)} image(s) to use; at least one is needed to train on and one to judge by"
        )
    return dataclasses.replace(config, train=train, validation=held_out)


def cache_name(path: Path, version: int, *settings: object) -> str:
    """Return a name for what is made of an image: another one as soon as the image or the settings change.

    Parameters
    ----------
    path : Path
        The image.
    version : int
        Of the code that makes it.
    *settings
        All else that it depends on; what JSON can hold.
    """
    status = path.stat()
    key = json.dumps([version, path.name, status.st_size, status.st_mtime_ns, *settings])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def load_source(path: Path, smoothing: float, cache: Path) -> Source:
    """Return the source of a CT: from the cache, or read, with its lungs found, and put there.

    Parameters
    ----------
    path : Path
    smoothing : float
        mm; see :meth:`Source.from_image`.
    cache : Path
        Folder. What lies there is used as long as the image has not changed.

    Raises
    ------
    ImageError
        If the image cannot be read, is not 3D, or no lungs are found.
    OutputError
        If the cache cannot be written.
    """
    folder = cache / cache_name(path, _CACHE_VERSION, smoothing)
    if not folder.exists():
        source, spacing = _prepared(path, smoothing)
        with staged_folder(folder) as part:
            np.save(part / "values.npy", source.values.numpy())
            np.save(part / "lungs.npy", source.lungs.numpy())
            (part / "source.json").write_text(json.dumps({"image": path.name, "spacing": spacing}), encoding="utf-8")
    return _from_cache(folder)


def _prepared(path: Path, smoothing: float) -> tuple[Source, list[float]]:
    image, lungs = read_with_lungs(path)
    return Source.from_image(image, lungs, smoothing), list(image.grid.spacing)


def read_with_lungs(path: Path, voxel_size: float | None = None) -> tuple[Image, Image]:
    """Read a CT to train on, and find its lungs.

    Parameters
    ----------
    path : Path
    voxel_size : float, optional
        Resample it to such voxels (mm) on its own axes.

    Raises
    ------
    ImageError
        If it cannot be read, is not 3D, is smaller than a patch of the paper's network, or has no lungs.
    """
    image = read_image(path, "training image")
    extent = np.multiply(image.grid.size, image.grid.spacing)
    if extent.min() < _SMALLEST_IMAGE:
        raise ImageError(
            f"training image '{path}' is {' x '.join(f'{mm:.0f}' for mm in extent)} mm; it must measure at least "
            f"{_SMALLEST_IMAGE:.0f} mm along each axis"
        )
    if voxel_size is not None:
        image = image.resampled(image.grid.isotropic(voxel_size), default=AIR)
    try:
        return image, lung_mask(image)
    except ImageError as error:
        raise ImageError(f"training image '{path}': {error}") from None


def _from_cache(folder: Path) -> Source:
    try:
        values, lungs = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("values", "lungs"))
        spacing = torch.tensor(json.loads((folder / "source.json").read_text(encoding="utf-8"))["spacing"])
    except (OSError, ValueError, KeyError, EOFError):
        shutil.rmtree(folder, ignore_errors=True)
        raise ImageError(f"the prepared image in '{folder}' was damaged and has been removed; start again") from None
    return Source(torch.from_numpy(values), torch.from_numpy(lungs), spacing, _centres(lungs, spacing))
