"""Which stages run if nobody names any: those of the images that the pair shows."""

from __future__ import annotations

from dataclasses import dataclass

from regnet_itk.anatomy.lungs import shows_lungs
from regnet_itk.data.image import Image

CHEST_CT_STAGES = ("affine", "regnet_multistage")
ANY_STAGES = ("affine_mi", "regnet_general")


@dataclass(frozen=True)
class StageChoice:
    """The names of shipped stages, and in a few words why these."""

    stages: tuple[str, ...]
    reason: str

    def describe(self) -> str:
        """Return it as one line."""
        return f"no stage was named: {', then '.join(self.stages)}, as {self.reason}"


def choose_stages(fixed: Image, moving: Image) -> StageChoice:
    """Choose the stages for a pair: the chest's model where both images show lungs in a CT, else the general one.

    Parameters
    ----------
    fixed, moving : Image
    """
    for role, image in (("fixed", fixed), ("moving", moving)):
        if not shows_lungs(image):
            return StageChoice(ANY_STAGES, f"the {role} image does not look like a CT of the chest")
    return StageChoice(CHEST_CT_STAGES, "both images look like CTs of the chest")
