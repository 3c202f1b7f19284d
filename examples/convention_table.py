"""Prints a pair of images under all published conventions of PSNR, SSIM and error.

    python examples/convention_table.py RESTORED REFERENCE

Each is anything that `read_volume` reads: a DICOM folder or archive, NIfTI, MetaImage. Both must lie on the same grid.
"""

import argparse

import numpy as np

from diffusers_ct import CTVolume, read_volume
from diffusers_ct.metrics.convention_table import convention_rows, format_convention_table


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predicted", help="The restored or low-dose scan.")
    parser.add_argument("reference", help="The scan that it is compared with.")
    parser.add_argument(
        "--slice_spacing_mm", type=float, help="Of single DICOM slices whose headers have no slice thickness."
    )
    parser.add_argument(
        "--assume_hu", action="store_true", help="Take NIfTI or MetaImage values as HU though none of them is air."
    )
    return parser.parse_args(arguments)


def check_same_grid(predicted: CTVolume, reference: CTVolume) -> None:
    """Refuses scans whose voxels lie elsewhere: errors would be those of the anatomy."""
    if predicted.shape != reference.shape:
        raise SystemExit(
            f"The scans have shapes {predicted.shape} and {reference.shape}: resample one to the other first."
        )
    if not np.allclose(predicted.affine_lps, reference.affine_lps, atol=0.05):
        raise SystemExit("The scans have one shape but lie elsewhere in the patient: resample one to the other first.")


def main(arguments: list[str] | None = None) -> str:
    args = parse_args(arguments)
    options = {"slice_spacing_mm": args.slice_spacing_mm, "assume_hu": args.assume_hu}
    predicted, reference = (read_volume(path, **options) for path in (args.predicted, args.reference))
    check_same_grid(predicted, reference)
    table = format_convention_table(convention_rows(predicted.hu, reference.hu))
    print(table)
    return table


if __name__ == "__main__":
    main()
