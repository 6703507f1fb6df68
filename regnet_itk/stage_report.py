"""What one stage of a registration did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regnet_itk.data.image import Image
    from regnet_itk.data.image_nd import ImageND
    from regnet_itk.metrics.measures import ErrorSummary
    from regnet_itk.parameters import ParameterMap
    from regnet_itk.stages.base import Detail
    from regnet_itk.stages.judgement import Judgement


def describe_error(error: ErrorSummary) -> str:
    """Return a landmark error as one line of text."""
    guided = ", which guided the registration" if error.guided else ""
    return f"{error.mean:.2f} +- {error.sd:.2f} mm (median {error.median:.2f}, {error.count} landmarks{guided})"


@dataclass(frozen=True, eq=False)
class StageReport:
    """What one stage did.

    Parameters
    ----------
    name : str
    parameters : ParameterMap
    seconds : float
        Wall-clock time.
    links : int
        How many links of the chain there are after this stage.
    result_image : Image, ImageND, callable or None
        The moving image after this stage, or what makes it when it is first asked for, if the stage was told to.
    tre : ErrorSummary or None
        Landmark error after this stage.
    details : mapping
        Model, device ..
    iteration_info : mapping
        elastix's tables of the iterations, by resolution.
    judgement : Judgement or None
        Whether the stage made the pair better.
    """

    name: str
    parameters: ParameterMap
    seconds: float
    links: int
    result_image: Image | ImageND | Callable[[], Image] | None
    tre: ErrorSummary | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)
    iteration_info: Mapping[str, str] = field(default_factory=dict)
    judgement: Judgement | None = None

    @cached_property
    def warped(self) -> Image | ImageND | None:
        """The moving image after this stage, if the stage was told to make it."""
        return self.result_image() if callable(self.result_image) else self.result_image

    def summary(self, number: int) -> dict[str, Any]:
        """Return what ``registration.json`` tells of the stage, which has this number."""
        return {
            "stage": number,
            "name": self.name,
            "source": self.parameters.source,
            "seconds": round(self.seconds, 3),
            "parameters": {key: list(values) for key, values in self.parameters.values.items()},
            **({"landmarks": asdict(self.tre)} if self.tre else {}),
            **self.details,
        }

    def __repr__(self) -> str:
        error = f", landmarks {describe_error(self.tre)}" if self.tre else ""
        return f"StageReport({self.name}, {self.seconds:.1f} s{error})"
