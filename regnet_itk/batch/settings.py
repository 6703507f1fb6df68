"""What is done with every pair of a batch."""

from __future__ import annotations

import json
from dataclasses import dataclass

from regnet_itk.digests import digest_text
from regnet_itk.stages.base import Stage
from regnet_itk.stages.choice import ANY_STAGES, CHEST_CT_STAGES
from regnet_itk.stages.planning import read_stages
from regnet_itk.versions import package_versions


@dataclass(frozen=True)
class BatchSettings:
    """How the pairs are registered; see :func:`regnet_itk.register`.

    Parameters
    ----------
    stages : tuple of Stage, optional
        None to choose them for each pair by what its images show.
    threads, seed, device, priority, both_ways : as for :func:`regnet_itk.register`
    """

    stages: tuple[Stage, ...] | None = None
    threads: int | None = None
    seed: int | None = None
    device: str = "auto"
    priority: str | None = None
    both_ways: bool = False

    @property
    def stage_count(self) -> int:
        """How many stages run on a pair."""
        return len(self.stages or CHEST_CT_STAGES) * (2 if self.both_ways else 1)

    def fingerprint(self) -> str:
        """Return a digest of all that a result depends on, but the images and what belongs to them.

        Threads, device and priority say how it is computed, and not what.

        Raises
        ------
        ModelError, ParameterError
            If a model is not there any more.
        """
        stages = self.stages or read_stages((*CHEST_CT_STAGES, *ANY_STAGES))
        return digest_text(
            [
                "chosen" if self.stages is None else "named",
                *(stage.fingerprint() for stage in stages),
                json.dumps([self.seed, self.both_ways]),
                json.dumps(package_versions(), sort_keys=True),
            ]
        )
