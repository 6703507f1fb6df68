"""What a finished registration says about itself, as far as a list of many needs it."""

from __future__ import annotations

from dataclasses import dataclass

from regnet_itk.elastix_results import ElastixResult
from regnet_itk.results import RegistrationResult


@dataclass(frozen=True, slots=True)
class PairFacts:
    """How a registration went; None where that is not known.

    Parameters
    ----------
    verdict : str
        "good", "look" or "failed"; empty if nobody can say.
    reasons : str
        Of the verdict.
    expected_error : float, optional
        Mean, mm.
    stages : str
        Their names, in their order.
    worse : str
        The names of those after which the images were less alike, or whose transform is one that no body allows.
    similarity_before, similarity_after : float, optional
        How alike the images were, from 0 to 1.
    folding : float, optional
        Share (0 to 1) of voxels with det J <= 0.
    tre_before, tre_after : float, optional
        Mean landmark error, mm.
    inverse_consistency : float, optional
        Mean residual of both ways together, mm.
    warnings : str
        What a user should know.
    guided : bool
        Whether these landmarks guided the registration, and are no measure of it.
    """

    verdict: str = ""
    reasons: str = ""
    expected_error: float | None = None
    stages: str = ""
    worse: str = ""
    similarity_before: float | None = None
    similarity_after: float | None = None
    folding: float | None = None
    tre_before: float | None = None
    tre_after: float | None = None
    inverse_consistency: float | None = None
    warnings: str = ""
    guided: bool = False

    @classmethod
    def of(cls, result: RegistrationResult | ElastixResult) -> PairFacts:
        """Take them from a result."""
        judged = [(stage.name, stage.judgement) for stage in result.stages if stage.judgement is not None]
        warned = (stage for stage in result.stages if "warnings" in stage.details)
        whole = result if isinstance(result, RegistrationResult) else None
        last = result.stages[-1].tre
        verdict = whole.verdict if whole else None
        errors = whole.expected_error if whole else None
        return cls(
            verdict=verdict.word if verdict else "",
            reasons="; ".join(verdict.reasons) if verdict else "",
            expected_error=errors.mean if errors else None,
            stages=", ".join(stage.name for stage in result.stages),
            worse=", ".join(name for name, judgement in judged if judgement.made_worse),
            similarity_before=judged[0][1].before.similarity if judged else None,
            similarity_after=judged[-1][1].after.similarity if judged else None,
            folding=whole.folding if whole else None,
            tre_before=whole.initial_tre.mean if whole and whole.initial_tre else None,
            tre_after=last.mean if last else None,
            inverse_consistency=whole.inverse_consistency.mean if whole and whole.inverse_consistency else None,
            warnings="; ".join(f"{stage.name}: {stage.details['warnings']}" for stage in warned),
            guided=last.guided if last else False,
        )

    def describe(self) -> str:
        """Return them as one line."""
        parts = [f"verdict {self.verdict}"] if self.verdict else []
        if self.similarity_before is not None and self.similarity_after is not None:
            parts.append(f"similarity {self.similarity_before:.2f} -> {self.similarity_after:.2f}")
        if self.tre_before is not None and self.tre_after is not None:
            guided = " of the landmarks that guided" if self.guided else ""
            parts.append(f"TRE {self.tre_before:.2f} -> {self.tre_after:.2f} mm{guided}")
        if self.folding:
            parts.append(f"det J <= 0 at {self.folding:.3%}")
        return ", ".join(parts) or self.stages
