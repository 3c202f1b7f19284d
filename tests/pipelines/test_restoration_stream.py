"""Restoration slab by slab: the result of the whole field, with the memory of a slab."""

from types import SimpleNamespace

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
from torch import nn

from diffusers_ct import CheckpointContract, CTDiffusionPipeline, CTVolume, ScanConditions, UNet3DCTModel
from diffusers_ct.models.blocks import AdaptiveGroupNorm
from diffusers_ct.pipelines import ContractError, DoesNotFitError, RestorationStream, restoration_cost
from diffusers_ct.pipelines.restoration_cost import duration
from diffusers_ct.pipelines.scan_norms import ScanNorms
from diffusers_ct.pipelines.slab_wave import SlabLayout
from diffusers_ct.pipelines.streaming import _slice_generator
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.volume import ScanSlices


def make_pipe(scheduler=DDIMScheduler, *, contract=None, settings=None, **changes) -> CTDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        **{
            "block_out_channels": (8, 16), "layers_per_block": 1, "downsample_strides": (1, 2, 2), "refine_channels": 4,
            "conv_mode": "2.5d", "norm_num_groups": 4, **changes,
        }
    )  # fmt: skip
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.15)
    config = make_noise_scheduler().config
    pipe = CTDiffusionPipeline(
        unet.eval(), scheduler.from_config(config, **(settings or {})), contract and contract.to_dict()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scan(shape=(13, 30, 26)) -> CTVolume:
    hu = np.random.default_rng(0).normal(40.0, 25.0, shape).astype(np.float32)
    return CTVolume.from_array(hu, (2.0, 0.8, 0.8), ScanConditions(kernel="B30f"))


def streamed(pipe, low: CTVolume, **kwargs) -> tuple[np.ndarray, np.ndarray | None]:
    slabs = list(RestorationStream(pipe, ScanSlices.of(low), **kwargs))
    assert [k for slab in slabs for k in range(slab.z.start, slab.z.stop)] == list(range(low.shape[0]))
    spread = None
    if slabs[0].uncertainty_hu is not None:
        spread = np.concatenate([slab.uncertainty_hu for slab in slabs])
    return np.concatenate([slab.hu for slab in slabs]), spread


def whole(pipe, low: CTVolume, seed: int, **kwargs):
    """The pipeline on the whole field, its starting noise made slice by slice."""

    def prepare_latents(generators, size, device):
        fields = []
        for sample in range(len(generators)):
            slices = [torch.randn(size[1:], generator=_slice_generator(seed, sample, k)) for k in range(size[0])]
            fields.append(torch.stack(slices)[None])
        return torch.stack(fields)

    pipe.prepare_latents = prepare_latents
    samples = kwargs.get("num_samples", 1)
    return pipe(low, sample_batch_size=samples, output_type="np", **kwargs)


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [(DDIMScheduler, 1), (DDIMScheduler, 4), (DPMSolverMultistepScheduler, 4), (UniPCMultistepScheduler, 4),
     (EulerDiscreteScheduler, 3)],
)  # fmt: skip
def test_the_wave_gives_what_tiling_the_whole_field_gives(scheduler, steps):
    pipe, low = make_pipe(scheduler), scan((13, 18, 14))  # group norm: any other tile would show
    tiled = {"tile_size": (6, 20, 16), "tile_overlap": (3, 8, 8), "num_inference_steps": steps, "num_samples": 2}
    hu, spread = streamed(pipe, low, seed=3, norm_statistics="tile", **tiled)
    expected = whole(pipe, low, 3, **tiled)
    assert np.abs(hu - low.hu).max() > 1.0
    np.testing.assert_allclose(hu, expected.volumes, atol=2e-2)
    np.testing.assert_allclose(spread, expected.uncertainty_hu, atol=2e-2)


def test_tiles_in_the_plane_and_a_patch_along_z():
    pipe, low = make_pipe(patch_size=(2, 2, 2)), scan((11, 60, 64))
    tiled = {"tile_size": (6, 32, 48), "tile_overlap": (2, 16, 16), "num_inference_steps": 2}
    hu, _ = streamed(pipe, low, seed=1, norm_statistics="tile", **tiled)
    np.testing.assert_allclose(hu, whole(pipe, low, 1, **tiled).volumes, atol=2e-2)


@pytest.mark.parametrize(("tile", "batch"), [(6, 2), (6, 5)])
def test_batching_changes_nothing(tile, batch):
    pipe, low = make_pipe(), scan((13, 16, 16))
    kwargs = {"tile_size": (tile, 16, 16), "tile_overlap": (2, 8, 8), "num_inference_steps": 3, "num_samples": 2}
    one, _ = streamed(pipe, low, batch=1, **kwargs)
    many, _ = streamed(pipe, low, batch=batch, **kwargs)
    np.testing.assert_allclose(many, one, atol=1e-2)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_slabs_of_any_size_are_of_one_noise_field(scheduler):
    # A network that does not look beyond its slice, so that all that could differ is the noise, of every step.
    pipe, low = make_pipe(scheduler, norm_type="rms"), scan((13, 16, 16))
    for name, parameter in pipe.unet.named_parameters():
        if name.endswith("1.weight") and parameter.ndim == 5 and parameter.shape[2:] == (3, 1, 1):
            parameter.data[:, :, [0, 2]] = 0.0
    results = [
        streamed(pipe, low, seed=7, num_inference_steps=4, tile_size=(tile, 16, 16), tile_overlap=(overlap, 8, 8))[0]
        for tile, overlap in ((13, 0), (5, 0), (7, 3))
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-2)
    assert np.abs(streamed(pipe, low, seed=8, num_inference_steps=4)[0] - results[0]).max() > 5.0


def test_seams_of_an_rms_network_stay_below_half_a_hounsfield_unit():
    pipe, low = make_pipe(norm_type="rms"), scan((26, 32, 32))
    kwargs = {"num_inference_steps": 2, "seed": 2}
    untiled, _ = streamed(pipe, low, tile_size=(26, 32, 32), **kwargs)
    tiled, _ = streamed(pipe, low, tile_size=(12, 32, 32), **kwargs)  # with the default overlap
    assert np.abs(untiled - low.hu).max() > 5.0
    assert np.abs(tiled - untiled).max() < 0.5


def widening(low: CTVolume) -> CTVolume:
    """A patient who gets wider along z, as from the neck to the chest, so that tiles have other statistics."""
    depth, height = low.shape[:2]
    hu = low.hu.copy()
    for k in range(depth):
        margin = (height // 2 - 2) * (depth - k) // depth
        hu[k, :margin] = hu[k, height - margin :] = -1000.0
    return CTVolume.from_array(hu, low.spacing_mm)


@pytest.mark.parametrize("steps", [1, 3])
def test_group_norm_has_the_statistics_of_the_scan(steps):
    pipe, low = make_pipe(), widening(scan((40, 32, 32)))
    kwargs = {"num_inference_steps": steps, "seed": 2}
    untiled, _ = streamed(pipe, low, tile_size=(40, 32, 32), **kwargs)
    tiled = {"tile_size": (8, 32, 32), "tile_overlap": (6, 0, 0), **kwargs}
    off = {
        how: np.sqrt(np.mean((streamed(pipe, low, norm_statistics=how, **tiled)[0] - untiled) ** 2))
        for how in ("scan", "tile")
    }
    assert np.sqrt(np.mean((untiled - low.hu) ** 2)) > 0.5  # of which most is air
    assert off["scan"] < 0.3 * off["tile"]
    assert not any("forward" in vars(module) for module in pipe.unet.modules())  # left as it was


def test_a_stream_gives_the_same_again():
    stream = RestorationStream(
        make_pipe(), ScanSlices.of(scan((24, 16, 16))), tile_size=(8, 16, 16), tile_overlap=(4, 0, 0)
    )
    first, again = (np.concatenate([slab.hu for slab in stream]) for _ in range(2))
    assert np.array_equal(first, again)


def test_statistics_are_those_of_group_norm_itself():
    norm, x = nn.GroupNorm(2, 4), torch.randn(1, 4, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(norm.weight)
    norms, timestep = ScanNorms(nn.Sequential(norm)), torch.tensor(999)
    with norms.gathered(timestep):
        for tile in x.split(2, dim=2):
            norm(tile)
    norms.keep(0)
    whole = norm(x)
    with norms.applied(timestep):
        tiled = [norm(tile) for tile in x.split(2, dim=2)]
        half = norm(x.bfloat16())
    torch.testing.assert_close(torch.cat(tiled, dim=2), whole)
    torch.testing.assert_close(half.float(), whole, atol=0.03, rtol=0.02)
    assert (norm(x[:, :, :2]) - whole[:, :, :2]).abs().max() > 0.01
    with norms.applied(torch.tensor(1)):  # nothing was gathered there
        assert torch.equal(norm(x[:, :, :2]), nn.functional.group_norm(x[:, :, :2], 2, norm.weight, norm.bias))
    assert not ScanNorms(nn.Sequential(nn.Conv3d(1, 1, 1)))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_scale_and_shift_are_applied_to_the_scans_statistics(batch):
    norm, x = AdaptiveGroupNorm(2, 4), torch.randn(batch, 4, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(norm.weight)
    scale_shift = torch.randn(batch, 8, generator=torch.Generator().manual_seed(1))
    norms, timestep = ScanNorms(nn.Sequential(norm)), torch.tensor(999)
    with norms.gathered(timestep):
        norm(x[:1], scale_shift[:1])
    norms.keep(0)
    groups = x[:1].unflatten(1, (2, 2))
    mean, variance = groups.mean(dim=(2, 3, 4, 5)), groups.var(dim=(2, 3, 4, 5), correction=0)
    mean, sd = (t[..., None, None, None, None] for t in (mean, (variance + norm.eps).sqrt()))
    normed = (x.unflatten(1, (2, 2)) - mean) / sd
    scale, shift = (values[:, :, None, None, None] for values in scale_shift.chunk(2, dim=1))
    by_hand = normed.flatten(1, 2) * norm.weight[:, None, None, None] + norm.bias[:, None, None, None]
    with norms.applied(timestep):
        torch.testing.assert_close(norm(x, scale_shift), by_hand * (1.0 + scale) + shift)


def test_slices_at_a_cut_do_not_count_for_the_statistics():
    norm, x = nn.GroupNorm(2, 4), torch.randn(1, 4, 8, 5, 7, generator=torch.Generator().manual_seed(0))
    norms, timestep = ScanNorms(nn.Sequential(norm)), torch.tensor(1)
    layout = SlabLayout(8, 4, 2, 1)
    assert layout.spread(3) == layout.starts == [0, 2, 4]
    assert [layout.inner(start) for start in layout.starts] == [(0.0, 0.75), (0.25, 0.75), (0.25, 1.0)]
    for start in layout.starts:
        tile = torch.full((1, 4, 4, 5, 7), 1000.0)  # what a cut does to its neighbours
        first, last = (round(4 * part) for part in layout.inner(start))
        tile[:, :, first:last] = x[:, :, start + first : start + last]
        for shown in (torch.randn(1, 4, 4, 5, 7), tile):  # of a tile that is shown again the last time counts
            with norms.gathered(timestep, layout.inner(start)):
                norm(shown)
            norms.keep(start)
    with norms.applied(timestep):
        torch.testing.assert_close(norm(x), nn.functional.group_norm(x, 2, norm.weight, norm.bias))
    with norms.gathered(timestep, (0.25, 0.75)):  # a level whose grid has no more than two slices of it
        norm(x[:, :, :2])
    norms.keep(9)
    assert SlabLayout(100, 10, 4, 2).spread(4) == [0, 30, 60, 90]


class CountedSlices:
    """Slices of a scan, and how many of them are under way."""

    def __init__(self, low: CTVolume) -> None:
        self.low, self.given, self.most, self.reads = low, 0, 0, np.zeros(low.shape[0], int)

    def read(self, start: int, stop: int) -> np.ndarray:
        self.reads[start:stop] += 1
        if self.reads[start] == 2:  # the first time is that of the noise level
            self.most = max(self.most, stop - self.given)
        return self.low.hu[start:stop]


@pytest.mark.parametrize("steps", [1, 3])
def test_the_slices_under_way_do_not_grow_with_the_scan(steps):
    pipe, most = make_pipe(norm_type="rms"), []
    for depth in (32, 64):  # the last tile advances as far as the others
        counted = CountedSlices(scan((depth, 16, 16)))
        slices = ScanSlices((depth, 16, 16), (2.0, 0.8, 0.8), counted.low.affine_lps, counted.read)
        stream = RestorationStream(
            pipe, slices, num_inference_steps=steps, tile_size=(8, 16, 16), tile_overlap=(4, 0, 0)
        )
        for slab in stream:
            counted.given = slab.z.stop
        assert (counted.reads == 2).all()
        most.append(counted.most)
    assert most[0] == most[1] <= 8 + 8 * steps


def test_the_cost_counts_every_evaluation_and_is_printed_in_words():
    low = scan((40, 60, 64))
    written = []

    def seconds_per_slice(image):
        written.append(image.shape)
        return 100.0

    stream = RestorationStream(
        make_pipe(), ScanSlices.of(low), num_inference_steps=3, num_samples=2, tile_size=(8, 32, 64),
        tile_overlap=(4, 16, 0),
    )  # fmt: skip
    cost = stream.measure(seconds_per_slice)
    assert cost.evaluations == (9 + 15) * 3 * 3 * 2  # tiles along z and for the norms, in the plane, steps, samples
    assert written == [(60, 64)] and 4000.0 < cost.seconds < 4200.0
    assert cost.peak_bytes > 2**26 and "1 h 0" in str(cost) and "432 evaluations" in str(cost)
    assert [duration(s) for s in (0.01, 9.94, 59.4, 61, 3725)] == ["0.1 s", "9.9 s", "59 s", "1 min 01 s", "1 h 02 min"]


@pytest.mark.parametrize(("norm_type", "tiles_for_norms"), [("rms", 0), ("group", 15)])
def test_the_estimate_counts_reading_by_slices_and_the_network_by_tiles(monkeypatch, norm_type, tiles_for_norms):
    low, clock = scan((40, 16, 16)), 0.0

    def read(start: int, stop: int) -> np.ndarray:
        nonlocal clock
        clock += 0.02 * (stop - start)
        return low.hu[start:stop]

    def predict(x_t: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        nonlocal clock
        clock += 1.0
        return torch.zeros_like(x_t)

    # A clock that runs while a slice is read and a tile is evaluated, and is no slower on a busy machine.
    monkeypatch.setattr("diffusers_ct.pipelines.streaming.time", SimpleNamespace(perf_counter=lambda: clock))
    slices = ScanSlices(low.shape, low.spacing_mm, low.affine_lps, read, low.conditions)
    stream = RestorationStream(make_pipe(norm_type=norm_type), slices, tile_size=(8, 16, 16), tile_overlap=(4, 0, 0))
    monkeypatch.setattr(stream, "_predict_as_shown", predict)
    estimated, began = stream.measure().seconds, clock
    assert sum(len(slab.hu) for slab in stream) == 40
    assert estimated == pytest.approx(clock - began)
    assert estimated == pytest.approx((9 + tiles_for_norms) * 1.0 + (40 + 8 * tiles_for_norms) * 0.02)


def test_thin_slabs_measured_together_keep_to_the_grid_of_the_network():
    pipe = make_pipe(patch_size=(2, 2, 2), downsample_strides=(2, 2, 2))  # a grid of 4 slices
    low = ScanSlices.of(scan((20, 30, 26)))
    stream = RestorationStream(pipe, low, batch=8, norm_statistics="tile", tile_size=(16, 32, 32))
    assert stream.measure().evaluations == len(list(stream)) == 2


def test_small_tiles_overlap_by_half():
    pipe, low = make_pipe(norm_type="rms"), scan((12, 40, 40))
    by_default, _ = streamed(pipe, low, tile_size=(8, 32, 32))
    told, _ = streamed(pipe, low, tile_size=(8, 32, 32), tile_overlap=(4, 16, 16))
    assert np.array_equal(by_default, told)


def test_free_memory_is_what_the_control_groups_leave(tmp_path, monkeypatch):
    inner = tmp_path / "user.slice" / "job"
    inner.mkdir(parents=True)
    limits = ((tmp_path, "max", 0, 0), (inner.parent, 2**30, 2**30 - 2**20, 2**29), (inner, 2**31, 2**20, 0))
    for folder, limit, used, cache in limits:
        for name, text in (("max", limit), ("current", used), ("stat", f"anon 5\ninactive_file {cache}")):
            (folder / f"memory.{name}").write_text(f"{text}\n")
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/user.slice/job\n")
    monkeypatch.setattr(restoration_cost, "_CGROUP", tmp_path)
    monkeypatch.setattr(restoration_cost, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(restoration_cost, "kept_bytes", lambda: 1000)
    assert restoration_cost.free_bytes(torch.device("cpu")) == 2**20 + 2**29 + 1000
    (inner.parent / "memory.max").write_text("max\n")
    assert restoration_cost.free_bytes(torch.device("cpu")) == 2**31 - 2**20 + 1000
    (tmp_path / "own").unlink()  # not of Linux: the machine's memory alone
    assert restoration_cost.free_bytes(torch.device("cpu")) > 2**31


def test_what_does_not_fit_is_refused_before_a_slice_is_read(monkeypatch):
    def read(start, stop):
        raise AssertionError("read")

    slices = ScanSlices((64, 512, 512), (1.0, 0.7, 0.7), np.diag([0.7, 0.7, 1.0, 1.0]), read)
    monkeypatch.setattr("diffusers_ct.pipelines.streaming.free_bytes", lambda device: 2.0**28)
    with pytest.raises(
        DoesNotFitError, match=r"0.25 GiB are free: give a smaller `tile_size` than 16 512 512 or fewer"
    ):
        RestorationStream(make_pipe(), slices, num_samples=4, num_inference_steps=10)
    with pytest.raises(AssertionError, match="read"):
        RestorationStream(make_pipe(), slices, tile_size=(8, 64, 64), tile_overlap=(2, 16, 16))


def test_refusals_are_those_of_the_pipeline():
    contract = CheckpointContract("phantoms", "Apache-2.0", kernels=("D45f",))
    with pytest.raises(ContractError, match="kernels is 'B30f'"):
        RestorationStream(make_pipe(contract=contract), ScanSlices.of(scan()))
    with pytest.raises(ValueError, match="not in Hounsfield"):
        RestorationStream(make_pipe(), ScanSlices.of(CTVolume.from_array(np.zeros((2, 8, 8)), (1, 1, 1))))
    with pytest.raises(ValueError, match="not finite"):
        RestorationStream(make_pipe(), ScanSlices.of(CTVolume.from_array(np.full((2, 8, 8), np.nan), (1, 1, 1))))
    with pytest.raises(ValueError, match="trailing"):
        RestorationStream(make_pipe(settings={"timestep_spacing": "leading"}), ScanSlices.of(scan()))


def test_blocks_part_the_scan_and_end_where_tiles_begin():
    layout = SlabLayout(depth=26, tile=12, overlap=6)
    assert layout.starts == [0, 6, 12, 14]
    assert layout.spread(8) == layout.starts and layout.spread(2) == [0, 14]
    assert layout.blocks == [slice(0, 6), slice(6, 12), slice(12, 14), slice(14, 26)]
    assert SlabLayout(depth=5, tile=12, overlap=6).blocks == [slice(0, 5)]
