"""Makes diffusers know this package's classes: the only place that touches its private tables.

Without it a pipeline loads from a folder but not from the Hub, and components are dropped on saving.
"""

from diffusers.pipelines import pipeline_loading_utils

# Every savable class of the package, all of them names of `diffusers_ct` itself.
SAVABLE_CLASSES = (
    "UNet3DCTModel",
    "CTAdaptiveDDIMScheduler",
    "CTConsistencyScheduler",
    "ConditionEncoder",
    "NoiseAwareClassifier",
    "CTDiffusionPipeline",
)


def register() -> None:
    """Enters the package's classes into diffusers' loading tables; doing it twice changes nothing."""
    methods = {name: ["save_pretrained", "from_pretrained"] for name in SAVABLE_CLASSES}
    pipeline_loading_utils.LOADABLE_CLASSES["diffusers_ct"] = methods
    pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(methods)


def register_pipelines_with_diffusers() -> None:
    """Lets the generic `diffusers.DiffusionPipeline.from_pretrained` find `CTDiffusionPipeline`; call it yourself.

    It sets an attribute of the diffusers package, so it is not done at import.
    """
    import diffusers

    from . import CTDiffusionPipeline

    diffusers.CTDiffusionPipeline = CTDiffusionPipeline
