"""All that an evaluation says, from the measures of its photos: figures of all and of groups, worst cases, settings.

It knows nothing about how figures are shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from visard.evaluation.estimates import CONFIDENCE, mean, rounded
from visard.evaluation.figures import figures_of
from visard.evaluation.search import Identity, identify, people_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from visard.evaluation.measures import Measures
    from visard.evaluation.recognisers import Recogniser

WORST = 10  # cases listed per figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
        figures: everything, ready for JSON; see `summarise`.
        measures: of each photo that could be measured.
        identities: by the recogniser's name.
    """

    figures: dict[str, Any]
    measures: tuple[Measures, ...] = field(repr=False)
    identities: Mapping[str, Identity] = field(repr=False)


def summarise(
    measures: Sequence[Measures],
    errors: Iterable[Exception],
    recognisers: Sequence[Recogniser],
    groups: Sequence[str] = (),
) -> Evaluation:
    """Reduce measures to figures.

    Shares lie in 0..1. A photo without a label counts for the apparent gender of its face, and not for the accuracy.
    The figures are:

    * `n` faces;
    * `classifier_accuracy`, `swap_success` and `similarity_percent`, each for `female` and `male` (None without such
      photos), and for all under `overall`;
    * `detection_preserved`, the share of results in which the detector sees a face in the same place;
    * `identity.<recogniser>`: `verification`, the share that is still taken for the same person at the recogniser's
      own threshold; `rank1`, the share whose nearest neighbour among all originals is the same person, who is always
      among them; `distance`, the mean; `rank1_chance`, what guessing would reach; `false_match`, the share of pairs of
      different people's originals that the threshold takes for one person;
    * `identity_full.<recogniser>`: `rank1` where the recogniser sees the whole aligned crop of both sides, with hair;
    * `control.<recogniser>`: `verification`, `rank1` and `rank1_full` of originals whose face is painted over;
    * `swap_back.<recogniser>`: `verification`, `rank1` and `distance` after the opposite generator;
    * beside every such share `…_minus_control`, how far it lies above that of the control on the same photos, −1..1;
    * `landmark_drift_percent` and `pose_drift_degrees`, means;
    * `outside_face`, means of what changed there (see `visard.evaluation.measures.Outside`);
    * `groups.<column>.<value>`: all of the above for a part of the photos, held against the whole gallery;
    * `intervals`: [low, high] under the same names, None where there is none;
    * `worst`: names and values of the worst cases; `errors`: photos without figures, by the error's name;
    * `settings`: what the figures depend on.

    Args:
        measures: of the photos that could be measured.
        errors: of the others.
        recognisers: those that described the faces.
        groups: columns of the manifest.
    """
    measures = tuple(measures)
    identities = {recogniser.name: identify(measures, recogniser) for recogniser in recognisers}
    everybody = range(len(measures))
    figures = figures_of(measures, identities, everybody)
    for name, identity in identities.items():
        figures["identity"][name] |= {
            "rank1_chance": rounded(identity.rank1_chance),
            "false_match": mean(list(identity.strangers < identity.threshold)).value,
        }
    columns: dict[str, Sequence[str]] = {"gender": [each.group for each in measures]}
    columns |= {column: [each.photo.columns.get(column, "") for each in measures] for column in groups}
    figures["groups"] = {
        column: {
            value or "not said": figures_of(measures, identities, [i for i in everybody if values[i] == value])
            for value in sorted(set(values))
        }
        for column, values in columns.items()
    }
    figures["errors"] = dict(Counter(type(error).__name__ for error in errors))
    figures["worst"] = _worst(measures, identities)
    figures["settings"] = {
        "confidence": CONFIDENCE,
        "gallery": len(measures),
        "people": len(set(people_of(measures))),
        "recognisers": {recogniser.name: recogniser.passport() for recogniser in recognisers},
    }
    return Evaluation(figures=figures, measures=measures, identities=identities)


def _worst(measures: Sequence[Measures], identities: Mapping[str, Identity]) -> dict[str, Any]:
    """Names and values of the worst cases of each kind, the worst first."""
    names = [each.photo.name for each in measures]

    def lowest(values: Sequence[float], sign: int = 1) -> list[dict[str, Any]]:
        order = sorted(range(len(values)), key=lambda index: sign * values[index])[:WORST]
        return [{"file": names[index], "value": rounded(values[index])} for index in order]

    return {
        "identity": {
            name: lowest([m.distance for m in each.matches["anonymised"]]) for name, each in identities.items()
        },
        "swap_back": {
            name: lowest([m.distance for m in each.matches["swapped_back"]]) for name, each in identities.items()
        },
        "landmark_drift_percent": lowest([each.landmark_drift_percent for each in measures], sign=-1),
        "outside_face_levels": lowest([each.outside.levels for each in measures], sign=-1),
        "not_swapped": [each.photo.name for each in measures if not each.flipped][:WORST],
        "not_detected": [each.photo.name for each in measures if not each.detected][:WORST],
    }
