"""Our presets and MONAI's network on one restoration task, in turns: same parameters, same training time or same steps.

    python -m pip install --no-deps --target PEERS monai einops
    OMP_NUM_THREADS=1 PYTHONPATH=PEERS python examples/compare_with_monai.py --output_dir outputs/monai --size cpu

The networks train in slices of a few seconds, one after the other, so that a busy machine slows all alike; the time that
counts is the process's own (on a GPU wall time), patches and optimizer included. All have the same objective, patches in
the same order, optimizer (that of `train`, its learning rate's cosine ends with the time), precision and average; MONAI's
`DiffusionModelUNet` has its flash attention, the number of parameters of the first preset within 5 %, and our convolution
for grids of two slices, without which torch's bfloat16 does not train it on a CPU (see `ThinConv3d`). They are judged
by one-step restoration of the quality benchmark's test phantoms, which no network has seen, and by the sharpness of faint and
strong edges. Without MONAI the presets are compared alone.

Sizes: `smoke` (shows that it runs and nothing else) and `cpu`. With `--steps` all get so many steps in place of so much
time. Goes on where it stopped, at the last turn. The tables are of the seeds given, one learning rate and short trainings:
not what each network can reach.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import benchmark_quality
import torch
from benchmark_quality import FIRST_TEST_PHANTOM, NOISE_GAIN, TEST_DOSES, TRAIN_DOSES, prepare_phantoms
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from speed_peers import count, of_monai
from torch import nn

from diffusers_ct import CTDiffusionPipeline, load_paired_ct
from diffusers_ct.data import PatchDataset
from diffusers_ct.evaluation import cases_from_rows, run_benchmark
from diffusers_ct.evaluation.studies import transfer_study
from diffusers_ct.models import PRESETS, make_model
from diffusers_ct.models.blocks import ThinConv3d
from diffusers_ct.pipelines.fast_inference import multiplies_bfloat16
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective, TrainingConfig

MONAI = "MONAI DiffusionModelUNet, flash"
TERMINAL_FRACTION = 0.7
WARM_UP = 0.05  # of the time
EMA_DECAY = 0.995
JUDGED_DOSES = (0.25, 0.1)
SHARPNESS_DOSE = 0.25


@dataclass(frozen=True)
class Size:
    """How much is trained and judged.

    Attributes:
        width_scale: factor on the presets' widths.
        minutes: of training, each network.
        slice_seconds: of training, before the next network's turn.
        patch, batch: of a step.
        test_phantoms: that are restored, at each dose.
        transfer_slices: of rods in water.
    """

    width_scale: float
    minutes: float
    slice_seconds: float
    patch: tuple[int, int, int]
    batch: int
    test_phantoms: int
    transfer_slices: int


SIZES = {
    "smoke": Size(1.0, 0.005, 0.1, (4, 32, 32), 1, 1, 4),
    "cpu": Size(1.0, 3.0, 10.0, (8, 64, 64), 2, 12, 8),  # patches, batch and phantoms of the quality benchmark
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="Gets monai.md, monai.json; data/ may be the benchmark's.")
    parser.add_argument("--size", choices=tuple(SIZES), required=True)
    parser.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=("ct-unet25d-fast-s", "ct-unet3d-s"))
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=None, help="Of training each, instead of the size's.")
    budget.add_argument("--steps", type=int, default=None, help="Of training each, however long they take.")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,), help="Of weights, patches and noise.")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args(arguments)
    if args.minutes is not None and not 0 < args.minutes < math.inf:
        parser.error("--minutes must be positive.")
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2.")
    return args


def networks(presets: tuple[str, ...], width_scale: float) -> dict[str, Callable[[], nn.Module]]:
    """What makes each; MONAI's is left out where it is not installed."""

    def preset(name: str) -> nn.Module:
        widths = [int(width * width_scale) for width in PRESETS[name]["block_out_channels"]]
        return make_model(name, block_out_channels=widths)

    made: dict[str, Callable[[], nn.Module]] = {name: lambda name=name: preset(name) for name in presets}
    try:
        peer = of_monai(count(made[presets[0]]))[0].build
        made[MONAI] = lambda: learning_from_two_slices(peer())
    except ImportError as error:
        print(f"Without MONAI: {error}.")
    return made


def learning_from_two_slices(network: nn.Module) -> nn.Module:
    """The peer with our convolution in the place of torch's where it sees three slices; weights and results are the same."""
    for module in network.modules():
        if type(module) is nn.Conv3d and module.kernel_size[0] == 3 and module.stride[0] == 1:
            module.__class__ = ThinConv3d
    return network


@dataclass(frozen=True)
class Budget:
    """What each network has for its training: so many seconds or, where given, so many steps."""

    seconds: float
    steps: int | None

    def spent(self, trainee: "Trainee") -> float:
        """The part of it that is spent."""
        return trainee.steps / self.steps if self.steps else trainee.seconds / self.seconds

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps else f"{self.seconds / 60.0:g} min"


class Trainee:
    """A network in training: goes on for a while when told to, and is saved after it.

    Attributes:
        seconds: of training that it has had.
        steps: that it has done.
    """

    def __init__(self, name: str, build: Callable[[], nn.Module], seed: int, learning_rate: float, path: Path) -> None:
        torch.manual_seed(seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name, self.seed, self.path, self.device = name, seed, path, device
        self.network = build().to(device)
        self.learning_rate = learning_rate
        # As `train`, but in one fused pass.
        betas = (TrainingConfig.adam_beta1, TrainingConfig.adam_beta2)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=learning_rate, betas=betas,
            weight_decay=TrainingConfig.adam_weight_decay, fused=True,
        )  # fmt: skip
        self.average = EMAModel(self.network.parameters(), decay=EMA_DECAY)
        self.objective = ResidualDiffusionObjective(
            self.network, make_noise_scheduler(), terminal_fraction=TERMINAL_FRACTION
        )
        self.seconds, self.steps = 0.0, 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average.load_state_dict(state["average"])
            self.seconds, self.steps = state["seconds"], state["steps"]

    def train(self, patches: PatchDataset, batch: int, part: float, budget: "Budget") -> None:
        """Steps until it has had that part of its budget, which the learning rate follows."""
        self.network.train()
        now = time.perf_counter if self.device == "cuda" else time.process_time
        while (done := budget.spent(self)) < part:
            started = now()
            self._step(patches, batch, done)
            self.seconds += now() - started
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"average": self.average.state_dict(), "seconds": self.seconds, "steps": self.steps}
        unfinished = self.path.with_suffix(".unfinished")
        torch.save(state, unfinished)
        unfinished.replace(self.path)

    def _step(self, patches: PatchDataset, batch: int, done: float) -> None:
        rate = min(1.0, done / WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate
        numbers = range(self.steps * batch, (self.steps + 1) * batch)
        items = torch.utils.data.default_collate([patches[n] for n in numbers])
        given = {key: value.to(self.device) for key, value in items.items()}
        seeds = torch.tensor([hash((self.seed, n)) % 2**62 for n in numbers])
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.objective(given, seeds)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, error_if_nonfinite=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.step(self.network.parameters())
        self.steps += 1

    def restorer(self) -> Callable[[Any], Any]:
        """One-step restoration with the averaged weights, in bfloat16 where the device multiplies it, as all would be run."""
        self.average.copy_to(self.network.parameters())
        if multiplies_bfloat16(torch.device(self.device)):
            nn.Module.to(nn.Module.to(self.network, torch.bfloat16), memory_format=torch.channels_last_3d)
        pipe = CTDiffusionPipeline(self.network.eval(), DDIMScheduler.from_config(make_noise_scheduler().config))
        pipe.set_progress_bar_config(disable=True)
        return lambda volume: pipe(volume, output_type="np", generator=torch.Generator().manual_seed(0)).volumes


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    size, out = SIZES[args.size], Path(args.output_dir)
    data = benchmark_quality.SIZES[args.size]
    data = replace(data, shape=(max(data.shape[0], size.patch[0]), *data.shape[1:]))  # its smallest scans are thinner
    budget = Budget(60.0 * (args.minutes or size.minutes), args.steps)

    # 1. the benchmark's phantoms
    prepare_phantoms(out / "data" / "train", data, data.train_phantoms, 0, TRAIN_DOSES, test=False)
    prepare_phantoms(out / "data" / "test", data, data.test_phantoms, FIRST_TEST_PHANTOM, TEST_DOSES, test=True)
    cases = cases_from_rows(load_paired_ct(out / "data" / "test", split="test"))
    cases = [case for dose in JUDGED_DOSES for case in of_dose(cases, dose)[: size.test_phantoms]]

    # 2. train in turns, and judge, seed by seed
    runs: list[dict[str, Any]] = []
    for seed in args.seeds:
        folder = out / f"seed-{seed}-{budget}".replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        trainees = [
            Trainee(name, build, seed, args.learning_rate, folder / f"{name.split(',')[0].replace(' ', '-')}.pt")
            for name, build in networks(tuple(args.presets), size.width_scale).items()
        ]
        patches = PatchDataset(
            load_paired_ct(out / "data" / "train", split="train"), size.patch, 2**30, seed=seed, noise_gain=NOISE_GAIN
        )
        turns = math.ceil(budget.seconds / size.slice_seconds)
        for turn in range(1, turns + 1):
            for trainee in trainees if turn % 2 else reversed(trainees):
                trainee.train(patches, size.batch, turn / turns, budget)
        runs += judged_once(folder / "judged.json", trainees, cases, data, size, seed)

    # 3. tables
    result = {
        "facts": {
            "size": asdict(size),
            "budget": str(budget),
            "seeds": list(args.seeds),
            "learning_rate": args.learning_rate,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "runs": runs,
    }
    (out / "monai.json").write_text(json.dumps(result, indent=2) + "\n")
    text = markdown(result)
    (out / "monai.md").write_text(text)
    print(text)
    return result


def judged_once(
    path: Path, trainees: list[Trainee], cases: list[Any], data: benchmark_quality.Size, size: Size, seed: int
) -> list[dict[str, Any]]:
    """What `judge` says, which is kept beside the networks."""
    if path.exists():
        runs = json.loads(path.read_text())
        if [run["network"] for run in runs] == [trainee.name for trainee in trainees]:
            return runs
    runs = judge(trainees, cases, data, size, seed)
    path.write_text(json.dumps(runs) + "\n")
    return runs


def of_dose(cases: list[Any], dose: float) -> list[Any]:
    """Those of a dose; rows hold it in float32."""
    return [case for case in cases if math.isclose(case.dose_fraction, dose, rel_tol=1e-6)]


def judge(
    trainees: list[Trainee], cases: list[Any], data: benchmark_quality.Size, size: Size, seed: int
) -> list[dict[str, Any]]:
    """One row for each network: what its training was, and its results by name."""
    methods = {trainee.name: trainee.restorer() for trainee in trainees}
    result = run_benchmark(cases, {name: lambda case, f=f: f(case.low) for name, f in methods.items()})
    rows = {
        trainee.name: {
            "network": trainee.name,
            "seed": seed,
            "parameters": sum(p.numel() for p in trainee.network.parameters()),
            "steps": trainee.steps,
            "seconds": trainee.seconds,
        }
        for trainee in trainees
    }
    for group in result.groups:
        for row in result.table(group):
            if row["method"] in rows:
                rows[row["method"]] |= {f"{key}, {group}": row[key] for key in ("rmse_body_hu", "psnr_full")}
    for row in transfer_study(
        methods, pixel_mm=data.spacing_mm[1], slice_mm=data.spacing_mm[0], dose_fractions=(SHARPNESS_DOSE,),
        slices=size.transfer_slices, slab_slices=min(8, size.transfer_slices), seed=seed,
    ):  # fmt: skip
        if row["method"] in rows:
            rows[row["method"]][f"f50_per_mm, {row['insert']}"] = row["f50_per_mm"]
    return list(rows.values())


def markdown(result: dict[str, Any]) -> str:
    """One row for each network, means over the seeds; empty where nothing could be measured."""
    runs, facts = result["runs"], result["facts"]
    metrics = [key for key in runs[0] if "," in key]
    units = {"rmse_body_hu": "RMSE body HU", "psnr_full": "PSNR dB", "f50_per_mm": "f50 / mm"}
    titles = [f"{units[kind]}, {what}" for kind, what in (key.split(", ", 1) for key in metrics)]
    headings = ["network", "parameters M", "steps", "s of training", *titles]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for name in dict.fromkeys(run["network"] for run in runs):
        of_it = [run for run in runs if run["network"] == name]
        cells = [name, f"{of_it[0]['parameters'] / 1e6:.2f}"]
        cells += [f"{statistics.mean(run[key] for run in of_it):.0f}" for key in ("steps", "seconds")]
        for key in metrics:
            values = [run[key] for run in of_it if run[key] is not None]
            cells.append(f"{statistics.mean(values):.3g}" if key.startswith("f50") and values else
                         f"{statistics.mean(values):.2f}" if values else "–")  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    size = facts["size"]
    note = (
        f"{facts['budget']} of training each, in turns of {size['slice_seconds']:g} s, batch {size['batch']} of "
        f"{' x '.join(map(str, size['patch']))}, learning rate {facts['learning_rate']:g}, {size['test_phantoms']} test "
        f"phantoms a dose, seeds {', '.join(map(str, facts['seeds']))}, threads {facts['threads']}."
    )
    return "\n".join(lines) + f"\n\n{note}\n"


if __name__ == "__main__":
    main()
