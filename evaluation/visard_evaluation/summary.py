"""All that an evaluation says, from the measures of its photos: figures of all and of groups, worst cases, settings.

It knows nothing about how figures are shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from visard_evaluation.estimates import CONFIDENCE, mean, rounded
from visard_evaluation.figures import figures_of
from visard_evaluation.search import Identity, identify, people_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from visard_evaluation.judges import Judges
    from visard_evaluation.keyed import Keyed
    from visard_evaluation.measures import Measures

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
    judges: Judges,
    groups: Sequence[str] = (),
    *,
    keyed: Sequence[Keyed] | None = None,
    restored: Mapping[str, Mapping[str, NDArray[np.float64]]] | None = None,
) -> Evaluation:
    """Reduce measures to figures.

    Shares lie in 0..1. A photo without a label counts for the apparent gender of its face, and not for the accuracy.
    The figures are:

    * `n` faces;
    * `classifier_accuracy`, `swap_success` and `similarity_percent`, each for `female` and `male` (None without such
      photos), and for all under `overall`;
    * `detection_preserved`, the share of results in which the detector sees a face in the same place;
      `detection_preserved_yunet`, a second detector, and `detection_preserved_both`, of originals in which both do;
    * `identity.<recogniser>`: `verification`, the share that is still taken for the same person at the recogniser's
      own threshold; `rank1`, the share whose nearest neighbour among all originals is the same person, who is always
      among them; `distance`, the mean; `rank1_chance`, what guessing would reach; `false_match`, the share of pairs of
      different people's originals that the threshold takes for one person;
    * `identity_full.<recogniser>`: `rank1` where the recogniser sees the whole aligned crop of both sides, with hair;
    * `control.<recogniser>`: `verification`, `rank1` and `rank1_full` of originals whose face is painted over;
    * `swap_back.<recogniser>`: `verification`, `rank1` and `distance` after the opposite generator;
    * `learned.<recogniser>`: `rank1` for an attacker who learned, from other people's pairs, where anonymisation moves
      descriptors; `control_rank1`, for one who learned from the control; None where there are too few people;
    * `restored.<recogniser>`, on request: `verification`, `rank1` and `control_rank1` for one who learned to restore
      pictures; `rank1_of_reduced_originals`, what can be found at that resolution;
    * `linkability.<recogniser>`: of the photos whose person has another one, the share whose nearest other photo is of
      the same person: `random` and `keyed` personas, `control` and `originals`;
    * beside every such share `…_minus_control`, how far it lies above that of the control on the same photos, −1..1;
    * `landmark_drift_percent`, a mean, and `pose_drift_degrees`, medians;
    * `expression_drift_percent`, `light` and `skin_delta_e`, means (see `visard_evaluation.kept.Kept`);
    * `outside_face`, means of what changed there (see `visard_evaluation.measures.Outside`);
    * `second_classifier`, on request: `classifier_accuracy` and `swap_success` by another network;
    * `naturalness`, on request: `kernel_distance` of results to originals, `kernel_distance_of_originals` among halves;
    * `groups.<column>.<value>`: all of the above for a part of the photos, held against the whole gallery;
    * `intervals`: [low, high] under the same names, None where there is none;
    * `worst`: names and values of the worst cases; `errors`: photos without figures, by the error's name;
    * `settings`: what the figures depend on.

    Args:
        measures: of the photos that could be measured.
        errors: of the others.
        judges: those who judged.
        groups: columns of the manifest.
        keyed: by photo, descriptors by the recogniser's name; see `visard_evaluation.keyed.describe_keyed`.
        restored: by the recogniser's name, (N, D) descriptors by the kind of picture.
    """
    measures = tuple(measures)
    identities = {
        recogniser.name: identify(
            measures,
            recogniser,
            None if keyed is None else [None if own is None else own[recogniser.name] for own in keyed],
            None if restored is None else restored[recogniser.name],
        )
        for recogniser in judges.recognisers
    }
    everybody, people = range(len(measures)), people_of(measures)
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
        "people": len(set(people)),
        "linkable": sum(count for count in Counter(people).values() if count > 1),
        "linked_chance": _linked_chance(people),
        "recognisers": {recogniser.name: recogniser.provenance() for recogniser in judges.recognisers},
    }
    for name, judge in (("second_classifier", judges.second_classifier), ("perception", judges.perception)):
        if judge is not None:
            figures["settings"][name] = judge.provenance()
    return Evaluation(figures=figures, measures=measures, identities=identities)


def _linked_chance(people: Sequence[str]) -> float | None:
    """The share that guessing would link; None where nobody has two photos."""
    repeated = [count for count in Counter(people).values() if count > 1]
    if not repeated:
        return None
    return rounded(sum(count * (count - 1) for count in repeated) / sum(repeated) / (len(people) - 1))


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
