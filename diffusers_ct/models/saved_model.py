"""How this package's networks are saved and loaded: weights as safetensors alone, no place on a machine in the files."""

import json
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin


def safetensors_alone(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of diffusers' `from_pretrained`, so that it never unpickles.

    Raises:
        ValueError: if pickles are asked for.
    """
    if arguments.get("use_safetensors") is False:
        raise ValueError(
            "Weights are loaded from safetensors alone: `use_safetensors` cannot be False, a pickle runs code."
        )
    return {**arguments, "use_safetensors": True}


def without_origin(config: str) -> str:
    """A configuration in diffusers' JSON without what it was loaded from, which may be a path of somebody's machine."""
    values = json.loads(config)
    values.pop("_name_or_path", None)
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


class SavedModel(ModelMixin, ConfigMixin):
    """A diffusers model that is loaded from safetensors alone and saved without where it was loaded from."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Loads from a folder or the Hub; diffusers alone would take a pickle where there are no safetensors.

        Raises:
            ValueError: if pickles are asked for.
            OSError: if there are no safetensors.
        """
        return super().from_pretrained(pretrained_model_name_or_path, **safetensors_alone(kwargs))

    def to_json_string(self) -> str:
        """The configuration as it is saved."""
        return without_origin(super().to_json_string())
