"""`CTDiffusionPipeline`: restores or synthesises a CT scan, given its conditions. HU in, HU out."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..conditions import ScanConditions
from ..guidance import LogProbability
from ..hub_errors import hub_errors_in_words
from ..image_conditions import image_channels
from ..models import ConditionEncoder, NoiseAwareClassifier, UNet3DCTModel, without_origin
from ..registration import register
from ..residual import CONDITION_CHANNELS
from ..volume import CTVolume
from .conditioning import check_steps_of_classifiers
from .contract import TARGETS, CheckpointContract
from .fast_inference import FastInference, set_fast_inference
from .guided_network import GuidanceSettings
from .inputs import Image, check_counts, to_volume
from .loading import check_index, check_index_on_hub, check_weights, data_alone, not_all_safetensors
from .restoration import restore
from .samplers import check_sampler, check_steps_of_distilled
from .sampling import SamplingSettings, extra_step_kwargs
from .synthesis import synthesise
from .tiling import Size

register()

_OVERLAP: Size = (6, 64, 64)
_SYNTHESIS_STEPS = 30
OUTPUT_TYPES = ("volume", "pt", "np")


class CTDiffusionPipeline(DiffusionPipeline):
    """Samples CT scans from p(scan | conditions): restoration of low-dose CT, or synthesis.

    Restoration (`target="residual"`) samples the residual between full and low dose. With one step of DDIM (or any
    scheduler here) the result is the minimum-mean-square-error estimate and does not depend on the noise; with more
    steps each sample is a draw from the posterior, and `num_samples` of them give mean and uncertainty. Values outside
    the training range (metal) pass through the residual form unclipped. A distilled checkpoint (its scheduler is
    `CTConsistencyScheduler`) draws a sample in one step or few: there one step is a sample, not the estimate, which is
    `DDIMScheduler.from_config(pipe.scheduler.config)` with one step.

    Synthesis (`target="image"`) makes volumes from conditions and images alone.

    Args:
        unet: predicts v from (noisy field, image channels), given the conditions.
        scheduler: one of `diffusers_ct.pipelines.samplers`, made by `from_config`; others are refused.
        contract: `CheckpointContract.to_dict()`; None promises nothing and checks nothing.
        condition_encoder: turns `ScanConditions` into what the network is told; None for a network without.
        classifier: for classifier guidance.
        text_encoder: of reports, for condition encoders with `text_dim`; returns `last_hidden_state`.
        tokenizer: of the text encoder.
        target: "residual" or "image".
        image_conditions: image kinds that the network takes beside the low-dose scan, in the order of its channels,
            separated by commas: "mri,pet" (diffusers takes every list in a pipeline's config for a component).
        mask_classes: labels of the image kind "mask".

    References:
        Whang et al. 2022, "Deblurring via stochastic refinement", arXiv:2112.02475 (residual diffusion);
        Lin et al. 2024, arXiv:2305.08891 (zero terminal SNR); Ho and Salimans 2022, arXiv:2207.12598 (guidance);
        Dhariwal and Nichol 2021, arXiv:2105.05233 (classifier guidance).
    """

    model_cpu_offload_seq = "text_encoder->condition_encoder->unet"
    _optional_components = ["condition_encoder", "classifier", "text_encoder", "tokenizer"]  # noqa: RUF012
    _exclude_from_cpu_offload = ["classifier"]  # noqa: RUF012 (called by its own name, outside `forward`)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 (diffusers' own form)

    def __init__(
        self,
        unet: UNet3DCTModel,
        scheduler: KarrasDiffusionSchedulers,
        contract: dict[str, Any] | None = None,
        condition_encoder: ConditionEncoder | None = None,
        classifier: NoiseAwareClassifier | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        target: str = "residual",
        image_conditions: str = "",
        mask_classes: int = 0,
    ) -> None:
        super().__init__()
        if target not in TARGETS:
            raise ValueError(f"`target` must be one of {TARGETS}, got {target!r}.")
        if contract is not None and CheckpointContract.from_dict(contract).target != target:
            raise ValueError(f"The contract is of target {contract['target']!r}, the pipeline of {target!r}.")
        if classifier is not None and (classifier.config.target != target or classifier.config.in_channels != 1):
            raise ValueError(
                f"The classifier judges noisy samples of {classifier.config.in_channels} channels of target "
                f"{classifier.config.target!r}, the pipeline makes one channel of {target!r}: train it on these."
            )
        if (text_encoder is None) != (tokenizer is None):
            raise ValueError("`text_encoder` and `tokenizer` belong together: give both or none.")
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            condition_encoder=condition_encoder,
            classifier=classifier,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(
            contract=contract, target=target, image_conditions=image_conditions, mask_classes=mask_classes
        )
        image_channels(self.image_kinds, mask_classes=mask_classes)  # refuses unknown kinds

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "CTDiffusionPipeline":
        """Loads from a folder or the Hub, as in diffusers, but from safetensors alone and without code of a repository.

        Raises:
            HubError: if the Hub does not give it: gated, private, not there, offline, wrong token; one sentence.
            ValueError: for a pipeline that holds pickled weights or asks for code, or if `trust_remote_code` or
                `custom_pipeline` is given.
        """
        kwargs = data_alone(kwargs)
        source = str(pretrained_model_name_or_path)
        if Path(source).is_dir():
            check_index(Path(source), source, given=kwargs)
            check_weights(Path(source), source, given=kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: Any, **kwargs: Any) -> Any:
        """Downloads what `from_pretrained` needs into the cache, and returns its folder.

        Raises:
            HubError, ValueError: as `from_pretrained`.
        """
        kwargs, source = data_alone(kwargs), str(pretrained_model_name)
        check_index_on_hub(source, kwargs)
        with hub_errors_in_words(source, revision=kwargs.get("revision"), token=kwargs.get("token")):
            try:
                folder = super().download(pretrained_model_name, **kwargs)
            except OSError as error:
                if "safetensors" in str(error):
                    raise not_all_safetensors(source) from error
                raise
        check_index(Path(folder), source, given=kwargs)
        check_weights(Path(folder), source, given=kwargs)
        return folder

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves to a folder, as in diffusers, as safetensors.

        Raises:
            ValueError: for pickles, and for `push_to_hub=True`, which would push with an empty card.
        """
        if not kwargs.get("safe_serialization", True):
            raise ValueError(
                "Weights are saved as safetensors: a pickle (`safe_serialization=False`) is not loaded again."
            )
        if kwargs.get("push_to_hub"):
            raise ValueError("A model is pushed with its card: use `push_to_hub(repo_id, card=...)`.")
        super().save_pretrained(save_directory, **kwargs)

    def to_json_string(self) -> str:
        """The configuration as it is saved: without where it was loaded from."""
        return without_origin(super().to_json_string())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str | Path,
        private: bool = False,
        revision: str | None = None,
        variant: str | None = None,
        token: str | None = None,
        max_shard_size: str | int | None = None,
        commit_message: str = "Add CTDiffusionPipeline",
    ) -> str:
        """Pushes weights, configuration and card in one commit; returns its address. See `diffusers_ct.hub.push_model`.

        Args:
            repo_id: "user/name".
            card: model card from `diffusers_ct.hub.render_model_card`, a text or the file of `write_card`; there is no stub
                to push without.
            private: of a repository that is made new.
            revision: branch to push to, made if it is not there.
            variant: "fp16" adds weights in half precision.
            token: of the Hub; None takes the one logged in with.
            max_shard_size: of a file of weights, such as "5GB".
            commit_message: of the commit.

        Raises:
            CardError: if the card lacks something.
            HubError: if the Hub does not take it.
        """
        from ..hub_models import push_model  # the Hub is above the pipelines

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_model(
                folder, repo_id, card=card, private=private, revision=revision, variant=variant, token=token,
                max_shard_size=max_shard_size, commit_message=commit_message,
            )  # fmt: skip

    @property
    def contract(self) -> CheckpointContract | None:
        """What the checkpoint was trained on."""
        given = self.config.contract
        return None if given is None else CheckpointContract.from_dict(given)

    @property
    def image_kinds(self) -> tuple[str, ...]:
        """Image conditions that the network takes beside the low-dose scan, in the order of its channels."""
        return tuple(kind for kind in self.config.image_conditions.split(",") if kind)

    def enable_fast_inference(self, *, compile_blocks: bool = False) -> FastInference:
        """Sets the network up for sampling on its device and returns what is set; to be called after `.to(device)`.

        Where the device multiplies bfloat16, a float32 network is cast to it, with its channels last in memory; else
        nothing changes. Noise, steps and HU stay in float32. Without guidance, restored scans move by less than 2 % of
        their noise level (root mean square) and no voxel by more than 10 %: tested on all families, not proved. The
        cast loses digits of the weights: save or train the pipeline as it was loaded.

        Args:
            compile_blocks: also `torch.compile` the repeated blocks; the first call of each size then takes minutes.
        """
        return set_fast_inference(self.unet, self._execution_device, compile_blocks=compile_blocks)

    @torch.no_grad()
    def __call__(
        self,
        volume: Image | None = None,
        *,
        spacing_mm: tuple[float, float, float] | None = None,
        conditions: ScanConditions | Sequence[ScanConditions] | None = None,
        images: Mapping[str, Image] | None = None,
        shape: Size | None = None,
        guidance_scale: float | Mapping[str, float] = 1.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        classifier_scale: float | Mapping[str, float] = 0.0,
        classifiers: Sequence[tuple[LogProbability, float]] = (),
        num_inference_steps: int | None = None,
        num_samples: int = 1,
        sample_batch_size: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        tile_size: Size | None = None,
        tile_overlap: Size = _OVERLAP,
        slab_overlap: int | None = None,
        output_type: str = "volume",
        return_samples: bool = False,
        ignore_contract: Sequence[str] = (),
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> Any:
        """Restores one scan, or synthesises some.

        Args:
            volume: low-dose scan in HU: a `CTVolume`, or (depth, height, width); None for synthesis.
            spacing_mm: (z, y, x), needed for arrays and for synthesis.
            conditions: for synthesis and for arrays; None is unknown. In a long volume every slab is asked for the
                findings. A `CTVolume` brings its own. Synthesis takes a
                sequence too, one for each of `num_samples`.
            images: image conditions by kind ("mri", "pet", "prior", "mask", ...) on the grid of the scan; kinds that
                are left out are missing, which the network was trained for. NaN is unknown. Synthesis keeps the voxels of
                "context" (HU) and makes the others.
            shape: (depth, height, width) of a synthesised volume; None takes that of the contract.
            guidance_scale: classifier-free guidance: one number for all conditions and images together, or one for each
                by name, each nulled alone; 1 is none, more follows the conditions more closely at the cost of variety.
            guidance_rescale: in [0, 1], gives the guided estimate the spread of the unguided one, in part.
            guidance_interval: fractions of the noise schedule between which guidance acts; 1 is pure noise.
            classifier_scale: classifier guidance by the `classifier` component towards `conditions`: one number for all
                its heads or one by head ("findings", "body_part", "dose_fraction", "age_years"); 0 is none.
            classifiers: further (log probability (x_t, t) -> (batch,), scale).
            num_inference_steps: restoration: 1 for the estimate of least mean square error (None), 10 to 50 for samples;
                of a distilled checkpoint 1 (None) or its few for samples. Synthesis: 20 to 100; None takes 30.
            num_samples: samples drawn. Restoration: with more than one the result is their mean. Synthesis: volumes.
            sample_batch_size: samples evaluated together; changes speed, not the result.
            eta: of DDIM, in [0, 1); 0 is deterministic given the starting noise.
            generator: source of all noise, on the CPU for results that do not depend on the device. A list is one for
                each sample: `[torch.Generator().manual_seed(seed)]` makes the sample of a seed in `provenance` again.
            tile_size: (depth, height, width) of a tile, multiples of the network's factor; None takes whole planes
                (512 x 512 of larger ones) and as many slices as some 4 million voxels hold. The network's memory
                grows with the tile times `sample_batch_size`.
            tile_overlap: voxels that neighbouring tiles share at least, (z, y, x); tiles keep to the network's grid.
            slab_overlap: slices of a long synthesised volume that each slab is shown of the one before; None takes half
                of the slab.
            output_type: "volume", "pt" or "np".
            return_samples: also return the samples (restoration).
            ignore_contract: names of the contract's promises that are not to be checked.
            callback_on_step_end: called as f(pipeline, step, timestep, tensors) after each step; may return changed
                tensors.
            callback_on_step_end_tensor_inputs: which tensors it gets: "latents", the noisy fields
                (batch, 1, depth, height, width) in network units.
            return_dict: return `CTDiffusionPipelineOutput` rather than a tuple.

        Raises:
            ValueError: for input that cannot be used, before any work; `ConditionError` for conditions the checkpoint
                was not trained with.
            ContractError: for a scan outside the checkpoint's contract.
        """
        # 1. check what needs no data
        restoring = self.config.target == "residual"
        if num_inference_steps is None:
            num_inference_steps = 1 if restoring else _SYNTHESIS_STEPS
        self.check_inputs(
            num_inference_steps,
            num_samples,
            sample_batch_size,
            output_type,
            tile_size,
            callback_on_step_end_tensor_inputs,
            eta,
        )
        guidance = GuidanceSettings(guidance_scale, guidance_rescale, guidance_interval, tuple(classifiers))
        if guidance.classifiers:
            check_steps_of_classifiers(num_inference_steps)
        settings = SamplingSettings(
            num_inference_steps, num_samples, sample_batch_size, eta, generator, tile_size, tile_overlap, output_type,
            guidance, classifier_scale, callback_on_step_end, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        if restoring:
            if volume is None:
                raise ValueError("This checkpoint restores: give the low-dose scan as `volume`.")
            if shape is not None or slab_overlap is not None:
                raise ValueError("`shape` and `slab_overlap` belong to synthesis; a restored scan keeps its shape.")
            if conditions is not None and not isinstance(conditions, ScanConditions):
                raise ValueError("Restoration takes the `ScanConditions` of one scan, not a sequence.")
            output = restore(
                self,
                to_volume(volume, spacing_mm, conditions),
                from_header=isinstance(volume, CTVolume),
                images=images,
                settings=settings,
                return_samples=return_samples,
                ignore_contract=ignore_contract,
            )
        else:
            if volume is not None:
                raise ValueError(
                    "This checkpoint synthesises: give `images={'prior': scan}` and the like, not `volume`."
                )
            if return_samples:
                raise ValueError("`return_samples` belongs to restoration; synthesis returns all samples as `volumes`.")
            if conditions is not None and not isinstance(conditions, ScanConditions | Sequence):
                raise TypeError(f"`conditions` must be `ScanConditions` or a list of them, got {type(conditions)}.")
            if spacing_mm is None or len(spacing_mm) != 3 or not min(spacing_mm) > 0:
                raise ValueError(f"`spacing_mm` must be three positive numbers (z, y, x) in mm, got {spacing_mm}.")
            wanted = [conditions or ScanConditions()] if not isinstance(conditions, Sequence) else list(conditions)
            if len(wanted) not in (1, num_samples):
                raise ValueError(
                    f"`conditions` are {len(wanted)}, `num_samples` is {num_samples}: give one for each, or one."
                )
            output = synthesise(
                self,
                wanted * num_samples if len(wanted) == 1 else wanted,
                shape=shape,
                spacing_mm=spacing_mm,
                images=images,
                settings=settings,
                slab_overlap=slab_overlap,
                ignore_contract=ignore_contract,
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
        check_counts(
            num_inference_steps=num_inference_steps, num_samples=num_samples, sample_batch_size=sample_batch_size
        )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        if unknown := [name for name in tensor_inputs if name not in self._callback_tensor_inputs]:
            raise ValueError(f"Callbacks can get {self._callback_tensor_inputs}, not {unknown}.")
        config = self.config
        channels = 1 + image_channels(self.image_kinds, mask_classes=config.mask_classes)
        if config.target == "residual":
            channels += CONDITION_CHANNELS
        if self.unet.config.in_channels != channels:
            purpose = "restoration" if config.target == "residual" else "synthesis"
            beside = f" with the images {', '.join(self.image_kinds)}" if self.image_kinds else ""
            raise ValueError(
                f"The network takes {self.unet.config.in_channels} channels; {purpose}{beside} needs {channels}."
            )
        factor = self.unet.size_factor
        if tile_size is not None and any(t < 1 or t % f for t, f in zip(tile_size, factor)):
            raise ValueError(f"`tile_size` must be positive multiples of {factor}, got {tuple(tile_size)}.")
        check_sampler(self.scheduler, eta)
        check_steps_of_distilled(self.scheduler, num_inference_steps)
        extra_step_kwargs(self.scheduler, eta)

    def prepare_latents(self, generators: list[torch.Generator], size: Size, device: torch.device) -> torch.Tensor:
        """Starting noise of the whole padded scan, (batch, 1, depth, height, width) float32: one field for all tiles."""
        return randn_tensor((len(generators), 1, *size), generator=generators, device=device, dtype=torch.float32)
