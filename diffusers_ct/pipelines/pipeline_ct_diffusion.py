"""`CTDiffusionPipeline`: restores a CT scan. HU in, HU out."""

import inspect
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import HfApi

from ..conditions import ScanConditions
from ..models import UNet3DCTModel
from ..registration import register
from ..residual import CONDITION_CHANNELS, decode_residual, encode_condition, estimate_noise_hu, scan_vector
from ..schedulers import check_scheduler_config
from ..volume import CTVolume
from .contract import CheckpointContract
from .pipeline_output import CTDiffusionPipelineOutput
from .tiling import Size, evaluate_tiled

register()

_TILE_VOXELS = 2**22  # 16 slices of 512 x 512: some 2 GB of activations in float32 with the small presets
_OVERLAP: Size = (6, 64, 64)
_TILE_WIDTH = 512  # of planes so large that a tile of whole planes would be too thin to overlap its neighbours
OUTPUT_TYPES = ("volume", "pt", "np")

# Those that reach a Gaussian posterior in the tests. Others are finite but wrong at zero terminal SNR: with 5 steps
# Heun gives a spread of 37 where 0.5 is right, LCM 0.29 (it is made for distilled models), IPNDM 0.91.
SAMPLERS = (
    DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler,
)  # fmt: skip


class CTDiffusionPipeline(DiffusionPipeline):
    """Restores low-dose CT by sampling the residual between full and low dose.

    With one step of DDIM (or any scheduler here) the result is the minimum-mean-square-error estimate and does not
    depend on the noise; with more steps each sample is a draw from the posterior, and `num_samples` of them give
    mean and uncertainty. Values outside the training range (metal) pass through the residual form unclipped.

    Args:
        unet: predicts the residual's v from (noisy residual, condition channels).
        scheduler: any of diffusers' DDPM, DDIM, DPM-Solver++, UniPC, ... with "trailing" timesteps.
        contract: `CheckpointContract.to_dict()`; None promises nothing and checks nothing.

    References:
        Whang et al. 2022, "Deblurring via stochastic refinement", arXiv:2112.02475 (residual diffusion);
        Lin et al. 2024, arXiv:2305.08891 (zero terminal SNR).
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 (diffusers' own form)

    def __init__(
        self, unet: UNet3DCTModel, scheduler: KarrasDiffusionSchedulers, contract: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        if contract is not None:
            CheckpointContract.from_dict(contract)
        self.register_to_config(contract=contract)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "CTDiffusionPipeline":
        """Loads from a folder or the Hub; from safetensors alone, so that loading never runs code."""
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Add CTDiffusionPipeline",
    ) -> str:
        """Pushes weights, config and card in one commit; returns its address.

        Args:
            repo_id: "user/name".
            card: text of the model card, from `diffusers_ct.hub.render_model_card`; there is no stub to push without.
            private: of a repository that is made new.
            token: of the Hub; None takes the one logged in with.
            commit_message: of the commit.
        """
        if not card.startswith("---\n"):
            raise ValueError("`card` must be a model card with its metadata: see `diffusers_ct.hub.render_model_card`.")
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=True)
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message))

    @property
    def contract(self) -> CheckpointContract | None:
        """What the checkpoint was trained on."""
        given = self.config.contract
        return None if given is None else CheckpointContract.from_dict(given)

    @torch.no_grad()
    def __call__(
        self,
        volume: CTVolume | np.ndarray | torch.Tensor,
        *,
        spacing_mm: tuple[float, float, float] | None = None,
        conditions: ScanConditions | None = None,
        num_inference_steps: int = 1,
        num_samples: int = 1,
        sample_batch_size: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        tile_size: Size | None = None,
        tile_overlap: Size = _OVERLAP,
        output_type: str = "volume",
        return_samples: bool = False,
        ignore_contract: Sequence[str] = (),
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> Any:
        """Restores one scan.

        Args:
            volume: low-dose scan in HU: a `CTVolume`, or (depth, height, width).
            spacing_mm: (z, y, x), needed for arrays.
            conditions: of the scan, for arrays; None is unknown.
            num_inference_steps: 1 for the estimate of least mean square error; 10 to 50 for samples.
            num_samples: samples drawn; with more than one the result is their mean.
            sample_batch_size: samples evaluated together; changes speed, not the result.
            eta: of DDIM, in [0, 1); 0 is deterministic given the starting noise.
            generator: source of all noise, on the CPU for results that do not depend on the device.
            tile_size: (depth, height, width) of a tile, multiples of the network's factor; None takes whole planes
                (512 x 512 of larger ones) and as many slices as some 4 million voxels hold. The network's memory
                grows with the tile times `sample_batch_size`.
            tile_overlap: voxels that neighbouring tiles share at least, (z, y, x); tiles keep to the network's grid.
            output_type: "volume", "pt" or "np".
            return_samples: also return the samples.
            ignore_contract: names of the contract's promises that are not to be checked.
            callback_on_step_end: called as f(pipeline, step, timestep, tensors) after each step; may return changed
                tensors.
            callback_on_step_end_tensor_inputs: which tensors it gets: "latents", the noisy residuals
                (batch, 1, depth, height, width) in units of the noise level.
            return_dict: return `CTDiffusionPipelineOutput` rather than a tuple.

        Raises:
            ValueError: for input that cannot be used, before any work.
            ContractError: for a scan outside the checkpoint's contract.
        """
        # 1. check
        low = self._to_volume(volume, spacing_mm, conditions)
        self.check_inputs(
            num_inference_steps,
            num_samples,
            sample_batch_size,
            output_type,
            tile_size,
            callback_on_step_end_tensor_inputs,
            eta,
        )
        noise_levels = estimate_noise_hu(low.hu)
        unchecked: list[str] = []
        if self.contract is not None:
            unchecked = self.contract.check(
                spacing_mm=low.spacing_mm,
                noise_level_hu=(float(noise_levels.min()), float(noise_levels.max())),
                conditions=low.conditions,
                ignore=ignore_contract,
            )

        # 2. encode: everything the network is told of the scan, on the padded grid
        device = self._execution_device
        low_hu, noise_hu = self._pad(low.hu, noise_levels)
        low_hu, noise_hu = low_hu.to(device), noise_hu.to(device)
        pooled = scan_vector(noise_hu, torch.tensor([low.spacing_mm], device=device))
        size: Size = (low_hu.shape[2], low_hu.shape[3], low_hu.shape[4])
        tile = self._tile(size, tile_size, tile_overlap)

        # 3. sample
        depth, height, width = low.shape
        generators = _sample_generators(generator, num_samples)
        step_kwargs = self._extra_step_kwargs(eta)
        mean = np.zeros(low.shape, dtype=np.float32)
        squares = np.zeros(low.shape, dtype=np.float32)
        samples: list[np.ndarray] = []
        batches = range(0, num_samples, sample_batch_size)
        with self.progress_bar(total=num_inference_steps * len(batches)) as bar:
            for start in batches:
                batch = generators[start : start + sample_batch_size]
                latents = self.prepare_latents(batch, size, device)
                self.scheduler.set_timesteps(num_inference_steps, device=device)
                latents = latents * getattr(self.scheduler, "init_noise_sigma", 1.0)
                for step, timestep in enumerate(self.scheduler.timesteps):
                    prediction = self._predict(latents, timestep, low_hu, noise_hu, pooled, tile, tile_overlap)
                    if "generator" in step_kwargs:
                        step_kwargs["generator"] = batch
                    latents = self.scheduler.step(prediction, timestep, latents, **step_kwargs, return_dict=False)[0]
                    if callback_on_step_end is not None:
                        tensors = {}
                        for name in callback_on_step_end_tensor_inputs:
                            tensors[name] = latents
                        changed = callback_on_step_end(self, step, timestep, tensors)
                        latents = (changed or {}).get("latents", latents)
                    bar.update()
                # 4. decode: HU in float32, whatever the network's precision
                for number, residual in enumerate(latents, start=start + 1):
                    restored = decode_residual(residual[None], low_hu, noise_hu)[0, 0, :depth, :height, :width]
                    hu = restored.cpu().numpy()
                    if return_samples:
                        samples.append(hu)
                    change = hu - mean  # running mean and squared deviations (Welford 1962)
                    mean += change / number
                    squares += change * (hu - mean)

        spread = np.sqrt(squares / (num_samples - 1)) if num_samples > 1 else None
        output = CTDiffusionPipelineOutput(
            volumes=_as_type(mean, low, output_type),
            uncertainty_hu=None if spread is None else _as_type(spread, low, output_type),
            samples=_stack(samples, output_type) if return_samples else None,
            unchecked=unchecked,
        )
        self.maybe_free_model_hooks()
        return output if return_dict else (output.volumes, output.uncertainty_hu, output.samples)

    def check_inputs(
        self,
        num_inference_steps: int,
        num_samples: int,
        sample_batch_size: int,
        output_type: str,
        tile_size: Size | None,
        tensor_inputs: Sequence[str],
        eta: float = 0.0,
    ) -> None:
        """Refuses settings that cannot be meant or that would bias the result.

        Raises:
            ValueError: naming the setting.
        """
        for name, value in (
            ("num_inference_steps", num_inference_steps),
            ("num_samples", num_samples),
            ("sample_batch_size", sample_batch_size),
        ):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        if unknown := [name for name in tensor_inputs if name not in self._callback_tensor_inputs]:
            raise ValueError(f"Callbacks can get {self._callback_tensor_inputs}, not {unknown}.")
        if self.unet.config.in_channels != 1 + CONDITION_CHANNELS:
            raise ValueError(
                f"The network takes {self.unet.config.in_channels} channels; restoration needs {1 + CONDITION_CHANNELS}."
            )
        factor = self.unet.size_factor
        if tile_size is not None and any(t < 1 or t % f for t, f in zip(tile_size, factor)):
            raise ValueError(f"`tile_size` must be positive multiples of {factor}, got {tuple(tile_size)}.")
        if self.contract is not None and self.contract.target != "residual":
            raise ValueError(f"The checkpoint predicts {self.contract.target!r}; this pipeline restores by 'residual'.")
        if not isinstance(self.scheduler, SAMPLERS):
            raise ValueError(
                f"{type(self.scheduler).__name__} does not sample the posterior at zero terminal SNR: use one of "
                f"{', '.join(sampler.__name__ for sampler in SAMPLERS)}, made with from_config(pipe.scheduler.config)."
            )
        config = self.scheduler.config
        check_scheduler_config(config)
        if not 0.0 <= eta < 1.0:
            # diffusers takes the root of 1 - alpha - sigma^2, which rounds below zero at the first step.
            raise ValueError(f"`eta` must be in [0, 1), got {eta}: for eta = 1 use DDPMScheduler, the same sampler.")
        for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
            if config.get(name):
                raise ValueError(f"`{name}=True` is not right at zero terminal SNR: make the scheduler with False.")
        if config.get("final_sigmas_type", "zero") != "zero":
            raise ValueError("`final_sigmas_type` must be 'zero': otherwise noise stays in the result.")
        spacing = config.get("timestep_spacing", "trailing")
        if spacing != "trailing":
            raise ValueError(
                f"The scheduler's `timestep_spacing` is {spacing!r}: sampling would not start from pure noise and the "
                "result would be biased. Make it with "
                f"{type(self.scheduler).__name__}.from_config(pipe.scheduler.config, timestep_spacing='trailing')."
            )
        if config.get("clip_sample"):
            raise ValueError("`clip_sample=True` would cut the residual's noise at 1: make the scheduler with False.")

    def prepare_latents(self, generators: list[torch.Generator], size: Size, device: torch.device) -> torch.Tensor:
        """Starting noise of the whole padded scan, (batch, 1, depth, height, width) float32: one field for all tiles."""
        return randn_tensor((len(generators), 1, *size), generator=generators, device=device, dtype=torch.float32)

    def _predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        low_hu: torch.Tensor,
        noise_hu: torch.Tensor,
        pooled: torch.Tensor,
        tile: Size,
        overlap: Size,
    ) -> torch.Tensor:
        """The network's output for the whole field, float32, blended over tiles."""
        scaled = self.scheduler.scale_model_input(latents, timestep)
        dtype, batch = self.unet.dtype, len(latents)

        def evaluate(box: tuple[slice, slice, slice]) -> torch.Tensor:
            condition = encode_condition(low_hu[:, :, *box], noise_hu[:, box[0]]).expand(batch, -1, -1, -1, -1)
            sample = torch.cat([scaled[:, :, *box], condition], dim=1).to(dtype)
            return self.unet(sample, timestep, pooled=pooled.expand(batch, -1).to(dtype), return_dict=False)[0]

        size: Size = (latents.shape[2], latents.shape[3], latents.shape[4])
        return evaluate_tiled(evaluate, batch, size, tile, overlap, self.unet.size_factor)

    def _to_volume(
        self,
        volume: CTVolume | np.ndarray | torch.Tensor,
        spacing_mm: tuple[float, float, float] | None,
        conditions: ScanConditions | None,
    ) -> CTVolume:
        if isinstance(volume, CTVolume):
            if spacing_mm is not None or conditions is not None:
                raise ValueError("A `CTVolume` brings its own spacing and conditions: do not give them again.")
            low = volume
        else:
            if spacing_mm is None:
                raise ValueError("`spacing_mm` (z, y, x) must be given with an array: the network needs to know it.")
            array = volume.detach().cpu().numpy() if isinstance(volume, torch.Tensor) else np.asarray(volume)
            low = CTVolume.from_array(array, spacing_mm, conditions)
        if not np.isfinite(low.hu).all():
            raise ValueError("The scan holds values that are not finite.")
        if low.hu.max() - low.hu.min() <= 2.0:
            raise ValueError(
                f"The scan's values lie between {low.hu.min():.3g} and {low.hu.max():.3g}: that is not in Hounsfield "
                "units. Undo the scaling (air is -1000, water 0)."
            )
        return low

    def _pad(self, hu: np.ndarray, noise_levels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, 1, D, H, W) and (1, D), edges repeated up to multiples of the network's factor."""
        depth, height, width = (-n % f for n, f in zip(hu.shape, self.unet.size_factor))
        padded = F.pad(torch.from_numpy(hu)[None, None], (0, width, 0, height, 0, depth), mode="replicate")
        levels = F.pad(torch.from_numpy(noise_levels)[None, None], (0, depth), mode="replicate")[0]
        return padded, levels

    def _tile(self, size: Size, wanted: Size | None, overlap: Size) -> Size:
        if wanted is not None:
            return wanted
        depth_factor, *plane_factors = self.unet.size_factor
        height, width = size[1:]
        thinnest = -(-2 * overlap[0] // depth_factor) * depth_factor or depth_factor
        if size[0] > thinnest > _TILE_VOXELS // (height * width):
            height, width = (min(n, -(-_TILE_WIDTH // f) * f) for n, f in zip(size[1:], plane_factors))
        slices = max(thinnest, _TILE_VOXELS // (height * width) // depth_factor * depth_factor)
        return min(slices, size[0]), height, width

    def _extra_step_kwargs(self, eta: float) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        kwargs: dict[str, Any] = {"generator": None} if "generator" in accepted else {}
        if "eta" in accepted:
            kwargs["eta"] = eta
        elif eta:
            raise ValueError(f"`eta` belongs to DDIM; {type(self.scheduler).__name__} does not take it.")
        return kwargs


def _sample_generators(generator: torch.Generator | None, num_samples: int) -> list[torch.Generator]:
    """One generator a sample, so that batching and the scheduler's own noise do not mix samples."""
    device = generator.device if generator is not None else "cpu"
    seeds = torch.randint(2**62, (num_samples,), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def _as_type(hu: np.ndarray, like: CTVolume, output_type: str) -> Any:
    if output_type == "volume":
        return like.with_hu(hu)
    return torch.from_numpy(hu) if output_type == "pt" else hu


def _stack(samples: list[np.ndarray], output_type: str) -> Any:
    stacked = np.stack(samples)
    return torch.from_numpy(stacked) if output_type == "pt" else stacked
