"""Cards rendered from what was measured, and pushing models and datasets to the Hub."""

from .card_pictures import CardPicture, read_pictures, write_card
from .card_rendering import CardError
from .dataset_card import check_dataset_card, render_dataset_card
from .deidentified_rows import check_nothing_identifying
from .hub_audit import acquisition_of, audit_of, population_of
from .hub_datasets import push_dataset
from .hub_errors import HubError, hub_errors_in_words
from .hub_models import push_model
from .model_card import render_model_card
from .model_card_parts import check_model_card, joined_compute, joined_configs
from .synthesis_card import render_synthesis_card

__all__ = [
    "CardError",
    "CardPicture",
    "HubError",
    "acquisition_of",
    "audit_of",
    "check_dataset_card",
    "check_model_card",
    "check_nothing_identifying",
    "hub_errors_in_words",
    "joined_compute",
    "joined_configs",
    "population_of",
    "push_dataset",
    "push_model",
    "read_pictures",
    "render_dataset_card",
    "render_model_card",
    "render_synthesis_card",
    "write_card",
]
