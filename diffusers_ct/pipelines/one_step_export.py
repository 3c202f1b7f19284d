"""One-step restoration as one graph, HU in and HU out, for `torch.export` and ONNX: inference without this package.

The graph holds all between a scan and its restoration but what needs sorting or depends on names: the noise level of
each slice (`residual.estimate_noise_hu`, a median), the padding to the network's grid, and the encoding of conditions.
`one_step_inputs` makes these.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from ..conditions import ScanConditions
from ..residual import decode_residual, encode_condition, estimate_noise_hu, scan_vector
from ..schedulers import (
    CTAdaptiveDDIMScheduler,
    CTConsistencyScheduler,
    alpha_sigma,
    prediction_to_x0,
    without_pure_noise,
)
from ..volume import CTVolume
from .conditioning import encode_conditions, read_elsewhere
from .inputs import Image, to_volume
from .pipeline_ct_diffusion import CTDiffusionPipeline
from .sampling import pad_volume, padded_size, sample_generators
from .tiling import Size

FORMATS = (".onnx", ".pt2")
OUTPUT = "restored_hu"
_OPSET = 20
_NOTICE = "For research use, not a medical device."


class OneStepRestoration(nn.Module):
    """What `CTDiffusionPipeline` computes with one step, as a module of tensors alone.

    Args:
        pipe: a restoration pipeline; its network is shared, not copied.

    Raises:
        ValueError: for a pipeline that a graph cannot stand for.
    """

    timestep: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor

    def __init__(self, pipe: CTDiffusionPipeline) -> None:
        super().__init__()
        if pipe.config.target != "residual":
            raise ValueError("This checkpoint synthesises in many steps; only one-step restoration is exported.")
        if pipe.image_kinds:
            raise ValueError(f"A network that takes the images {', '.join(pipe.image_kinds)} is not exported.")
        if isinstance(pipe.scheduler, CTAdaptiveDDIMScheduler):
            raise ValueError(
                "The schedule of this checkpoint follows the scan, which one step does not need: export with "
                "`pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)`."
            )
        if pipe.unet.dtype != torch.float32:
            raise ValueError(f"The network is in {pipe.unet.dtype}: export it in float32 (`pipe.to(torch.float32)`).")
        self.unet = pipe.unet
        self.prediction_type = pipe.scheduler.config.prediction_type
        # One step from the last timestep is the estimate of least mean square error; that of a distilled network, a sample.
        distilled = isinstance(pipe.scheduler, CTConsistencyScheduler)
        config = pipe.scheduler.config
        last = torch.tensor([config.distilled_timesteps[0] if distilled else config.num_train_timesteps - 1])
        alpha, sigma = alpha_sigma(pipe.scheduler, last)
        self.register_buffer("timestep", last.to(pipe.unet.device))
        self.register_buffer("alpha", alpha.to(pipe.unet.device))
        self.register_buffer("sigma", sigma.to(pipe.unet.device))

    def forward(
        self,
        low_hu: torch.Tensor,
        noise_hu: torch.Tensor,
        spacing_mm: torch.Tensor,
        start_noise: torch.Tensor,
        condition_vector: torch.Tensor | None = None,
        condition_tokens: torch.Tensor | None = None,
        condition_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(1, 1, depth, height, width) float32 HU, restored.

        Args:
            low_hu: (1, 1, depth, height, width) in HU, float32, a size of whole multiples of the network's `size_factor`.
            noise_hu: (1, depth) of `estimate_noise_hu`.
            spacing_mm: (1, 3) as (z, y, x).
            start_noise: like `low_hu`, standard normal; it has no effect but in a distilled network, whose sample it decides.
            condition_vector: (1, n), of a checkpoint with conditions.
            condition_tokens: (1, length, dim), of a checkpoint with cross-attention.
            condition_mask: (1, length) bool, beside the tokens.
        """
        shown = without_pure_noise(start_noise, self.alpha)
        sample = torch.cat([shown, encode_condition(low_hu, noise_hu)], dim=1)
        vector = scan_vector(noise_hu, spacing_mm)
        if condition_vector is not None:
            vector = torch.cat([vector, condition_vector], dim=1)
        prediction = self.unet(
            sample,
            self.timestep,
            encoder_hidden_states=condition_tokens,
            pooled=vector,
            spacing_mm=spacing_mm if self.unet.needs_spacing else None,
            encoder_attention_mask=condition_mask,
            return_dict=False,
        )[0]
        residual = prediction_to_x0(prediction, start_noise, self.alpha, self.sigma, self.prediction_type)
        return decode_residual(residual, low_hu, noise_hu)


@torch.no_grad()
def one_step_inputs(
    pipe: CTDiffusionPipeline,
    volume: Image,
    *,
    spacing_mm: tuple[float, float, float] | None = None,
    conditions: ScanConditions | None = None,
    generator: torch.Generator | None = None,
    ignore_contract: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """What the exported graph takes for one scan, by name; arguments as those of `CTDiffusionPipeline.__call__`.

    The restored scan is the graph's output cropped to the scan's shape: padding is at the end of each axis. The same
    generator gives the result of the pipeline.

    Raises:
        ValueError: for a scan that cannot be used.
        ContractError: for a scan outside the checkpoint's contract.
    """
    scan = to_volume(volume, spacing_mm, conditions)
    fields, _ = encode_conditions(
        pipe,
        [scan.conditions],
        scan.spacing_mm,
        strict=not isinstance(volume, CTVolume),
        elsewhere=read_elsewhere(pipe, [], describing=True),
    )
    noise_levels = estimate_noise_hu(scan.hu)
    if pipe.contract is not None:
        pipe.contract.check(
            spacing_mm=scan.spacing_mm,
            noise_level_hu=(float(noise_levels.min()), float(noise_levels.max())),
            conditions=scan.conditions,
            ignore=ignore_contract,
        )
    size = padded_size(scan.shape, pipe.unet.size_factor)
    levels = np.pad(noise_levels, (0, size[0] - scan.shape[0]), mode="edge")
    device = pipe.unet.device
    inputs = {
        "low_hu": pad_volume(scan.hu, size),
        "noise_hu": torch.from_numpy(levels)[None],
        "spacing_mm": torch.tensor([scan.spacing_mm], dtype=torch.float32),
        "start_noise": pipe.prepare_latents(sample_generators(generator, 1), size, device),
    }
    if fields is not None:
        encoded = pipe.condition_encoder(fields, batch_size=1)
        inputs["condition_vector"] = encoded.pooled
        if pipe.unet.config.get("cross_attention_dim"):
            inputs |= {"condition_tokens": encoded.tokens, "condition_mask": encoded.mask}
    return {name: value.to(device) for name, value in inputs.items()}


def export_one_step(pipe: CTDiffusionPipeline, path: str | Path, *, shape: Size | None = None) -> Path:
    """Writes one-step restoration as one graph, by the suffix of `path`: ".onnx" or ".pt2" (`torch.export`).

    The graph takes the inputs of `OneStepRestoration.forward` by name, float32 and with a batch of one, and returns
    "restored_hu". Contract and notice are in its metadata (ONNX `metadata_props`, `torch.export.load(extra_files=...)`).
    It does not cut a scan into tiles.

    Args:
        pipe: a restoration pipeline, its network in float32; merge adapters before.
        path: of the file.
        shape: (depth, height, width) that the graph is bound to, multiples of the network's `size_factor`; None leaves
            them free; a ".pt2" then takes twice that factor and more, or 1 where it is 1. Networks with attention, whose
            windows are counted when the graph is made, need it.

    Returns:
        The path.

    Raises:
        ImportError: for ONNX without its packages (`pip install diffusers-ct[export]`).
        ValueError: for a pipeline, suffix or shape that cannot be exported.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"`path` must end in one of {', '.join(FORMATS)}, got {path.name!r}.")
    module = OneStepRestoration(pipe).eval()
    config, factor = pipe.unet.config, pipe.unet.size_factor
    if shape is None and (config.attention_levels or any(config.transformer_depth)):
        raise ValueError("A network with attention is exported for one `shape` (depth, height, width): give it.")
    if shape is not None and any(n < 1 or n % f for n, f in zip(shape, factor)):
        raise ValueError(f"`shape` must be positive multiples of {factor}, got {tuple(shape)}.")
    example = _example(pipe, shape or (3 * factor[0], 6 * factor[1], 5 * factor[2]))
    dynamic = None if shape is not None else _free_sizes(example, factor)
    with torch.no_grad():
        program = torch.export.export(module, (), kwargs=example, dynamic_shapes=dynamic, strict=False)
    facts = {"contract": json.dumps(pipe.config.contract), "notice": _NOTICE}
    if path.suffix == ".pt2":
        torch.export.save(program, path, extra_files={f"{name}.json": json.dumps(fact) for name, fact in facts.items()})
        return path
    onnx = _to_onnx(program, example)
    onnx.model.metadata_props.update(facts)
    onnx.save(path)
    return path


def _to_onnx(program: Any, example: dict[str, torch.Tensor]) -> Any:
    try:
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ImportError("ONNX needs two more packages: pip install 'diffusers-ct[export]'.") from error
    return torch.onnx.export(
        program, (), kwargs=example, input_names=list(example), output_names=[OUTPUT], opset_version=_OPSET,
        dynamo=True, verbose=False,
    )  # fmt: skip


def _example(pipe: CTDiffusionPipeline, shape: Size) -> dict[str, torch.Tensor]:
    """Inputs of the right kinds and of a shape; their values leave no trace."""
    generator = torch.Generator().manual_seed(0)
    hu = np.random.default_rng(0).normal(40.0, 20.0, shape).astype(np.float32)
    promises = () if pipe.contract is None else pipe.contract.checkable()
    return one_step_inputs(pipe, hu, spacing_mm=(1.0, 1.0, 1.0), generator=generator, ignore_contract=promises)


def _free_sizes(example: dict[str, torch.Tensor], factor: Size) -> dict[str, Any]:
    """Depth, height and width are free, in multiples of the network's factor."""
    axes = []
    for name, f in zip(("depth", "height", "width"), factor):
        axes.append(Dim(name) if f == 1 else f * Dim(f"{name}_by_{f}"))
    depth, height, width = axes
    field = {2: depth, 3: height, 4: width}
    fixed: dict[str, Any] = dict.fromkeys(example)
    return {**fixed, "low_hu": field, "start_noise": field, "noise_hu": {1: depth}}
