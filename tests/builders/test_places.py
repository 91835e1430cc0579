"""What is not there is named by its flag, and a hub id is not taken for a path."""

from __future__ import annotations

import pytest

from modules.builders.places import check_places
from modules.config.command_line import resolve_arguments
from modules.errors import ArgumentError


@pytest.mark.parametrize(
    "flag",
    ["train_data_dir", "validation_data_dir", "lpips_weights", "inception_weights",
     "validation_image", "dataset_name", "pretrained_model_name_or_path",
     "model_config_name_or_path"],
)  # fmt: skip
def test_a_path_that_leads_nowhere_is_named_with_its_flag(flag, tmp_path):
    with pytest.raises(ArgumentError, match=f"--{flag}.*nowhere.*check the path"):
        check_places(resolve_arguments([f"--{flag}", str(tmp_path / "nowhere")]))
    place = tmp_path / "somewhere"
    place.touch() if "weights" in flag or flag == "validation_image" else place.mkdir()
    check_places(resolve_arguments([f"--{flag}", str(place)]))


@pytest.mark.parametrize("name", ["synthetic", "imagefolder", "clane9/imagenet-100"])
def test_what_may_be_on_the_hub_is_not_looked_for_here(name):
    check_places(resolve_arguments(["--dataset_name", name]))
