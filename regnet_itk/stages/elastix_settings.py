"""What an elastix stage can be told beyond elastix's own keys: the keys of this package, each declared here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from regnet_itk.errors import ParameterError
from regnet_itk.stages.keys import choice, key, read_settings, truth, whole_number
from regnet_itk.transforms.matrix import MATRIX

if TYPE_CHECKING:
    from regnet_itk.parameters import ParameterMap


@dataclass(frozen=True)
class ElastixSettings:
    """The ``RegNet`` keys of an elastix map; what each means stands beside it. Without them elastix runs alone."""

    start: Literal["elastix", "best"] = key(
        "RegNetStart", "elastix", choice("elastix", "best"),
        "`best`: start where the images are most alike: as they lie, or with the middles of the images (masks) or of "
        "the bodies on each other, also shifted from there; `elastix`: where elastix itself would. For transforms that "
        "are matrices", headline=True,
    )  # fmt: skip
    turns: bool = key(
        "RegNetStartTurns", False, truth(),
        "`true`: `best` also tries turns by 180 degrees about x, y and z", headline=True,
    )  # fmt: skip
    clip: Literal["none", "auto"] = key(
        "RegNetClip", "none", choice("none", "auto"),
        "`auto`: elastix gets values between air and dense bone (CT in HU), or else without the lowest 1 % and highest "
        "0.5 % of what is not the lowest value; the result is made of the image as it is",
    )  # fmt: skip
    most_voxels: int = key(
        "RegNetMostVoxels", 0, whole_number("a number of voxels, or 0"),
        "About so many voxels of an image are compared: whole blocks of voxels are averaged, so that a third to three "
        "times as many are left. For transforms that are matrices; the result is made of the image as it is; 0: all",
    )  # fmt: skip
    undo: bool = key(
        "RegNetUndo", False, truth(),
        "`true`: if the images are less alike after the stage than at its start, or if B-splines after other stages "
        "lead to a larger [expected error](trust.md), the start is the result, and a warning says so; `false`: a "
        "warning only", headline=True,
    )  # fmt: skip

    @classmethod
    def from_parameters(cls, parameters: ParameterMap) -> ElastixSettings:
        """Read the keys of a map; what it leaves out has the default.

        Raises
        ------
        ParameterError
            At a value that is not what its key takes, or a start for a transform that is no matrix.
        """
        found = read_settings(cls, parameters)
        transform = parameters.get_str("Transform", "")
        if found.start == "best" and transform not in MATRIX.elastix_names:
            raise ParameterError(
                f"{parameters.source}: 'RegNetStart' can be best for a transform that is a matrix "
                f"({', '.join(MATRIX.elastix_names)}), not for '{transform}'"
            )
        if found.most_voxels and transform not in MATRIX.elastix_names:  # else keys in voxels would mean other lengths
            raise ParameterError(
                f"{parameters.source}: 'RegNetMostVoxels' is for a transform that is a matrix "
                f"({', '.join(MATRIX.elastix_names)}), not for '{transform}'"
            )
        if found.turns and found.start != "best":
            raise ParameterError(f"{parameters.source}: 'RegNetStartTurns' needs (RegNetStart \"best\")")
        return found
