"""What a configuration costs, counted without running it: parameters, operations, memory.

Everything is counted on torch's meta device, where tensors have shapes and no values, so it takes seconds and no
memory. Counts are exact for the operations as written; a run adds the libraries' workspaces and the allocator's slack.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .unet_3d_ct import UNet3DCTModel


@dataclass(frozen=True)
class Complexity:
    """Cost of one forward pass.

    Attributes:
        parameters: numbers the model learns.
        forward_flops: multiplications and additions of convolutions, products and attention; norms and activations,
            which cost memory traffic instead, are not in it.
        weight_bytes: of the parameters.
        inference_peak_bytes: largest sum of tensors that exist at one time, input included, weights not.
        training_saved_bytes: tensors kept for the backward pass (without gradient checkpointing), weights not. A
            training step needs these, the weights, their gradients and the optimizer's state.
    """

    parameters: int
    forward_flops: int
    weight_bytes: int
    inference_peak_bytes: int
    training_saved_bytes: int


def count_complexity(
    config: Mapping[str, Any],
    shape: tuple[int, int, int],
    *,
    batch: int = 1,
    context_length: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Complexity:
    """Counts for a configuration of `UNet3DCTModel`.

    Attention is counted as one fused operation that never stores its scores, as on a GPU and in torch on a CPU.

    Args:
        config: arguments of `UNet3DCTModel`, such as `PRESETS[name]` or `model.config`.
        shape: (depth, height, width) of the input.
        batch: samples of the input.
        context_length: tokens that cross-attention reads, where the model has it.
        dtype: of weights and activations.

    Raises:
        ValueError: if the configuration or the shape does not fit.
    """
    with torch.device("meta"):
        model = UNet3DCTModel.from_config(dict(config))
        torch.nn.Module.to(model, dtype)
        given = {"sample": torch.empty(batch, model.config["in_channels"], *shape, dtype=dtype)}
        given |= {"timestep": torch.empty(batch), "spacing_mm": torch.empty(batch, 3)}
        if pooled_dim := model.config["pooled_dim"]:
            given["pooled"] = torch.empty(batch, pooled_dim, dtype=dtype)
        if context_dim := model.config["cross_attention_dim"]:
            given["encoder_hidden_states"] = torch.empty(batch, context_length, context_dim, dtype=dtype)
    return count_module(model, given)


def count_module(model: torch.nn.Module, given: Mapping[str, torch.Tensor]) -> Complexity:
    """Counts for any network that can be called with tensors alone.

    Args:
        model: on the meta device.
        given: arguments of its forward pass by name, on the meta device.
    """
    flops, live = FlopCounterMode(display=False), _LiveBytes()
    with torch.device("meta"), _FusedAttention():
        with torch.no_grad(), flops, live:
            model(**given)
        saved = _saved_bytes(model, given)
    parameters = list(model.parameters())
    return Complexity(
        parameters=sum(p.numel() for p in parameters),
        forward_flops=flops.get_total_flops(),
        weight_bytes=sum(p.nbytes for p in parameters),
        inference_peak_bytes=live.peak + sum(t.nbytes for t in given.values()),
        training_saved_bytes=saved,
    )


def training_peak_bytes(model: torch.nn.Module, given: Mapping[str, torch.Tensor]) -> int:
    """Largest sum of tensors that exist at one time of a forward and a backward pass.

    The input and the gradients of the weights are in it, the weights and the optimizer's state are not. An output that
    is a tuple or has a `sample` counts by its first tensor, whose sum is the loss.

    Args:
        model: on the meta device, without gradients.
        given: arguments of its forward pass by name, on the meta device.
    """
    live = _LiveBytes()
    with torch.device("meta"), _FusedAttention(), torch.enable_grad(), live:
        out = tree_leaves(model(**given))[0]
        out.sum().backward()
    model.zero_grad(set_to_none=True)
    return live.peak + sum(t.nbytes for t in given.values())


class _LiveBytes(TorchDispatchMode):
    """Largest sum of the storages, made within it, that existed at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                # A view of an input is nothing new, be that input the model's own or a weight.
                if storage._cdata not in inputs and self._storages.get(storage._cdata) is not storage:
                    self._storages[storage._cdata] = storage
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _gone(self, nbytes: int) -> None:
        self.live -= nbytes


class _FusedAttention(TorchFunctionMode):
    """Attention as one operation: on the meta device torch would take it apart and store all scores."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        missing = ("query", "key", "value")[len(args) :]
        query, key, value = [*args[:3], *(kwargs[name] for name in missing)]
        out = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, torch.is_grad_enabled())
        return out[0]


def _saved_bytes(model: torch.nn.Module, given: Mapping[str, torch.Tensor]) -> int:
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, Any] = {}  # holds the storages, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**given)
    return sum(storage.nbytes() for storage in saved.values())
