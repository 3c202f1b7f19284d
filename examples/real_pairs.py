"""Judges a model on real full/quarter-dose pairs that it was not trained on: one table for each kernel and slice thickness.

    python examples/real_pairs.py --pairs PAIRS_FOLDER --model model_cards/ct-restore-phantoms --output_dir outputs/real

PAIRS_FOLDER has any layout that `diffusers-ct prepare --pairs` knows. Every pair is a test pair and nothing is tuned, so there are
no baselines here: `mayo_pairs.py` has them. Low and full dose share the noise of one scan: the tables have the row of a perfect
image and the ceiling that follows.
"""

import argparse
from pathlib import Path

from evaluate_ldct import OURS, print_table
from mayo_pairs import DOSE, group_of

from diffusers_ct import CTDiffusionPipeline, load_paired_ct
from diffusers_ct.data import prepare_paired_ct
from diffusers_ct.evaluation import BenchmarkResult, cases_from_rows, run_benchmark


def main(arguments: list[str] | None = None) -> BenchmarkResult:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--model", required=True, help="Pipeline: folder or Hub repository.")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--ignore_contract", nargs="*", default=[], help="Promises of the checkpoint not to check.")
    args = parser.parse_args(arguments)
    out = Path(args.output_dir)

    pipe = CTDiffusionPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    prepare_paired_ct(
        out / "dataset", pairs=args.pairs, dose_fractions=(DOSE,), test_fraction=1.0, validation_fraction=0.0
    )
    cases = cases_from_rows(load_paired_ct(out / "dataset", split="test"))
    result = run_benchmark(
        cases,
        {OURS: lambda case: pipe(case.low, output_type="np", ignore_contract=args.ignore_contract).volumes},
        group_of=group_of,
        facts={
            "split": "every pair; none trained or tuned anything",
            "reference": "full dose of the same scan, whose noise the low dose shares",
        },
    )
    result.save(out / "benchmark.json")
    print_table(result)
    return result


if __name__ == "__main__":
    main()
