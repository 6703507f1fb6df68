"""The calls that users of itk-elastix know, with RegNet stages allowed among the parameter maps.

`registration_method` is called like ``itk.elastix_registration_method``, and `RegNetRegistrationMethod` like
``itk.ElastixRegistrationMethod``. Both take and return itk images and an ``itk.ParameterObject``.
"""

from __future__ import annotations

import atexit
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from regnet_itk.data.image import Image, as_image
from regnet_itk.data.image_nd import ImageND
from regnet_itk.elastix_results import ElastixResult
from regnet_itk.errors import ParameterError, RegistrationError
from regnet_itk.events import LOGGER, Progress
from regnet_itk.held_folders import HeldFolder
from regnet_itk.outputs import check_writable
from regnet_itk.parameters import ParameterMap, read_parameter_map
from regnet_itk.registration import register
from regnet_itk.registration_events import RegistrationEvents
from regnet_itk.registration_inputs import as_several
from regnet_itk.result_files import RUN_FILES
from regnet_itk.results import RegistrationResult
from regnet_itk.stages.choice import CHEST_CT_STAGES, choose_stages
from regnet_itk.stages.guides import Guides
from regnet_itk.transforms.elastix_keys import INITIAL_KEYS, NO_INITIAL, check_nameable
from regnet_itk.transforms.itk_files import write_itk


def registration_method(
    fixed_image: Any,
    moving_image: Any,
    *,
    parameter_object: Any = None,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    initial_transform_parameter_file_name: str | Path | None = None,
    fixed_point_set_file_name: str | Path | None = None,
    moving_point_set_file_name: str | Path | None = None,
    output_directory: str | Path | None = None,
    log_to_console: bool = False,
    number_of_threads: int | None = None,
    device: str = "auto",
) -> tuple[Any, Any]:
    """Register as ``itk.elastix_registration_method`` does, RegNet stages included.

    Parameters
    ----------
    fixed_image, moving_image : itk.Image, or a list of such
        Scalar 3D images; of two or four dimensions too, if all stages are elastix's.
    parameter_object : itk.ParameterObject, optional
        Its maps are the stages; one with ``(Registration "RegNetRegistration")`` is a RegNet stage. By default the
        shipped affine and RegNet files.
    fixed_mask, moving_mask : itk.Image, or a list of such, optional
        Voxels other than 0 count.
    initial_transform_parameter_file_name : path, optional
        An elastix transform file to start from.
    fixed_point_set_file_name, moving_point_set_file_name : path, optional
        Corresponding points, for the metrics of elastix that are guided by such.

        .. versionadded:: 0.2
    output_directory : path, optional
        Where to write everything that the command line writes. The returned maps name their field and initial
        transform files there; without it those lie in a temporary folder for the rest of the process.
    log_to_console : bool
        Print the log.
    number_of_threads : int, optional
        CPU threads.
    device : str
        "auto", "cpu", "cuda", "cuda:N" or "mps".

    Returns
    -------
    result_image : itk.Image
        The moving image on the fixed grid, float32.
    result_transform_parameters : itk.ParameterObject
        ``itk.transformix_filter`` takes it; see :meth:`RegNetRegistrationMethod.GetTransformParameterObject`.
    """
    method = RegNetRegistrationMethod.New(
        parameter_object=parameter_object,
        initial_transform_parameter_file_name=initial_transform_parameter_file_name,
        fixed_point_set_file_name=fixed_point_set_file_name,
        moving_point_set_file_name=moving_point_set_file_name,
        output_directory=output_directory,
        log_to_console=log_to_console,
        number_of_threads=number_of_threads,
        device=device,
    )
    for images, add in (
        (fixed_image, method.AddFixedImage),
        (moving_image, method.AddMovingImage),
        (fixed_mask, method.AddFixedMask),
        (moving_mask, method.AddMovingMask),
    ):
        for image in as_several(images):
            add(image)
    method.UpdateLargestPossibleRegion()
    return method.GetOutput(), method.GetTransformParameterObject()


class RegNetRegistrationMethod:
    """A registration with the setters and getters of ``itk.ElastixRegistrationMethod``.

    Observers are added as to any ITK filter: ``method.AddObserver(itk.ProgressEvent(), function)`` with a function
    of no argument, which asks ``method.GetProgress()``; StartEvent and EndEvent are sent too.
    """

    def __init__(self) -> None:
        import itk

        self._events = itk.Object.New()
        self._images: dict[str, list[Any]] = {role: [] for role in ("fixed", "moving", "fixed_mask", "moving_mask")}
        self._point_sets = {"fixed": "", "moving": ""}
        self._judges = {"fixed": "", "moving": ""}
        self._guides: dict[str, Guides[Any]] = {"fixed": Guides(), "moving": Guides()}
        self._parameter_object: Any = None
        self._initial: str | None = None
        self._output_directory: str = ""
        self._log_to_console = False
        self._threads: int | None = None
        self._device = "auto"
        self._progress = 0.0
        self._result: RegistrationResult | ElastixResult | None = None
        self._transforms: Any = None

    @classmethod
    def New(cls, fixed_image: Any = None, moving_image: Any = None, **settings: Any) -> RegNetRegistrationMethod:
        """Make a method; keywords are setters in snake case, such as ``fixed_mask=mask``."""
        method = cls()
        for name, value in {"fixed_image": fixed_image, "moving_image": moving_image, **settings}.items():
            if value is None:
                continue
            setter = "Set" + "".join(part.capitalize() for part in name.split("_"))
            if not hasattr(method, setter):
                raise ParameterError(f"RegNetRegistrationMethod has no {setter}")
            getattr(method, setter)(value)
        return method

    def SetFixedImage(self, image: Any) -> None:
        """Set the fixed image (itk, SimpleITK, or regnet_itk.Image), in place of all that were set or added."""
        self._set_images("fixed", [image])

    def AddFixedImage(self, image: Any) -> None:
        """Add a fixed image, which elastix's stages compare besides those before it."""
        self._set_images("fixed", [*self._images["fixed"], image])

    def GetFixedImage(self, number: int = 0) -> Any:
        """Return a fixed image, or None."""
        return self._image("fixed", number)

    def GetNumberOfFixedImages(self) -> int:
        """Return how many fixed images there are."""
        return len(self._images["fixed"])

    def SetFixedMask(self, image: Any) -> None:
        """Set the mask of the fixed image, in place of all that were set or added; voxels other than 0 count."""
        self._set_images("fixed_mask", [image])

    def AddFixedMask(self, image: Any) -> None:
        """Add the mask of a further fixed image."""
        self._set_images("fixed_mask", [*self._images["fixed_mask"], image])

    def GetFixedMask(self, number: int = 0) -> Any:
        """Return a mask of a fixed image, or None."""
        return self._image("fixed_mask", number)

    def GetNumberOfFixedMasks(self) -> int:
        """Return how many masks of fixed images there are."""
        return len(self._images["fixed_mask"])

    def SetFixedPointSetFileName(self, name: str) -> None:
        """Set the file of the fixed image's landmarks; an empty name is none."""
        self._point_sets["fixed"] = str(name)
        self._forget()

    def GetFixedPointSetFileName(self) -> str:
        """Return the file of the fixed image's landmarks, or an empty string."""
        return self._point_sets["fixed"]

    def SetMovingImage(self, image: Any) -> None:
        """Set the moving image (itk, SimpleITK, or regnet_itk.Image), in place of all that were set or added."""
        self._set_images("moving", [image])

    def AddMovingImage(self, image: Any) -> None:
        """Add a moving image, which elastix's stages compare besides those before it."""
        self._set_images("moving", [*self._images["moving"], image])

    def GetMovingImage(self, number: int = 0) -> Any:
        """Return a moving image, or None."""
        return self._image("moving", number)

    def GetNumberOfMovingImages(self) -> int:
        """Return how many moving images there are."""
        return len(self._images["moving"])

    def SetMovingMask(self, image: Any) -> None:
        """Set the mask of the moving image, in place of all that were set or added; voxels other than 0 count."""
        self._set_images("moving_mask", [image])

    def AddMovingMask(self, image: Any) -> None:
        """Add the mask of a further moving image."""
        self._set_images("moving_mask", [*self._images["moving_mask"], image])

    def GetMovingMask(self, number: int = 0) -> Any:
        """Return a mask of a moving image, or None."""
        return self._image("moving_mask", number)

    def GetNumberOfMovingMasks(self) -> int:
        """Return how many masks of moving images there are."""
        return len(self._images["moving_mask"])

    def SetMovingPointSetFileName(self, name: str) -> None:
        """Set the file of the moving image's landmarks; an empty name is none."""
        self._point_sets["moving"] = str(name)
        self._forget()

    def GetMovingPointSetFileName(self) -> str:
        """Return the file of the moving image's landmarks, or an empty string."""
        return self._point_sets["moving"]

    def SetFixedJudgePointSetFileName(self, name: str) -> None:
        """Set the file of landmarks of the fixed image that guide nothing, and whose error is reported."""
        self._judges["fixed"] = str(name)
        self._forget()

    def SetMovingJudgePointSetFileName(self, name: str) -> None:
        """Set the file of landmarks of the moving image that guide nothing, and whose error is reported."""
        self._judges["moving"] = str(name)
        self._forget()

    def SetFixedGuides(self, guides: Guides[Any]) -> None:
        """Set what else is known of the fixed image: ``regnet_itk.Guides(label=image)``."""
        self._guides["fixed"] = guides
        self._forget()

    def SetMovingGuides(self, guides: Guides[Any]) -> None:
        """Set what else is known of the moving image."""
        self._guides["moving"] = guides
        self._forget()

    def SetParameterObject(self, parameter_object: Any) -> None:
        """Set the ``itk.ParameterObject`` whose maps are the stages."""
        self._parameter_object = parameter_object
        self._forget()

    def GetParameterObject(self) -> Any:
        """Return the parameter object; by default the shipped files that fit the images, or a chest's without any."""
        if self._parameter_object is None:
            first = [self._image("fixed", 0), self._image("moving", 0)]
            there = None not in first
            names = choose_stages(*map(as_image, first)).stages if there else CHEST_CT_STAGES
            self._parameter_object = _parameter_object([read_parameter_map(name) for name in names])
        return self._parameter_object

    def SetInitialTransformParameterFileName(self, name: str) -> None:
        """Set the elastix transform file to start from."""
        self._initial = str(name) or None
        self._forget()

    def GetInitialTransformParameterFileName(self) -> str:
        """Return the elastix transform file to start from, or an empty string."""
        return self._initial or ""

    def SetOutputDirectory(self, folder: str) -> None:
        """Set the folder to write everything to that the command line writes."""
        self._output_directory = str(folder)
        self._forget()

    def GetOutputDirectory(self) -> str:
        """Return the output folder, or an empty string."""
        return self._output_directory

    def SetLogToConsole(self, on: bool) -> None:
        """Print the log, or do not."""
        self._log_to_console = on

    def GetLogToConsole(self) -> bool:
        """Say whether the log is printed."""
        return self._log_to_console

    def SetNumberOfThreads(self, threads: int) -> None:
        """Set the number of CPU threads; 0 means all."""
        self._threads = threads or None
        self._forget()

    def GetNumberOfThreads(self) -> int:
        """Return the number of CPU threads; 0 means all."""
        return self._threads or 0

    def SetDevice(self, device: str) -> None:
        """Set where networks run: "auto", "cpu", "cuda", "cuda:N" or "mps"."""
        self._device = device
        self._forget()

    def GetDevice(self) -> str:
        """Return where networks run."""
        return self._device

    def AddObserver(self, event: Any, command: Callable[[], None]) -> int:
        """Call `command` at every such event (itk.ProgressEvent(), itk.StartEvent(), itk.EndEvent())."""
        tag: int = self._events.AddObserver(event, command)
        return tag

    def RemoveObserver(self, tag: int) -> None:
        """Remove an observer again."""
        self._events.RemoveObserver(tag)

    def GetProgress(self) -> float:
        """Return how much is done, 0 to 1."""
        return self._progress

    def Update(self) -> None:
        """Register, unless that has been done since the last change."""
        if self._result is None:
            self._run()

    def UpdateLargestPossibleRegion(self) -> None:
        """Register, unless that has been done since the last change."""
        self.Update()

    def GetOutput(self) -> Any:
        """Return the moving image on the fixed grid as itk image of float32."""
        image: Image | ImageND = self._done().warped
        return replace(image, array=image.array.astype(np.float32)).to_itk()

    def GetResult(self) -> RegistrationResult | ElastixResult:
        """Return the whole result: transforms, displacement field, a report for each stage."""
        return self._done()

    def GetTransformParameterObject(self) -> Any:
        """Return an ``itk.ParameterObject`` with the transform for transformix, one map for each stage.

        A RegNet stage after a stage that is not linear is the exception: elastix can have the whole only in other
        parts, whose number may differ.
        """
        result = self._done()
        if self._transforms is None:
            folder = self._transform_folder()
            written = result.write_transforms(folder)
            maps = result.transform_maps(folder) if isinstance(result, ElastixResult) else _whole(written[-1])
            self._transforms = _parameter_object(maps)
        return self._transforms

    def GetCombinationTransform(self) -> Any:
        """Return the whole transform, fixed to moving, as ``itk.CompositeTransform``."""
        import itk

        result = self._done()
        if isinstance(result, ElastixResult):
            raise RegistrationError(
                "only elastix can evaluate this transform: use GetTransformParameterObject, or have elastix write it "
                'with (ITKTransformOutputFileNameExtension "h5")'
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "transform.h5"
            write_itk(result.chain, path, result.pair.fixed.grid)
            return itk.transformread(str(path))[0]

    def _set_images(self, role: str, images: list[Any]) -> None:
        self._images[role] = images
        self._forget()

    def _image(self, role: str, number: int) -> Any:
        return self._images[role][number] if number < len(self._images[role]) else None

    def _forget(self) -> None:
        """Drop the result: it does not belong to the settings any more."""
        self._result = self._transforms = None

    def _done(self) -> RegistrationResult | ElastixResult:
        if self._result is None:
            raise RegistrationError("there is no result yet: call Update() first")
        return self._result

    def _transform_folder(self) -> Path:
        """Return the folder that the transform maps name: the output folder, or one for the rest of the process."""
        if self._output_directory:
            return Path(self._output_directory)
        folder = HeldFolder(tempfile.gettempdir(), "regnet-itk-transforms-")
        atexit.register(folder.remove)
        return folder.path

    def _run(self) -> None:
        import itk

        for role in ("fixed", "moving"):
            if not self._images[role]:
                raise ParameterError(f"no {role} image was set: call Set{role.capitalize()}Image first")
        maps = [stage.with_(ResultImagePixelType="float") for stage in _maps_of(self.GetParameterObject())]  # as itk's
        if self._output_directory:
            check_nameable(self._output_directory)
            RUN_FILES.check(self._output_directory)
            check_writable(self._output_directory)
        lines = _Lines(self._log_to_console)

        def show(now: Progress) -> None:
            self._progress = max(self._progress, (now.number + now.fraction) / len(maps))
            self._events.InvokeEvent(itk.ProgressEvent())

        self._progress = 0.0
        self._events.InvokeEvent(itk.StartEvent())
        result = register(
            self._images["fixed"], self._images["moving"], maps,
            fixed_mask=self._images["fixed_mask"], moving_mask=self._images["moving_mask"],
            fixed_landmarks=self._point_sets["fixed"] or None, moving_landmarks=self._point_sets["moving"] or None,
            fixed_judge_landmarks=self._judges["fixed"] or None, moving_judge_landmarks=self._judges["moving"] or None,
            fixed_guides=self._guides["fixed"], moving_guides=self._guides["moving"],
            initial=self._initial, threads=self._threads, device=self._device,
            events=_Told(lines, show),
        )  # fmt: skip
        if self._output_directory:
            result.write(self._output_directory, lines.lines)
        self._result = result
        self._events.InvokeEvent(itk.EndEvent())


class _Lines(logging.Handler):
    """The lines of one registration's log, printed as well if that is asked for; the library's logger has them too."""

    def __init__(self, printed: bool) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._printed = printed

    def emit(self, record: logging.LogRecord) -> None:
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        self.lines.append(f"{warning}{record.getMessage()}")
        if self._printed:
            print(self.lines[-1], flush=True)  # noqa: T201 - that is what the setting asks for
        if LOGGER.isEnabledFor(record.levelno):
            LOGGER.handle(record)


class _Told(RegistrationEvents):
    """Has a log of its own, as other registrations may run at the same time."""

    def __init__(self, lines: _Lines, show: Callable[[Progress], None]) -> None:
        self.log = logging.Logger(LOGGER.name, logging.DEBUG)
        self.log.addHandler(lines)
        self._show = show

    def progress(self, now: Progress) -> None:
        self._show(now)


def _maps_of(parameter_object: Any) -> list[ParameterMap]:
    """Return the maps of an ``itk.ParameterObject``."""
    maps = []
    for number in range(parameter_object.GetNumberOfParameterMaps()):
        values = {key: tuple(value) for key, value in dict(parameter_object.GetParameterMap(number)).items()}
        maps.append(ParameterMap(values, f"parameter map {number}"))
    if not maps:
        raise ParameterError("the parameter object has no parameter map; add at least one")
    return maps


def _whole(path: Path) -> list[ParameterMap]:
    """Return the maps of a transform file and of those it starts from, down to what was given before the stages.

    The library applies the maps of one object in their order, whatever files they name.
    """
    values = read_parameter_map(path)
    initial = Path(values.get_str(INITIAL_KEYS[0], NO_INITIAL))
    return [*(_whole(initial) if initial.name.startswith("TransformParameters.") else []), values]


def _parameter_object(maps: list[ParameterMap]) -> Any:
    import itk

    found = itk.ParameterObject.New()
    for values in maps:
        found.AddParameterMap({key: tuple(value) for key, value in values.values.items()})
    return found
