"""A stage that a network computes: RegNet predicts the displacement that is left after the stages before it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from regnet_itk.digests import digest_kept_file, digest_text
from regnet_itk.stages.base import ImagePair, RunOptions, Stage, StageResult
from regnet_itk.stages.found_field import apply_found_field
from regnet_itk.stages.regnet_inputs import fit_to_pair
from regnet_itk.stages.regnet_labels import check_labels, follows_labels
from regnet_itk.stages.regnet_region import check_masks_given
from regnet_itk.stages.regnet_search import FieldSearch
from regnet_itk.stages.regnet_settings import RegNetSettings
from regnet_itk.transforms.resampling_keys import result_pixel_type

if TYPE_CHECKING:
    from regnet_itk.networks.model import Model
    from regnet_itk.transforms.chain import TransformChain

REGNET_REGISTRATION = "RegNetRegistration"
"""What ``Registration`` says in the parameter map of a RegNet stage."""


@dataclass(frozen=True)
class RegNetStage(Stage):
    """One stage that a network computes.

    With T0 the transform so far, the network sees the fixed image and the moving image resampled through T0, both on
    cubic voxels along the fixed image's axes, and predicts u with F(x) = M(T0(x + u(x))). Of several images of each
    side it sees one pair after the other.

    Parameters
    ----------
    parameters : ParameterMap
        A map with ``(Registration "RegNetRegistration")``.
    """

    settings_type: ClassVar[type] = RegNetSettings
    adds_field: ClassVar[bool] = True
    takes_several_images: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The model's name after the word RegNet, for messages and reports."""
        return f"RegNet {Path(self.settings.model).stem}"

    @property
    def settings(self) -> RegNetSettings:
        """The settings that the parameter map gives."""
        return RegNetSettings.from_parameters(self.parameters)

    @property
    def follows(self) -> frozenset[str]:
        """The guides that the keys do not leave aside."""
        settings = self.settings
        asked = {
            "label": follows_labels(settings), "sliding": settings.sliding == "mask", "ignore": settings.ignore,
            "rigid": settings.rigid, "volume": settings.keep_volume,
        }  # fmt: skip
        return frozenset(name for name, follows in asked.items() if follows)

    @property
    def guided_by_landmarks(self) -> bool:
        """Whether the landmarks have a weight."""
        return self.settings.landmark_weight > 0

    @property
    def compares_any_contrast(self) -> bool:
        """Whether the model's images may differ in contrast."""
        from regnet_itk.networks.model import read_model_header

        return read_model_header(self._model_file())[0].world.any_contrast

    def check(self, initial: TransformChain, pair: ImagePair | None, options: RunOptions) -> None:
        """Refuse what shows without loading the model.

        Raises
        ------
        ModelError
            If the model does not exist, or its file is damaged.
        ParameterError
            If the pixel type of the result or one of the network's stages does not exist, or the region is to be a
            mask and there is none.
        """
        from regnet_itk.networks.model import check_model_file

        result_pixel_type(self.parameters)
        check_model_file(self._model_file())
        if pair is not None:
            check_masks_given(pair, self.settings, self.parameters.source)
            check_labels(pair, self.settings, self.parameters.source)
        if self.settings.stages or self.settings.voxel_size is not None:  # only the model can say if they fit
            self.load(pair, options)

    def load(self, pair: ImagePair | None, options: RunOptions) -> None:
        """Load Torch, the model, and numba.

        Raises
        ------
        ModelError
            If the model is of another network than it says.
        ParameterError
            If one of the network's stages or the device does not exist.
        """
        from regnet_itk.networks.devices import find_device
        from regnet_itk.networks.interpolation import load_kernels

        settings, model = self.settings, self._model()
        if pair is not None and (settings.stages or settings.voxel_size is not None):  # else there is nothing to refuse
            model = self._model_for(pair)
        model.stages_left_out(settings.stages)
        if find_device(options.device).type == "cpu":
            load_kernels()

    def run(self, pair: ImagePair, initial: TransformChain, options: RunOptions) -> StageResult:
        """Predict the displacement, and return `initial` with it as the innermost link.

        Raises
        ------
        ImageError
            If the region to predict in is empty, or the images do not overlap under `initial`.
        ParameterError
            If the region is to be a mask and there is none, or the memory budget is too small.
        """
        started = time.perf_counter()
        model = self._model_for(pair)
        search = FieldSearch(
            pair, initial, model, self.settings, self.follows, options, self.name, self.parameters.source
        )  # fmt: skip
        found = search.run()
        options.progress(0.87, "warping")
        background = model.description.world.background_of(pair.moving)
        chain, warped = apply_found_field(
            found.u, pair, initial, self.parameters, background, threads=options.threads
        )  # fmt: skip
        options.progress(1.0, "done")
        for warning in found.warnings:
            options.log.warning("%s: %s", self.name, warning)
        details = {**found.details, **({"warnings": "; ".join(found.warnings)} if found.warnings else {})}
        return StageResult(chain, time.perf_counter() - started, warped, details)

    def fingerprint(self) -> str:
        """Return a digest of the parameters and of the model's file.

        Raises
        ------
        ModelError
            If there is no such model.
        """
        return digest_text([*self._described(), digest_kept_file(self._model_file())])

    def _model_for(self, pair: ImagePair) -> Model:
        """Return the model on the voxels that are asked for, or else fit the pair."""
        wanted = self.settings.voxel_size
        return fit_to_pair(self._model(), pair) if wanted is None else self._model().at_voxel_size(wanted)

    def _model_file(self) -> Path:
        from regnet_itk.networks.model import find_model

        return find_model(self.settings.model, Path(self.parameters.source).parent)

    def _model(self) -> Model:
        path = self._model_file().resolve()
        return _loaded(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _loaded(path: Path, changed: int) -> Model:
    """Load a model once for as long as its file is not `changed` (its time stamp)."""
    from regnet_itk.networks.model import load_model

    return load_model(path)
