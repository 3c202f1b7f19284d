"""Synthesis: volumes from conditions and images; long ones slab by slab, each continuing what is already there."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..conditions import ScanConditions
from ..hounsfield import companded_to_hu
from ..image_conditions import encode_images
from ..volume import CTVolume
from .conditioning import (
    classifier_terms,
    encode_conditions,
    guided_names,
    numbers_of,
    read_elsewhere,
    says,
    size_factor,
)
from .contract import ContractError
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
from .tiling import Size


def synthesise(
    pipe: Any,
    conditions: Sequence[ScanConditions],
    *,
    shape: Size | None,
    spacing_mm: tuple[float, float, float],
    images: Mapping[str, Image] | None,
    settings: SamplingSettings,
    slab_overlap: int | None,
    ignore_contract: Sequence[str],
) -> CTDiffusionPipelineOutput:
    """Makes `num_samples` volumes; see `CTDiffusionPipeline.__call__`.

    Args:
        pipe: the pipeline, its settings checked.
        conditions: one for each sample.
        shape: (depth, height, width); None takes that of the contract.
        spacing_mm: (z, y, x).
        images: image conditions by kind, of all samples.
        settings: of the sampling.
        slab_overlap: slices that a slab is shown of the one before.
        ignore_contract: promises not to check.
    """
    # 1. check
    contract, kinds = pipe.contract, pipe.image_kinds
    trained = contract.volume_shape if contract is not None else None
    if shape is None:
        shape = trained
    if shape is None or len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"`shape` must be (depth, height, width) of the volumes to make, got {shape}.")
    if trained is not None and tuple(shape[1:]) != tuple(trained[1:]) and "volume_shape" not in ignore_contract:
        raise ContractError(
            f"The planes asked for are {shape[1]} x {shape[2]}, and this checkpoint was trained on {trained[1]} x "
            f"{trained[2]}: leave `shape` out, or, knowing that the result is not validated, pass "
            "ignore_contract=['volume_shape']."
        )
    # Made on the grid of what it is shown, if that has a place.
    place = next((image.affine_lps for image in (images or {}).values() if isinstance(image, CTVolume)), None)
    given = check_images(images, kinds, shape, spacing_mm, place, pipe.config.mask_classes)
    terms = classifier_terms(
        pipe, conditions, settings.classifier_scale, num_inference_steps=settings.num_inference_steps
    )
    fields, _ = encode_conditions(
        pipe, conditions, spacing_mm, strict=True, elsewhere=read_elsewhere(pipe, terms, describing=False)
    )
    known = guided_names(pipe, fields, given, settings.guidance.scale)
    numbers = numbers_of(conditions, spacing_mm)
    unchecked: dict[str, None] = {}
    if contract is not None:
        for one in conditions:
            unchecked |= dict.fromkeys(
                contract.check(spacing_mm=spacing_mm, noise_level_hu=None, conditions=one, ignore=ignore_contract)
            )
    factor = size_factor(pipe, terms)
    size = padded_size(shape, factor)
    slabs = slab_boxes(size[0], trained[0] if trained else size[0], slab_overlap, factor[0])
    if len(slabs) > 1 and "context" not in kinds:
        raise ValueError(
            f"A volume of {shape[0]} slices is longer than the {slabs[0].stop} that this checkpoint makes at once, and it was "
            "not trained to continue one (image condition 'context'): ask for fewer slices."
        )
    if len(slabs) > 1 and slabs[0].stop % factor[0]:
        raise ValueError(
            f"The classifier takes multiples of {factor[0]} slices, and this checkpoint continues volumes {slabs[0].stop} "
            "at a time: ask for fewer slices, or leave the classifier out."
        )
    generators = sample_generators(settings.generator, settings.num_samples)

    # 2. encode
    device = pipe._execution_device
    beside = {kind: pad_volume(image, size).to(device) for kind, image in given.items()}
    spacing = torch.tensor([spacing_mm], dtype=torch.float32, device=device)
    seeds = [seed_of(generator) for generator in generators]
    if place is None:
        place = CTVolume.from_array(np.zeros(shape, dtype=np.float32), spacing_mm).affine_lps
    volumes: list[Any] = []
    batches = settings.batches()
    with pipe.progress_bar(total=settings.num_inference_steps * len(batches) * len(slabs)) as bar:
        for rows in batches:
            batch = generators[rows]
            noise = pipe.prepare_latents(batch, size, device)
            hu = torch.full_like(noise, torch.nan)
            if "context" in beside:
                hu = beside["context"].expand_as(hu).clone()
            for slab in slabs:
                # 3. sample the slab, shown what there is of it already
                there = hu[:, :, slab].clone()

                def encode(
                    box: Box, nulled: frozenset[str], slab: slice = slab, there: torch.Tensor = there
                ) -> torch.Tensor | None:
                    if not kinds:
                        return None
                    shown = {k: v[:, :, slab][:, :, *box] for k, v in beside.items() if k not in nulled}
                    if "context" in kinds:
                        shown["context"] = there[:, :, *box]
                    like = there[:, :, *box]
                    shown = {k: v.expand(len(like), -1, -1, -1, -1) for k, v in shown.items()}
                    return encode_images(shown, kinds, like=like, mask_classes=pipe.config.mask_classes)

                slab_size: Size = (slab.stop - slab.start, size[1], size[2])
                network = GuidedNetwork(
                    unet=pipe.unet,
                    scheduler=pipe.scheduler,
                    condition_encoder=pipe.condition_encoder,
                    fields=None if fields is None else {name: values[rows] for name, values in fields.items()},
                    encode_images=encode,
                    vector=None,
                    spacing_mm=spacing,
                    known=known,
                    numbers={name: values[rows] for name, values in numbers.items()},
                    guidance=settings.guidance.with_classifiers([term.of_rows(rows) for term in terms]),
                    tile=choose_tile(slab_size, settings.tile_size, settings.tile_overlap, pipe.unet.size_factor),
                    overlap=settings.tile_overlap,
                    blind_at_zero_snr=False,
                )
                made = companded_to_hu(sample(pipe, network, noise[:, :, slab], batch, settings, bar))
                hu[:, :, slab] = torch.where(there.isfinite(), there, made)
            depth, height, width = shape
            volumes += [one.cpu().numpy() for one in hu[:, 0, :depth, :height, :width]]
    out = []
    for values, one in zip(volumes, conditions):
        like = CTVolume(values, spacing_mm, place, one, synthetic=True)
        out.append(as_output_type(np.ascontiguousarray(values), like, settings.output_type))
    provenance = [
        _provenance(pipe, seed, one, sorted(given), settings, slab_overlap) for seed, one in zip(seeds, conditions)
    ]
    return CTDiffusionPipelineOutput(volumes=out, unchecked=list(unchecked), provenance=provenance)


def slab_boxes(depth: int, slab: int, overlap: int | None, factor: int) -> list[slice]:
    """Slices of `slab` length that cover `depth`, each overlapping the one before by at least `overlap`.

    Raises:
        ValueError: for an overlap that leaves no progress, or none to continue from.
    """
    if depth <= slab:
        return [slice(0, depth)]
    if slab <= factor:
        raise ValueError(
            f"Slabs of {slab} slices, of which the network takes multiples of {factor}, cannot continue each other: ask for "
            f"at most {slab} slices."
        )
    overlap = min(slab // 2, slab - factor) if overlap is None else overlap
    if not 1 <= overlap < slab or (slab - overlap) // factor < 1:
        raise ValueError(f"`slab_overlap` must be from 1 to {slab - factor} slices, got {overlap}.")
    step = (slab - overlap) // factor * factor
    starts = [*range(0, depth - slab, step), depth - slab]
    return [slice(start, start + slab) for start in starts]


def seed_of(generator: torch.Generator) -> int | None:
    """The seed that makes a generator's numbers again; None if some were drawn before, which no seed tells."""
    fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
    return generator.initial_seed() if torch.equal(fresh.get_state(), generator.get_state()) else None


def _provenance(
    pipe: Any,
    seed: int | None,
    conditions: ScanConditions,
    images: list[str],
    settings: SamplingSettings,
    slab_overlap: int | None,
) -> dict[str, Any]:
    guidance = settings.guidance

    def of_this(scale: float | Mapping[str, float]) -> float | dict[str, float]:
        """Without the names that others of the batch gave: alone, the sample could not be guided by them."""
        if not isinstance(scale, Mapping):
            return scale
        return {k: v for k, v in scale.items() if k in images or k == "spacing_mm" or says(conditions, k)}

    judged = () if pipe.classifier is None else pipe.classifier.heads
    classifier_scale = of_this(settings.classifier_scale) if any(says(conditions, head) for head in judged) else 0.0
    return {
        "synthetic": True,
        "seed": seed,
        "conditions": stored_conditions(conditions),
        "images": images,
        "guidance_scale": of_this(guidance.scale),
        "guidance_rescale": guidance.rescale,
        "guidance_interval": list(guidance.interval),
        "classifier_scale": classifier_scale,
        "num_inference_steps": settings.num_inference_steps,
        "eta": settings.eta,
        "slab_overlap": slab_overlap,
        "scheduler": type(pipe.scheduler).__name__,
    }


def stored_conditions(conditions: ScanConditions) -> dict[str, Any]:
    """What was asked for, as JSON; of a report only its hash, since it may name a patient."""
    stored = {k: v for k, v in conditions.to_dict().items() if v not in (None, (), [])}
    if "text" in stored:
        stored["text_sha256"] = hashlib.sha256(stored.pop("text").encode()).hexdigest()
    return stored
