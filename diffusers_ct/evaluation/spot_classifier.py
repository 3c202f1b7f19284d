"""A small classifier of one finding, linear in `spot_features`: trained in seconds, then frozen.

Training data come in groups, of which every batch holds equal parts: how often a finding comes in a batch is not left to
how often it comes in the data.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..volume import CTVolume
from .spot_features import SPOT_FEATURES, spot_features

# (features (copies, n, SPOT_FEATURES), labels (n,)): a volume may have several copies, with other noise
Group = tuple[torch.Tensor, torch.Tensor]


class SpotClassifier(torch.nn.Module):
    """Logit of a finding; zero before training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(SPOT_FEATURES, 1)
        for parameter in self.parameters():
            torch.nn.init.zeros_(parameter)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., SPOT_FEATURES) -> (...) logits."""
        return self.linear(features)[..., 0]

    @torch.no_grad()
    def score(self, volume: CTVolume) -> float:
        """Logit of the finding in a scan: the frozen classifier of `evaluation.downstream`."""
        return self(torch.from_numpy(spot_features(volume.hu, volume.spacing_mm))).item()


def noisy_features(
    volumes: np.ndarray, spacing_mm: Sequence[float], noise_hu: float, *, varying: bool, copies: int, seed: int
) -> torch.Tensor:
    """(copies, n, SPOT_FEATURES) of volumes (n, D, H, W) with white noise: of `noise_hu`, or of 0 to that if `varying`.

    Phantoms have no noise of their own and synthetic volumes have some: without it, that alone would tell them apart.
    """
    rng = np.random.default_rng(seed)
    strength_hu = noise_hu * (rng.random((copies, len(volumes))) if varying else np.ones((copies, len(volumes))))
    z, y, x = spacing_mm
    rows = [
        [spot_features(hu + strength * rng.standard_normal(hu.shape), (z, y, x)) for hu, strength in zip(volumes, row)]
        for row in strength_hu
    ]
    return torch.from_numpy(np.array(rows))


def labelled(features: torch.Tensor, label: int) -> Group:
    """A group of one label."""
    return features, torch.full((features.shape[1],), float(label))


def mixed(positives: torch.Tensor, negatives: torch.Tensor) -> Group:
    """One group of both, as frequent as they are."""
    groups = labelled(positives, 1), labelled(negatives, 0)
    return torch.cat([features for features, _ in groups], dim=1), torch.cat([labels for _, labels in groups])


def feature_scale(negatives: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread (SPOT_FEATURES,) of real patients without the finding: the same scale in each setting."""
    rows = negatives.flatten(0, 1)
    return rows.mean(dim=0), rows.std(dim=0) + 1e-3  # what no patient has must not be blown up


def draw_batch(
    groups: Sequence[Group], batch_size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (batch, SPOT_FEATURES) and labels (batch,): equal parts of each group, any copy of any volume."""
    share = batch_size // len(groups)
    drawn, labels = [], []
    for features, group_labels in groups:
        copies = torch.randint(features.shape[0], (share,), generator=generator)
        rows = torch.randint(features.shape[1], (share,), generator=generator)
        drawn.append(features[copies, rows])
        labels.append(group_labels[rows])
    return torch.cat(drawn), torch.cat(labels)


def train_spot_classifier(
    groups: Sequence[Group],
    *,
    scale: tuple[torch.Tensor, torch.Tensor],
    steps: int,
    batch_size: int,
    seed: int,
) -> SpotClassifier:
    """Logistic regression of scaled features.

    Args:
        groups: of the training data.
        scale: mean and spread of the features, as of `feature_scale`; it becomes part of the weights.
        steps: of the optimizer.
        batch_size: volumes a step, a multiple of the number of groups.
        seed: of the batches.

    Raises:
        ValueError: for a batch that does not hold equal parts of each group.
    """
    if batch_size < 1 or batch_size % len(groups):
        raise ValueError(f"A batch of {batch_size} does not hold equal parts of {len(groups)} groups.")
    generator = torch.Generator().manual_seed(seed)
    mean, spread = scale
    model = SpotClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(steps):
        features, label = draw_batch(groups, batch_size, generator)
        loss = F.binary_cross_entropy_with_logits(model((features - mean) / spread), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        model.linear.weight.div_(spread)
        model.linear.bias.sub_(model.linear.weight @ mean)
    return model.eval()
