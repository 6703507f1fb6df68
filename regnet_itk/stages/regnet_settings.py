"""What a RegNet stage can be told: the keys of its own, each declared here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from regnet_itk.anatomy.regions import known_regions
from regnet_itk.errors import ParameterError
from regnet_itk.stages.keys import Kind, choice, key, number, read_settings, text, truth, whole_number

if TYPE_CHECKING:
    from regnet_itk.parameters import ParameterMap

DEFAULT_MODEL = "regnet_multistage"
"""The better of the shipped models on the validation images."""

Sliding = Literal["mask", "lungs", "none"]
Precision = Literal["auto", "float32", "bfloat16"]


def _to_region(given: str) -> str:
    if given not in ("auto", "mask", *known_regions()):
        raise ValueError(given)
    return given


def _to_voxel_size(given: str) -> float | None:
    if given == "auto":
        return None
    size = float(given)
    if not 0 < size < float("inf"):
        raise ValueError(given)
    return size


@dataclass(frozen=True)
class RegNetSettings:
    """The ``RegNet`` keys of a parameter map; what each means stands beside it."""

    model: str = key(
        "RegNetModel", DEFAULT_MODEL, text("the name of a model or the path of its file"),
        "name of a shipped model, or the path of a model file", headline=True,
    )  # fmt: skip
    region: str = key(
        "RegNetRegion", "auto", Kind("auto, mask, lungs, body, foreground or all", _to_region),
        "where to predict: `mask`, `lungs`, `body`, `foreground`, `all`; `auto` is the masks if given, else the body "
        "(`regnet`: the lungs; `regnet_general`: the foreground)", headline=True,
    )  # fmt: skip
    fade: float = key(
        "RegNetFadeWidth", 20.0, number("a width in mm, 0 or more"),
        "mm over which the field falls to zero outside that region",
    )  # fmt: skip
    voxel_size: float | None = key(
        "RegNetVoxelSize", None, Kind("a size in mm above 0, or auto", _to_voxel_size),
        "`regnet_general` only: mm of the voxels that it works on, 1 to 4; `auto` fits them to the pair",
        default_words="auto",
    )  # fmt: skip
    precision: Precision = key(
        "RegNetPrecision", "auto", choice("auto", "float32", "bfloat16"),
        "`float32` or `bfloat16`; `auto` is bfloat16 where the processor computes with it",
    )  # fmt: skip
    memory: float = key(
        "RegNetMemoryBudget", 2.5, number("a number of GB above 0", above=0.0),
        "GB for the network's activations, and then for instance optimisation, which takes larger voxels if need be",
    )  # fmt: skip
    output_step: int = key(
        "RegNetOutputStep", 2, whole_number("1 or 2", 1, 2),
        "`regnet` only: predict every second voxel, or every one", headline=True,
    )  # fmt: skip
    repetitions: int = key(
        "RegNetRepetitions", 1, whole_number("a whole number, at least 1", 1),
        "`regnet_multistage` only: apply it again to its own result", headline=True,
    )  # fmt: skip
    stages: tuple[float, ...] = key(
        "RegNetStages", (), number("sizes of voxels in mm, the coarsest first", above=0.0),
        "`regnet_multistage` only: `16 8 4` leaves out its stage of 2 mm; the coarsest comes first",
        default_words="all", several=True, headline=True,
    )  # fmt: skip
    unfold: bool = key(
        "RegNetUnfold", True, truth(),
        "`true`: where the field folds (det J below 0.05) it is smoothed until it no longer does, and nowhere else; a "
        "fade narrower than the displacements is left as it is",
        headline=True,
    )  # fmt: skip
    sliding: Sliding = key(
        "RegNetSliding", "mask", choice("mask", "lungs", "none"),
        "along the border of what the field may slide: `mask` is what is given as such (`-fSliding`), `lungs` are "
        "found in a CT of the chest, `none` leaves a mask aside", headline=True,
    )  # fmt: skip
    ignore: bool = key(
        "RegNetIgnore", True, truth(),
        "`true`: what `-fIgnore` and `-mIgnore` mark has no force, and the field is carried on smoothly through it; "
        "`false`: the masks are left aside",
    )  # fmt: skip
    rigid: bool = key(
        "RegNetRigid", True, truth(),
        "`true`: each number of `-fRigid` moves rigidly; `false`: the mask is left aside",
    )  # fmt: skip
    keep_volume: bool = key(
        "RegNetKeepVolume", True, truth(),
        "`true`: each number of `-fVolume` keeps its volume, at every point; `false`: the mask is left aside",
    )  # fmt: skip
    instance_iterations: tuple[int, ...] = key(
        "RegNetInstanceIterations", (), whole_number("whole numbers, 0 or more"),
        "steps of instance optimisation after the network; `20 20 20` takes 20 with wide B-splines, 20 with B-splines "
        "half as wide, and 20 with the usual ones. The shipped `regnet_multistage.txt` asks for 30",
        default_words="0", several=True, headline=True,
    )  # fmt: skip
    instance_smoothness: float = key(
        "RegNetInstanceSmoothness", 0.02, number("a number, 0 or more"),
        "weight of smoothness in these steps; more on coarse images (finest voxel side above 1.5 mm, slices above "
        "2.5 mm)",
    )  # fmt: skip
    inverse_consistency: float = key(
        "RegNetInverseConsistency", 0.0, number("a number, 0 or more"),
        "weight of the way back in these steps: above 0 both directions are improved together, in turns, so that each "
        "undoes the other; 0.02 is enough. It takes about twice the time",
    )  # fmt: skip
    instance_information: float = key(
        "RegNetInstanceInformation", 0.0, number("a number, 0 or more"),
        "weight of the mutual information in these steps, beside the self-similarity contexts",
    )  # fmt: skip
    landmark_weight: float = key(
        "RegNetLandmarkWeight", 0.0, number("a number, 0 or more"),
        "above 0 the landmarks (`-fp`, `-mp`) [guide](guidance.md) the stage: they correct what the network found, and "
        "count with this weight in instance optimisation; 1: each as much as the images within 12 mm around it",
        headline=True,
    )  # fmt: skip
    landmark_radius: float = key(
        "RegNetLandmarkRadius", 1.0, number("a number of mm above 0", above=0.0),
        "mm; how exact the landmarks are: within it a point does not pull",
    )  # fmt: skip
    label_weight: tuple[float, ...] = key(
        "RegNetLabelWeight", (1.0,), number("numbers, 0 or more"),
        "weight of labels (`-fLabel`, `-mLabel`) in instance optimisation, where they are given: one for all, or "
        "labels with their weights, `3 0.5 7 0` (3 counts half, 7 not at all, all others 1); 1: the surface of each "
        "counts as much as the images near to it", default_words="1", several=True, headline=True,
    )  # fmt: skip

    @classmethod
    def from_parameters(cls, parameters: ParameterMap) -> RegNetSettings:
        """Read the keys of a map; what it leaves out has the default.

        Raises
        ------
        ParameterError
            At a value that is not what its key takes, or a wish that only instance optimisation can fulfil without it.
        """
        found = read_settings(cls, parameters)
        if found.inverse_consistency and not any(found.instance_iterations):
            raise ParameterError(
                f"{parameters.source}: 'RegNetInverseConsistency' is for the steps of instance optimisation; give "
                "RegNetInstanceIterations, such as 30"
            )
        return found
