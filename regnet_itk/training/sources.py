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

from regnet_itk.anatomy.regions import Scan
from regnet_itk.data.grid import Grid
from regnet_itk.data.image import Image, bounding_box
from regnet_itk.data.image_files import read_image
from regnet_itk.data.suffixes import IMAGE_SUFFIXES
from regnet_itk.errors import ImageError, RegNetItkError, did_you_mean
from regnet_itk.events import LOGGER
from regnet_itk.networks.interpolation import interpolate
from regnet_itk.networks.world import CHEST_CT, World
from regnet_itk.outputs import staged_folder
from regnet_itk.training.config import TrainingConfig
from regnet_itk.training.filters import smooth
from regnet_itk.training.random_numbers import Random, put_on

_MARGIN = 80.0
"""mm kept around the region: half a block, its rotation, and a displacement."""

_CACHE_VERSION = 2


@dataclass(frozen=True)
class Preparation:
    """How images are made ready to be cut into blocks.

    Parameters
    ----------
    world : World
        What the images show, how their values are read, and in which region training looks.
    smoothing : float
        Standard deviation in mm of a Gaussian that takes away the scan's own noise: both images of a pair would share
        it, and a network would learn to match it.
    masks : Path, optional
        Folder with a mask of the same name for each image, in place of the region that is found in it.
    label_weights : tuple of (int, float)
        Numbers in the masks, and how much their voxels count; all others but 0 count 1.
    """

    world: World = CHEST_CT
    smoothing: float = 0.0
    masks: Path | None = None
    label_weights: tuple[tuple[int, float], ...] = ()

    def settings(self, path: Path) -> list[object]:
        """Return all that what is prepared of an image depends on, as JSON can hold it."""
        mask = self.mask_of(path)
        status = [mask.name, mask.stat().st_size, mask.stat().st_mtime_ns] if mask else None
        weights = [self.label_weights] if self.label_weights else []
        return [dataclasses.asdict(self.world), self.smoothing, status, *weights]

    def mask_of(self, path: Path) -> Path | None:
        """Return the mask of an image, if masks are given.

        Raises
        ------
        ImageError
            If there is none of this image.
        """
        if self.masks is None:
            return None
        name = _without_suffix(path)
        try:
            return find_images(self.masks, (name,))[name]
        except ImageError:
            raise ImageError(f"there is no mask '{name}' of the training image in '{self.masks}'") from None


@dataclass(frozen=True)
class Source:
    """An image to cut blocks from.

    Parameters
    ----------
    values : Tensor, shape (z, y, x), int16
        Intensities above the background (of a CT: HU + 1000). Usually a file that is read where it is needed.
    region : Tensor, shape (z, y, x), uint8 or float16
        What each voxel counts: blocks are drawn from where it is above 0, and weighted by it.
    spacing : Tensor, shape (3,)
        x, y, z in mm.
    centres : Tensor, shape (n, 3)
        Positions inside the mask, mm from voxel 0 along the image's axes.
    """

    values: Tensor
    region: Tensor
    spacing: Tensor
    centres: Tensor

    @classmethod
    def from_image(cls, image: Image, region: Image, how: Preparation = Preparation()) -> Source:
        """Take an image, in the unit of its world, and the mask of the region that training looks at.

        Parameters
        ----------
        image, region : Image
            On one grid; the region is a mask, or floating-point weights.
        how : Preparation
        """
        values, mask = _cropped(image, region)
        if how.smoothing:
            values = ndimage.gaussian_filter(values, [how.smoothing / s for s in image.grid.spacing[::-1]])
        above = np.clip(values - how.world.background, 0.0, how.world.top - how.world.background)
        spacing = torch.tensor(image.grid.spacing)
        return cls(torch.from_numpy(above.astype(np.int16)), torch.from_numpy(mask), spacing, _centres(mask, spacing))

    @classmethod
    def texture(cls, size: int, random: Random, world: World = CHEST_CT) -> Source:
        """Make band-limited random texture on voxels of 1 mm, everywhere inside the mask.

        Every voxel of it says where it is, which makes a network find out quickly how to match. Its values fill the
        range that the network sees.
        """
        values = torch.zeros(size, size, size, device=random.device)
        for sigma in (0.8, 1.4, 2.5):
            term = smooth(random.normal(1, 1, size, size, size), (sigma,) * 3)[0, 0]
            values += term / term.std()
        low, high = world.intensity_range
        width, first = high - low, low - world.background
        values = (first + width / 3 + width / 8 * values).clamp_(0.0, first + 7 * width / 6).to(torch.int16)
        margin = size // 4
        centres = (random.uniform_small(256, 3) * 0.5 + 0.5) * (size - 2 * margin) + margin
        return cls(values, torch.ones_like(values, dtype=torch.uint8), torch.ones(3), centres)

    def to(self, device: torch.device) -> Source:
        """Return the source with its arrays on a device."""
        return dataclasses.replace(self, values=self.values.to(device), region=self.region.to(device))


@dataclass(frozen=True)
class Places:
    """Where n blocks lie in their sources.

    Parameters
    ----------
    sources : list of Source
    matrices, centres : Tensor, shape (n, 3, 3) and (n, 3)
        Map a block's coordinates x to its source's, matrix x + centre, in mm; on the CPU.
    """

    sources: list[Source]
    matrices: Tensor
    centres: Tensor

    def of(self, which: Tensor) -> Places:
        """Return some of the places, given by their numbers."""
        return Places([self.sources[k] for k in which.tolist()], self.matrices[which], self.centres[which])


def sample_sources(places: Places, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolate intensities (0 beyond the image) and weights of sources linearly.

    Parameters
    ----------
    places : Places
    positions : Tensor, shape (n, 3, z, y, x)
        In the blocks' coordinates, mm.

    Returns
    -------
    tuple of Tensor, shape (n, 1, z, y, x)
    """
    device, sources = positions.device, places.sources
    spacings = torch.stack([source.spacing for source in sources]).float()
    matrices, centres = places.matrices / spacings[..., None], places.centres / spacings
    index = torch.einsum("bij,bjzyx->bizyx", put_on(device, matrices), positions)
    index += put_on(device, centres)[..., None, None, None]
    shapes = torch.tensor([source.values.shape for source in sources]).flip(1)
    lows, highs = torch.zeros_like(shapes), shapes
    if any(source.values.device != device for source in sources) or device.type == "cpu":
        lows = torch.minimum(index.amin(dim=(2, 3, 4)).floor().long().cpu().clamp(min=0), shapes - 2)
        highs = torch.maximum(torch.minimum(index.amax(dim=(2, 3, 4)).ceil().long().cpu() + 1, shapes), lows + 2)
    found = positions.new_empty(len(sources), 2, *positions.shape[2:])
    for source in {id(s): s for s in sources}.values():
        these = [k for k, other in enumerate(sources) if other is source]
        low, high = lows[these].amin(dim=0), highs[these].amax(dim=0)
        box = tuple(slice(a, b) for a, b in zip(low.tolist()[::-1], high.tolist()[::-1], strict=True))
        both = torch.stack([part[box].to(device, torch.float32) for part in (source.values, source.region)])
        which = put_on(device, torch.tensor(these))
        where = index[which] - put_on(device, low.float())[:, None, None, None]
        found[which] = _interpolated(both, where)
    return found[:, :1], found[:, 1:]


def _interpolated(values: Tensor, index: Tensor) -> Tensor:
    """Return values (channel, z, y, x), and 0 beyond them, at places (n, 3, z, y, x), x first, in voxels."""
    if values.device.type == "cpu":  # almost twice as fast there as grid_sample
        padded = functional.pad(values, (1,) * 6).movedim(0, -1).contiguous()
        places = (index.flip(1).movedim(1, -1) + 1.0).reshape(-1, 3)
        return interpolate(padded, places).view(len(index), *index.shape[2:], -1).movedim(-1, 1)
    sizes = torch.tensor(values.shape[:0:-1])
    where = index * put_on(index.device, 2.0 / (sizes - 1))[:, None, None, None] - 1.0
    several = values.expand(len(index), *values.shape)
    return functional.grid_sample(several, where.movedim(1, -1), padding_mode="zeros", align_corners=True)


def _cropped(image: Image, region: Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the part around the region; positions count from its first voxel."""
    box = bounding_box(region.array > 0, [int(np.ceil(_MARGIN / s)) for s in reversed(image.grid.spacing)])
    return image.array[box].astype(np.float32), as_weights(region.array[box])


def as_weights(region: np.ndarray) -> np.ndarray:
    """Return a region as it is kept: of a mask one byte for each voxel, of weights two."""
    if region.dtype.kind == "f" and np.any((region != 0) & (region != 1)):
        return np.ascontiguousarray(region.astype(np.float16))
    return np.ascontiguousarray((region > 0).astype(np.uint8))


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
            hint = did_you_mean(name, list_images(folder))
            raise ImageError(f"training image '{name}' is not in '{folder}' ({', '.join(IMAGE_SUFFIXES)}){hint}")
        found[name] = there[0]
    return found


def list_images(folder: str | Path) -> dict[str, Path]:
    """Return every image file in a folder, by its name without suffix, in the names' order."""
    found = {}
    folder = Path(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        name = _without_suffix(path)
        if name != path.name and path.is_file():
            found[name] = path
    return found


def _without_suffix(path: Path) -> str:
    suffix = next((s for s in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if path.name.endswith(s)), "")
    return path.name.removesuffix(suffix)


def divide_images(config: TrainingConfig, folder: str | Path, held_out: tuple[str, ...] = ()) -> TrainingConfig:
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
    there = [name for name in list_images(folder) if name not in config.test]
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


def load_source(path: Path, how: Preparation, cache: Path) -> Source:
    """Return the source of an image: from the cache, or read, with its region found, and put there.

    Parameters
    ----------
    path : Path
    how : Preparation
    cache : Path
        Folder. What lies there is used as long as the image has not changed.

    Raises
    ------
    ImageError
        If the image cannot be read, is not 3D, or does not have the region that training looks at.
    OutputError
        If the cache cannot be written.
    """
    folder = cache / cache_name(path, _CACHE_VERSION, *how.settings(path))
    if not folder.exists():
        image, region = read_with_region(path, how)
        source = Source.from_image(image, region, how)
        about = {"image": path.name, "spacing": list(image.grid.spacing)}
        with staged_folder(folder) as part:
            np.save(part / "values.npy", source.values.numpy())
            np.save(part / "region.npy", source.region.numpy())
            (part / "source.json").write_text(json.dumps(about), encoding="utf-8")
    return _from_cache(folder)


def read_with_region(path: Path, how: Preparation, voxel_size: float | None = None) -> tuple[Image, Image]:
    """Read an image to train on, and find the region that training looks at, or read its mask.

    Parameters
    ----------
    path : Path
    how : Preparation
    voxel_size : float, optional
        Resample it to such voxels (mm) on its own axes.

    Returns
    -------
    tuple of Image
        The image in the unit of its world, and the region, on one grid: a mask, or weights if some labels have any.

    Raises
    ------
    ImageError
        If it cannot be read, is not 3D, is too small, or does not have the region.
    """
    image, world = read_image(path, "training image"), how.world
    extent = np.multiply(image.grid.size, image.grid.spacing)
    if extent.min() < world.smallest:
        raise ImageError(
            f"training image '{path}' is {' x '.join(f'{mm:.0f}' for mm in extent)} mm; it must measure at least "
            f"{world.smallest:.0f} mm along each axis"
        )
    mask = how.mask_of(path)
    try:
        image = world.standardise(image)
        if voxel_size is not None:
            image = image.resampled(image.grid.isotropic(voxel_size), default=world.background)
        region = Scan(image).find(world.trained_in) if mask is None else _read_mask(mask, image.grid, how.label_weights)
    except RegNetItkError as error:
        raise ImageError(f"training image '{path}': {error}") from None
    if not region.array.any():
        raise ImageError(f"training image '{path}': the mask '{mask or world.trained_in}' is empty in it")
    return image, region


def _read_mask(path: Path, grid: Grid, label_weights: tuple[tuple[int, float], ...]) -> Image:
    mask = read_image(path, "training mask")
    if not label_weights:
        binary = Image((mask.array != 0).astype(np.uint8), mask.grid)
        return Image(binary.resampled(grid, order=0).array > 0, grid)
    weights = (mask.array != 0).astype(np.float32)
    for label, weight in label_weights:
        its = mask.array == label
        weights[its] = weight
        if not its.any():
            LOGGER.warning(f"training mask '{path}' has no label {label}")
    return Image(weights, mask.grid).resampled(grid, order=0)


def _from_cache(folder: Path) -> Source:
    try:
        values, region = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("values", "region"))
        spacing = torch.tensor(json.loads((folder / "source.json").read_text(encoding="utf-8"))["spacing"])
    except (OSError, ValueError, KeyError, EOFError):
        shutil.rmtree(folder, ignore_errors=True)
        raise ImageError(f"the prepared image in '{folder}' was damaged and has been removed; start again") from None
    return Source(torch.from_numpy(values), torch.from_numpy(region), spacing, _centres(region, spacing))
