"""Draws the pictures of the documentation from the package itself; nothing in them is measured on a patient or trained.

    python docs/draw_figures.py                  # all, into docs/images
    python docs/draw_figures.py forward_process  # some

Each function draws one picture and is named after its file. About half a minute on one core.
"""

import argparse
from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from diffusers_ct import CTVolume, make_phantom, simulate_low_dose
from diffusers_ct.hounsfield import WINDOWS_HU, hu_to_mu_per_mm
from diffusers_ct.metrics import convention_rows, noise_power_spectrum
from diffusers_ct.physics import DoseSettings, ParallelBeam, Projector
from diffusers_ct.residual import encode_condition, encode_residual, estimate_noise_hu
from diffusers_ct.schedulers import alpha_sigma, make_noise_scheduler

IMAGES = Path(__file__).parent / "images"
SHAPE, SPACING_MM = (3, 256, 256), (3.0, 1.5, 1.5)
SOFT = WINDOWS_HU["soft_tissue"]


def phantom() -> CTVolume:
    """Abdomen of the phantom patient 4: no noise, exact truth."""
    return make_phantom(4, "abdomen", shape=SHAPE, spacing_mm=SPACING_MM).volume


def at_dose(volume: CTVolume, dose_fraction: float, kernel: str = "soft", seed: int = 0) -> np.ndarray:
    """The phantom as a scan of a dose would show it, in HU."""
    return simulate_low_dose(
        volume.hu,
        spacing_mm=volume.spacing_mm,
        dose_fraction=dose_fraction,
        seed=seed,
        source_noise="noise_free",
        settings=DoseSettings(kernel=kernel),
    )


def row_of(images: list[np.ndarray], titles: list[str], limits: list[tuple[float, float]]) -> Figure:
    """Images side by side, each with its own grey limits."""
    figure, axes = plt.subplots(1, len(images), figsize=(2.3 * len(images), 2.55))
    for axis, image, title, (low, high) in zip(axes, images, titles, limits):
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    return figure


def doses() -> Figure:
    """The truth and three doses in the soft-tissue window."""
    truth = phantom()
    images = [truth.hu[1], *(at_dose(truth, dose)[1] for dose in (0.25, 0.1, 0.05))]
    return row_of(images, ["truth", "25 % dose", "10 % dose", "5 % dose"], [SOFT] * 4)


def low_dose_simulation() -> Figure:
    """Image, its line integrals, the noise that the photons bring, and what reconstruction makes of that noise."""
    truth = phantom()
    side = SHAPE[1]
    projector = Projector(ParallelBeam.for_image((side, side), SPACING_MM[1]))
    lines = projector.forward(torch.from_numpy(hu_to_mu_per_mm(truth.hu[1])))
    photons = 0.1 * DoseSettings().i0 * np.exp(-lines.numpy())
    counts = np.random.default_rng(0).poisson(photons)
    noise = np.log(photons / np.maximum(counts, 1))
    low = at_dose(truth, 0.1)[1]
    return row_of(
        [truth.hu[1], lines.numpy(), noise, low - truth.hu[1], low],
        [
            "1  image [HU]",
            "2  line integrals",
            "3  noise of the photons",
            "4  reconstructed noise [HU]",
            "5  10 % dose [HU]",
        ],
        [SOFT, (0.0, float(lines.max())), (-0.1, 0.1), (-100.0, 100.0), SOFT],
    )


def noise_power() -> Figure:
    """Noise power spectra of the same rays with three kernels, in a water-like disc."""
    side, pixel_mm = 256, 0.8
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    disc = np.where(np.hypot(x, y) * pixel_mm < 90.0, 0.0, -1000.0).astype(np.float32)
    water = CTVolume.from_array(np.repeat(disc[None], 8, axis=0), (3.0, pixel_mm, pixel_mm))
    figure, axes = plt.subplots(1, 4, figsize=(9.6, 2.6), gridspec_kw={"width_ratios": [1, 1, 1, 1.5]})
    corner = (side - 64) // 2
    for axis, (name, colour) in zip(axes, zip(("smooth", "soft", "sharp"), ("tab:blue", "tab:orange", "tab:green"))):
        noise = at_dose(water, 0.1, name) - water.hu
        patch = noise[:, corner : corner + 64, corner : corner + 64]
        axis.imshow(patch[0], cmap="gray", vmin=-3 * patch.std(), vmax=3 * patch.std())
        axis.set_title(f"{name}: SD {patch.std():.0f} HU", fontsize=9)
        axis.axis("off")
        corners = [(z, top, left) for z in range(len(noise)) for top in (64, 128) for left in (64, 128)]
        frequency, power = noise_power_spectrum(
            noise, pixel_mm=pixel_mm, corners=corners, roi_pixels=64, detrend="mean"
        ).radial()
        axes[3].plot(frequency, power / power.max(), color=colour, label=name)
    axes[3].set_xlabel("spatial frequency [1/mm]", fontsize=8)
    axes[3].set_ylabel("noise power, peak = 1", fontsize=8)
    axes[3].tick_params(labelsize=7)
    axes[3].legend(fontsize=7, frameon=False)
    return figure


def noise_level() -> Figure:
    """The measured noise level of a scan against its dose, and its residual at two doses in units of it."""
    truth = phantom()
    fractions = (1.0, 0.5, 0.25, 0.1, 0.05)
    scans = {dose: at_dose(truth, dose) for dose in fractions}
    levels = {dose: float(estimate_noise_hu(hu).mean()) for dose, hu in scans.items()}
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.6), gridspec_kw={"width_ratios": [1.35, 1, 1]})
    axes[0].loglog(fractions, [levels[dose] for dose in fractions], "o-", label="measured in the image")
    axes[0].loglog(fractions, [levels[1.0] / dose**0.5 for dose in fractions], ":", label="as 1 / square root of dose")
    axes[0].set_xlabel("dose as a fraction of routine", fontsize=8)
    axes[0].set_ylabel("noise level s [HU]", fontsize=8)
    axes[0].tick_params(labelsize=7)
    axes[0].legend(fontsize=7, frameon=False)
    for axis, dose in zip(axes[1:], (0.25, 0.05)):
        residual = (truth.hu[1] - scans[dose][1]) / levels[dose]
        axis.imshow(residual, cmap="gray", vmin=-4, vmax=4)
        axis.set_title(f"residual / s at {100 * dose:.0f} % dose", fontsize=9)
        axis.axis("off")
    return figure


def network_input() -> Figure:
    """What the network is shown of a scan: three reading windows and two in units of the noise."""
    low = at_dose(phantom(), 0.1)
    shown = encode_condition(torch.from_numpy(low)[None, None], torch.from_numpy(estimate_noise_hu(low))[None])
    titles = ["full range", "soft tissue", "lung", "40 HU ± 8 s", "-850 HU ± 8 s"]
    return row_of([channel[1].numpy() for channel in shown[0]], titles, [(-1.0, 1.0)] * 5)


def forward_process() -> Figure:
    """The residual around the spine, from itself to pure noise along the noise schedule."""
    truth = phantom()
    low = at_dose(truth, 0.1)
    level = torch.from_numpy(estimate_noise_hu(low))[None]
    full, low_tensor = (torch.from_numpy(hu)[None, None] for hu in (truth.hu, low))
    residual = encode_residual(full, low_tensor, level)[0, 0, 1]
    noise = torch.randn(residual.shape, generator=torch.Generator().manual_seed(0))
    process = make_noise_scheduler()
    images, titles = [], []
    for timestep in (0, 250, 500, 750, 999):
        alpha, sigma = (float(value) for value in alpha_sigma(process, torch.tensor([timestep])))
        images.append((alpha * residual + sigma * noise)[96:192, 80:176].numpy())
        titles.append(f"t = {timestep}:  α {alpha:.2f}, σ {sigma:.2f}")
    return row_of(images, titles, [(-4.0, 4.0)] * 5)


def mean_and_sample() -> Figure:
    """The posterior mean and a posterior sample where both are known exactly: a Gaussian texture in white noise."""
    side, noise_sd = 192, 30.0
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    power = 1.0 / (1.0 + (frequency / 0.04) ** 2) ** 1.5  # prior: variance of each Fourier coefficient
    power *= 40.0**2 / power.mean()
    rng = np.random.default_rng(0)

    def draw(variance: np.ndarray) -> np.ndarray:
        """A stationary field with this variance in each coefficient of white noise's unitary transform."""
        white = np.fft.fft2(rng.standard_normal((side, side)))
        return np.fft.ifft2(np.sqrt(variance) * white).real

    truth = draw(power)
    seen = truth + noise_sd * rng.standard_normal((side, side))
    mean = np.fft.ifft2(power / (power + noise_sd**2) * np.fft.fft2(seen)).real
    sample = mean + draw(power * noise_sd**2 / (power + noise_sd**2))
    pictures = {"truth": truth, "input": seen, "posterior mean": mean, "posterior sample": sample}
    figure, axes = plt.subplots(1, 5, figsize=(11.4, 2.7), gridspec_kw={"width_ratios": [1, 1, 1, 1, 1.4]})
    for axis, (name, image), colour in zip(axes, pictures.items(), ("black", "tab:red", "tab:blue", "tab:green")):
        error = np.sqrt(np.mean((image - truth) ** 2))
        axis.imshow(image, cmap="gray", vmin=-120, vmax=120)
        axis.set_title(name if name == "truth" else f"{name}\nRMSE {error:.1f} HU", fontsize=9)
        axis.axis("off")
        density = np.abs(np.fft.fft2(image)) ** 2 / side**2
        ring = np.rint(frequency * side).astype(int)
        spectrum = np.bincount(ring.ravel(), density.ravel()) / np.bincount(ring.ravel())
        axes[4].loglog(np.arange(1, side // 2) / side, spectrum[1 : side // 2], color=colour, label=name, lw=1)
    axes[4].set_xlabel("spatial frequency [1/pixel]", fontsize=8)
    axes[4].set_ylabel("power", fontsize=8)
    axes[4].set_ylim(30, None)
    axes[4].tick_params(labelsize=7)
    axes[4].legend(fontsize=7, frameon=False)
    return figure


def conventions() -> Figure:
    """One pair of images under every published convention."""
    truth = phantom()
    rows = convention_rows(at_dose(truth, 0.1), truth.hu)
    figure, axis = plt.subplots(figsize=(6.2, 2.8))
    values = [row.psnr_slice_mean_db for row in rows]
    axis.barh([row.name for row in rows], values, color="tab:blue", height=0.6)
    for place, value in enumerate(values):
        axis.text(value + 0.4, place, f"{value:.1f}", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, max(values) + 5)
    axis.set_xlabel("PSNR of the same two images [dB]", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES = (
    doses,
    low_dose_simulation,
    noise_power,
    noise_level,
    network_input,
    forward_process,
    mean_and_sample,
    conventions,
)


def save(figure: Figure, path: Path) -> None:
    """A PNG of greys and the colours of the lines: noise does not compress, and the pictures live in the repository."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=90, bbox_inches="tight", pad_inches=0.04)
    colours = [np.full(3, grey) for grey in np.linspace(0, 255, 40)]
    for name in ("tab:blue", "tab:orange", "tab:green", "tab:red"):
        colours += [255 + (255 * np.array(to_rgb(name)) - 255) * share for share in (0.25, 0.5, 0.75, 1.0)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([int(value) for colour in colours for value in colour])
    Image.open(drawn).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", choices=[[], *(f.__name__ for f in FIGURES)], help="Pictures to draw. [all]"
    )
    parser.add_argument("--output_dir", type=Path, default=IMAGES, help="Folder for the PNG files. [docs/images]")
    args = parser.parse_args(arguments)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for draw in FIGURES:
        if args.names and draw.__name__ not in args.names:
            continue
        figure = draw()
        figure.set_layout_engine("constrained")
        save(figure, args.output_dir / f"{draw.__name__}.png")
        plt.close(figure)


if __name__ == "__main__":
    main()
