"""Restoration: samples of the residual between full and low dose, added to the low dose."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..image_conditions import encode_images
from ..residual import decode_residual, encode_condition, estimate_noise_hu, scan_vector
from ..volume import CTVolume
from .conditioning import classifier_terms, encode_conditions, guided_names, numbers_of, read_elsewhere, size_factor
from .guided_network import Box, GuidedNetwork
from .inputs import Image, check_images
from .pipeline_output import CTDiffusionPipelineOutput
from .sampling import (
    SamplingSettings,
    as_output_type,
    choose_tile,
    pad_volume,
    padded_size,
    sample,
    sample_generators,
)


def restore(
    pipe: Any,
    low: CTVolume,
    *,
    from_header: bool,
    images: Mapping[str, Image] | None,
    settings: SamplingSettings,
    return_samples: bool,
    ignore_contract: Sequence[str],
) -> CTDiffusionPipelineOutput:
    """Restores one scan; see `CTDiffusionPipeline.__call__`.

    Args:
        pipe: the pipeline, its settings checked.
        low: the low-dose scan.
        from_header: whether its conditions were read from a header, so that what the checkpoint does not know is taken
            as unknown and reported, or given by the user, so that it is refused.
        images: image conditions by kind.
        settings: of the sampling.
        return_samples: also return the samples.
        ignore_contract: promises not to check.
    """
    # 1. check
    kinds = pipe.image_kinds
    affine = low.affine_lps if from_header else None
    given = check_images(images, kinds, low.shape, low.spacing_mm, affine, pipe.config.mask_classes)
    terms = classifier_terms(
        pipe, [low.conditions], settings.classifier_scale, num_inference_steps=settings.num_inference_steps
    )
    fields, left_out = encode_conditions(
        pipe,
        [low.conditions],
        low.spacing_mm,
        strict=not from_header,
        elsewhere=read_elsewhere(pipe, terms, describing=True),
    )
    known = guided_names(pipe, fields, given, settings.guidance.scale)
    noise_levels = estimate_noise_hu(low.hu)
    generators = sample_generators(settings.generator, settings.num_samples)
    unchecked: list[str] = []
    if pipe.contract is not None:
        unchecked = pipe.contract.check(
            spacing_mm=low.spacing_mm,
            noise_level_hu=(float(noise_levels.min()), float(noise_levels.max())),
            conditions=low.conditions,
            ignore=ignore_contract,
        )

    # 2. encode: everything the network is told of the scan, on the padded grid
    device = pipe._execution_device
    guidance = settings.guidance.with_classifiers([term.of_rows(slice(None)) for term in terms])
    size = padded_size(low.shape, size_factor(pipe, terms))
    low_hu = pad_volume(low.hu, size).to(device)
    levels = np.pad(noise_levels, (0, size[0] - low.shape[0]), mode="edge")
    noise_hu = torch.from_numpy(levels)[None].to(device)
    beside = {kind: pad_volume(image, size).to(device) for kind, image in given.items()}
    spacing = torch.tensor([low.spacing_mm], dtype=torch.float32, device=device)

    def encode(box: Box, nulled: frozenset[str]) -> torch.Tensor:
        cut = low_hu[:, :, *box]
        channels = encode_condition(cut, noise_hu[:, box[0]])
        if not kinds:
            return channels
        shown = {kind: image[:, :, *box] for kind, image in beside.items() if kind not in nulled}
        extra = encode_images(shown, kinds, like=cut, mask_classes=pipe.config.mask_classes)
        return torch.cat([channels, extra], dim=1)

    network = GuidedNetwork(
        unet=pipe.unet,
        scheduler=pipe.scheduler,
        condition_encoder=pipe.condition_encoder,
        fields=fields,
        encode_images=encode,
        vector=scan_vector(noise_hu, spacing),
        spacing_mm=spacing,
        known=known,
        numbers=numbers_of([low.conditions], low.spacing_mm),
        guidance=guidance,
        tile=choose_tile(size, settings.tile_size, settings.tile_overlap, pipe.unet.size_factor),
        overlap=settings.tile_overlap,
        blind_at_zero_snr=True,
    )

    # 3. sample
    depth, height, width = low.shape
    mean = np.zeros(low.shape, dtype=np.float32)
    squares = np.zeros(low.shape, dtype=np.float32)
    samples: list[np.ndarray] = []
    batches = settings.batches()
    with pipe.progress_bar(total=settings.num_inference_steps * len(batches)) as bar:
        for rows in batches:
            noise = pipe.prepare_latents(generators[rows], size, device)
            latents = sample(pipe, network, noise, generators[rows], settings, bar)
            # 4. decode: HU in float32, whatever the network's precision
            for number, residual in enumerate(latents, start=rows.start + 1):
                restored = decode_residual(residual[None], low_hu, noise_hu)[0, 0, :depth, :height, :width]
                hu = restored.cpu().numpy()
                if return_samples:
                    samples.append(hu)
                change = hu - mean  # running mean and squared deviations (Welford 1962)
                mean += change / number
                squares += change * (hu - mean)
    spread = np.sqrt(squares / (settings.num_samples - 1)) if settings.num_samples > 1 else None
    return CTDiffusionPipelineOutput(
        volumes=as_output_type(mean, low, settings.output_type),
        uncertainty_hu=None if spread is None else as_output_type(spread, low, settings.output_type),
        samples=_stack(samples, settings.output_type) if return_samples else None,
        unchecked=unchecked,
        left_out=left_out,
    )


def _stack(samples: list[np.ndarray], output_type: str) -> Any:
    stacked = np.stack(samples)
    return torch.from_numpy(stacked) if output_type == "pt" else stacked
