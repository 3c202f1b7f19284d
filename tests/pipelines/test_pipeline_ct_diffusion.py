"""The pipeline against a Gaussian posterior known in closed form, and the contract every pipeline keeps."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffusers_ct import CheckpointContract, CTDiffusionPipeline, CTVolume, ScanConditions, UNet3DCTModel
from diffusers_ct.pipelines import ContractError
from diffusers_ct.pipelines.tiling import blend_weight, evaluate_tiled, tile_starts, tiles
from diffusers_ct.residual import estimate_noise_hu
from diffusers_ct.schedulers import alpha_sigma, make_noise_scheduler, x0_to_prediction

SCHEDULERS = [
    DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler,
]  # fmt: skip
MEAN, SPREAD = -0.7, 0.5


class GaussianPosterior(ModelMixin, ConfigMixin):
    """The exact v of a residual r ~ N(MEAN, SPREAD^2), voxel by voxel."""

    @register_to_config
    def __init__(self, in_channels: int = 6) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.size_factor = (1, 4, 4)
        self.needs_spacing = False
        self.process = make_noise_scheduler()

    def forward(self, sample, timestep, pooled=None, return_dict=True):
        x_t = sample[:, :1]
        # Euler asks for timesteps as floats; they are those of the grid
        alpha, sigma = alpha_sigma(self.process, torch.as_tensor(timestep).reshape(1).round().long())
        x0 = (MEAN * sigma**2 + SPREAD**2 * alpha * x_t) / (alpha**2 * SPREAD**2 + sigma**2)
        return (x0_to_prediction(x0, x_t, alpha, sigma, "v_prediction"),)


def scan(shape=(3, 30, 26), seed=0) -> CTVolume:
    hu = np.random.default_rng(seed).normal(40.0, 25.0, shape).astype(np.float32)
    return CTVolume.from_array(hu, (2.0, 0.8, 0.8), ScanConditions(kernel="B30f"))


def tiny_unet(**changes) -> UNet3DCTModel:
    torch.manual_seed(0)
    settings = {
        "block_out_channels": (8, 16), "layers_per_block": 1, "downsample_strides": (1, 2, 2), "refine_channels": 4,
        "conv_mode": "2.5d", "norm_num_groups": 4, **changes,
    }  # fmt: skip
    model = UNet3DCTModel(**settings)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.15)
    return model.eval()


def pipeline(unet=None, scheduler=DDIMScheduler, contract=None) -> CTDiffusionPipeline:
    pipe = CTDiffusionPipeline(
        unet or tiny_unet(), scheduler.from_config(make_noise_scheduler().config), contract and contract.to_dict()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def in_noise_levels(hu: np.ndarray, low: CTVolume) -> np.ndarray:
    return (hu - low.hu) / estimate_noise_hu(low.hu)[:, None, None]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_step_is_the_posterior_mean_whatever_the_noise(scheduler):
    pipe, low = pipeline(GaussianPosterior(), scheduler), scan()
    first, second = (pipe(low, generator=seeded(s)).volumes.hu for s in (0, 1))
    np.testing.assert_allclose(in_noise_levels(first, low), MEAN, atol=2e-3)
    np.testing.assert_allclose(first, second, atol=0.1)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_samples_have_the_posteriors_mean_and_spread(scheduler):
    steps = 200 if scheduler is DDPMScheduler else 50
    pipe, low = pipeline(GaussianPosterior(), scheduler), scan((2, 64, 64))
    out = pipe(
        low, num_inference_steps=steps, num_samples=4, sample_batch_size=4, generator=seeded(), return_samples=True
    )
    residual = in_noise_levels(out.samples[0], low)
    tolerance = 0.06 if scheduler is EulerDiscreteScheduler else 0.04
    assert residual.mean() == pytest.approx(MEAN, abs=tolerance)
    assert residual.std() == pytest.approx(SPREAD, rel=0.1)
    np.testing.assert_allclose(out.volumes.hu, out.samples.mean(axis=0), atol=1e-2)
    np.testing.assert_allclose(out.uncertainty_hu.hu, out.samples.std(axis=0, ddof=1), atol=1e-2)


def test_a_new_model_is_the_identity():
    torch.manual_seed(0)
    unet = UNet3DCTModel(block_out_channels=(8, 16), layers_per_block=1, downsample_strides=(1, 2, 2))
    low = scan()
    low.hu[0, 0, 0] = 9000.0  # metal beyond every window
    assert np.array_equal(pipeline(unet)(low).volumes.hu, low.hu)


def test_generator_repeats_and_batching_changes_nothing():
    pipe, low = pipeline(), scan()
    kwargs = {"num_inference_steps": 3, "num_samples": 3, "output_type": "np", "return_samples": True}
    one = pipe(low, generator=seeded(), sample_batch_size=1, **kwargs)
    two = pipe(low, generator=seeded(), sample_batch_size=2, **kwargs)
    np.testing.assert_allclose(one.samples, two.samples, atol=1e-2)
    assert np.abs(one.samples[0] - one.samples[1]).max() > 1.0
    other = pipe(low, generator=seeded(5), sample_batch_size=1, **kwargs)
    assert np.abs(one.samples[0] - other.samples[0]).max() > 1.0


def test_output_kinds_agree_and_dict_equals_tuple():
    pipe, low = pipeline(), scan()
    volume = pipe(low, generator=seeded()).volumes
    assert volume.spacing_mm == low.spacing_mm and np.array_equal(volume.affine_lps, low.affine_lps)
    array = pipe(low, generator=seeded(), output_type="np").volumes
    tensor = pipe(low, generator=seeded(), output_type="pt", return_dict=False)[0]
    from_array = pipe(low.hu, spacing_mm=low.spacing_mm, generator=seeded(), output_type="np").volumes
    assert np.array_equal(volume.hu, array) and np.array_equal(tensor.numpy(), array)
    assert np.array_equal(from_array, array)
    from_tensor = pipe(torch.from_numpy(low.hu), spacing_mm=low.spacing_mm, generator=seeded(), output_type="np")
    assert np.array_equal(from_tensor.volumes, array)


def test_tiles_with_overlap_give_the_untiled_result():
    # Without norms over space, a tile differs from the whole only within the network's reach of its edge.
    pipe, low = pipeline(tiny_unet(norm_type="rms")), scan((10, 64, 96))
    whole = pipe(low, num_inference_steps=2, generator=seeded(), output_type="np").volumes
    tiled = pipe(
        low,
        num_inference_steps=2,
        generator=seeded(),
        output_type="np",
        tile_size=(8, 56, 64),
        tile_overlap=(6, 48, 48),
    ).volumes
    assert np.abs(whole - low.hu).max() > 5.0
    assert np.abs(tiled - whole).max() < 0.5
    # Group norm takes its statistics from the tile: close, not equal.
    grouped = pipeline(tiny_unet())
    kwargs = {"num_inference_steps": 2, "output_type": "np"}
    a = grouped(low, generator=seeded(), **kwargs).volumes
    b = grouped(low, generator=seeded(), tile_size=(8, 56, 64), tile_overlap=(6, 48, 48), **kwargs).volumes
    assert np.sqrt(np.mean((a - b) ** 2)) < 0.1 * np.sqrt(np.mean((a - low.hu) ** 2))


def test_callback_sees_and_changes_every_step():
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    low = scan()
    out = pipeline()(low, num_inference_steps=4, callback_on_step_end=callback, generator=seeded(), output_type="np")
    assert seen == [(0, 999), (1, 749), (2, 499), (3, 249)]
    assert np.array_equal(out.volumes, low.hu)


def test_save_and_load_in_a_fresh_process_gives_equal_output(tmp_path):
    contract = CheckpointContract("phantoms", "Apache-2.0", pixel_spacing_mm=(0.5, 1.0))
    pipe, low = pipeline(contract=contract), scan()
    pipe.save_pretrained(tmp_path / "pipe")
    expected = pipe(low, num_inference_steps=2, generator=seeded(), output_type="np").volumes
    np.savez(tmp_path / "in.npz", hu=low.hu)
    code = f"""
import numpy as np, torch
from diffusers_ct import CTDiffusionPipeline
pipe = CTDiffusionPipeline.from_pretrained({str(tmp_path / "pipe")!r})
assert pipe.contract.pixel_spacing_mm == (0.5, 1.0)
hu = np.load({str(tmp_path / "in.npz")!r})["hu"]
g = torch.Generator().manual_seed(0)
out = pipe(hu, spacing_mm=(2.0, 0.8, 0.8), num_inference_steps=2, generator=g, output_type="np").volumes
np.save({str(tmp_path / "out.npy")!r}, out)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-3)


def test_contract_refuses_by_name_and_can_be_overridden_by_name():
    contract = CheckpointContract(
        "phantoms", "Apache-2.0", slice_spacing_mm=(2.5, 3.5), kernels=("D45f",), body_parts=("ABDOMEN",)
    )
    pipe, low = pipeline(contract=contract), scan()
    with pytest.raises(ContractError, match=r"slice_spacing_mm is 2, accepted is 2.5 to 3.5.*kernels is 'B30f'"):
        pipe(low)
    with pytest.raises(ContractError, match="slice_spacing_mm"):
        pipe(low, ignore_contract=["kernels"])
    out = pipe(low, ignore_contract=["kernels", "slice_spacing_mm"], generator=seeded())
    assert out.unchecked == ["body_parts"]
    with pytest.raises(ValueError, match="can name"):
        pipe(low, ignore_contract=["kernel"])


def test_contract_from_scans_covers_them_and_round_trips():
    conditions = [ScanConditions(kernel="a", slice_thickness_mm=1.0), ScanConditions(kernel="b")]
    contract = CheckpointContract.from_scans(
        [(1.0, 0.7, 0.7), (3.0, 0.9, 0.9)], [10.0, 40.0], [0.25], conditions, training_data="x",
        training_data_licence="y", package_version="0",
    )  # fmt: skip
    assert contract.slice_spacing_mm == pytest.approx((0.9, 3.3)) and contract.kernels == ("a", "b")
    assert CheckpointContract.from_dict(contract.to_dict()) == contract
    assert contract.check(spacing_mm=(2.0, 0.8, 0.8), noise_level_hu=(12.0, 30.0), conditions=conditions[0]) == [
        "dose_fraction"
    ]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps"), ({"num_samples": 0}, "num_samples"),
        ({"output_type": "pil"}, "output_type"), ({"tile_size": (1, 30, 32)}, "multiples of"),
        ({"spacing_mm": (1, 1, 1)}, "brings its own"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "Callbacks can get"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        pipeline()(scan(), **kwargs)


def test_wrong_scans_and_schedulers_are_refused():
    pipe = pipeline()
    with pytest.raises(ValueError, match="spacing_mm"):
        pipe(scan().hu)
    with pytest.raises(ValueError, match="not in Hounsfield"):
        pipe(np.random.default_rng(0).random((2, 16, 16)), spacing_mm=(1, 1, 1))
    with pytest.raises(ValueError, match="not finite"):
        pipe(np.full((1, 16, 16), np.nan), spacing_mm=(1, 1, 1))
    config = make_noise_scheduler().config
    pipe.scheduler = DDIMScheduler.from_config(config, timestep_spacing="leading")
    with pytest.raises(ValueError, match="timestep_spacing='trailing'"):
        pipe(scan())
    pipe.scheduler = DDIMScheduler.from_config(config, clip_sample=True)
    with pytest.raises(ValueError, match="clip_sample"):
        pipe(scan())
    pipe.scheduler = DDIMScheduler.from_config(config, prediction_type="epsilon")
    with pytest.raises(ValueError, match="divides by zero"):
        pipe(scan())
    with pytest.raises(ValueError, match="channels"):
        pipeline(tiny_unet(in_channels=3))(scan())


def test_bfloat16_model_keeps_hounsfield_units():
    low = scan()
    exact = pipeline()(low, generator=seeded()).volumes.hu
    pipe = pipeline(tiny_unet().to(torch.bfloat16))
    assert np.abs(pipe(low, generator=seeded()).volumes.hu - exact).mean() < 0.02 * np.abs(exact - low.hu).mean() + 0.5


def test_tiles_cover_and_blend_to_one():
    assert tile_starts(100, 40, 10) == [0, 30, 60]
    assert tile_starts(10, 40, 10) == [0]
    with pytest.raises(ValueError, match="overlap"):
        tile_starts(100, 8, 8)
    size, tile, overlap = (7, 20, 18), (4, 8, 8), (2, 4, 4)
    covered = np.zeros(size, int)
    for box in tiles(size, tile, overlap):
        covered[box] += 1
        assert blend_weight(box, size, overlap).min() > 0
    assert covered.min() >= 1
    field = torch.randn(2, 1, *size)
    torch.testing.assert_close(evaluate_tiled(lambda b: field[:, :, *b], 2, size, tile, overlap), field)
