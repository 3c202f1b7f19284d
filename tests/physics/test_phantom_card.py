"""The phantoms' card: the one on disk is the one that the code writes, and it names what the code draws."""

from pathlib import Path

from diffusers_ct.physics import LESION_KINDS, ORGAN_LABELS
from diffusers_ct.physics.phantom_anatomy import BASE_HU
from diffusers_ct.physics.phantom_card import render_phantom_card

CARD = Path(__file__).parents[2] / "model_cards" / "phantoms.md"


def test_the_card_on_disk_is_what_the_code_writes():
    assert CARD.read_text(encoding="utf-8") == render_phantom_card()


def test_the_card_follows_the_tables(monkeypatch):
    card = render_phantom_card()
    for region in ("thorax", "abdomen", "pelvis", "shoulder", "head"):
        assert f"| {region} |" in card and f"* {region}, age:" in card and f"* {region}, sex:" in card
    assert all(f"\n| {kind} |" in card for kind in LESION_KINDS)
    assert all(f"{label} {name}" in card for name, label in ORGAN_LABELS.items())
    for text in (
        "no scatter",
        "no beam hardening",
        "simplified",
        "Disease is independent of anatomy",
        "Not for clinical",
    ):
        assert text in card
    monkeypatch.setitem(BASE_HU, "bladder", 7.5)
    assert "| bladder | bladder | 7.5 |" in render_phantom_card() and "| bladder | bladder | 7.5 |" not in card
