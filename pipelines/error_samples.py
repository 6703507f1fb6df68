"""Pairs with a known displacement, transforms for them from good to failed, and the clues and errors of each.

Three kinds of pairs: blocks of chest CTs that breathe, slide and change as the recipe of regnet_multistage says; random
scenes of regnet_general; and chest phantoms. Most transforms are the truth with a made error (smooth waves, everywhere
or in one place; a rigid one; a share of the way), since that costs nothing; some are what a chain finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from regnet_itk.anatomy.phantom import make_phantom
from regnet_itk.data.field import DisplacementField
from regnet_itk.data.grid import FloatArray, Grid
from regnet_itk.data.image import Image
from regnet_itk.errors import RegNetItkError
from regnet_itk.outputs import write_whole
from regnet_itk.registration import register
from regnet_itk.training.blocks import Block
from regnet_itk.training.config import TrainingConfig
from regnet_itk.training.fields import FieldMaker
from regnet_itk.training.prepared import Prepared
from regnet_itk.training.random_numbers import Random
from regnet_itk.transforms.chain import Link, TransformChain
from regnet_itk.trust.clues import NAMES, find_clues

MADE_ERRORS = ("waves", "place", "rigid", "share")
"""How the names of made errors begin; all else was found by a chain."""

POINTS = 600
"""Of a transform, that are learnt from."""

_BLOCK = (96, 96, 96)
_COARSE = 4.0  # mm of the voxels of made errors, in scenes and blocks of 2 mm


@dataclass(frozen=True, eq=False)
class KnownPair:
    """A pair, and where its points go.

    Parameters
    ----------
    name, kind : str
    fixed, moving : Image
    truth : DisplacementField
        On voxels that are fine enough to judge by.
    region : Image, optional
        Where something is to be said; the foreground without it.
    patient : str
        Pairs of one patient are not independent; by default a pair is one of its own.
    """

    name: str
    kind: str
    fixed: Image
    moving: Image
    truth: DisplacementField
    region: Image | None = None
    patient: str = ""


@dataclass(frozen=True, eq=False)
class Tried:
    """A transform for a pair.

    Parameters
    ----------
    name : str
        Of the made error, or of the chain of stages.
    chain : TransformChain
        Fixed to moving.
    back : TransformChain, optional
        What the same chain of stages found from moving to fixed.
    """

    name: str
    chain: TransformChain
    back: TransformChain | None = None


@dataclass(frozen=True, eq=False)
class Samples:
    """Points of the lattice of one transform.

    Parameters
    ----------
    values : ndarray, shape (n, len(NAMES))
    errors : ndarray, shape (n,)
        In working voxels.
    residuals : ndarray, shape (n,)
        How far the way there and back leads from where it began, in working voxels; NaN without a way back.
    voxel_size : float
        mm of these.
    """

    values: FloatArray
    errors: FloatArray
    residuals: FloatArray
    voxel_size: float


def as_image(values: torch.Tensor, grid: Grid) -> Image:
    """Return a tensor (z, y, x) as an image."""
    return Image(values.numpy().astype(np.float32), grid)


def from_block(block: Block, voxel_size: float, name: str, kind: str, rng: np.random.Generator) -> KnownPair:
    """Return a made block as a pair, somewhere in space; its voxels may be called larger or smaller than they are."""
    size = block.fixed.shape[:1:-1]
    turn = Rotation.from_rotvec(rng.normal(0, 0.3, 3)).as_matrix()
    grid = Grid(tuple(size), (voxel_size,) * 3, tuple(rng.uniform(-200, 200, 3)), tuple(map(tuple, turn)))  # type: ignore[arg-type]
    u = np.moveaxis(block.displacement[0].numpy(), 0, -1) @ turn.T
    region = as_image((block.weight[0, 0] > 0.5).float(), grid) if rng.random() < 0.5 else None
    if region is not None and region.array.mean() < 0.02:
        region = None
    images = (as_image(b[0, 0], grid) for b in (block.fixed, block.moving))
    return KnownPair(name, kind, *images, DisplacementField(u.astype(np.float32), grid), region)


def block_pairs(prepared: Prepared, config: TrainingConfig, kind: str, seeds: range) -> Iterator[KnownPair]:
    """Make blocks by the last phase of a recipe, each of one image: they take turns."""
    phase = config.phases[-1]
    for seed in seeds:
        random, rng = Random(seed), np.random.default_rng(seed)
        turn = seed % max(1, len(prepared.sources))
        maker = replace(prepared, sources=prepared.sources[turn : turn + 1]).maker(_BLOCK, 2.0, random)
        if hasattr(maker, "go_on_from"):
            maker.go_on_from(1000 * seed)
        block = maker.make(phase.fields, phase.appearance)
        # a scene has no size of its own: the same one is a head or a trunk
        factor = float(np.exp(rng.uniform(np.log(0.5), np.log(2.0)))) if kind == "scenes" else 1.0
        scaled = Block(block.fixed, block.moving, block.displacement * factor, block.weight)
        pair = from_block(scaled, 2.0 * factor, f"{kind}-{seed}", kind, rng)
        yield replace(pair, patient=f"{kind} {turn}" if prepared.sources else "")


def phantom_pairs(seeds: range) -> Iterator[KnownPair]:
    """Make chest phantoms of several kinds and voxels."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        kind = ("breathing", "followup")[seed % 2]
        xy = rng.uniform(1.2, 2.2)
        z = min(6.0, xy * float(np.exp(rng.uniform(0.0, np.log(5.0)))))
        p = make_phantom(
            seed, kind, spacing=(xy, xy, z), extent=(280.0, 220.0, 230.0), noise=float(rng.uniform(10, 40))
        )
        region = p.fixed_mask if rng.random() < 0.5 else None
        yield KnownPair(f"phantom-{seed}", "phantom", p.fixed, p.moving, p.displacement, region)


def field_chain(field: DisplacementField) -> TransformChain:
    """Return a displacement field as a chain."""
    return TransformChain((Link(field),))


def made_errors(pair: KnownPair, rng: np.random.Generator, count: int) -> Iterator[Tried]:
    """Yield the truth with errors of many sizes and kinds."""
    mean = float(np.mean(pair.fixed.grid.spacing))
    grid = pair.fixed.grid.isotropic(max(2.0 * mean, *pair.fixed.grid.spacing))
    points = grid.points()
    truth = pair.truth.at(points)
    unit = mean
    for number in range(count):
        kind = ("waves", *MADE_ERRORS)[int(rng.integers(5))]
        size = float(np.exp(rng.uniform(np.log(0.15), np.log(15.0)))) * unit
        if kind == "share":
            u = truth * rng.uniform(0.0, 0.95)
        elif kind == "rigid":
            u = truth + _rigid(points, size, rng)
        else:
            sigma = float(np.exp(rng.uniform(np.log(4.0), np.log(25.0)))) * unit
            maker = FieldMaker(grid.shape, grid.spacing[0], Random(int(rng.integers(1 << 31))))
            wave = np.moveaxis(maker.wave(max(sigma, 1.2 * size), size)[0].numpy(), 0, -1)
            if kind == "place":
                wave = wave * _somewhere(points, grid, rng)[..., None]
            u = truth + wave @ grid.direction_matrix.T
        yield Tried(f"{kind}-{number}", field_chain(DisplacementField(u.astype(np.float32), grid)))


def _rigid(points: FloatArray, size: float, rng: np.random.Generator) -> FloatArray:
    middle = points.reshape(-1, 3).mean(0)
    radius = float(np.linalg.norm(points.reshape(-1, 3) - middle, axis=1).mean())
    turn = Rotation.from_rotvec(rng.normal(0, 1, 3) / 1.7 * min(0.5, size / radius)).as_matrix()
    return (points - middle) @ turn.T + middle - points + rng.normal(0, 1, 3) / 1.7 * size * rng.random()


def _somewhere(points: FloatArray, grid: Grid, rng: np.random.Generator) -> FloatArray:
    """Return a weight (z, y, x) that is 1 at one place and falls off around it."""
    extent = np.asarray(grid.size) * grid.spacing[0]
    at = grid.index_to_point(rng.uniform(0.15, 0.85, 3) * (np.asarray(grid.size) - 1))
    width = rng.uniform(0.06, 0.25) * float(extent.mean())
    return np.exp(-0.5 * (np.linalg.norm(points - at, axis=-1) / width) ** 2)


def found_chains(pair: KnownPair, chains: dict[str, list[str]], both_ways: bool = False) -> Iterator[Tried]:
    """Yield what chains of stages find; a chain that refuses the pair yields nothing."""
    for name, stages in chains.items():
        try:
            chain = register(pair.fixed, pair.moving, stages=stages, fixed_mask=pair.region).chain
            yield Tried(name, chain, register(pair.moving, pair.fixed, stages=stages).chain if both_ways else None)
        except RegNetItkError:
            continue


def with_scaled_errors(
    pair: KnownPair, found: Iterator[Tried], factors: tuple[float, ...] = (0.5, 2.0)
) -> Iterator[Tried]:
    """Yield what chains found, and the same with smaller and larger errors in the same places."""
    grid = pair.fixed.grid.isotropic(max(2.0 * float(np.mean(pair.fixed.grid.spacing)), *pair.fixed.grid.spacing))
    points = grid.points()
    truth = pair.truth.map_points(points)
    for tried in found:
        yield tried
        error = tried.chain.map_points(points) - truth
        for factor in factors:
            u = truth + factor * error - points
            yield Tried(f"{tried.name} x {factor:g}", field_chain(DisplacementField(u.astype(np.float32), grid)))


def sample(pair: KnownPair, tried: Tried, rng: np.random.Generator, points: int = POINTS) -> Samples | None:
    """Return the clues and errors at some points of the lattice; None if nothing can be said anywhere."""
    clues = find_clues(pair.fixed, pair.moving, tried.chain, pair.region)
    known = np.argwhere(clues.known)
    if not len(known):
        return None
    chosen = known[rng.choice(len(known), min(points, len(known)), replace=False)]
    at = clues.grid.index_to_point(chosen[:, ::-1].astype(float))
    there = tried.chain.map_points(at)
    errors = np.linalg.norm(there - pair.truth.map_points(at), axis=1)
    back = np.full(len(at), np.nan) if tried.back is None else np.linalg.norm(tried.back.map_points(there) - at, axis=1)
    size = clues.voxel_size
    return Samples(clues.values[tuple(chosen.T)], errors / size, back / size, size)


def keep_samples(path: Path, pair: KnownPair, chains: Iterator[Tried], seed: int) -> None:
    """Write the samples of all transforms of a pair into a file; none, if nothing can be said anywhere."""
    rng = np.random.default_rng(seed)
    found = [(tried.name, s) for tried in chains if (s := sample(pair, tried, rng)) is not None]
    if not found:
        return

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(
                file,
                names=np.repeat([name for name, _ in found], [len(s.errors) for _, s in found]),
                values=np.concatenate([s.values for _, s in found]).astype(np.float32),
                errors=np.concatenate([s.errors for _, s in found]).astype(np.float32),
                residuals=np.concatenate([s.residuals for _, s in found]).astype(np.float32),
                voxel_sizes=np.concatenate([np.full(len(s.errors), s.voxel_size, np.float32) for _, s in found]),
                columns=np.array(NAMES),
                kind=pair.kind,
                patient=pair.patient or pair.name,
            )

    write_whole(path, write)
