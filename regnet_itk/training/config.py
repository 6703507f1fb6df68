"""The configuration of a training run, as data classes and as a TOML file."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from regnet_itk.errors import ModelError, ParameterError, did_you_mean
from regnet_itk.inputs import MISSING, is_file, why_no_file
from regnet_itk.networks.architectures import find_architecture
from regnet_itk.networks.world import CHEST_CT, Range, World
from regnet_itk.typed_tables import build

_TISSUE = (
    "density", "mass_conservation", "contrast", "contrast_agent", "nodules_share", "consolidation_share",
)  # fmt: skip
_WEIGHTS = (0.001, 1000.0)  # of a label; they are kept in half precision
_NARROWEST = 100.0  # of an intensity range, to be kept as whole numbers


@dataclass(frozen=True)
class FieldRecipe:
    """How random displacement fields are drawn; lengths in mm.

    A field is a sum of up to `terms` smoothed noise fields, of breathing-like motion, and of a small affine map.
    """

    sigma: Range = (20.0, 35.0)
    """Standard deviation of the Gaussian that smooths the noise; drawn log-uniformly."""
    theta: Range = (8.0, 8.0)
    """Largest component of the displacement of one term; drawn uniformly."""
    strain: float = 10.0
    """theta is limited to `strain * sigma`, so that short waves do not fold."""
    terms: int = 1
    breathing: float = 0.0
    """Largest displacement along the body's axis by breathing, growing from one side to the other."""
    breathing_share: float = 0.0
    """Share of the pairs with breathing-like motion."""
    translation: float = 0.0
    linear: float = 0.0
    """Largest entry of the linear map's deviation from the identity."""
    small_share: float = 0.0
    """Share of the pairs whose whole field is scaled down, log-uniformly to as little as `smallest`."""
    smallest: float = 0.05
    even: float = 0.0
    """Shift a field so that the displacement at the block's centre has any direction, and a length drawn uniformly up
    to so many mm: long displacements are then as frequent as short ones."""
    even_share: float = 0.0
    """Share of the pairs that are shifted so."""
    sliding: float = 0.0
    """Largest part of the motion along the chest wall that is lost outside of the lungs."""
    sliding_share: float = 0.0
    """Share of the pairs in which the lungs slide along the chest wall."""


@dataclass(frozen=True)
class AppearanceRecipe:
    """What differs between both images besides the displacement; drawn independently for both."""

    noise: Range = (5.0, 5.0)
    """Standard deviation of the added Gaussian noise, in the unit of the images."""
    blur: float = 0.0
    """Largest standard deviation of a Gaussian blur, in voxels, for each axis of its own."""
    density: float = 0.0
    """Largest relative change of lung density, smooth over the image."""
    mass_conservation: float = 0.0
    """Largest exponent of the volume change that multiplies the fixed image's lung density; 1 keeps the mass."""
    contrast: float = 0.0
    """Largest relative change of the soft tissue's contrast."""
    contrast_agent: float = 0.0
    """Largest enhancement in HU of vessels and soft tissue, uneven over the image; in half of the images."""
    sharpening: float = 0.0
    """Largest strength of a sharp reconstruction kernel (what a Gaussian of 0.8 voxels takes away is added); in half
    of the images."""
    slice_thickness: float = 0.0
    """Largest thickness in mm of the slices, across the axis of the block that is nearest to the body's."""
    nodules_share: float = 0.0
    """Share of the images with up to three lumps of soft tissue, to 12 mm of radius, that the other does not show."""
    consolidation_share: float = 0.0
    """Share of the images in which a part of the lung tissue is denser, from ground glass to soft tissue."""
    motion: float = 0.0
    """Largest displacement in mm by which something moved while the image was taken: contours become double."""
    motion_share: float = 0.0
    """Share of the images in which something moved."""
    remap: float = 0.0
    """Share of the pairs in which one image's brightness is changed by a random curve, as if by another modality."""
    noise_correlation: float = 0.0
    """Largest standard deviation, in voxels, of the Gaussian that the noise is smoothed with; it keeps its strength."""


@dataclass(frozen=True)
class SceneRecipe:
    """How random scenes are drawn, for networks that know no anatomy; lengths in mm for voxels of 2 mm."""

    share: float = 1.0
    """Of the blocks that show scenes; the others are cut from images. With 1 a training run needs no image."""
    size: int = 128
    """Edge of a scene in voxels."""
    same: float = 0.3
    """Share of the pairs in which every structure is as bright in one image as in the other."""
    monotone: float = 0.2
    """Share of the pairs in which brightness is related by a rising function, almost."""
    partly: float = 0.15
    """Share of the pairs in which some structures have another brightness, as by a contrast agent; in the rest of all
    pairs the brightness in one image says nothing of that in the other."""
    tissues: tuple[int, int] = (4, 15)
    """Least and largest number of tissues."""
    tissue_sigma: Range = (5.0, 30.0)
    """Smoothness of the borders between tissues; drawn log-uniformly."""
    organs_share: float = 0.6
    organs: tuple[int, int] = (2, 10)
    organ_radius: Range = (6.0, 60.0)
    walls_share: float = 0.5
    tubes_share: float = 0.5
    trees_share: float = 0.4
    air_share: float = 0.5
    """Share of the scenes with a body in air; the others have no outside."""
    body_radius: Range = (60.0, 115.0)
    lesions_share: float = 0.25
    """Share of the images with blobs that the other image does not have."""
    cut_share: float = 0.15
    """Share of the images whose field of view ends inside of the scene."""
    texture: float = 0.12
    """Largest strength of a tissue's texture; 1 is the range of the tissues' brightness."""
    bias: float = 0.3
    """Largest relative unevenness of brightness, in half of the images."""
    noise: float = 0.08
    """Largest standard deviation of the noise; 1 is the range of the tissues' brightness."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.same + self.monotone + self.partly <= 1.0:
            raise ParameterError("the shares 'same', 'monotone' and 'partly' of scenes add up to 1 at most")
        if not 0.0 < self.share <= 1.0:
            raise ParameterError(f"the 'share' of scenes is above 0 and at most 1, not {self.share:g}")


@dataclass(frozen=True)
class PairRecipe:
    """Whole pairs made beforehand as in the paper, six for an image, from which blocks are cut."""

    positions: int = 2100
    """Voxels of the region to train at, of every pair, balanced over the magnitude of the displacement."""
    noise: float = 5.0
    """Standard deviation of the noise that is added every time, in the unit of the images."""
    flips: bool = True
    """Flip along x, y and z, each in half of the blocks."""


@dataclass(frozen=True)
class Phase:
    """One part of a curriculum."""

    steps: int = 0
    """Steps of the phase, if it is not measured in epochs."""
    epochs: int = 0
    """Passes over the positions of all pairs, counting a block's outputs."""
    decay: float = 1.0
    """The learning rate is divided by it after each epoch."""
    pairs: PairRecipe | None = None
    """Cut the blocks from whole pairs made beforehand, in place of pairs made on the fly; `fields` and `appearance`
    then say nothing."""
    blocks: int = 1
    """Blocks (pairs of subvolumes) in one step."""
    block_size: int = 96
    """Edge of a block: outputs of RegNet, voxels of the coarse-to-fine and other networks."""
    texture_share: float = 0.0
    """Share of the blocks that are cut from random texture instead of images."""
    frozen_statistics: bool = False
    """Measure the statistics of batch normalisation when the phase begins and keep them: what the network computes in
    training is then what it computes in use, although a step sees few blocks. A model that training begins with, and
    a phase after another such one, keep those that they have: other ones undo what the weights have learnt."""
    scenes: SceneRecipe | None = None
    """Random scenes in place of images, or among them."""
    left_out: int = 0
    """Of the network's stages, beginning with the finest, so many are not trained yet; of networks in stages."""
    recurrence: float = 0.0
    """Share of the steps in which the network sees what it has left itself: the moving image warped by its own result.
    Only of networks that predict at every voxel, as the coarse-to-fine network does."""
    learning_rate: Range = (1e-3, 1e-3)
    """At the beginning and at the end of the phase; half a cosine between them."""
    fields: FieldRecipe = field(default_factory=FieldRecipe)
    appearance: AppearanceRecipe = field(default_factory=AppearanceRecipe)

    def __post_init__(self) -> None:
        for name in ("blocks", "block_size"):
            if getattr(self, name) < 1:
                raise ParameterError(f"a training phase needs {name} of at least 1, not {getattr(self, name)}")
        if (self.steps < 1) == (self.epochs < 1):
            raise ParameterError(
                f"a training phase needs either 'steps' or 'epochs' of at least 1, not {self.steps} and {self.epochs}"
            )
        if self.epochs and self.pairs is None:
            raise ParameterError("a training phase in 'epochs' needs a table 'pairs': other blocks are never the same")
        if self.decay != 1.0 and not self.epochs:
            raise ParameterError("'decay' divides the learning rate after each epoch; the phase has no 'epochs'")
        if self.pairs is not None and self.texture_share:
            raise ParameterError("a training phase has either 'pairs' or a 'texture_share', not both")


@dataclass(frozen=True)
class Judge:
    """The recipes of the validation pairs."""

    fields: FieldRecipe = field(default_factory=FieldRecipe)
    appearance: AppearanceRecipe = field(default_factory=AppearanceRecipe)
    scenes: SceneRecipe | None = None
    """Of a training without images."""


@dataclass(frozen=True)
class TrainingConfig:
    """A whole training run."""

    network: str
    """Name of the kind of network: regnet, regnet_early, regnet_1scale, coarse_to_fine, or another package's."""
    train: tuple[str, ...] = ()
    """Names of the image files, without suffix, to train on; if none are named, a folder's images are divided."""
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    """Images that the run must not touch; named so that the model's description can say so."""
    name: str = ""
    """Name of the model; that of the network by default."""
    voxel_size: float = 0.0
    """Voxels in mm to train on, which are those that the model works on; 0 takes the network's own."""
    capture_range: float = 0.0
    """Largest displacement in mm that the model is said to follow; 0 takes the largest of the last phase."""
    sources: tuple[str, ...] = ()
    """Where the images come from and on which terms, for the model's description."""
    source_smoothing: float = 0.0
    """Standard deviation in mm of a Gaussian that takes the scans' own noise away, which both images would share."""
    world: World | None = None
    """What the images show and how their values are read; chest CT by default."""
    label_weights: tuple[tuple[int, float], ...] = ()
    """Numbers in the masks that are given, and how much an error at their voxels counts; all others but 0 count 1."""
    judged_by: Judge | None = None
    """What the validation pairs are made with; the last phase's recipes by default."""
    averaging: float = 0.0
    """Decay of the exponential average of the weights, which is what is judged and saved; 0 takes the weights
    themselves."""
    auxiliary_outputs: bool = True
    """Whether RegNet learns from an output of each resolution too; the paper's has its own output only."""
    seed: int = 2017
    validate_every: int = 100
    checkpoint_every: int = 100
    phases: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        sets = (*self.train, *self.validation, *self.test)
        if len(set(sets)) != len(sets):
            twice = sorted({name for name in sets if sets.count(name) > 1})
            raise ParameterError(f"training, validation and test images must be disjoint; given twice: {twice}")
        if bool(self.train) != bool(self.validation):
            raise ParameterError("a training configuration names images in 'train' and in 'validation', or in neither")
        if not self.phases:
            raise ParameterError("a training configuration needs at least one [[phases]] table")
        if not 0.0 <= self.capture_range < math.inf:
            raise ParameterError(f"'capture_range' is a length in mm, or 0: not {self.capture_range:g}")
        if not 0.0 <= self.voxel_size < math.inf:
            raise ParameterError(f"'voxel_size' is a size in mm, or 0 for that of the network: not {self.voxel_size:g}")
        if not 0.0 <= self.averaging < 1.0:
            raise ParameterError(
                f"'averaging' is the decay of an average, at least 0 and below 1, as 0.999: not {self.averaging:g}"
            )
        if min(self.validate_every, self.checkpoint_every) < 1:
            raise ParameterError("'validate_every' and 'checkpoint_every' are numbers of steps, at least 1")
        self._check_label_weights()
        self._check_network()
        self._check_world()

    @property
    def working_voxel_size(self) -> float:
        """The voxel size in mm that the model works on."""
        return self.voxel_size or find_architecture(self.network).voxel_size

    @property
    def needs_images(self) -> bool:
        """Whether some blocks are cut from images; else all show random scenes."""
        return any(phase.scenes is None or phase.scenes.share < 1 for phase in self.phases)

    def check_images(self) -> None:
        """Refuse a configuration that names no images although it needs some.

        Raises
        ------
        ParameterError
        """
        if self.needs_images and not self.train:
            raise ParameterError("this training needs images: name them in 'train' and 'validation', or give a folder")

    @property
    def shown(self) -> World:
        """The world of the images: chest CT, if the configuration tells no other.

        What a network that predicts at every voxel learns from blocks of chests holds for the whole body; RegNet's
        small blocks hold little else than lungs.
        """
        if self.world is not None:
            return self.world
        everywhere = find_architecture(self.network).predicts_everywhere
        return CHEST_CT if everywhere else dataclasses.replace(CHEST_CT, region=CHEST_CT.trained_in)

    @property
    def _recipes(self) -> list[Phase | Judge]:
        """Return all that say how pairs are made, to learn from and to judge by."""
        return [*self.phases, *([self.judged_by] if self.judged_by else [])]

    def _check_label_weights(self) -> None:
        """Refuse labels that no mask has, weights that mean nothing, and recipes that need the lungs' mask."""
        labels = [label for label, _ in self.label_weights]
        for label, weight in self.label_weights:
            if label < 1:
                raise ParameterError(f"'label_weights': labels are whole numbers of 1 or more, not {label}")
            if labels.count(label) > 1:
                raise ParameterError(f"'label_weights': label {label} has more than one weight")
            least, most = _WEIGHTS
            if weight != 0.0 and not least <= weight <= most:
                raise ParameterError(
                    f"the weight of label {label} must be 0, or a number from {least:g} to {most:g}, not {weight:g}"
                )
        if labels and any(recipe.fields.sliding_share for recipe in self._recipes):
            raise ParameterError(
                "'sliding_share' lets the lungs slide along their border, which 'label_weights' do not tell: leave one "
                "of the two out"
            )

    def _check_world(self) -> None:
        """Refuse what cannot be made of the images of another world."""
        low, high = self.shown.intensity_range
        if high - low < _NARROWEST:
            raise ParameterError(
                f"world: images are kept as whole numbers, of which an intensity range of {low:g} to {high:g} has too "
                f"few; it must be at least {_NARROWEST:g} wide"
            )
        if self.shown.trained_in != "lungs" and any(recipe.fields.sliding_share for recipe in self._recipes):
            raise ParameterError(
                f"'sliding_share' lets the lungs slide along the chest wall, but training looks at the "
                f"{self.shown.training_place}"
            )
        if (self.shown.unit, self.shown.background) == (CHEST_CT.unit, CHEST_CT.background):
            return
        for recipe in self._recipes:
            asked = [name for name in _TISSUE if getattr(recipe.appearance, name)]
            if asked:
                raise ParameterError(
                    f"'{asked[0]}' knows the tissues of a CT in HU above a background of {CHEST_CT.background:g}; "
                    f"leave it out for {self.shown.images} in {self.shown.unit} above {self.shown.background:g}"
                )

    def _check_network(self) -> None:
        """Refuse what the network cannot be asked for."""
        try:
            network = find_architecture(self.network)
        except ModelError as error:
            raise ParameterError(f"network: {error}") from None
        if network.has_batch_statistics and any(p.blocks * p.block_size**3 < 2 for p in self.phases):
            raise ParameterError(
                "batch normalisation needs two outputs or more in a step: give more 'blocks' or a larger 'block_size'"
            )
        if not network.predicts_everywhere and any(phase.recurrence for phase in self.phases):
            raise ParameterError(
                f"'recurrence' is of networks that predict at every voxel, as coarse_to_fine; {self.network} does not"
            )
        if not network.auxiliary_outputs and not self.auxiliary_outputs:
            raise ParameterError(
                f"'auxiliary_outputs' is RegNet's: the network '{self.network}' has none that can be left out"
            )
        odd = [phase.block_size for phase in self.phases if phase.block_size % network.block_multiple]
        if odd:
            raise ParameterError(
                f"the network '{self.network}' needs a block_size that is a multiple of {network.block_multiple}, not "
                f"{odd[0]}"
            )


def shipped_recipes() -> dict[str, Path]:
    """Return the training configurations that come with the package, by the names of the models they make."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "recipes", package.parent / "pipelines" / "recipes"):
        files = sorted(folder.glob("*.toml")) if folder.is_dir() else []
        if files:
            return {file.stem: file for file in files}
    return {}


def find_recipe(path_or_name: str) -> TrainingConfig:
    """Read a configuration file, or one that comes with the package, without the images that it names.

    Raises
    ------
    ParameterError
        As :func:`read_training_config`, and if there is neither a file nor a recipe of that name.
    """
    shipped = shipped_recipes()
    if path_or_name in shipped and not is_file(path_or_name):
        config = read_training_config(shipped[path_or_name])
        return dataclasses.replace(config, train=(), validation=(), test=(), sources=())
    if why_no_file(path_or_name) == MISSING:
        raise ParameterError(
            f"training configuration '{path_or_name}' does not exist{did_you_mean(path_or_name, shipped)}; give the "
            f"path of a TOML file, or the name of a recipe that comes with the package ({', '.join(shipped)})"
        )
    return read_training_config(path_or_name)


def read_training_config(path: str | Path) -> TrainingConfig:
    """Read and check a TOML file whose tables have the names of the data classes' fields.

    Raises
    ------
    ParameterError
        If the file is missing or malformed, a key is unknown, missing or of the wrong type, or an image is in two sets.
    """
    path = Path(path)
    if (why := why_no_file(path)) is not None:
        raise ParameterError(f"training configuration '{path}' {why}")
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except RecursionError:
        raise ParameterError(f"training configuration '{path}' is nested too deeply") from None
    except OSError as error:
        raise ParameterError(f"training configuration '{path}' cannot be read: {error.strerror}") from None
    except ValueError as error:  # also text that is not UTF-8
        raise ParameterError(f"training configuration '{path}' is not TOML: {error}") from None
    return build(TrainingConfig, values, str(path))
