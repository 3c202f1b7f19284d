"""Restores many scans on a Ray cluster: Ray Data hands scans to workers that hold the model, and starts lost ones again.

    pip install "ray[data]"
    python examples/restore_with_ray.py --list scans.txt --output_dir restored --model M/pipeline --workers 8 --gpus 1

Paths (the list, the results, the model) must mean the same on all machines. A result that is there is not made again, so a
job that was stopped is simply started again. For processes of a launcher instead of Ray: `diffusers-ct restore --list`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import ray

from diffusers_ct.cli.checkpoints import load_pipeline, model_name
from diffusers_ct.cli.restore_many import list_scans
from diffusers_ct.cli.restoring import RestoreSettings, restore_scan


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--list", required=True, type=Path, help="text file with a path on each line, or a folder of scans"
    )
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of the results")
    parser.add_argument("--model", required=True, help="folder of a pipeline, or its repository on the Hub")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with the model and one scan at a time")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each worker")
    parser.add_argument("--cpus", type=float, default=1, help="CPU cores of each worker")
    parser.add_argument("--format", choices=("dicom", "nii.gz", "nii", "mha"), default="dicom", help="of the results")
    parser.add_argument("--steps", type=int, default=1, help="sampling steps")
    parser.add_argument("--samples", type=int, default=1, help="posterior samples that are averaged")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    return parser.parse_args()


class Restorer:
    """A worker: loads the model once, then takes scan after scan."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.pipe, weights = load_pipeline(args.model, None)
        self.pipe.set_progress_bar_config(disable=True)
        self.settings = RestoreSettings(model_name(args.model), weights, args.steps, args.samples, args.seed)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Restores the scan of a row; the row of the result says what became of it."""
        result = self.args.output_dir / f"{row['name']}{suffix_of(self.args.format)}"
        answer = {"name": row["name"], "slices": 0, "error": ""}
        if result.exists():
            return answer
        try:
            done = restore_scan(self.pipe, Path(row["path"]), result, self.settings, tell=print, estimate=False)
        except Exception as error:  # whatever is wrong with one scan, the others are restored
            return {**answer, "error": f"{type(error).__name__}: {error}"}
        return {**answer, "slices": done.slices}


def suffix_of(file_format: str) -> str:
    return "" if file_format == "dicom" else f".{file_format}"


def main() -> int:
    args = parse_args()
    args.output_dir = args.output_dir.absolute()
    scans = list_scans(args.list)
    rows = [{"name": scan.name, "path": str(scan.path)} for scan in scans]
    # A block for each scan: blocks are what Ray hands to workers.
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Restorer,
        fn_constructor_args=(args,),
        compute=ray.data.ActorPoolStrategy(size=min(args.workers, len(rows))),
        num_cpus=args.cpus,
        num_gpus=args.gpus,
    )
    answers = sorted(done.take_all(), key=lambda answer: answer["name"])
    failed = {answer["name"]: answer["error"] for answer in answers if answer["error"]}
    slices = sum(answer["slices"] for answer in answers)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    summary = {"scans": len(answers), "slices": slices, "failed": failed}
    (args.output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    for name, error in failed.items():
        print(f"{name}: failed: {error}", file=sys.stderr)
    print(
        f"{len(answers) - len(failed)} of {len(answers)} scans are there, {slices} slices restored: {args.output_dir}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
