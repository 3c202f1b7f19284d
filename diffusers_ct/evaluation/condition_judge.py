"""An independent judge of synthesised volumes: does a volume show what was asked for?

A plain 3-D convolutional classifier that shares no code with the networks it judges, trained on real (phantom) volumes
alone. Its own accuracy on held-out volumes is the ceiling of what it can confirm, and is reported beside it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ..conditions import ScanConditions
from ..hounsfield import hu_to_unit
from ..physics import LESION_KINDS
from ..volume import CTVolume

_WINDOWS = ("full", "soft_tissue", "lung")
# Difference to the mean of 7 x 7 pixels: of the liver's lesions, and of the lung's.
_CONTRASTS_HU = (60.0, 300.0)
_HIGHEST_PLACES = 3
_RARE_LOGIT = -4.0  # that nearly every place shows nothing need not be learned
# Beside the places, which teach what a lesion looks like; at weight 1 the volumes' own labels drown them.
_WHOLE_VOLUME_WEIGHT = 0.1
_CALIBRATION_SHARE = 0.2
_LESION_WEIGHT = 20.0  # of a place in a lesion against one without: lesions fill a few per mille of a volume


@dataclass(frozen=True)
class Judgement:
    """What the judge sees in some volumes.

    Attributes:
        body_part: most likely region of each.
        findings: (volumes, findings) scores in (0, 1), above 0.5 where the finding is seen; no probabilities, since
            the threshold is set apart from the training.
    """

    body_part: list[str]
    findings: np.ndarray


class ConditionJudge(nn.Module):
    """Body part and findings of a volume.

    A small encoder with one step back up gives each place a logit for each finding; a finding's logit is the mean of
    its highest few places, since it may be one spot in the volume. The body part is judged by the mean of the features.

    Args:
        body_parts: names.
        findings: names.
        width: channels of the finest level.
    """

    def __init__(self, body_parts: Sequence[str], findings: Sequence[str], *, width: int = 16) -> None:
        super().__init__()
        self.body_parts, self.findings = tuple(body_parts), tuple(findings)

        def layers(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            first = nn.Conv3d(inputs, outputs, 3, stride=(1, stride, stride), padding=1)
            second = nn.Conv3d(outputs, outputs, 3, padding=1)
            return nn.Sequential(first, nn.BatchNorm3d(outputs), nn.ReLU(), second, nn.BatchNorm3d(outputs), nn.ReLU())

        channels = len(_WINDOWS) + len(_CONTRASTS_HU)
        self.fine = nn.Sequential(nn.Conv3d(channels, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU())
        self.middle = layers(width, 2 * width, 2)
        self.coarse = layers(2 * width, 3 * width, 2)
        self.merge = nn.Sequential(nn.Conv3d(5 * width, 2 * width, 3, padding=1), nn.BatchNorm3d(2 * width), nn.ReLU())
        self.body_part_head = nn.Linear(3 * width, len(self.body_parts))
        self.finding_head = nn.Conv3d(2 * width, len(self.findings), 1)
        with torch.no_grad():
            self.finding_head.bias.fill_(_RARE_LOGIT)  # type: ignore[union-attr]
        self.register_buffer("threshold", torch.zeros(len(self.findings)))

    def forward(self, hu: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Judges (batch, 1, D, H, W) in HU.

        Returns:
            Logits: (batch, body parts), (batch, findings), and of the places (batch, findings, D, H/2, W/2).
        """
        middle = self.middle(self.fine(_look(hu)))
        coarse = self.coarse(middle)
        back = F.interpolate(coarse, size=middle.shape[2:], mode="nearest")
        places = self.finding_head(self.merge(torch.cat([middle, back], dim=1)))
        highest = places.flatten(2).topk(_HIGHEST_PLACES, dim=2).values.mean(dim=2)
        return self.body_part_head(coarse.mean(dim=(2, 3, 4))), highest - self.threshold, places

    @torch.no_grad()
    def judge(self, volumes: Sequence[CTVolume | np.ndarray], *, batch_size: int = 16) -> Judgement:
        """Judges volumes in HU."""
        self.eval()
        parts: list[str] = []
        found = []
        arrays = [v.hu if isinstance(v, CTVolume) else v for v in volumes]
        for start in range(0, len(arrays), batch_size):
            hu = torch.from_numpy(np.stack(arrays[start : start + batch_size]).astype(np.float32))[:, None]
            part_logits, finding_logits, _ = self(hu)
            parts += [self.body_parts[i] for i in part_logits.argmax(dim=1).tolist()]
            found.append(finding_logits.sigmoid().numpy())
        return Judgement(parts, np.concatenate(found))

    @classmethod
    def load(cls, path: str | Path) -> "ConditionJudge":
        """The judge in a `cache` of `train_judge`."""
        with safe_open(path, "pt") as held:
            trained_with = json.loads(held.metadata()["trained_with"])
        judge = cls(trained_with["body_parts"], trained_with["findings"])
        judge.load_state_dict(load_file(path))
        return judge.eval()


def train_judge(
    volumes: Sequence[tuple[np.ndarray, ScanConditions]],
    *,
    body_parts: Sequence[str],
    findings: Sequence[str],
    epochs: int,
    seed: int,
    lesions: Sequence[np.ndarray] | None = None,
    batch_size: int = 12,
    noise_hu: float = 10.0,
    bf16: bool = False,
    cache: Path | None = None,
) -> ConditionJudge:
    """Trains a judge on real volumes.

    With `lesions` each place learns what it shows, which takes far fewer volumes than to learn from the findings of
    whole volumes alone; the last fifth of the volumes then sets the threshold of each finding instead.

    Args:
        volumes: (depth, height, width) in HU with their conditions; findings said of a volume train, unknown ones do not.
        body_parts: names.
        findings: names.
        epochs: passes over the volumes.
        seed: of weights, order and noise.
        lesions: of each volume (depth, height, width), 0 or 1 + the index of the lesion's kind in `LESION_KINDS`.
        batch_size: volumes a step.
        noise_hu: white noise added in training, so that the judge does not live on the phantoms' exact smoothness.
        bf16: compute in bfloat16 where the processor has it.
        cache: .safetensors file to keep the judge in; one that was trained otherwise is refused.

    Raises:
        ValueError: for a volume of another body part, or of none; for a cache of another training.
    """
    if strange := sorted({str(c.body_part) for _, c in volumes} - set(body_parts)):
        raise ValueError(
            f"The judge knows the body parts {', '.join(body_parts)}; volumes are of {', '.join(strange)}."
        )
    trained_with = {
        "body_parts": list(body_parts),
        "findings": list(findings),
        "volumes": hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v, _ in volumes)).hexdigest(),
        "truth": hashlib.sha256(
            b"".join([json.dumps([c.to_dict() for _, c in volumes]).encode(), *(m.tobytes() for m in lesions or ())])
        ).hexdigest(),
        "settings": [epochs, seed, batch_size, noise_hu, bf16, lesions is not None],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = ConditionJudge(body_parts, findings)
    if cache is not None and cache.exists():
        with safe_open(cache, "pt") as held:
            if json.loads(held.metadata()["trained_with"]) != trained_with:
                raise ValueError(f"{cache} holds a judge of another training: delete it, or name another file.")
        judge.load_state_dict(load_file(cache))
        return judge.eval()
    hu = torch.from_numpy(np.stack([v for v, _ in volumes]).astype(np.float32))[:, None]
    kinds = None if lesions is None else torch.from_numpy(np.stack(lesions))[:, None]
    part = torch.tensor([list(body_parts).index(str(c.body_part)) for _, c in volumes])
    target = torch.from_numpy(finding_targets([c for _, c in volumes], findings))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=4e-3, weight_decay=1e-3)
    calibrating = len(hu) - int(_CALIBRATION_SHARE * len(hu)) if kinds is not None else len(hu)
    steps = epochs * -(-calibrating // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    judge.train()
    for _ in range(epochs):
        for rows in torch.randperm(calibrating, generator=generator).split(batch_size):
            noisy = hu[rows] + noise_hu * torch.randn(hu[rows].shape, generator=generator)
            # Mirror images: no anatomy, but lesions look alike in them.
            mirrored = [axis for axis in (2, 4) if torch.rand((), generator=generator) < 0.5]
            noisy = noisy.flip(mirrored)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outputs = judge(noisy)
            part_logits, finding_logits, places = (out.float() for out in outputs)
            known = ~target[rows].isnan()
            loss = F.cross_entropy(part_logits, part[rows])
            if known.any():  # the mean over nothing is not a number
                whole = F.binary_cross_entropy_with_logits(finding_logits[known], target[rows][known])
                loss = loss + (whole if kinds is None else _WHOLE_VOLUME_WEIGHT * whole)
            if kinds is not None:
                loss = loss + _place_loss(places, kinds[rows].flip(mirrored), findings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    judge.eval()
    if calibrating < len(hu):
        with torch.no_grad():
            logits = torch.cat([judge(batch)[1] for batch in hu[calibrating:].split(batch_size)])
        judge.threshold.copy_(_thresholds(logits, target[calibrating:], part[calibrating:]))  # type: ignore[operator]
    if cache is not None:
        save_file(judge.state_dict(), cache, metadata={"trained_with": json.dumps(trained_with)})
    return judge.eval()


def _look(hu: torch.Tensor) -> torch.Tensor:
    mean = F.avg_pool3d(hu, (1, 7, 7), stride=1, padding=(0, 3, 3), count_include_pad=False)
    contrasts = [((hu - mean) / scale).clip(-1.0, 1.0) for scale in _CONTRASTS_HU]
    return torch.cat([*(hu_to_unit(hu, window) for window in _WINDOWS), *contrasts], dim=1)


def _place_loss(places: torch.Tensor, lesions: torch.Tensor, findings: Sequence[str]) -> torch.Tensor:
    """Binary cross-entropy of each place and 1 - soft Dice of each finding; a lesion in a place counts for all of it.

    Lesions fill less than a per mille of the places: Dice alone (Milletari et al. 2016, arXiv:1606.04797, section 3) sees
    past that, and cross-entropy alone keeps the logits in order.
    """
    shown = torch.cat([lesions == 1 + LESION_KINDS.index(name) for name in findings], dim=1).float()
    shown = F.max_pool3d(shown, kernel_size=(1, 2, 2), ceil_mode=True)
    entropy = F.binary_cross_entropy_with_logits(places, shown, pos_weight=torch.tensor(_LESION_WEIGHT))
    seen, axes = places.sigmoid(), (0, 2, 3, 4)
    dice = (2.0 * (seen * shown).sum(axes) + 1.0) / (seen.sum(axes) + shown.sum(axes) + 1.0)
    return entropy + (1.0 - dice).mean()


def _thresholds(logits: torch.Tensor, target: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """For each finding the logit with the best mean of sensitivity and specificity; 0 where one of them is not known.

    Only volumes of body parts that can have the finding count: that a lung has no liver cyst is easily right.
    """
    found = torch.zeros(logits.shape[1])
    for k in range(logits.shape[1]):
        here = torch.isin(part, part[target[:, k] == 1.0])
        present, absent = logits[here & (target[:, k] == 1.0), k], logits[here & (target[:, k] == 0.0), k]
        if not len(present) or not len(absent):
            continue
        values = torch.cat([present, absent]).sort().values
        middles = (values[1:] + values[:-1]) / 2.0
        right = (present > middles[:, None]).float().mean(1) + (absent <= middles[:, None]).float().mean(1)
        found[k] = middles[right.argmax()]
    return found


def finding_targets(conditions: Sequence[ScanConditions], findings: Sequence[str]) -> np.ndarray:
    """(volumes, findings) float32: 1 present, 0 absent, NaN unknown."""
    rows = [
        [1.0 if f in c.findings else 0.0 if f in c.findings_absent else np.nan for f in findings] for c in conditions
    ]
    return np.array(rows, dtype=np.float32)


def agreement(judgement: Judgement, asked: Sequence[ScanConditions], findings: Sequence[str]) -> Mapping[str, float]:
    """How often the judge sees what was asked for.

    Returns:
        "body_part": share of the volumes asked to be of one. For each finding "<name> present" (sensitivity: of the
        volumes asked to have it, those judged to), "<name> absent" (specificity); "findings": mean of all these. NaN
        where nothing was asked.
    """
    target = finding_targets(asked, findings)
    seen = judgement.findings > 0.5
    parts = [a == c.body_part for a, c in zip(judgement.body_part, asked) if c.body_part is not None]
    result = {"body_part": float(np.mean(parts)) if parts else float("nan")}
    for k, name in enumerate(findings):
        for word, value in (("present", 1.0), ("absent", 0.0)):
            rows = target[:, k] == value
            result[f"{name} {word}"] = float((seen[rows, k] == bool(value)).mean()) if rows.any() else float("nan")
    shares = [v for name, v in result.items() if name != "body_part" and np.isfinite(v)]
    return {**result, "findings": float(np.mean(shares)) if shares else float("nan")}
