"""Components of a pipeline whose answers are exact: a scalar per voxel, measured by conditions, an image, a classifier.

x ~ N(MEAN, VARIANCE) in each voxel on its own. A condition or image i that is known is a measurement y_i = x + noise of
variance r_i, so every law given some of them is a Gaussian, and what guided sampling reaches is in `tests.guidance`.
"""

import math

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffusers_ct import ConditionEncoder, CTDiffusionPipeline, ScanConditions
from diffusers_ct.hounsfield import hu_to_companded
from diffusers_ct.pipelines.sampling import sample_generators
from diffusers_ct.schedulers import make_noise_scheduler, x0_to_prediction
from tests.guidance.gaussian import Gaussian

MEAN, VARIANCE = 0.1, 0.06
NOISE = {"contrast_agent": 0.06, "sex": 0.1, "pet": 0.08, "age_years": 0.1}
AGENT, SEX = {False: -0.05, True: 0.25}, {"M": 0.2, "F": -0.05, "O": 0.0}
ANGLES = np.concatenate([[0.0], torch.arccos(make_noise_scheduler().alphas_cumprod.double().sqrt()).numpy()])
BOTH = ScanConditions(contrast_agent=True, sex="F")


def law(**values: float) -> Gaussian:
    """Of a voxel, given the measurements by name."""
    found = Gaussian(np.array([MEAN]), np.array([[VARIANCE]]))
    for name, value in values.items():
        found = found.given([1.0], value, NOISE[name])
    return found


GIVEN_BOTH = law(contrast_agent=AGENT[True], sex=SEX["F"])
GIVEN_AGENT, GIVEN_SEX, GIVEN_NONE = law(contrast_agent=AGENT[True]), law(sex=SEX["F"]), law()


def weighted(*terms):
    """(weight, Gaussian) as `truth_1d` takes them."""
    return [(w, one.mean[0], one.covariance[0, 0]) for w, one in terms]


def alpha_sigma_at(timestep) -> tuple[torch.Tensor, torch.Tensor]:
    """At a time that may lie between steps, as the adaptive schedule tells it: the angle is linear in between."""
    at = torch.as_tensor(timestep).double().reshape(-1)
    angle = torch.from_numpy(np.interp(at.numpy(), np.arange(-1.0, len(ANGLES) - 1), ANGLES))[:, None, None, None, None]
    return angle.cos(), angle.sin()


def pet_of(value: float, shape) -> np.ndarray:
    """SUV that is shown to the network as `value`."""
    return np.full(shape, math.expm1((value + 1.0) / 2.0 * math.log1p(50.0)), dtype=np.float32)


class GaussianNetwork(ModelMixin, ConfigMixin):
    """The exact v. The last two channels are an image and its presence if `takes_image`; `pooled` ends with what
    `encoder()` says."""

    @register_to_config
    def __init__(self, in_channels: int = 1, takes_image: bool = False, size_factor: int = 4) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.size_factor = (1, size_factor, size_factor)
        self.needs_spacing = False
        self.calls: list[dict] = []

    def forward(self, sample, timestep, pooled=None, return_dict=True):
        self.calls.append({"batch": len(sample), "timestep": timestep, "pooled": pooled, "sample": sample})
        ones = torch.ones(len(sample), 1, 1, 1, 1, dtype=torch.float64)
        seen = []  # (known, value, noise variance) of each measurement
        if pooled is not None and pooled.shape[1] >= 4:
            for i, name in enumerate(("contrast_agent", "sex")):
                known, value = (pooled[:, j - 4].double()[:, None, None, None, None] for j in (2 * i, 2 * i + 1))
                seen.append((known, value, NOISE[name]))
        if self.config.takes_image:
            seen.append((sample[:, -1:].double(), sample[:, -2:-1].double(), NOISE["pet"]))
        precision = ones / VARIANCE + sum(known / r for known, _, r in seen)
        mean = (MEAN / VARIANCE + sum(known * value / r for known, value, r in seen)) / precision
        alpha, sigma = alpha_sigma_at(timestep)
        x_t = sample[:, :1].double()
        x0 = (mean * sigma**2 * precision + alpha * x_t) / (alpha**2 + sigma**2 * precision)
        return (x0_to_prediction(x0, x_t, alpha, sigma, "v_prediction").float(),)


class AgeClassifier(ModelMixin, ConfigMixin):
    """The exact log p(age / 100 | x_t, contrast agent given): age / 100 measures every voxel on its own."""

    @register_to_config
    def __init__(
        self, agent: bool = True, size_factor: int = 4, findings: tuple = (), body_parts: tuple = (),
        target: str = "image", in_channels: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.size_factor, self.heads = (1, size_factor, size_factor), ("age_years",)
        self.given = GIVEN_AGENT if agent else GIVEN_NONE
        self.calls: list[torch.Tensor] = []

    def log_probability(self, sample, timestep, targets, heads=None):
        self.calls.append(targets["age_years"])
        assert heads == ("age_years",) and sample.shape[1] == 1
        mean, variance = self.given.mean[0], self.given.covariance[0, 0]
        alpha, sigma = alpha_sigma_at(timestep)
        spread = 1.0 / (1.0 / variance + (alpha / sigma) ** 2)
        x0 = spread * (mean / variance + alpha / sigma**2 * sample.double())
        target = targets["age_years"].double()[:, None, None, None, None] / 100.0
        error = torch.where(target.isnan(), 0.0, target.nan_to_num() - x0)  # an unknown target adds 0
        return (-0.5 * error**2 / (spread + NOISE["age_years"])).flatten(1).sum(dim=1)


def encoder() -> ConditionEncoder:
    """Real, its weights set by hand: the pooled vector is (agent known, its value, sex known, its value)."""
    made = ConditionEncoder(("contrast_agent", "sex", "slice_thickness_mm"), token_dim=1, pooled_dim=4)
    with torch.no_grad():
        for weight in made.encoders["slice_thickness_mm"].parameters():
            weight.zero_()  # known to the noise schedule; the voxels do not depend on it
        for start, name, values in ((0, "contrast_agent", AGENT), (2, "sex", SEX)):
            table = made.encoders[name].table.weight
            table.zero_()
            for row, value in enumerate(values.values(), start=1):
                table[row, 1 + start], table[row, 2 + start] = 1.0, value
    return made


def gaussian_pipeline(target: str, scheduler, *, image: bool = False, classifier=None, **parts) -> CTDiffusionPipeline:
    channels = (6 if target == "residual" else 1) + 2 * image
    if classifier is not None:
        classifier.register_to_config(target=target)  # of network units, whatever they stand for
    scheduler = scheduler if not isinstance(scheduler, type) else scheduler.from_config(make_noise_scheduler().config)
    pipe = CTDiffusionPipeline(
        GaussianNetwork(channels, image), scheduler, condition_encoder=encoder(), target=target,
        classifier=classifier, image_conditions="pet" if image else "", **parts,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def start_noise(pipe, generator, num_samples: int, size) -> np.ndarray:
    """What each sample started from: an independent look at what the affine samplers multiply."""
    return pipe.prepare_latents(sample_generators(generator, num_samples), size, torch.device("cpu"))[:, 0].numpy()


def guided_denoiser(scheduler, terms, judged=()):
    """sum of w E[x | x_t, ...] over (w, Gaussian); `judged` terms count but in pure noise, where no classifier has a say."""

    def denoise(x_t, timestep):
        x0 = sum(w * one.denoiser(scheduler)(x_t, timestep) for w, one in terms)
        if int(timestep) == 999:
            return x0
        return x0 + sum(w * one.denoiser(scheduler)(x_t, timestep) for w, one in judged)

    return denoise


def affine_law(noise: np.ndarray, field: np.ndarray) -> tuple[float, float]:
    """Mean and variance of a field that a deterministic sampler made of unit noise, exactly: field = m + sd noise."""
    slope, offset = np.polyfit(noise.ravel(), field.ravel(), 1)
    np.testing.assert_allclose(field, offset + slope * noise, atol=1e-4)
    return float(offset), float(slope**2)


def network_units(volumes) -> np.ndarray:
    """Synthesised volumes, (samples, depth, height, width)."""
    return np.stack([hu_to_companded(torch.as_tensor(v.hu)).numpy() for v in volumes])
