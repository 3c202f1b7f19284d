"""What every learned baseline is: a network, an objective for the training loop, a restoration in HU, a folder."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ...training import Objective
from ...volume import CTVolume

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"


class LearnedBaseline(ABC):
    """A restoration method to train with the same loop, data and budget as the package's own.

    `baseline.restore(case.low)` makes it a method of `run_benchmark`. What is common to all: HU enter and leave by
    one fixed scale or by the scan's noise level, never by a slice's own range, in float32 and without clipping what
    the paper does not clip; the network's answer is added to the input in HU.

    Attributes:
        name: in `LEARNED_BASELINES` and in tables.
        source: paper.
        network: trained in place; seed torch before making it, its weights are random.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    network: nn.Module

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments, plain JSON values."""
        return {}

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @abstractmethod
    def make_objective(self, network: nn.Module) -> Objective:
        """The objective of the loop, for the network as the loop has prepared it."""

    @abstractmethod
    def restore(self, volume: CTVolume, *, seed: int = 0) -> np.ndarray:
        """Restores one scan.

        Args:
            volume: the low-dose scan, of any size.
            seed: of methods that sample; one sample is drawn, never the best of several. Others ignore it.

        Returns:
            (depth, height, width) float32 in HU. The network is left in eval mode.
        """

    def calibrate(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:  # noqa: B027 - most have nothing to set
        """Sets what is measured rather than trained: call it after training and weight averaging.

        Args:
            batches: of `PatchDataset` items, at least one.
        """

    def save(self, folder: str | Path) -> Path:
        """Writes `model.safetensors` and `config.json`; an interrupted save is refused by `load_baseline`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / WEIGHTS_NAME
        partial = weights.with_name(weights.name + ".partial")
        save_file({k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}, partial)
        facts = {
            "baseline": self.name,
            "source": self.source,
            "config": self.config,
            "num_parameters": self.num_parameters,
            "weights_sha256": _sha256(partial),
        }
        os.replace(partial, weights)
        partial = folder / (CONFIG_NAME + ".partial")
        partial.write_text(json.dumps(facts, indent=2) + "\n")
        os.replace(partial, folder / CONFIG_NAME)
        return folder


def read_config(folder: str | Path) -> dict[str, Any]:
    """What `LearnedBaseline.save` wrote into config.json.

    Raises:
        FileNotFoundError: if the folder holds no baseline.
        ValueError: if the weights are not those that the file was written with.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no learned baseline: {name} is missing. Train one and `save` it.")
    facts = json.loads((folder / CONFIG_NAME).read_text())
    if "weights_sha256" not in facts or "baseline" not in facts:
        raise ValueError(f"{folder / CONFIG_NAME} is not that of a learned baseline.")
    if facts["weights_sha256"] != _sha256(folder / WEIGHTS_NAME):
        raise ValueError(f"{WEIGHTS_NAME} and {CONFIG_NAME} in {folder} do not belong together: save it again.")
    return facts


def read_weights(folder: str | Path, network: nn.Module) -> None:
    """Loads the weights that `LearnedBaseline.save` wrote, strictly."""
    network.load_state_dict(load_file(Path(folder) / WEIGHTS_NAME))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
