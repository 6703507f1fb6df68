"""The dates of both images, and which of them comes first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal

from regnet_itk.errors import ParameterError

Role = Literal["fixed", "moving"]


@dataclass(frozen=True)
class Visits:
    """When the images were taken.

    Parameters
    ----------
    baseline : {"fixed", "moving"}
        The earlier image.
    fixed_date, moving_date : date or None
        Both or none.
    """

    baseline: Role
    fixed_date: date | None = None
    moving_date: date | None = None

    @property
    def days(self) -> int | None:
        """Days from the baseline to the follow-up, if the dates are known."""
        if self.fixed_date is None or self.moving_date is None:
            return None
        return abs((self.moving_date - self.fixed_date).days)

    def describe(self) -> str:
        """Say which image is which, in a few words."""
        follow_up = "moving" if self.baseline == "fixed" else "fixed"
        if self.fixed_date is None or self.moving_date is None:
            return f"baseline: the {self.baseline} image; follow-up: the {follow_up} image"
        first, last = sorted((self.fixed_date, self.moving_date))
        return (
            f"baseline: the {self.baseline} image of {first.isoformat()}; follow-up: the {follow_up} image of "
            f"{last.isoformat()}, {self.days} days later"
        )


def order_visits(fixed_date: str | date | None, moving_date: str | date | None, baseline: str | None = None) -> Visits:
    """Find out which image is the earlier one.

    Parameters
    ----------
    fixed_date, moving_date : str or date, optional
        As 2026-01-31 or 20260131.
    baseline : {"fixed", "moving"}, optional
        The earlier image; needed if there are no dates.

    Raises
    ------
    ParameterError
        If a date is none or lacks, both are the same and there is no `baseline`, or they say another order than that.
    """
    if baseline not in (None, "fixed", "moving"):
        raise ParameterError(f"the baseline is the fixed or the moving image, not '{baseline}'")
    first, second = _date(fixed_date, "fixed"), _date(moving_date, "moving")
    if first == second and baseline is not None:  # of two scans of a day there is no rate of growth
        return Visits("fixed" if baseline == "fixed" else "moving")
    if first is None and second is None:
        raise ParameterError(
            "nothing says which image is the earlier one: give `fixed_date` and `moving_date`, or `baseline` (without "
            "dates there are changes, and no rates of growth)"
        )
    if first is None or second is None:
        lacking = "fixed" if first is None else "moving"
        raise ParameterError(f"the date of the {lacking} image is not known; give both, `fixed_date` and `moving_date`")
    if first == second:
        raise ParameterError(f"both images are of {first.isoformat()}; say with `baseline` which is the earlier one")
    earlier: Role = "fixed" if first < second else "moving"
    if baseline is not None and baseline != earlier:
        raise ParameterError(
            f"the {baseline} image is called the baseline, and its date is the later one (fixed image {first}, moving "
            f"image {second}); correct the dates, or leave `baseline` away"
        )
    return Visits(earlier, first, second)


def _date(given: str | date | None, role: str) -> date | None:
    if isinstance(given, datetime):
        return given.date()
    if given is None or isinstance(given, date):
        return given
    try:
        return date.fromisoformat(given.strip())
    except ValueError:
        raise ParameterError(f"'{given}' is no date of the {role} image; write it as 2026-01-31") from None
