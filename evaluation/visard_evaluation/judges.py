"""The judges of an evaluation: recognisers, detectors and classifiers that look at the results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from visard_evaluation.recognisers import DlibRecogniser

if TYPE_CHECKING:
    from visard_evaluation.perception import Perception
    from visard_evaluation.recognisers import Recogniser
    from visard_evaluation.second_classifier import SecondClassifier


@dataclass(frozen=True, kw_only=True, eq=False)
class Judges:
    """Who judges results, and what is kept of every face for it.

    Attributes:
        recognisers: of identity.
        second_classifier: of apparent gender, beside the one that steers the swap.
        perception: of naturalness; None leaves it out.
        restore: whether an attacker learns to restore pictures.
        pictures: whether small pictures are kept for a report.
    """

    recognisers: tuple[Recogniser, ...] = (DlibRecogniser(),)
    second_classifier: SecondClassifier | None = None
    perception: Perception | None = None
    restore: bool = False
    pictures: bool = False
