"""How far a set of generated volumes is from a set of real ones: Frechet distance (FID), kernel distance (KID).

Sets are compared by features of their slices in one plane at a time (2.5-D): `feature_sets.extract_features`.
Both distances depend on the extractor: results name it, and only results of one extractor and plane are comparable.
"""

from dataclasses import dataclass

import numpy as np

from .feature_sets import FeatureSet

MIN_PATIENTS = 50


@dataclass(frozen=True)
class DistributionDistance:
    """A distance between two sets and all that it depends on.

    Attributes:
        name: of the distance.
        value: 0 for equal distributions (KID is unbiased and may be negative).
        standard_error: over patients, of KID; of the relative Frechet distance that of the random splits alone, which is no
            error of the choice of patients; None where it is not estimated.
        extractor: what made the features.
        patients: numbers of generated volumes and of real patients.
        slices: numbers of their slices.
        features: length of a feature vector.
        small_sample: whether it was computed against the rule on sample sizes; such a number is not to be published.
    """

    name: str
    value: float
    standard_error: float | None
    extractor: str
    patients: tuple[int, int]
    slices: tuple[int, int]
    features: int
    small_sample: bool


def frechet_distance(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).

    The trace of the root is the sum of the singular values of A^1/2 B^1/2. Unlike the square root of the unsymmetric A B,
    that is real, symmetric in both, and finite for covariances of any rank: nothing is added to the diagonal.

    Args:
        mean_a: (features,).
        covariance_a: (features, features), symmetric and positive semi-definite.
        mean_b: (features,).
        covariance_b: (features, features).

    Raises:
        ValueError: for other shapes, or a matrix that is no covariance.

    References:
        Dowson and Landau 1982, doi:10.1016/0047-259X(82)90077-X; Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    means = [np.asarray(m, dtype=np.float64) for m in (mean_a, mean_b)]
    roots = [_root(np.asarray(c, dtype=np.float64)) for c in (covariance_a, covariance_b)]
    if means[0].ndim != 1 or not means[0].shape == means[1].shape == roots[0].shape[:1] == roots[1].shape[:1]:
        raise ValueError("Means (features,) and covariances (features, features) of one size are needed.")
    return _frechet(means[0], roots[0], means[1], roots[1])


def frechet_distance_of_samples(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """`frechet_distance` of the sample means and (unbiased) covariances of (samples, features), 2 samples at least.

    It never forms a covariance: with the centred samples X_a, X_b, scaled by 1/sqrt(n - 1), the trace of the root is the
    sum of the singular values of X_a X_b^T. It is biased upwards by the finite samples, the more the fewer they are.
    """
    factors = []
    means = []
    for features in (features_a, features_b):
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or len(x) < 2 or x.shape[1] != np.shape(features_a)[1]:
            raise ValueError("Features (samples, features) of one length and 2 samples at least are needed.")
        means.append(x.mean(axis=0))
        factor = (x - means[-1]) / np.sqrt(len(x) - 1)
        factors.append(np.asarray(np.linalg.qr(factor, mode="r")) if len(x) > x.shape[1] else factor)
    return _frechet(means[0], factors[0], means[1], factors[1])


def fid(
    generated: FeatureSet,
    real: FeatureSet,
    *,
    allow_small_sample: bool = False,
    standard_error_groups: int | None = None,
) -> DistributionDistance:
    """Frechet distance of the features (called FID with Inception's), refused where its bias would decide.

    Between two samples of one distribution it was 178, 64 and 36 with 100, 1000 and 2000 samples of 2048 features: below
    50 patients, or with fewer slices than features, it is computed only by an explicit override. Use `kid` there, or
    `relative_frechet_distance`. Compare values of equal sample sizes only.

    Args:
        generated: features of the generated volumes.
        real: of the real ones, by the same extractor.
        allow_small_sample: computes it all the same and marks the result.
        standard_error_groups: patients of each set are put into so many groups for a delete-one-group jackknife; None
            estimates no standard error. It does not include the bias.

    Raises:
        ValueError: for features of two extractors, or too few patients or slices.

    References:
        Heusel et al. 2017, arXiv:1706.08500; Chong and Forsyth 2020, arXiv:1911.07023 (the bias).
    """
    _check_same_extractor(generated, real)
    small = _check_size("FID", generated, real, allow_small_sample)
    value = frechet_distance_of_samples(generated.features, real.features)
    error = None
    if standard_error_groups is not None:
        if not 2 <= standard_error_groups <= min(generated.n_patients, real.n_patients):
            raise ValueError("`standard_error_groups` must be between 2 and the number of patients.")
        variance = 0.0
        for part in (generated, real):
            groups = np.unique(part.patients, return_inverse=True)[1] % standard_error_groups
            other = real if part is generated else generated
            values = [
                frechet_distance_of_samples(part.features[groups != g], other.features)
                for g in range(standard_error_groups)
            ]
            variance += (standard_error_groups - 1) * float(np.var(values))
        error = float(np.sqrt(variance))
    return _result("FID", value, error, generated, real, small)


def kid(generated: FeatureSet, real: FeatureSet) -> DistributionDistance:
    """Squared maximum mean discrepancy with the kernel (x.y / features + 1)^3, unbiased by patient.

    Patients weigh alike, and pairs of slices of one patient are left out within a set: they are not independent, and
    would make sets of many slices of few patients look different. With one slice a patient this is the usual estimator.
    The standard error is that of the delete-one-patient jackknife over both sets: over all subsets that lack one patient;
    between equal distributions it is too large rather than too small (Efron and Stein 1981).

    Raises:
        ValueError: for features of two extractors or fewer than 3 patients in a set.

    References:
        Binkowski et al. 2018, arXiv:1801.01401; Gretton et al. 2012, JMLR 13 723, eq. 3 (the unbiased estimator).
    """
    _check_same_extractor(generated, real)
    p, q = generated.n_patients, real.n_patients
    if min(p, q) < 3:
        raise ValueError(f"KID needs 3 patients at least in each set, got {p} and {q}.")
    within_a, within_b = _patient_kernel(generated, generated), _patient_kernel(real, real)
    between = _patient_kernel(generated, real)
    mean_a, without_a = _pairs(within_a)
    mean_b, without_b = _pairs(within_b)
    value = mean_a + mean_b - 2 * between.mean()
    # the estimate without each patient, in turn, of either set
    total = between.sum()
    left_a = without_a + mean_b - 2 * (total - between.sum(axis=1)) / ((p - 1) * q)
    left_b = mean_a + without_b - 2 * (total - between.sum(axis=0)) / (p * (q - 1))
    variance = (p - 1) * left_a.var() + (q - 1) * left_b.var()
    return _result("KID", float(value), float(np.sqrt(variance)), generated, real, False)


def relative_frechet_distance(
    generated: FeatureSet, real: FeatureSet, *, splits: int, seed: int, allow_small_sample: bool = False
) -> DistributionDistance:
    """Frechet distance of generated to real, as a multiple of that between two halves of the real patients.

    In each of `splits` random splits, half as many generated volumes as there are real patients meet one half of the
    real patients, and the other half meets it too: equal sample sizes, so that the bias is in both. The result is the
    ratio of the means over the splits: 1 for volumes as good as further patients. The standard deviation of the splits'
    own ratios over sqrt(splits) is the error of splitting alone, not that of the choice of patients.

    Args:
        generated: half as many volumes as real patients at least.
        real: features of the real patients.
        splits: how many.
        seed: of the splits.
        allow_small_sample: as in `fid`, for halves.

    Raises:
        ValueError: for features of two extractors or too few patients.
    """
    _check_same_extractor(generated, real)
    half = real.n_patients // 2
    if splits < 2 or half < 2 or generated.n_patients < half:
        raise ValueError(
            f"2 splits, 4 real patients and half as many generated volumes are needed at least; got {splits}, "
            f"{real.n_patients} and {generated.n_patients}."
        )
    rng = np.random.default_rng(seed)
    pairs = []
    small = False
    for _ in range(splits):
        shuffled = rng.permutation(np.unique(real.patients))
        first, second = real.of_patients(shuffled[:half]), real.of_patients(shuffled[half : 2 * half])
        some = generated.of_patients(rng.permutation(np.unique(generated.patients))[:half])
        small = _check_size("A relative Frechet distance", second, first, allow_small_sample) or small
        pairs.append([frechet_distance_of_samples(part.features, first.features) for part in (some, second)])
    distances = np.array(pairs)
    if not distances[:, 1].min() > 0:
        raise ValueError("Halves of the real patients do not differ: there is nothing to be relative to.")
    ratio = float(distances[:, 0].mean() / distances[:, 1].mean())
    error = float((distances[:, 0] / distances[:, 1]).std(ddof=1) / np.sqrt(splits))
    return _result("relative FD", ratio, error, generated, real, small)


def _check_same_extractor(a: FeatureSet, b: FeatureSet) -> None:
    if a.extractor != b.extractor or a.features.shape[1] != b.features.shape[1]:
        raise ValueError(f"Features of one extractor are compared, got {a.extractor!r} and {b.extractor!r}.")


def _check_size(what: str, a: FeatureSet, b: FeatureSet, allowed: bool) -> bool:
    patients, slices = min(a.n_patients, b.n_patients), min(len(a.features), len(b.features))
    small = patients < MIN_PATIENTS or slices < a.features.shape[1]
    if small and not allowed:
        raise ValueError(
            f"{what} of {patients} patients and {slices} slices with {a.features.shape[1]} features would be mostly bias: "
            f"{MIN_PATIENTS} patients and as many slices as features are needed in each set. Use `kid`, or pass "
            "`allow_small_sample=True` for a number that is not to be published."
        )
    return small


def _result(
    name: str, value: float, error: float | None, generated: FeatureSet, real: FeatureSet, small: bool
) -> DistributionDistance:
    return DistributionDistance(
        name,
        value,
        error,
        real.extractor,
        (generated.n_patients, real.n_patients),
        (len(generated.features), len(real.features)),
        real.features.shape[1],
        small,
    )


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root."""
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not np.isfinite(covariance).all():
        raise ValueError("A covariance must be a finite square matrix.")
    scale = float(np.abs(covariance).max())
    values, vectors = np.linalg.eigh(covariance)
    if not np.allclose(covariance, covariance.T, atol=1e-8 * scale) or values[0] < -1e-8 * scale * len(values):
        raise ValueError("A covariance must be symmetric and positive semi-definite.")
    return (vectors * np.sqrt(values.clip(0.0))) @ vectors.T


def _frechet(mean_a: np.ndarray, factor_a: np.ndarray, mean_b: np.ndarray, factor_b: np.ndarray) -> float:
    """With factors F, F^T F = covariance; rounding alone could make it negative."""
    common = float(np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum())
    distance = float(np.sum((mean_a - mean_b) ** 2) + np.sum(factor_a**2) + np.sum(factor_b**2) - 2 * common)
    return max(distance, 0.0)


def _patient_kernel(a: FeatureSet, b: FeatureSet) -> np.ndarray:
    """(patients of a, patients of b): mean kernel over their pairs of slices."""
    starts_a, counts_a = np.unique(a.patients, return_index=True, return_counts=True)[1:]
    starts_b, counts_b = np.unique(b.patients, return_index=True, return_counts=True)[1:]
    rows = []
    for start, count in zip(starts_a, counts_a):
        products = a.features[start : start + count] @ b.features.T / a.features.shape[1]
        rows.append(np.add.reduceat(((products + 1.0) ** 3).sum(axis=0), starts_b) / (count * counts_b))
    return np.stack(rows)


def _pairs(within: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean over pairs of different patients, and the same without each patient in turn."""
    n = len(within)
    total = within.sum() - np.trace(within)
    own = 2 * (within.sum(axis=1) - np.diag(within))
    return float(total / (n * (n - 1))), (total - own) / ((n - 1) * (n - 2))
