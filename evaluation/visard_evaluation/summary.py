"""The complete result of an evaluation, from the measurements: figures of all and of groups, worst cases, settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from visard_evaluation.estimates import CONFIDENCE, mean, rounded
from visard_evaluation.figures import Figures
from visard_evaluation.reduce import figures_of
from visard_evaluation.search import Identity, identify, people_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from visard_evaluation.judges import Judges
    from visard_evaluation.keyed import Keyed
    from visard_evaluation.measures import Measures

WORST = 10  # cases listed per figure


@dataclass(frozen=True, kw_only=True)
class Guessing:
    """What says little of a recogniser's hits.

    Attributes:
        rank1_chance: what a search by guessing would find.
        false_match: the share of pairs of different people's originals that its threshold takes for one person; None
            where there is nobody else.
    """

    rank1_chance: float
    false_match: float | None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One photo, by its file's name, and what was found of it."""

    file: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The worst cases of each kind, the worst first.

    Attributes:
        identity: by the recogniser's name, the least distance between original and result.
        swap_back: likewise, after the opposite generator.
        landmark_drift_percent: the largest drift.
        outside_face_levels: the largest change around the face.
        not_swapped: files whose swap the classifier does not believe.
        not_detected: files in whose result the detector sees no face.
    """

    identity: Mapping[str, list[Case]]
    swap_back: Mapping[str, list[Case]]
    landmark_drift_percent: list[Case]
    outside_face_levels: list[Case]
    not_swapped: list[str]
    not_detected: list[str]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the figures depend on.

    Attributes:
        confidence: of the intervals.
        gallery: originals that were searched.
        people: in them.
        linkable: photos whose person has another one.
        linked_chance: the share of those that guessing would link; None where there is none.
        recognisers: where each comes from, by its name.
        second_classifier: likewise; None without one.
        perception: likewise.
        visard: the version that made this, where the caller said so.
        created: when, in ISO 8601, likewise.
        models: where the served models come from, likewise.
    """

    confidence: float
    gallery: int
    people: int
    linkable: int
    linked_chance: float | None
    recognisers: Mapping[str, Mapping[str, Any]]
    second_classifier: Mapping[str, Any] | None = None
    perception: Mapping[str, Any] | None = None
    visard: str | None = None
    created: str | None = None
    models: Mapping[str, Mapping[str, Any]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has them, without what was not asked for or said."""
        may_lack = ("second_classifier", "perception", "visard", "created", "models")
        return {name: value for name, value in asdict(self).items() if value is not None or name not in may_lack}


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
        figures: of all photos.
        groups: of parts of them, by the column's name and its value, compared with the whole gallery.
        guessing: by the recogniser's name, what its hits are worth.
        errors: photos without figures, by the error's name.
        worst: the worst cases.
        settings: what the figures depend on.
        measures: of each photo that could be measured.
        identities: by the recogniser's name.
    """

    figures: Figures
    groups: Mapping[str, Mapping[str, Figures]]
    guessing: Mapping[str, Guessing]
    errors: Mapping[str, int]
    worst: Worst
    settings: Settings
    measures: tuple[Measures, ...] = field(repr=False)
    identities: Mapping[str, Identity] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but measures and identities, as JSON has it; see `Figures.to_dict`."""
        figures = self.figures.to_dict()
        for name, guessing in self.guessing.items():
            figures["identity"][name] |= asdict(guessing)
        return {
            **figures,
            "groups": {
                column: {value: part.to_dict() for value, part in parts.items()}
                for column, parts in self.groups.items()
            },
            "errors": dict(self.errors),
            "worst": asdict(self.worst),
            "settings": self.settings.to_dict(),
        }


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
    everybody = range(len(measures))
    columns: dict[str, Sequence[str]] = {"gender": [each.group for each in measures]}
    columns |= {column: [each.photo.columns.get(column, "") for each in measures] for column in groups}
    return Evaluation(
        figures=figures_of(measures, identities, everybody),
        groups={
            column: {
                value or "not said": figures_of(measures, identities, [i for i in everybody if values[i] == value])
                for value in sorted(set(values))
            }
            for column, values in columns.items()
        },
        guessing={
            name: Guessing(
                rank1_chance=rounded(identity.rank1_chance),
                false_match=mean(list(identity.strangers < identity.threshold)).value,
            )
            for name, identity in identities.items()
        },
        errors=Counter(type(error).__name__ for error in errors),
        worst=_worst(measures, identities),
        settings=_settings(people_of(measures), judges),
        measures=measures,
        identities=identities,
    )


def _settings(people: Sequence[str], judges: Judges) -> Settings:
    return Settings(
        confidence=CONFIDENCE,
        gallery=len(people),
        people=len(set(people)),
        linkable=sum(count for count in Counter(people).values() if count > 1),
        linked_chance=_linked_chance(people),
        recognisers={recogniser.name: recogniser.provenance() for recogniser in judges.recognisers},
        second_classifier=None if judges.second_classifier is None else judges.second_classifier.provenance(),
        perception=None if judges.perception is None else judges.perception.provenance(),
    )


def _linked_chance(people: Sequence[str]) -> float | None:
    """The share that guessing would link; None where nobody has two photos."""
    repeated = [count for count in Counter(people).values() if count > 1]
    if not repeated:
        return None
    return rounded(sum(count * (count - 1) for count in repeated) / sum(repeated) / (len(people) - 1))


def _worst(measures: Sequence[Measures], identities: Mapping[str, Identity]) -> Worst:
    names = [each.photo.name for each in measures]

    def lowest(values: Sequence[float], sign: int = 1) -> list[Case]:
        order = sorted(range(len(values)), key=lambda index: sign * values[index])[:WORST]
        return [Case(file=names[index], value=rounded(values[index])) for index in order]

    def closest(kind: str) -> dict[str, list[Case]]:
        return {name: lowest([m.distance for m in each.matches[kind]]) for name, each in identities.items()}

    return Worst(
        identity=closest("anonymised"),
        swap_back=closest("swapped_back"),
        landmark_drift_percent=lowest([each.landmark_drift_percent for each in measures], sign=-1),
        outside_face_levels=lowest([each.outside.levels for each in measures], sign=-1),
        not_swapped=[each.photo.name for each in measures if not each.flipped][:WORST],
        not_detected=[each.photo.name for each in measures if not each.detected][:WORST],
    )
