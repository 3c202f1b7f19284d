"""An independent judge of synthesised volumes: does a volume show what was asked for?

A plain 3-D convolutional classifier that shares no code with the networks it judges, trained on real (phantom) volumes
alone. Its own accuracy on held-out volumes is the ceiling of what it can confirm, and is reported beside it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..conditions import ScanConditions
from ..hounsfield import hu_to_unit
from ..volume import CTVolume

_WINDOWS = ("full", "soft_tissue", "lung")


@dataclass(frozen=True)
class Judgement:
    """What the judge sees in some volumes.

    Attributes:
        body_part: most likely region of each.
        findings: (volumes, findings) probability of each finding.
    """

    body_part: list[str]
    findings: np.ndarray


class ConditionJudge(nn.Module):
    """Body part and findings of a volume.

    A finding may be one spot in the volume, so its logit is the smooth maximum (log-mean-exp) over places of a map;
    the body part is judged by the mean.

    Args:
        body_parts: names.
        findings: names.
        width: channels of the first layer.
    """

    def __init__(self, body_parts: Sequence[str], findings: Sequence[str], *, width: int = 24) -> None:
        super().__init__()
        self.body_parts, self.findings = tuple(body_parts), tuple(findings)
        layers: list[nn.Module] = []
        channels = len(_WINDOWS)
        for index, out in enumerate((width, width, 2 * width, 2 * width, 3 * width)):
            stride = (1, 2, 2) if index in (2, 4) else 1
            layers += [nn.Conv3d(channels, out, 3, stride=stride, padding=1), nn.BatchNorm3d(out), nn.ReLU()]
            channels = out
        self.features = nn.Sequential(*layers)
        self.body_part_head = nn.Linear(channels, len(self.body_parts))
        self.finding_head = nn.Conv3d(channels, len(self.findings), 1)

    def forward(self, hu: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (batch, body parts) and (batch, findings) of (batch, 1, D, H, W) in HU."""
        features = self.features(torch.cat([hu_to_unit(hu, window) for window in _WINDOWS], dim=1))
        spots = self.finding_head(features).flatten(2)
        # + 4: one spot of thousands must be able to outweigh the rest without a huge logit of its own.
        findings = torch.logsumexp(spots, dim=2) - math.log(spots.shape[2]) + 4.0
        return self.body_part_head(features.mean(dim=(2, 3, 4))), findings

    @torch.no_grad()
    def judge(self, volumes: Sequence[CTVolume | np.ndarray], *, batch_size: int = 16) -> Judgement:
        """Judges volumes in HU."""
        self.eval()
        parts: list[str] = []
        found = []
        arrays = [v.hu if isinstance(v, CTVolume) else v for v in volumes]
        for start in range(0, len(arrays), batch_size):
            hu = torch.from_numpy(np.stack(arrays[start : start + batch_size]).astype(np.float32))[:, None]
            part_logits, finding_logits = self(hu)
            parts += [self.body_parts[i] for i in part_logits.argmax(dim=1).tolist()]
            found.append(finding_logits.sigmoid().numpy())
        return Judgement(parts, np.concatenate(found))


def train_judge(
    volumes: Sequence[tuple[np.ndarray, ScanConditions]],
    *,
    body_parts: Sequence[str],
    findings: Sequence[str],
    epochs: int,
    seed: int,
    batch_size: int = 16,
    noise_hu: float = 10.0,
) -> ConditionJudge:
    """Trains a judge on real volumes.

    Args:
        volumes: (depth, height, width) in HU with their conditions; findings said of a volume train, unknown ones do not.
        body_parts: names.
        findings: names.
        epochs: passes over the volumes.
        seed: of weights, order and noise.
        batch_size: volumes a step.
        noise_hu: white noise added in training, so that the judge does not live on the phantoms' exact smoothness.

    Raises:
        ValueError: for a volume of another body part, or of none.
    """
    if strange := sorted({str(c.body_part) for _, c in volumes} - set(body_parts)):
        raise ValueError(
            f"The judge knows the body parts {', '.join(body_parts)}; volumes are of {', '.join(strange)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = ConditionJudge(body_parts, findings)
    hu = torch.from_numpy(np.stack([v for v, _ in volumes]).astype(np.float32))[:, None]
    part = torch.tensor([list(body_parts).index(str(c.body_part)) for _, c in volumes])
    target = torch.from_numpy(finding_targets([c for _, c in volumes], findings))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-3)
    steps = epochs * -(-len(hu) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    judge.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(hu), generator=generator).split(batch_size):
            noisy = hu[rows] + noise_hu * torch.randn(hu[rows].shape, generator=generator)
            part_logits, finding_logits = judge(noisy)
            known = ~target[rows].isnan()
            loss = F.cross_entropy(part_logits, part[rows])
            if known.any():  # the mean over nothing is not a number
                loss = loss + F.binary_cross_entropy_with_logits(finding_logits[known], target[rows][known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval()


def finding_targets(conditions: Sequence[ScanConditions], findings: Sequence[str]) -> np.ndarray:
    """(volumes, findings) float32: 1 present, 0 absent, NaN unknown."""
    rows = [
        [1.0 if f in c.findings else 0.0 if f in c.findings_absent else np.nan for f in findings] for c in conditions
    ]
    return np.array(rows, dtype=np.float32)


def agreement(judgement: Judgement, asked: Sequence[ScanConditions], findings: Sequence[str]) -> Mapping[str, float]:
    """How often the judge sees what was asked for.

    Returns:
        "body_part": share of the volumes asked to be of one. For each finding "<name> present" (sensitivity: of the volumes asked to have
        it, those judged to), "<name> absent" (specificity); "findings": mean of all these. NaN where nothing was asked.
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
