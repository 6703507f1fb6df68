"""The result of a registration: what was found, how good it is, and the files that say so."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regnet_itk.data.field import DisplacementField
from regnet_itk.data.image import Image
from regnet_itk.errors import ImageError, RegistrationError
from regnet_itk.events import LOGGER
from regnet_itk.metrics.measures import ErrorSummary, folding_share
from regnet_itk.metrics.registered_pair import choose_overview_grid
from regnet_itk.outputs import staged_folder
from regnet_itk.result_files import RECORD, RUN_FILES, write_chain_files, write_stage_files
from regnet_itk.stage_report import StageReport
from regnet_itk.transforms.chain import TransformChain
from regnet_itk.transforms.itk_files import write_itk
from regnet_itk.transforms.matrix import MatrixTransform
from regnet_itk.transforms.resampling import resample_through
from regnet_itk.versions import package_versions

if TYPE_CHECKING:
    from regnet_itk.metrics.inverse_consistency import InverseConsistency
    from regnet_itk.stages.base import ImagePair
    from regnet_itk.trust.error_map import ErrorMap
    from regnet_itk.trust.verdict import Verdict

BACKWARD_FOLDER = "backward"
"""Where, in the folder of a registration both ways, the one of the fixed to the moving image lies."""

_WRITERS = 4  # files that are made and written at a time, if more threads than one may work


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """What :func:`regnet_itk.register` returns.

    Parameters
    ----------
    pair : ImagePair
        What was registered.
    chain : TransformChain
        T, fixed to moving, mm, LPS: ``chain.map_points(points)``, ``chain.to_sitk()``.
    stages : tuple of StageReport
    initial_links : int
        Links of the chain that were given, before the first stage.
    initial_tre : ErrorSummary or None
        Landmark error before the first stage.
    landmarks : ndarray or None
        The fixed landmarks (n, 3) in mm, LPS.
    settings : mapping
        Threads, seed, device, as asked for.
    inputs : mapping
        Where the images, masks and landmarks lie that were given as files; by name: "fixed", "moving", "fixed_mask",
        "moving_mask", "fixed_landmarks", "moving_landmarks".
    backward : RegistrationResult or None
        The registration of the fixed to the moving image, if both ways were asked for.
    inverse_consistency : InverseConsistency or None
        The residual of both ways together, if both were asked for.
    """

    pair: ImagePair
    chain: TransformChain
    stages: tuple[StageReport, ...]
    initial_links: int = 0
    initial_tre: ErrorSummary | None = None
    landmarks: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    backward: RegistrationResult | None = None
    inverse_consistency: InverseConsistency | None = None

    def __repr__(self) -> str:
        return f"RegistrationResult({self.pair.fixed.grid.describe()}, {', '.join(map(repr, self.stages))})"

    @cached_property
    def warped(self) -> Image:
        """The moving image on the fixed grid, I_M(T(x))."""
        last = self.stages[-1]
        if isinstance(last.warped, Image):
            return last.warped
        order = last.parameters.get_int("FinalBSplineInterpolationOrder", 3)
        default = last.parameters.get_float("DefaultPixelValue", 0.0 if last.parameters.is_elastix else -1000.0)
        grid = self.pair.fixed.grid
        return resample_through(
            self.pair.moving, self.chain, grid, order, default, threads=self.settings.get("threads")
        )

    @cached_property
    def displacement(self) -> DisplacementField:
        """The whole displacement T(x) - x on the fixed image's grid."""
        return self.chain.displacement_on(self.pair.fixed.grid)

    @cached_property
    def folding(self) -> float:
        """Share (0 to 1) of voxels with det J <= 0 of the whole transform, inside the fixed mask if there is one."""
        mask = self.pair.fixed_mask
        on_grid = mask.resampled(self._overview.grid, order=0) if mask is not None else None
        if on_grid is not None and not on_grid.array.any():
            on_grid = None
        return folding_share(self._overview, on_grid)

    @cached_property
    def expected_error(self) -> ErrorMap | None:
        """How far T may be from the truth, in mm: ``expected_error.at(points)``; None where nothing can be said.

        Inside the fixed mask, or else in what stands out of the fixed image.
        """
        from regnet_itk.trust.prediction import find_error_map_of

        try:
            return find_error_map_of(self.pair, self.chain, self.settings.get("threads"))
        except (ImageError, RegistrationError) as error:  # an image in which nothing stands out, a forked process
            LOGGER.warning("no expected error can be told: %s", error)
            return None

    @cached_property
    def verdict(self) -> Verdict | None:
        """Whether to use this registration, to look at it first, or not to use it, and why; None if nobody can say."""
        from regnet_itk.trust.verdict import give_verdict, longest_side, region_of

        if self.expected_error is None:
            return None
        judgements = [(report.name, report.judgement) for report in self.stages if report.judgement is not None]
        coarsest, region = longest_side(self.pair), region_of(self.pair)
        return give_verdict(self.expected_error, judgements, self.folding, coarsest, region)

    @cached_property
    def _overview(self) -> DisplacementField:
        """The whole displacement on a grid that is coarse enough to look at a smooth transform quickly."""
        return self.chain.displacement_on(choose_overview_grid(self.pair.fixed.grid))

    def beyond_affine(self) -> DisplacementField:
        """Return T(x) - A(x), where A is the part of the chain up to its first nonrigid link, on an overview grid."""
        matrices = 0
        while matrices < len(self.chain.links) and isinstance(self.chain.links[matrices].transform, MatrixTransform):
            matrices += 1
        if matrices == len(self.chain.links):
            matrices = 0
        whole = self._overview
        affine = TransformChain(self.chain.links[:matrices]).displacement_on(whole.grid)
        return DisplacementField(whole.vectors - affine.vectors, whole.grid)

    def summary(self) -> dict[str, Any]:
        """Return the contents of ``registration.json``."""
        from regnet_itk.trust.verdict import region_of

        return {
            "versions": {"python": platform.python_version(), **package_versions()},
            "settings": dict(self.settings),
            "inputs": dict(self.inputs),
            "convention": "T(x) = x + u(x) maps points of the fixed to the moving image, mm, LPS",
            "fixed": _describe(self.pair.fixed),
            "moving": _describe(self.pair.moving),
            "initial_transforms": self.initial_links,
            **({"landmarks_before": asdict(self.initial_tre)} if self.initial_tre else {}),
            "stages": [report.summary(number) for number, report in enumerate(self.stages)],
            "folding": {
                "share_det_jacobian_not_positive": self.folding,
                "spacing_mm": list(choose_overview_grid(self.pair.fixed.grid).spacing),
                "region": "fixed mask" if self.pair.fixed_mask is not None else "fixed image",
            },
            **({"verdict": asdict(self.verdict)} if self.verdict else {}),
            **({"expected_error": self.expected_error.summary(region_of(self.pair))} if self.expected_error else {}),
            **({"inverse_consistency": asdict(self.inverse_consistency)} if self.inverse_consistency else {}),
        }

    def write(self, folder: str | Path, log: list[str] | None = None) -> None:
        """Write everything into a folder, whole or not at all.

        ``TransformParameters.N.txt`` (with ``deformationField.N.mha`` for RegNet) and ``result.N.<format>`` for each
        stage, ``InitialTransform.N.txt`` for the transforms that were given to start from,
        ``TransformParameters.N-Composite.h5`` and ``errorMap.N.mha`` for the last stage, ``registration.json``,
        ``registration.png``, and ``regnet-itk.log``. If both ways were asked for, the same of the way back, but for the
        log, in ``backward``. The files of an earlier registration in the folder are removed.

        Parameters
        ----------
        folder : str or Path
            Created if needed.
        log : list of str, optional
            The lines of the log.

        Raises
        ------
        OutputError
            If it cannot be written, holds one of the images that were registered under the name of a result, or holds
            the files of another program.
        """
        final = Path(folder).resolve()
        backward = final / BACKWARD_FOLDER
        sources = [link.parameters.source for link in self.chain.links[: self.initial_links]]
        for each in (final, backward):
            RUN_FILES.check(each, [*self.inputs.values(), *sources])
        with ExitStack() as stack:  # all is written beside before the first file is put in its place
            stage = stack.enter_context(staged_folder(final, RUN_FILES))
            self._write_all(stage, final)
            (stage / "regnet-itk.log").write_text("".join(line + "\n" for line in log or []), encoding="utf-8")
            if self.backward is not None or (backward / RECORD).is_file():  # an earlier one is removed
                stage = stack.enter_context(staged_folder(backward, RUN_FILES))
                if self.backward is not None:
                    self.backward._write_all(stage, backward)
        if self.backward is None and backward.is_dir() and not any(backward.iterdir()):
            backward.rmdir()

    def _write_all(self, folder: Path, final: Path) -> None:
        """Write all but the log into a folder, for it to lie in the folder `final` in the end."""
        from regnet_itk.figures.overview import draw_registration

        errors, warped = self.expected_error, self.warped
        (folder / RECORD).write_text(json.dumps(self.summary(), indent=2) + "\n", encoding="utf-8")
        alone = self.settings.get("threads") == 1
        with ThreadPoolExecutor(1 if alone else _WRITERS) as aside:  # images are made while the picture is drawn
            written = [aside.submit(write) for write in self._writers(folder, final)]
            if alone:
                wait(written)
            draw_registration(
                self.pair.fixed,
                self.pair.moving,
                warped,
                self.beyond_affine(),
                folder / "registration.png",
                mask=self.pair.fixed_mask,
                landmarks=self.landmarks,
                expected_error=None if errors is None else errors.expected_at,
            )
            for each in written:
                each.result()

    def _writers(self, folder: Path, final: Path) -> Iterator[Callable[[], object]]:
        """Give what writes the transforms and images; each can be called in a thread of its own."""
        last = len(self.stages) - 1
        yield partial(self.write_transforms, folder, final)
        for number, report in enumerate(self.stages):
            yield partial(write_stage_files, number, report, folder)
        yield partial(write_itk, self.chain, folder / f"TransformParameters.{last}-Composite.h5", self.pair.fixed.grid)
        if self.expected_error is not None:
            yield partial(self.expected_error.write, folder / f"errorMap.{last}.mha")

    def write_stages(self, folder: Path, final_folder: Path | None = None) -> None:
        """Write what elastix itself writes for each stage: transform, result image, tables of the iterations.

        Parameters
        ----------
        folder, final_folder : Path
            As for `write_transforms`.
        """
        self.write_transforms(folder, final_folder)
        for number, report in enumerate(self.stages):
            write_stage_files(number, report, folder)

    def write_transforms(self, folder: Path, final_folder: Path | None = None) -> list[Path]:
        """Write the chain's elastix files, so that the folder has all that they need.

        Stage N is ``TransformParameters.N.txt``; what was given before the stages is ``InitialTransform.N.txt``.

        Parameters
        ----------
        folder : Path
            Where to write; it must exist.
        final_folder : Path, optional
            Where the files will lie in the end, if `folder` is a temporary one.

        Returns
        -------
        list of Path
            One file for each link of the chain; the last one stands for the whole.
        """
        return write_chain_files(self.chain, self.initial_links, self.pair.fixed.grid, folder, final_folder)


def _describe(image: Image) -> dict[str, Any]:
    return {"size": image.grid.size, "spacing": image.grid.spacing, "pixel_type": str(image.array.dtype)}
