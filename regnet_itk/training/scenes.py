"""Random scenes: images of nothing in particular, whose displacement is exactly known, in all contrasts.

A scene is a map of labels: tissues, organs, trees of vessels, tubes, walls, a body in air, with textures of its own. A
pair shows it twice. As in :mod:`regnet_itk.training.blocks`, the moving image is S(G(y + w(y))) with the scene S, a
random pose G and a mild deformation w, and the fixed one is the same at x + u(x): each is sampled once. Every label has
a brightness in each image: the same ones, monotonically related ones, or ones that have nothing to do with each other,
as two modalities do. That a network learns to register from such scenes alone was shown by SynthMorph (Hoffmann et al.,
IEEE TMI 2022). Lengths are in mm for voxels of 2 mm; a network that counts in voxels takes them for any other size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from regnet_itk.networks.architectures import Shape
from regnet_itk.networks.layers import warp
from regnet_itk.networks.world import World
from regnet_itk.training.appearance import in_slices
from regnet_itk.training.blocks import Block, join_blocks
from regnet_itk.training.config import AppearanceRecipe, FieldRecipe, SceneRecipe
from regnet_itk.training.fields import FieldMaker
from regnet_itk.training.filters import smooth
from regnet_itk.training.random_numbers import Random

_FINE_TEXTURE = 0.03  # of the range of brightness: what even the calmest tissue shows
_POOL = 6  # scenes that blocks are drawn from
_BLOCKS_PER_SCENE = 5


@dataclass(frozen=True)
class Scene:
    """Labels and textures on a cube of voxels.

    Parameters
    ----------
    labels : Tensor, shape (z, y, x), int64
        From 0; 0 is what lies outside of the body.
    textures : Tensor, shape (2, z, y, x)
        A coarser and a fine one, of unit variance.
    count : int
        Labels that there are.
    has_air : bool
        Whether there is an outside.
    voxel_size : float
        mm.
    """

    labels: Tensor
    textures: Tensor
    count: int
    has_air: bool
    voxel_size: float

    def rendered(self, means: Tensor, strengths: Tensor) -> Tensor:
        """Return an image (1, 1, z, y, x): brightness by label, with textures whose strength the labels say."""
        image = means[self.labels] + strengths[self.labels] * self.textures[0] + _FINE_TEXTURE * self.textures[1]
        if self.has_air:
            image = torch.where(self.labels == 0, means[0], image)
        return image[None, None]

    def sampled(self, image: Tensor, positions: Tensor) -> Tensor:
        """Interpolate an image on the scene's voxels linearly at positions (1, 3, z, y, x), mm from its centre."""
        half = self.voxel_size * (self.labels.shape[0] - 1) / 2
        where = (positions / half).movedim(1, -1)
        return functional.grid_sample(image, where, padding_mode="border", align_corners=True)


def make_scene(recipe: SceneRecipe, voxel_size: float, random: Random) -> Scene:
    """Draw a scene.

    Parameters
    ----------
    recipe : SceneRecipe
    voxel_size : float
        mm.
    random : Random
    """
    fields = FieldMaker((recipe.size,) * 3, voxel_size, random)
    labels = _Labels(fields, random)
    labels.add_tissues(recipe)
    if random.happens(recipe.organs_share):
        labels.add_organs(recipe)
    if random.happens(recipe.walls_share):
        labels.add_walls()
    if random.happens(recipe.tubes_share):
        labels.add_tubes()
    if random.happens(recipe.trees_share):
        labels.add_tree()
    has_air = random.happens(recipe.air_share)
    if has_air:
        labels.add_air(recipe)
    sigmas = (random.uniform((0.6, 2.0)), 0.6)
    grain = [smooth(random.normal(1, 1, *fields.shape), (sigma,) * 3)[0, 0] for sigma in sigmas]
    textures = torch.stack([g / g.std() for g in grain])
    return Scene(labels.map, textures, labels.count, has_air, voxel_size)


class _Labels:
    """A map of labels that structures are added to, each over what was there before."""

    def __init__(self, fields: FieldMaker, random: Random) -> None:
        self.fields, self.random = fields, random
        self.map = torch.ones(fields.shape, dtype=torch.int64, device=random.device)
        self.count = 1  # 0 is kept for what is outside
        self._extent = fields.voxel_size * fields.shape[0] / 2

    def _new(self) -> int:
        self.count += 1
        return self.count - 1

    def _put(self, where: Tensor, label: int) -> None:
        self.map = torch.where(where, label, self.map)

    def _normal_noise(self, channels: int, sigma: float) -> Tensor:
        noise = self.fields.noise(channels, sigma)[0]
        return noise / noise.std()

    def add_tissues(self, recipe: SceneRecipe) -> None:
        """Fill the cube with tissues: where which of several smooth noises is largest, in most scenes at two scales."""
        random = self.random
        low, high = recipe.tissues
        number = low + random.integer(high - low + 1)
        sigma = random.log_uniform(recipe.tissue_sigma)
        noise = self._normal_noise(number, sigma)
        if random.happens(0.7):
            noise = noise + random.uniform((0.2, 0.6)) * self._normal_noise(number, max(3.5, sigma / 2.5))
        self.map = noise.argmax(0) + 1
        self.count = number + 1

    def add_organs(self, recipe: SceneRecipe) -> None:
        """Put bent ellipsoids over the tissues, some of them with a shell."""
        random = self.random
        low, high = recipe.organs
        bend = random.uniform((0.0, 8.0)) * self._normal_noise(3, random.log_uniform((10.0, 40.0)))
        bent = self.fields.positions[0] + bend
        for _ in range(low + random.integer(high - low + 1)):
            distance, radius = self._ellipsoid(bent, recipe.organ_radius)
            label = self._new()
            if random.happens(0.3):
                self._put(distance < 1.0, self._new())
                self._put(distance < 1.0 - random.uniform((2.0, 6.0)) / radius, label)
            else:
                self._put(distance < 1.0, label)

    def _ellipsoid(self, positions: Tensor, radii: tuple[float, float]) -> tuple[Tensor, float]:
        """Return the distance from a random centre, 1 on a random ellipsoid's surface, and the smallest radius."""
        random = self.random
        radius = [random.log_uniform(radii) for _ in range(3)]
        rotation = torch.linalg.qr(random.normal_small(3, 3))[0]
        centre = random.uniform_small(3) * 0.8 * self._extent
        shape = (rotation / torch.tensor(radius)[:, None]).to(positions.device)
        local = torch.einsum("ij,jzyx->izyx", shape, positions - centre.to(positions.device).view(3, 1, 1, 1))
        return local.square().sum(0).sqrt(), min(radius)

    def add_walls(self) -> None:
        """Add thin walls: where a smooth noise is near zero."""
        random = self.random
        sigma = random.log_uniform((10.0, 25.0))
        noise = self._normal_noise(1, sigma)[0]
        self._put(noise.abs() < random.log_uniform((1.0, 5.0)) / sigma, self._new())

    def add_tubes(self) -> None:
        """Add tubes: where two smooth noises are both near zero, coarse ones and in half of the scenes fine ones."""
        random = self.random
        for sigma in [random.log_uniform((10.0, 25.0)), *([8.0] if random.integer(2) else [])]:
            noise = self._normal_noise(2, sigma)
            radius = random.log_uniform((1.5, 6.0)) / sigma
            self._put(noise.square().sum(0) < radius**2, self._new())

    def add_tree(self) -> None:
        """Add a tree of vessels or airways whose branches become thinner and shorter."""
        random, label = self.random, self._new()
        start = random.uniform_small(3) * 0.7 * self._extent
        grown = [
            (start, -start + 20 * random.normal_small(3), random.uniform((4.0, 9.0)), random.uniform((35.0, 60.0)))
        ]
        for _ in range(random.integer(3) + 5):
            children = []
            for base, direction, radius, length in grown:
                tip = base + direction / direction.norm() * length
                self._put_capsule(base, tip, radius, label)
                for _ in range(2):
                    turned = direction / direction.norm() + 0.6 * random.normal_small(3)
                    children.append((tip, turned, 0.75 * radius, length * random.uniform((0.6, 0.95))))
            grown = [c for c in children if c[2] > 1.2][:32]

    def _put_capsule(self, a: Tensor, b: Tensor, radius: float, label: int) -> None:
        """Label what lies within `radius` mm of the line from a to b, working on the box around it only."""
        size, voxel = self.fields.shape[0], self.fields.voxel_size
        ends = torch.stack([a, b])
        low = ((ends.amin(0) - radius + self._extent) / voxel).floor().long().clamp(0, size)
        high = ((ends.amax(0) + radius + self._extent) / voxel).ceil().long().clamp(0, size)
        if bool((high <= low).any()):
            return
        box = tuple(slice(int(f), int(t)) for f, t in zip(low.flip(0), high.flip(0), strict=True))
        device = self.map.device
        there = self.fields.positions[0][(slice(None), *box)] - a.to(device).view(3, 1, 1, 1)
        along = (b - a).to(device).view(3, 1, 1, 1)
        t = ((there * along).sum(0) / along.square().sum()).clamp(0.0, 1.0)
        near = (there - t * along).square().sum(0) < radius**2
        self.map[box] = torch.where(near, label, self.map[box])

    def add_air(self, recipe: SceneRecipe) -> None:
        """Keep a body, in most scenes with a skin; what is outside of it becomes label 0."""
        random = self.random
        bend = random.uniform((2.0, 12.0)) * self._normal_noise(3, random.log_uniform((15.0, 50.0)))
        radius = [random.uniform(recipe.body_radius) for _ in range(3)]
        if random.happens(0.6):
            radius[random.integer(3)] = 10 * self._extent  # it goes on beyond the cube
        local = (self.fields.positions[0] + bend) / torch.tensor(radius, device=random.device).view(3, 1, 1, 1)
        distance = local.square().sum(0).sqrt()
        if random.happens(0.7):
            self._put(distance > 1.0 - random.uniform((3.0, 15.0)) / min(radius), self._new())
        self._put(distance > 1.0, 0)


@dataclass(frozen=True)
class _Look:
    """How an image shows the labels: their brightness, from 0 to 1, and the strength of their texture."""

    means: Tensor
    strengths: Tensor


class SceneBlocks:
    """Make blocks of random scenes.

    Parameters
    ----------
    recipe : SceneRecipe
    shape : tuple of int
        Voxels z, y, x of a block.
    voxel_size : float
        mm.
    random : Random
        All randomness comes from it, but for the scenes themselves.
    world : World
        In whose unit the blocks are: darkest and brightest tissue are the ends of its intensity range.
    seed : int
        Of the scenes.
    """

    def __init__(
        self, recipe: SceneRecipe, shape: Shape, voxel_size: float, random: Random, *, world: World, seed: int
    ) -> None:
        self.recipe, self.voxel_size, self.random, self.world, self.seed = recipe, voxel_size, random, world, seed
        self._fields = FieldMaker(shape, voxel_size, random)
        self._scenes: dict[int, Scene] = {}
        self._made = 0

    def go_on_from(self, made: int) -> None:
        """Go on as if so many blocks had been made: with the scenes that a run without interruption would have."""
        self._made = made

    def _next_scene(self) -> Scene:
        """Draw one of the scenes of now: every few blocks the oldest makes room for a new one."""
        newest = self._made // _BLOCKS_PER_SCENE + _POOL
        self._made += 1
        number = newest - 1 - self.random.integer(_POOL)
        self._scenes = {n: s for n, s in self._scenes.items() if n >= newest - _POOL}
        if number not in self._scenes:
            own = Random(self.seed + number, self.random.device)
            self._scenes[number] = make_scene(self.recipe, self.voxel_size, own)
        return self._scenes[number]

    def make(self, fields: FieldRecipe, appearance: AppearanceRecipe, count: int = 1) -> Block:
        """Return `count` pairs in one block.

        Parameters
        ----------
        fields : FieldRecipe
        appearance : AppearanceRecipe
            What it says of blur, slices and the noise's correlation holds; a scene's noise is the scene recipe's, and
            what knows the tissues of a CT says nothing.
        count : int
        """
        return join_blocks([self._pair(fields, appearance) for _ in range(count)])

    def _pair(self, fields: FieldRecipe, appearance: AppearanceRecipe) -> Block:
        random, positions, scene = self.random, self._fields.positions, self._next_scene()
        u = self._fields.field(fields, torch.eye(3)[[random.integer(3)]])
        w = self._fields.wave(random.log_uniform((25.0, 40.0)), random.uniform((0.0, 6.0)))
        pose = self._pose(scene)
        there = [pose(positions + u + warp(w, u / self.voxel_size)), pose(positions + w)]
        inside = scene.sampled((scene.labels > 0).float()[None, None], there[0]) if scene.has_air else None
        images = []
        for look, where in zip(self._looks(scene), there, strict=True):
            image = scene.sampled(scene.rendered(look.means, look.strengths), where)
            image = self._with_lesions(image, where, scene)
            images.append(self._as_scanned(image, appearance))
        weight = torch.ones_like(images[0]) if inside is None else inside
        fixed, moving = (self._with_cut_view(self._in_unit(image, weight)) for image in images)
        return Block(fixed, moving, u, weight)

    def _pose(self, scene: Scene) -> _Pose:
        """Draw flips, the axes' order, a scale and a place in the scene."""
        random = self.random
        signs = torch.tensor([random.sign() for _ in range(3)])
        matrix = random.log_uniform((0.75, 1.15)) * torch.diag(signs)[random.permutation(3)]
        room = scene.voxel_size * scene.labels.shape[0] / 2 - self.voxel_size * max(self._fields.shape) / 2
        return _Pose(matrix.to(random.device), random.uniform_small(3).to(random.device) * max(room, 0.0))

    def _looks(self, scene: Scene) -> tuple[_Look, _Look]:
        """Draw how both images show the labels."""
        random, count = self.random, scene.count
        means = random.numbers(count)
        strengths = self.recipe.texture * random.numbers(count)
        drawn = random.uniform()
        same, monotone, partly = self.recipe.same, self.recipe.monotone, self.recipe.partly
        other, other_strengths = means, strengths
        if drawn >= same + monotone + partly:
            other = random.numbers(count)
            other_strengths = strengths * random.normal_small(count)
        elif drawn >= same + monotone:  # as by a contrast agent
            changed = random.numbers(count) < random.uniform((0.1, 0.4))
            other = torch.where(changed, random.numbers(count), means)
        elif drawn >= same:
            other = means ** random.log_uniform((0.4, 2.5)) + 0.08 * random.normal_small(count)
        looks = [_Look(means.clone(), strengths), _Look(other.clamp(0.0, 1.0), other_strengths)]
        if scene.has_air and random.happens(0.85):  # air is dark in nearly all modalities
            for look in looks:
                look.means[0] = 0.0
        first, second = looks if random.integer(2) else looks[::-1]
        on = random.device
        return (
            _Look(first.means.to(on), first.strengths.to(on)),
            _Look(second.means.to(on), second.strengths.to(on)),
        )

    def _with_lesions(self, image: Tensor, where: Tensor, scene: Scene) -> Tensor:
        """Put blobs into an image that the other one does not have."""
        random = self.random
        if not random.happens(self.recipe.lesions_share):
            return image
        for _ in range(1 + random.integer(3)):
            middle = torch.tensor([random.integer(n) for n in image.shape[2:]])
            at = where[0, :, middle[0], middle[1], middle[2]].view(1, 3, 1, 1, 1)
            radius = random.log_uniform((4.0, 25.0))
            edge = torch.sigmoid((radius - (where - at).square().sum(1, keepdim=True).sqrt()) / 1.5)
            image = image + edge * (random.uniform() - image)
        return image

    def _as_scanned(self, image: Tensor, appearance: AppearanceRecipe) -> Tensor:
        """Give an image a point spread, uneven brightness, slices and noise of its own."""
        random, recipe = self.random, self.recipe
        if appearance.blur:
            image = smooth(image, [random.uniform((0.0, appearance.blur)) for _ in range(3)])
        if random.happens(0.5):
            image = image * (1 + random.uniform((0.0, recipe.bias)) * self._fields.uneven(60.0, 1))
        thickness = random.uniform((0.0, appearance.slice_thickness)) / self.voxel_size
        image = in_slices(image, torch.tensor([thickness]), random.numbers(1), torch.tensor([random.integer(3)]))
        noise = random.normal(*image.shape)
        if appearance.noise_correlation and random.integer(2):
            noise = smooth(noise, (random.uniform((0.0, appearance.noise_correlation)),) * 3)
            noise = noise / noise.std()
        return image + noise * random.uniform((0.0, recipe.noise))

    def _in_unit(self, image: Tensor, weight: Tensor) -> Tensor:
        """Map percentiles of what is inside the body to the ends of the world's range, as it is done in use."""
        low, high = self.world.percentiles or (1.0, 99.0)
        inside = image[weight > 0.5][::7]
        values = inside if inside.numel() > 100 else image.flatten()[::7]
        darkest, brightest = torch.quantile(values, torch.tensor([low, high], device=image.device) / 100).tolist()
        bottom, top = self.world.intensity_range
        scaled = (image - darkest) / max(brightest - darkest, 1e-6)
        return bottom + (top - bottom) * scaled

    def _with_cut_view(self, image: Tensor) -> Tensor:
        """Cut the field of view by a plane across an axis: beyond it lies the background."""
        random = self.random
        if not random.happens(self.recipe.cut_share):
            return image
        axis = 2 + random.integer(3)
        size = image.shape[axis]
        cut = int(size * random.uniform((0.05, 0.35)))
        image.narrow(axis, 0 if random.integer(2) else size - cut, cut).fill_(self.world.background)
        return image


@dataclass(frozen=True)
class _Pose:
    """An affine map from a block to the scene, mm."""

    matrix: Tensor
    shift: Tensor

    def __call__(self, positions: Tensor) -> Tensor:
        return torch.einsum("ij,bjzyx->bizyx", self.matrix, positions) + self.shift.view(1, 3, 1, 1, 1)
