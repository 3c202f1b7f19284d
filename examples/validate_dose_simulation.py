"""Does the dose simulation predict the noise of real scanners? Calibrated on some slices, judged on others.

    python examples/validate_dose_simulation.py --pairs $DATA/pairs --output_dir outputs/dose_validation

`--pairs` holds folders with `full/` and `quarter/`, each with DICOM slices of the same names (such as of the Mayo 2016
Grand Challenge: noise inserted in the measured projections and reconstructed by the scanner's software). Leaves
`report.html` (tables of SD and noise power, pictures) and `validation.json` in the output folder; about 5 minutes for 15
slices on two cores.

Of every slice SD and noise power spectrum of what the quarter dose adds are predicted from its full-dose image, the mAs of
its header, and the other slices: bowtie, modulation, electronic noise and how far bodies go on beyond the image are chosen on slices of other folds; kernel and I0 per mAs on all other slices of the kernel and of the series.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from diffusers_ct import __version__
from diffusers_ct.evaluation.simulation_validation import Prediction, ScannerPair, validate
from diffusers_ct.evaluation.simulation_validation_report import summary, validation_report
from diffusers_ct.io import read_volume
from diffusers_ct.physics import SIMULATOR_VERSION


def main(arguments: list[str] | None = None) -> list[Prediction]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="Folder of series folders with full/ and quarter/.")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--dose_fraction", type=float, default=0.25, help="Of the low-dose images.")
    parser.add_argument("--series", nargs="*", help="Names of series folders; all without it.")
    parser.add_argument("--folds", type=int, default=3)
    args = parser.parse_args(arguments)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)

    pairs = read_pairs(Path(args.pairs), args.dose_fraction, args.series)
    predictions, chosen = validate(pairs, folds=args.folds, progress=lambda folds: tqdm(folds, desc="folds"))
    folds = [
        {
            **fold,
            "chosen": asdict(fold["chosen"]),
            "losses": [{**asdict(p), "loss": v} for p, v in fold["losses"].items()],
        }
        for fold in chosen
    ]
    facts = {"diffusers_ct": __version__, "simulator": SIMULATOR_VERSION, "dose_fraction": args.dose_fraction}
    result = {"facts": facts, "slices": [p.row() for p in predictions], "folds": folds}
    (out / "validation.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (out / "report.html").write_text(validation_report(predictions, folds, facts), encoding="utf-8")
    show(predictions)
    return predictions


def read_pairs(folder: Path, dose_fraction: float, series: list[str] | None = None) -> list[ScannerPair]:
    """All slices that are in `full` and `quarter` of the series' folders."""
    pairs = []
    for full in sorted(folder.glob("*/full")):
        if series and full.parent.name not in series:
            continue
        for file in sorted(f for f in full.iterdir() if (full.parent / "quarter" / f.name).is_file()):
            high, low = read_volume(file), read_volume(full.parent / "quarter" / file.name)
            header = high.source.headers[0]
            pairs.append(
                ScannerPair(
                    name=f"{full.parent.name}/{file.stem}",
                    series=full.parent.name,
                    full_hu=high.hu[0],
                    low_hu=low.hu[0],
                    pixel_mm=high.spacing_mm[2],
                    exposure_mas=high.conditions.tube_current_mas,
                    kernel=high.conditions.kernel or "unknown",
                    dose_fraction=dose_fraction,
                    field_mm=float(header.get("DataCollectionDiameter") or 500.0),
                )
            )
    if not pairs:
        raise SystemExit(f"No pairs: {folder} holds no folder with full/ and quarter/ that share a file name.")
    return pairs


def show(predictions: list[Prediction]) -> None:
    table = Table("slice", "mAs", "SD measured", "SD predicted", "ratio", "own noise", "both", "NPS corr.", "ceiling")
    for p in predictions:
        row = p.row()
        table.add_row(
            row["slice"],
            f"{row['exposure_mas'] or 0:.0f}",
            f"{row['sd_measured_hu']:.1f}",
            *(("–", "–") if p.ratio is None else (f"{row['sd_predicted_hu']:.1f}", f"{p.ratio:.3f}")),
            *("–" if row[k] is None else f"{row[k]:.3f}" for k in ("sd_ratio_own_noise", "sd_ratio_of_both")),
            f"{p.correlation:.4f}",
            f"{p.ceiling[0]:.4f}",
        )
    Console().print(table)
    print(summary(predictions))


if __name__ == "__main__":
    main()
