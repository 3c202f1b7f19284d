"""From slices in HU to feature vectors, for distances between distributions: one without weights, and trained networks.

An extractor is a callable (slices, height, width) HU -> (slices, features) float64 with a `name` that says everything
its numbers depend on. Values go in as floating point through fixed HU windows: no 8 bits, no min and max of the volume.
"""

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy import fft

from ..hounsfield import hu_to_unit, window_bounds_hu

Window = str | tuple[float, float]


class FeatureExtractor(Protocol):
    """What `extract_features` takes."""

    @property
    def name(self) -> str:
        """Says everything that the features depend on; features of different names are never compared."""

    def __call__(self, slices_hu: np.ndarray) -> np.ndarray:
        """(slices, height, width) in HU to (slices, features) float64."""


class FilterBankExtractor:
    """Statistics of an oriented filter bank: deterministic, without weights, for every machine.

    For each window, mapped to [-1, 1]: the share of pixels strictly inside it; over those pixels alone (so that lung or
    air does not dilute soft tissue) their mean and standard deviation, and statistics of the moduli m of log-Gabor filters of `scales` octaves (the finest
    at 1/4 cycle a pixel) and `orientations` and, as in a scattering transform, the moduli of an isotropic log-Gabor of
    each coarser octave on each of those: the mean of log(1 + m / 0.01), in which edges do not hide noise. Borders are
    mirrored. Slices of any size from 2^scales pixels give the same number of features; a window without pixels gives 0.

    Not exact about: anything that spatial means do not keep, such as where an organ lies; and what changes less than
    patients differ, such as 40 % more noise among dense structure: measure that with the noise power spectrum and the
    bias. Distances with it are not comparable with those of Inception or RadImageNet, nor known to agree with readers.

    Args:
        windows: names of `hounsfield.WINDOWS_HU` or (lower, upper) in HU.
        scales: octaves, 1 to 6.
        orientations: directions, 2 to 16.

    References:
        Field 1987, J. Opt. Soc. Am. A 4(12) 2379 (log-Gabor); Bruna and Mallat 2013, doi:10.1109/TPAMI.2012.230
        (scattering).
    """

    def __init__(
        self, windows: Sequence[Window] = ("soft_tissue", "lung", "bone"), *, scales: int = 4, orientations: int = 4
    ) -> None:
        if not 1 <= scales <= 6 or not 2 <= orientations <= 16 or not len(windows):
            raise ValueError("A filter bank needs a window, 1 to 6 scales and 2 to 16 orientations.")
        self.bounds_hu = [window_bounds_hu(window) for window in windows]
        self.scales, self.orientations = scales, orientations

    @property
    def name(self) -> str:
        windows = ", ".join(f"{low:g}..{high:g}" for low, high in self.bounds_hu)
        return f"filter bank v1 ({self.scales} scales, {self.orientations} orientations, HU {windows})"

    @property
    def features(self) -> int:
        """Length of a feature vector."""
        coarser = self.scales * (self.scales - 1) // 2
        return len(self.bounds_hu) * (3 + self.orientations * (self.scales + coarser))

    def __call__(self, slices_hu: np.ndarray) -> np.ndarray:
        slices = _checked(slices_hu)
        if min(slices.shape[1:]) < 2**self.scales:
            raise ValueError(
                f"{self.scales} scales need slices of {2**self.scales} x {2**self.scales} pixels at least, got "
                f"{slices.shape[1:]}."
            )
        return np.concatenate([self._of_window(hu_to_unit(slices, bounds)) for bounds in self.bounds_hu], axis=1)

    def _of_window(self, unit: np.ndarray) -> np.ndarray:
        inside = (np.abs(unit) < 1.0).astype(np.float64)
        mean = _mean_inside(unit, inside)
        variance = _mean_inside((unit - mean[:, None, None]) ** 2, inside)
        found = [inside.mean(axis=(1, 2)), mean, np.sqrt(variance)]
        margin, step = 2**self.scales, 2 ** (self.scales - 1)
        padding = [(margin, margin + (-(n + 2 * margin) % step)) for n in unit.shape[1:]]
        padded = np.pad(unit, ((0, 0), *padding), mode="symmetric")
        mask = np.pad(inside, ((0, 0), *padding))  # pixels outside the slice count nothing
        size = padded.shape[1:]

        def log_mean(modulus: np.ndarray, octave: int) -> np.ndarray:
            return _mean_inside(np.log1p(modulus / 0.01), mask[:, :: 2**octave, :: 2**octave])

        moduli = []
        spectrum = fft.fft2(padded)
        for j in range(self.scales):
            for filter_ in _oriented(size, j, self.orientations):
                modulus = np.abs(fft.ifft2(_low_frequencies(spectrum, 2**j) * filter_) / 4**j)
                found.append(log_mean(modulus, j))
                moduli.append((j, modulus))
        for j, modulus in moduli:
            if j == self.scales - 1:
                continue
            spectrum = fft.fft2(modulus)
            for coarser in range(j + 1, self.scales):
                cut = 2 ** (coarser - j)
                band = _low_frequencies(spectrum, cut) * _radial(size, coarser)
                found.append(log_mean(np.abs(fft.ifft2(band) / cut**2), coarser))
        return np.stack(found, axis=1)


class NetworkExtractor:
    """A trained network from a local file whose SHA-256 is known, such as Inception or RadImageNet.

    The file is read once, its hash is compared, and only then is what was read interpreted: no pickle is ever executed.

    Args:
        network: (slices, windows, side, side) float32 to (slices, features).
        name: of the network, for the results.
        sha256: of its weights.
        windows: one a channel (three for an RGB network; the same one thrice repeats a channel).
        side_pixels: slices are padded to a square with the window's lower bound, then resized (bilinear, antialiased).
        mean: subtracted from each channel in [0, 1]; as the network was trained.
        sd: each channel is divided by it.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        *,
        name: str,
        sha256: str,
        windows: Sequence[Window],
        side_pixels: int,
        mean: Sequence[float],
        sd: Sequence[float],
    ) -> None:
        if not len(windows) == len(mean) == len(sd) or not len(windows) or min(sd) <= 0 or side_pixels < 1:
            raise ValueError("Each window needs its `mean` and positive `sd`, and `side_pixels` must be positive.")
        self.network = network
        self.bounds_hu = [window_bounds_hu(window) for window in windows]
        self.side_pixels, self.mean, self.sd = side_pixels, tuple(mean), tuple(sd)
        windows_text = ", ".join(f"{low:g}..{high:g}" for low, high in self.bounds_hu)
        self.name = f"{name} (SHA-256 {sha256.lower()}, HU {windows_text}, {side_pixels} pixels, mean {self.mean}, sd {self.sd})"

    @classmethod
    def from_export(cls, path: str | Path, *, sha256: str, **settings: Any) -> "NetworkExtractor":
        """A network saved by `torch.export.save` as a PT2 archive; its batch must be dynamic.

        Raises:
            ValueError: for another hash, or an archive with pickled objects or compiled code.
        """
        data = verified_bytes(path, sha256)
        return cls(_exported_module(data), sha256=sha256, **settings)

    @classmethod
    def from_safetensors(
        cls,
        path: str | Path,
        *,
        sha256: str,
        build: Callable[[dict[str, torch.Tensor]], Callable[[torch.Tensor], torch.Tensor]],
        **settings: Any,
    ) -> "NetworkExtractor":
        """Weights as safetensors, and the caller's function that makes the network of them (in `eval` mode).

        Raises:
            ValueError: for another hash.
        """
        from safetensors.torch import load

        return cls(build(load(verified_bytes(path, sha256))), sha256=sha256, **settings)

    def __call__(self, slices_hu: np.ndarray) -> np.ndarray:
        slices = torch.from_numpy(_checked(slices_hu)).float()
        channels = []
        for (low, high), mean, sd in zip(self.bounds_hu, self.mean, self.sd):
            unit = (slices.clip(low, high) - low) / (high - low)
            channels.append((_square(unit, self.side_pixels) - mean) / sd)
        with torch.inference_mode():
            features = self.network(torch.stack(channels, dim=1))
        if features.ndim != 2 or len(features) != len(slices):
            raise ValueError(f"The network must give (slices, features), it gave {tuple(features.shape)}.")
        return features.double().cpu().numpy()


def verified_bytes(path: str | Path, sha256: str) -> bytes:
    """What a file holds, if its SHA-256 is this one.

    Raises:
        ValueError: if it is not, or if `sha256` is not a hash.
    """
    if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError("`sha256` must be the 64 hexadecimal digits that the source of the weights publishes.")
    data = Path(path).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        raise ValueError(
            f"The weights' SHA-256 is {found}, not {sha256.lower()}: it is another file, a damaged one, or one that was "
            "tampered with. Nothing of it was loaded."
        )
    return data


_EXPORT_MEMBERS = re.compile(
    r"[^/]+/(models/model\.json|data/(weights|constants)/(model_(weights|constants)_config\.json|(weight|tensor)_\d+)"
    r"|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|version|\.data/\w+)"
)


def _exported_module(data: bytes) -> torch.nn.Module:
    """`torch.export.load` without its ways to execute a pickle: such archives are refused before it sees them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.namelist():
            if not _EXPORT_MEMBERS.fullmatch(member):
                raise ValueError(
                    "The exported network holds custom objects, compiled code or an older format, which are not loaded: "
                    "export a plain module with torch.export.save."
                )
            if member.endswith("_config.json"):
                entries = json.loads(archive.read(member))["config"].values()
                if any(entry["use_pickle"] for entry in entries):
                    raise ValueError("The exported network holds pickled tensors, which are not loaded.")
    # torch.export.load falls back to unpickling the sample inputs if they are more than tensors; this forbids it.
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        return torch.export.load(io.BytesIO(data)).module()
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _checked(slices_hu: np.ndarray) -> np.ndarray:
    slices = np.asarray(slices_hu, dtype=np.float64)
    if slices.ndim != 3 or not slices.size:
        raise ValueError(f"Slices must be (slices, height, width), got shape {slices.shape}.")
    if not np.isfinite(slices).all():
        raise ValueError("The slices hold values that are not finite.")
    return slices


def _square(unit: torch.Tensor, side: int) -> torch.Tensor:
    height, width = unit.shape[1:]
    longer = max(height, width)
    top, left = (longer - height) // 2, (longer - width) // 2
    square = torch.nn.functional.pad(unit, (left, longer - width - left, top, longer - height - top))
    return torch.nn.functional.interpolate(
        square[:, None], size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )[:, 0]


def _low_frequencies(spectrum: np.ndarray, factor: int) -> np.ndarray:
    """The spectrum (..., height, width) of the same image on a grid coarser by `factor`."""
    for axis in (-2, -1):
        n = spectrum.shape[axis]
        keep = n // factor
        spectrum = np.take(spectrum, np.r_[: (keep + 1) // 2, n - keep // 2 : n], axis=axis)
    return spectrum


def _mean_inside(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(slices,) mean over the mask, 0 where it is empty."""
    count = mask.sum(axis=(1, 2))
    return (values * mask).sum(axis=(1, 2)) / np.maximum(count, 1.0)


def _frequencies(shape: tuple[int, ...], octave: int) -> tuple[np.ndarray, np.ndarray]:
    """Cycles a pixel of the full grid, at the frequencies that the grid coarser by 2^octave keeps."""
    y, x = (fft.fftfreq(n // 2**octave) / 2**octave for n in shape)
    return y[:, None], x[None, :]


@lru_cache(maxsize=32)
def _radial(shape: tuple[int, ...], octave: int) -> np.ndarray:
    y, x = _frequencies(shape, octave)
    radius = np.hypot(y, x)
    radius[0, 0] = 1.0
    band = np.exp(-0.5 * (np.log(radius / (0.25 / 2**octave)) / np.log(0.65)) ** 2)
    band[0, 0] = 0.0
    return band


@lru_cache(maxsize=32)
def _oriented(shape: tuple[int, ...], octave: int, orientations: int) -> list[np.ndarray]:
    """One-sided filters, so that the modulus is the envelope."""
    y, x = _frequencies(shape, octave)
    angle = np.arctan2(y, x)
    filters = []
    for k in range(orientations):
        off = np.angle(np.exp(1j * (angle - k * np.pi / orientations)))
        filters.append(_radial(shape, octave) * np.exp(-0.5 * (off / (0.6 * np.pi / orientations)) ** 2))
    return filters
