"""What guides a RegNet stage, one after the other: landmarks, then labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regnet_itk.stages.regnet_labels import GuidingLabels
from regnet_itk.stages.regnet_landmarks import GuidingLandmarks

if TYPE_CHECKING:
    import SimpleITK as sitk

    from regnet_itk.data.field import DisplacementField
    from regnet_itk.stages.base import ImagePair, RunOptions
    from regnet_itk.stages.regnet_look import NetworkLook
    from regnet_itk.stages.regnet_settings import RegNetSettings


def lead_by_guides(
    look: NetworkLook, pair: ImagePair, composite: sitk.Transform, *, settings: RegNetSettings, options: RunOptions,
    stage: str,
) -> tuple[DisplacementField, list[GuidingLandmarks | GuidingLabels]]:  # fmt: skip
    """Return what the network predicts, led by what guides it, and the guides for instance optimisation.

    Parameters
    ----------
    look : NetworkLook
    pair : ImagePair
        With its landmarks and labels.
    composite : SimpleITK.Transform
        The transform so far.
    settings : RegNetSettings
    options : RunOptions
    stage : str
        Its name, for the log.
    """
    u, guides = look.predict(), list[GuidingLandmarks | GuidingLabels]()
    landmarks = GuidingLandmarks.of(pair, look.initial, settings, options, stage)
    if landmarks is not None:
        u, landmarks = landmarks.lead(u, look)
        guides.append(landmarks)
    labels = GuidingLabels.of(pair, composite, settings, options, stage)
    if labels is not None:
        u = labels.lead(u, look)
        guides.append(labels)
    return u, guides
