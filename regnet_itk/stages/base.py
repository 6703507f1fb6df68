"""What a stage of a registration is given and what it returns.

A registration is a list of stages. Each takes the fixed image, the moving image, the masks and the transform so
far, and returns a better transform. T(x) = x + u(x) maps points of the fixed image to the moving image, mm, LPS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from regnet_itk.data.image import Image
from regnet_itk.digests import digest_text
from regnet_itk.events import Events, Log, Progress
from regnet_itk.stages.block_means import shrink_image, shrink_mask
from regnet_itk.stages.coarse_pair import CoarsePair
from regnet_itk.stages.guides import Guides, masks_without

if TYPE_CHECKING:
    from regnet_itk.data.landmarks import Landmarks
    from regnet_itk.parameters import ParameterMap
    from regnet_itk.stages.judgement import Judgement
    from regnet_itk.transforms.chain import TransformChain

Detail = str | float | int | bool


@dataclass(frozen=True, eq=False)
class ImagePair:
    """What is registered.

    Parameters
    ----------
    fixed, moving : Image
        The images; the result lies on the grid of the fixed one.
    fixed_mask, moving_mask : Image, optional
        Voxels other than 0 count; each on the grid of its image.
    more_fixed, more_moving, more_fixed_masks, more_moving_masks : tuple of Image
        Further images and masks, which elastix's stages compare as well, each in its metric.
    fixed_landmarks, moving_landmarks : Landmarks, optional
        Corresponding points that guide the stages that can be guided by such.
    fixed_guides, moving_guides : Guides of Image
        What else is known of each image.
    """

    fixed: Image
    moving: Image
    fixed_mask: Image | None = None
    moving_mask: Image | None = None
    more_fixed: tuple[Image, ...] = ()
    more_moving: tuple[Image, ...] = ()
    more_fixed_masks: tuple[Image, ...] = ()
    more_moving_masks: tuple[Image, ...] = ()
    fixed_landmarks: Landmarks | None = None
    moving_landmarks: Landmarks | None = None
    fixed_guides: Guides[Image] = field(default_factory=Guides)
    moving_guides: Guides[Image] = field(default_factory=Guides)

    @property
    def fixed_images(self) -> tuple[Image, ...]:
        """All fixed images."""
        return (self.fixed, *self.more_fixed)

    @property
    def moving_images(self) -> tuple[Image, ...]:
        """All moving images."""
        return (self.moving, *self.more_moving)

    @property
    def fixed_masks(self) -> tuple[Image, ...]:
        """All masks of fixed images."""
        return (*((self.fixed_mask,) if self.fixed_mask is not None else ()), *self.more_fixed_masks)

    @property
    def moving_masks(self) -> tuple[Image, ...]:
        """All masks of moving images."""
        return (*((self.moving_mask,) if self.moving_mask is not None else ()), *self.more_moving_masks)

    def swapped(self) -> ImagePair:
        """Return the pair of the way back."""
        return ImagePair(
            self.moving, self.fixed, self.moving_mask, self.fixed_mask,
            self.more_moving, self.more_fixed, self.more_moving_masks, self.more_fixed_masks,
            self.moving_landmarks, self.fixed_landmarks, self.moving_guides, self.fixed_guides,
        )  # fmt: skip

    def shrunk(self, voxels: int) -> ImagePair:
        """Return the pair with about `voxels` voxels an image at most; the landmarks stay, the guides do not."""

        def masks(given: tuple[Image, ...]) -> tuple[Image, ...]:
            return tuple(shrink_mask(mask, voxels) for mask in given)

        fixed, *more_fixed = (shrink_image(image, voxels) for image in self.fixed_images)
        moving, *more_moving = (shrink_image(image, voxels) for image in self.moving_images)
        return replace(
            self,
            fixed=fixed,
            moving=moving,
            fixed_mask=None if self.fixed_mask is None else shrink_mask(self.fixed_mask, voxels),
            moving_mask=None if self.moving_mask is None else shrink_mask(self.moving_mask, voxels),
            more_fixed=tuple(more_fixed),
            more_moving=tuple(more_moving),
            more_fixed_masks=masks(self.more_fixed_masks),
            more_moving_masks=masks(self.more_moving_masks),
            fixed_guides=Guides(),
            moving_guides=Guides(),
        )

    def without_ignored(self) -> ImagePair:
        """Return the pair with masks that leave out what is to be ignored; one for each image where there is any."""
        fixed_mask, *more_fixed = masks_without(self.fixed_guides.ignore, self.fixed_images, self.fixed_masks)
        moving_mask, *more_moving = masks_without(self.moving_guides.ignore, self.moving_images, self.moving_masks)
        return replace(
            self,
            fixed_mask=fixed_mask,
            moving_mask=moving_mask,
            more_fixed_masks=tuple(filter(None, more_fixed)),
            more_moving_masks=tuple(filter(None, more_moving)),
            fixed_guides=replace(self.fixed_guides, ignore=None),
            moving_guides=replace(self.moving_guides, ignore=None),
        )

    @cached_property
    def coarse(self) -> CoarsePair:
        """The pair on a few thousand voxels, where transforms are looked at."""
        return CoarsePair.of(
            self.fixed, self.moving, self.fixed_mask, self.moving_mask,
            fixed_ignored=self.fixed_guides.ignore, moving_ignored=self.moving_guides.ignore,
        )  # fmt: skip


@dataclass(frozen=True)
class RunOptions:
    """How a stage is run; none of it says what is computed, apart from the seed.

    Parameters
    ----------
    threads : int, optional
        Number of threads; all processors by default.
    seed : int, optional
        Seed of everything random; takes the place of a ``RandomSeed`` in the parameter file.
    device : str
        Where a network runs: "auto", "cpu", "cuda", "cuda:1" ..
    priority : str, optional
        Priority of the process, with elastix's words: "high", "abovenormal", "normal", "belownormal", "idle".
    events : Events
        Hears how far the stage is, and its lines of log.
    meanwhile : callable, optional
        To be called by a stage whose work another process does, while it waits for that. An error ends the stage.
    """

    threads: int | None = None
    seed: int | None = None
    device: str = "auto"
    priority: str | None = None
    events: Events = field(default_factory=Events)
    meanwhile: Callable[[], object] | None = None

    @property
    def log(self) -> Log:
        """Where lines of log go: ``options.log.info("..")``."""
        return self.events.log

    def progress(self, fraction: float, text: str) -> None:
        """Tell how far the stage is.

        Parameters
        ----------
        fraction : float
            The share of the stage that is done: 0 to 1, never falling.
        text : str
            What is being done, in a few words.
        """
        self.events.progress(Progress(fraction, text))


@dataclass(frozen=True, eq=False)
class StageResult:
    """What a stage found.

    Parameters
    ----------
    chain : TransformChain
        The whole transform so far, this stage included.
    seconds : float
        Wall-clock time of the stage.
    result_image : Image, callable or None
        The moving image under `chain` on the grid of the fixed image, or what makes it when it is first asked for;
        None if the stage was told not to make it.
    details : mapping
        What else is worth recording, for ``registration.json``.
    iteration_info : mapping
        elastix's tables of the iterations: the text for each resolution, by the name "R0", "R1" ..
    judgement : Judgement, optional
        Whether the stage made the pair better, if the stage itself has found out.
    """

    chain: TransformChain
    seconds: float
    result_image: Image | Callable[[], Image] | None
    details: Mapping[str, Detail] = field(default_factory=dict)
    iteration_info: Mapping[str, str] = field(default_factory=dict)
    judgement: Judgement | None = None

    @cached_property
    def warped(self) -> Image | None:
        """The moving image under `chain` on the grid of the fixed image, if the stage was told to make it."""
        return self.result_image() if callable(self.result_image) else self.result_image


@dataclass(frozen=True)
class Stage(ABC):
    """One stage of a registration: derive from it, and write `run`.

    Parameters
    ----------
    parameters : ParameterMap
        All that decides what the stage computes.
    """

    parameters: ParameterMap

    settings_type: ClassVar[type | None] = None
    """A dataclass that declares the keys that the stage has of its own in parameter files (`stages.keys`)."""

    adds_field: ClassVar[bool] = False
    """Whether a displacement field is what the stage finds: some elastix metrics cannot start from one."""

    takes_several_images: ClassVar[bool] = False
    """Whether the stage compares all images of a pair (`ImagePair.more_fixed` ..), and not the first two alone."""

    waits_for_another_process: ClassVar[bool] = False
    """Whether another process does the work, so that this one can load what the next stages need (`load`)."""

    @property
    def follows(self) -> frozenset[str]:
        """Which `Guides` of a pair the stage follows, by their names."""
        return frozenset()

    @property
    def guided_by_landmarks(self) -> bool:
        """Whether the landmarks of a pair, if it has any, guide the stage: then they are no measure of it."""
        return False

    @property
    def compares_any_contrast(self) -> bool:
        """Whether the stage is for images in which the same may be bright and dark, as those of two modalities."""
        return False

    @property
    def name(self) -> str:
        """A short name for messages and reports."""
        return self.parameters.registration.removesuffix("Registration")

    def check(self, initial: TransformChain, pair: ImagePair | None, options: RunOptions) -> None:  # noqa: B027 - optional
        """Refuse what would fail in `run`, before any stage has run.

        Parameters
        ----------
        initial : TransformChain
            Where the stage starts, as far as that is known.
        pair : ImagePair, optional
            What is registered, if that is known.
        options : RunOptions
            How the stage is to run.

        Raises
        ------
        RegNetItkError
            With one line that says what was given and what to do.
        """

    def load(self, pair: ImagePair | None, options: RunOptions) -> None:  # noqa: B027 - optional
        """Load what takes time to load, and refuse what only that shows; `check` has been called before.

        Parameters
        ----------
        pair : ImagePair, optional
            What is registered, if that is known.
        options : RunOptions
            How the stage is to run.

        Raises
        ------
        RegNetItkError
            With one line that says what was given and what to do.
        """

    @abstractmethod
    def run(self, pair: ImagePair, initial: TransformChain, options: RunOptions) -> StageResult:
        """Register `pair`, starting from the transform `initial`, and return the better transform.

        Raises
        ------
        RegNetItkError
            With one line that says what was given and what to do.
        """

    def fingerprint(self) -> str:
        """Return a digest of what the stage computes; a finished step with another one is computed again.

        It covers the kind of stage and its parameters. A stage that depends on more adds that: a file's digest, a
        library's version.
        """
        return digest_text(self._described())

    def _described(self) -> list[str]:
        """Return the kind of stage and its parameters as texts."""
        return [type(self).__name__, *(f"{key}={values}" for key, values in sorted(self.parameters.values.items()))]
