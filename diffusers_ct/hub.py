"""Cards rendered from what was measured, and pushing models and datasets to the Hub."""

from .card_rendering import CardError
from .deidentified_rows import check_nothing_identifying
from .hub_audit import audit_of, population_of
from .hub_datasets import push_dataset, render_dataset_card
from .hub_errors import HubError, hub_errors_in_words
from .hub_models import push_model
from .model_card import CardPicture, check_model_card, read_pictures, render_model_card, write_card

__all__ = [
    "CardError",
    "CardPicture",
    "HubError",
    "audit_of",
    "check_model_card",
    "check_nothing_identifying",
    "hub_errors_in_words",
    "population_of",
    "push_dataset",
    "push_model",
    "read_pictures",
    "render_dataset_card",
    "render_model_card",
    "write_card",
]
