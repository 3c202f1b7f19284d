"""Learned baselines, trained by the package's own loop with the same data and budget; each file is one method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .backbone import BackboneBaseline
from .baseline import LearnedBaseline, read_config, read_weights
from .cold_diffusion import ColdDiffusion, ColdDiffusionObjective
from .conditional_ddpm import EpsilonDDPM, EpsilonObjective
from .dncnn import DnCNN
from .mse_twin import MSETwin, ResidualMSEObjective
from .red_cnn import REDCNN
from .slice_network import SliceObjective

_CLASSES: tuple[type[LearnedBaseline], ...] = (REDCNN, DnCNN, MSETwin, ColdDiffusion, EpsilonDDPM)
LEARNED_BASELINES: dict[str, type[LearnedBaseline]] = {baseline.name: baseline for baseline in _CLASSES}


def make_baseline(name: str, *, backbone: Mapping[str, Any]) -> LearnedBaseline:
    """A new baseline with random weights; seed torch before.

    Args:
        name: of `LEARNED_BASELINES`.
        backbone: arguments of `UNet3DCTModel` for the methods on the package's backbone; others have a network of
            their own.

    Raises:
        ValueError: if there is no such baseline.
    """
    found = _class_of(name)
    return found(backbone) if issubclass(found, BackboneBaseline) else found()


def load_baseline(folder: str | Path) -> LearnedBaseline:
    """A baseline that `LearnedBaseline.save` wrote, in eval mode on the CPU.

    Raises:
        FileNotFoundError: if the folder holds none.
        ValueError: if its files do not belong together, or it is of a kind that is not known.
    """
    facts = read_config(folder)
    baseline = _class_of(facts["baseline"])(**facts["config"])
    read_weights(folder, baseline.network)
    baseline.network.eval()
    return baseline


def _class_of(name: str) -> type[LearnedBaseline]:
    if name not in LEARNED_BASELINES:
        raise ValueError(f"There is no learned baseline {name!r}: choose one of {', '.join(LEARNED_BASELINES)}.")
    return LEARNED_BASELINES[name]


__all__ = [
    "LEARNED_BASELINES",
    "REDCNN",
    "ColdDiffusion",
    "ColdDiffusionObjective",
    "DnCNN",
    "EpsilonDDPM",
    "EpsilonObjective",
    "LearnedBaseline",
    "MSETwin",
    "ResidualMSEObjective",
    "SliceObjective",
    "load_baseline",
    "make_baseline",
]
