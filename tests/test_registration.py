"""diffusers' private tables still work as `registration` uses them."""

import subprocess
import sys

from diffusers.pipelines import pipeline_loading_utils

import diffusers_ct
from diffusers_ct.registration import SAVABLE_CLASSES, register


def test_every_savable_class_is_a_name_of_the_package_and_in_both_tables():
    register()
    # If this fails after an upgrade of diffusers, pipelines load from folders but no longer from the Hub.
    for name in SAVABLE_CLASSES:
        assert hasattr(diffusers_ct, name)
        assert pipeline_loading_utils.LOADABLE_CLASSES["diffusers_ct"][name] == ["save_pretrained", "from_pretrained"]
        assert name in pipeline_loading_utils.ALL_IMPORTABLE_CLASSES


def test_the_generic_pipeline_finds_ours_only_when_asked():
    code = """
import diffusers
import diffusers_ct.pipelines
assert not hasattr(diffusers, "CTDiffusionPipeline")
from diffusers_ct.registration import register_pipelines_with_diffusers
register_pipelines_with_diffusers()
assert diffusers.CTDiffusionPipeline is diffusers_ct.pipelines.CTDiffusionPipeline
"""
    subprocess.run([sys.executable, "-c", code], check=True)
