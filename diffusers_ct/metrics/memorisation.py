"""Does a generator hand out its training patients? Distances to the nearest one, against those of held-out patients."""

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist

from .feature_sets import FeatureSet


@dataclass(frozen=True, eq=False)
class Memorisation:
    """Generated volumes that lie nearer to a training patient than new patients do.

    Attributes:
        distances: (generated volumes,) to the nearest training slice, in standard deviations of the training features.
        held_out_distances: (held-out patients,) the same.
        nearest: (generated volumes,) row of the nearest training slice in the training `FeatureSet.features`.
        threshold: of the distances; nearer ones are flagged.
        flagged: (generated volumes,) bool.
        false_positive_rate: exact probability that a volume like a further patient is flagged.
        p_value: one-sided Mann-Whitney test that generated volumes lie nearer than held-out patients as a whole.
        extractor: what made the features.
    """

    distances: np.ndarray
    held_out_distances: np.ndarray
    nearest: np.ndarray
    threshold: float
    flagged: np.ndarray
    false_positive_rate: float
    p_value: float
    extractor: str


def memorisation_check(
    generated: FeatureSet, training: FeatureSet, held_out: FeatureSet, *, false_positive_rate: float
) -> Memorisation:
    """Flags generated volumes that are nearer to the training patients than held-out patients are.

    The distance of a volume is that of its slice that is nearest to any training slice, Euclidean, each feature divided
    by its standard deviation over the training slices. Calibration is by rank: the threshold is the k-th smallest of the
    m held-out distances with the largest k <= rate (m + 1). If a generated volume is exchangeable with the held-out
    patients, the probability that it is nearer is k / (m + 1), exactly, whatever the distribution; over the choice of the
    held-out patients too, so that with few of them the share flagged in one study scatters around it.

    Not exact about: copies that the features cannot see, such as flipped or shifted ones where the extractor is not
    blind to that, or copied parts of a slice. Nothing flagged is no proof that nothing was memorised.

    Args:
        generated: features of generated volumes, each with its own number as patient.
        training: of the patients that the generator was trained on.
        held_out: of patients that it has never seen, made by the same scanners; the same number of slices a volume as
            generated, since the minimum over more slices is smaller.
        false_positive_rate: at most; needs 1 / rate - 1 held-out patients.

    Raises:
        ValueError: for features of other extractors, other numbers of slices, patients both in training and held-out, or
            too few held-out patients.

    References:
        Vovk et al. 2005, Algorithmic Learning in a Random World (calibration by rank); Carlini et al. 2023,
        arXiv:2301.13188 (memorisation by diffusion models).
    """
    if not 0.0 < false_positive_rate < 1.0:
        raise ValueError(f"`false_positive_rate` must be in (0, 1), got {false_positive_rate}.")
    if not generated.extractor == training.extractor == held_out.extractor:
        raise ValueError("Features of one extractor are compared: extract all three sets with the same one.")
    if np.isin(np.unique(held_out.patients), training.patients).any():
        raise ValueError(
            "Patients are both in training and held out: pass identifiers that tell all patients apart, and hold out "
            "patients that the generator has not seen."
        )
    sizes = {int(n) for part in (generated, held_out) for n in np.unique(part.patients, return_counts=True)[1]}
    if len(sizes) > 1:
        raise ValueError(
            f"Generated and held-out volumes have {min(sizes)} to {max(sizes)} slices: extract the same number of each, "
            "since the smallest distance of more slices is smaller."
        )
    m = held_out.n_patients
    k = int(np.floor(false_positive_rate * (m + 1) + 1e-9))
    if k < 1:
        raise ValueError(
            f"A false-positive rate of {false_positive_rate:g} needs {int(np.ceil(1 / false_positive_rate - 1e-9)) - 1} "
            f"held-out patients at least, got {m}."
        )
    sd = training.features.std(axis=0)
    # a feature that training has in one value only says of another value that it is new, not how new
    scale = np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 1e-12 * np.abs(training.features).max())
    if not scale.any():
        raise ValueError("The training features do not vary.")
    reference = training.features * scale
    distances, nearest = _nearest(generated, reference, scale)
    held_out_distances, _ = _nearest(held_out, reference, scale)
    threshold = float(np.sort(held_out_distances)[k - 1])
    p_value = float(stats.mannwhitneyu(distances, held_out_distances, alternative="less").pvalue)
    return Memorisation(
        distances, held_out_distances, nearest, threshold, distances < threshold, k / (m + 1), p_value,
        generated.extractor,
    )  # fmt: skip


def _nearest(part: FeatureSet, reference: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest distance of each patient's slices to the reference, and to which row."""
    distances, rows = [], []
    for patient in np.unique(part.patients):
        found = cdist(part.features[part.patients == patient] * scale, reference)
        rows.append(int(np.argmin(found.min(axis=0))))
        distances.append(float(found.min()))
    return np.array(distances), np.array(rows)
