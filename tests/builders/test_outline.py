"""What a dry run says at once is what the run will do."""

from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.builders.data import open_data
from modules.builders.optimizers import training_length
from modules.builders.outline import changed_flags, count_images, outline
from modules.config.command_line import recipe_names, resolve_arguments
from modules.errors import ArgumentError
from modules.training.schedule import BEGINNING

FLAGS = ["--learning_rate=1e-3", "--no_random_flip", "--use_ema", "--block_out_channels 8 8 8 8",
         "--train_data_dir 'my photos'", "--seed 3", "--recipe 8gb", "--rec_loss l2"]  # fmt: skip


@pytest.mark.parametrize(
    "flags",
    ["--num_validation_images 4 --num_train_epochs 3 --gradient_accumulation_steps 2",
     "--num_validation_images 0 --max_train_samples 7 --train_batch_size 2",
     "--num_validation_images 1 --max_train_samples 5 --num_train_epochs 2 --train_batch_size 3",
     "--validation_image {0}/0.png --dataset_name synthetic --max_train_steps 9"],
)  # fmt: skip
def test_images_and_steps_are_those_of_the_run(flags, pictures):
    argv = shlex.split(flags.format(pictures))
    if "--dataset_name" not in argv:
        argv += ["--train_data_dir", str(pictures)]
    args = resolve_arguments(argv)
    size = open_data(args).size
    steps = training_length(args, size, 1, BEGINNING)
    told = outline(args)
    assert f": {size:,} images to train on" in told
    assert f"Steps  {steps:,} of " in told


def test_a_gan_that_never_starts_is_told_from_one_that_does(pictures):
    argv = ["--train_data_dir", str(pictures), "--num_train_epochs", "20", "--recipe", "8gb",
            "--num_validation_images", "2"]  # fmt: skip
    assert "Steps  20 of 1 images x 8" in outline(resolve_arguments(argv))
    late, early = (outline(resolve_arguments([*argv, "--disc_start", n])) for n in ("20", "19"))
    assert "GAN  never starts: --disc_start" in late
    assert "trains from step 19" in early


def test_a_folder_that_validation_takes_whole_is_refused(pictures):
    argv = ["--train_data_dir", str(pictures), "--num_validation_images"]
    count = count_images(resolve_arguments([*argv, "2"]).data)
    assert "1 images to train on" in outline(resolve_arguments([*argv, str(count - 1)]))
    with pytest.raises(ArgumentError, match=f"--num_validation_images={count} .*{count} images"):
        outline(resolve_arguments([*argv, str(count)]))


@given(st.lists(st.sampled_from(FLAGS), unique=True), st.sampled_from(recipe_names()))
def test_what_differs_from_the_defaults_is_all_that_matters_and_can_be_typed(flags, recipe):
    args = resolve_arguments(shlex.split(" ".join(["--recipe", recipe, *flags])))
    typed = shlex.split(" ".join(changed_flags(args)))
    assert resolve_arguments(typed).as_dict() == args.as_dict()
    assert "--rec_loss" not in typed or args.losses.rec_loss == "l1"


def test_a_secret_is_never_shown():
    args = resolve_arguments(["--hub_token", "secret", "--dataset_name", "a/b"])
    assert not re.search("secret", outline(args))
