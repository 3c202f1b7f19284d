"""The report of `augment_rare_findings.py`: statistics of its settings, table, pictures."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from diffusers_ct.evaluation.spot_classifier import Group, SpotClassifier
from diffusers_ct.evaluation.spot_features import spot_features
from diffusers_ct.hounsfield import hu_to_unit
from diffusers_ct.metrics import (
    auc,
    binomial_rate,
    paired_bootstrap,
    percentile_interval,
    sensitivity_at_specificity,
)

SPECIFICITY = 0.9
FEW, CONTROL, MANY = "few", "few, balanced and augmented", "many, balanced and augmented"
PLACEBO = ": placebo"  # behind the name of the setting


@dataclass(frozen=True)
class Setting:
    """Training data of a classifier.

    Attributes:
        name: in the table.
        groups: a batch holds equal parts of each.
        source: what the synthetic volumes come from, in words; empty without.
    """

    name: str
    groups: tuple[Group, ...]
    source: str = ""


def synthetic_name(seen: str) -> str:
    return f"few + synthetic of a model that saw {seen}"


@torch.no_grad()
def score(classifier: SpotClassifier, features: torch.Tensor) -> np.ndarray:
    """Logits (n,) of the finding."""
    return classifier(features).numpy()


def statistics(
    settings: Sequence[Setting], scores: np.ndarray, truth: np.ndarray, args: argparse.Namespace
) -> list[dict]:
    """A row a setting; each difference is to another setting, paired by patient."""

    def sensitivity(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
        return sensitivity_at_specificity(present, absent, SPECIFICITY)

    present, absent = scores[..., truth], scores[..., ~truth]
    names = [setting.name for setting in settings]
    rows = [
        {
            "name": setting.name,
            "source": setting.source,
            "real_positives": int(setting.groups[0][1].sum()),
            "synthetic_positives": len(setting.groups[2][1]) if setting.source else 0,
        }
        for setting in settings
    ]
    for measure, statistic in (("auc", auc), ("sensitivity", sensitivity)):
        values = statistic(present, absent)
        resampled = paired_bootstrap(statistic, present, absent, resamples=args.resamples, seed=args.seed)
        for k, row in enumerate(rows):
            row[measure] = float(values[k].mean())
            row[f"{measure}_95"] = percentile_interval(resampled[k])
            row[f"{measure}_of_runs"] = values[k].tolist()
            for word, reference in (("few", FEW), ("control", CONTROL), ("placebo", f"{row['name']}{PLACEBO}")):
                if reference in names and row["name"] != reference:
                    other = names.index(reference)
                    row[f"{measure}_minus_{word}"] = float(values[k].mean() - values[other].mean())
                    row[f"{measure}_minus_{word}_95"] = percentile_interval(resampled[k] - resampled[other])
    return rows


def judge_twins(
    classifiers: Sequence[SpotClassifier], negatives: torch.Tensor, with_finding: torch.Tensor, without: torch.Tensor
) -> dict:
    """In how many synthetic cases the classifiers trained on many see the finding, at the table's specificity."""

    def mean_score(features: torch.Tensor) -> np.ndarray:
        return np.mean([score(one, features) for one in classifiers], axis=0)

    of_negatives = mean_score(negatives)
    result = {}
    for word, features in (("asked for", with_finding), ("asked not to be", without)):
        seen = float(sensitivity_at_specificity(mean_score(features), of_negatives, SPECIFICITY))
        rate = binomial_rate(round(seen * len(features)), len(features))
        result[word] = {"volumes": len(features), "seen": seen, "seen_95": (rate.low, rate.high)}
    return result


def markdown(facts: dict) -> str:
    """The table and what must be known to read it."""

    def value(row: dict, key: str) -> str:
        if key not in row:
            return ""
        sign = "+" if "minus" in key else ""
        low, high = row[f"{key}_95"]
        return f"{row[key]:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"

    columns = {
        "AUC": "auc", "minus few": "auc_minus_few", "minus control": "auc_minus_control",
        "minus placebo": "auc_minus_placebo", f"sensitivity at {100 * SPECIFICITY:.0f} % specificity": "sensitivity",
        "sensitivity minus few": "sensitivity_minus_few", "sensitivity minus placebo": "sensitivity_minus_placebo",
    }  # fmt: skip
    head = ["training data", "real cases", "synthetic cases", *columns, "AUC of each run"]
    lines = [head, ["---"] * len(head)]
    for row in facts["rows"]:
        counts = str(row["real_positives"]), str(row["synthetic_positives"] or "")
        runs = " ".join(f"{v:.3f}" for v in row["auc_of_runs"])
        lines.append([row["name"], *counts, *(value(row, key) for key in columns.values()), runs])
    pool, test = facts["pool"], facts["test"]
    text = [
        f"Finding: {facts['finding']}, in diffusers-ct phantoms. Each row: {len(facts['rows'][0]['auc_of_runs'])} "
        f"classifiers, {pool['negatives']} real patients without the finding, "
        f"{facts['settings']['classifier_steps']} steps. Held out: {test['positives']} with, {test['negatives']} without. "
        f"In brackets: 95 % bootstrap over the held-out patients, differences paired; control: {CONTROL}.",
        "\n".join("| " + " | ".join(line) + " |" for line in lines),
    ]
    for seen, checkpoint in facts["checkpoints"].items():
        judged = facts["seen_in_synthetic"][seen]
        shares = [
            f"{100 * j['seen']:.0f} % ({100 * j['seen_95'][0]:.0f} to {100 * j['seen_95'][1]:.0f}) of {j['volumes']} "
            f"synthetic volumes where it was {word}"
            for word, j in judged.items()
        ]
        warning = (
            "It has seen all their cases of the finding, which the few real cases do not have: not the setting of a "
            "rare finding."
            if seen == "many"
            else "It has seen no cases but the few: the setting of a rare finding."
        )
        text.append(
            f"Model that saw {seen}: {checkpoint['name']} ({checkpoint['revision']}), trained on "
            f"{checkpoint['training_data']}. {warning} The classifiers of the row '{MANY}' see the finding in "
            f"{' and in '.join(shares)} (exact 95 % intervals; threshold of {100 * SPECIFICITY:.0f} % specificity)."
        )
    if luck := list(facts["auc_of_other_few"].values()):
        low, middle, high = np.quantile([one[FEW] for one in luck], [0.0, 0.5, 1.0])
        words = (
            f"Luck of the draw: with {len(luck)} other sets of {facts['rows'][0]['real_positives']} real cases the row "
            f"'{FEW}' has an AUC of {middle:.3f} in the middle, {low:.3f} at worst and {high:.3f} at best."
        )
        name = synthetic_name("many")
        for other in (FEW, CONTROL, f"{name}{PLACEBO}") if name in luck[0] else ():
            gains = np.array([one[name] - one[other] for one in luck])
            words += f" '{name}' minus '{other}': {np.median(gains):+.3f} ({gains.min():+.3f} to {gains.max():+.3f}), "
            words += f"better in {int((gains > 0).sum())} sets."
        text.append(words)
    text.append(f"`{facts['command']}`, {facts['minutes']:.0f} min.")
    return "\n\n".join(text) + "\n"


def draw_cases(
    folder: Path, args: argparse.Namespace, classifier: SpotClassifier, real: np.ndarray, synthetic: dict
) -> Path:
    """Real cases, and synthetic ones over their twins; of each, the slice that a classifier scores highest by itself.

    A twin shows the slice of the one with the finding.
    """
    zoom, count, margin = 3, 6, 110
    rows = [("real", real[:count], real)]
    for seen, (with_finding, without) in synthetic.items():
        rows += [(f"saw {seen}: with", with_finding[:count], with_finding)]
        rows += [(f"saw {seen}: twin", without[:count], with_finding)]
    window = "lung" if args.finding.endswith("nodule") else "soft_tissue"
    height, width = args.shape[1:]
    sheet = Image.new("L", (margin + count * width * zoom, len(rows) * height * zoom))
    for number, (label, volumes, placed_as) in enumerate(rows):
        for column, (hu, like) in enumerate(zip(volumes, placed_as)):
            features = np.array([spot_features(like[k : k + 1], tuple(args.spacing)) for k in range(len(like))])
            k = score(classifier, torch.from_numpy(features)).argmax()
            shown = hu_to_unit(torch.from_numpy(hu[k].astype(np.float32)), window).numpy()
            grey = ((shown + 1.0) * 127.5).round().clip(0, 255).astype(np.uint8)
            tile = Image.fromarray(grey).resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
            sheet.paste(tile, (margin + column * width * zoom, number * height * zoom))
        ImageDraw.Draw(sheet).text((4, number * height * zoom + 4), label, fill=255)
    path = folder / "synthetic_cases.png"
    sheet.save(path)
    return path
