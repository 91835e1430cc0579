"""What a stronger source names beats what a weaker one names, also under another flag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.config.command_line import resolve_arguments
from modules.config.precedence import QUESTIONS, overlay
from modules.errors import ArgumentError

ANSWERS = [(question, answer) for question in QUESTIONS for answer in question]
MENTIONED = sorted({flag for _, answer in ANSWERS for flag in answer.all})
sources = st.dictionaries(
    st.sampled_from([*MENTIONED, "seed"]), st.sampled_from([None, False, 1, 2])
)


@given(sources, sources)
def test_no_other_answer_of_the_weaker_source_is_left_beside_the_stronger_one(weaker, stronger):
    both = overlay(weaker, stronger)
    assert {**both, **stronger} == both
    assert both.items() <= {**weaker, **stronger}.items()
    for question, answer in ANSWERS:
        if any(stronger.get(flag) for flag in answer.flags):
            for other in question:
                if other != answer:
                    assert not any(f in both and f not in stronger for f in other.flags
                                   if not any(stronger.get(g) for g in other.flags))  # fmt: skip


@given(sources, sources)
def test_a_source_that_answers_nothing_takes_nothing_away(weaker, stronger):
    unset = {name: value for name, value in stronger.items() if not value}
    assert overlay(weaker, unset) == {**weaker, **unset}
    assert overlay(weaker, {}) == weaker
    assert overlay(weaker, {"seed": 1}) == {**weaker, "seed": 1}


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        ("--recipe quickstart --train_data_dir p",
         {"dataset_name": None, "train_data_dir": "p", "resolution": 64}),
        ("--recipe imagenet100 --train_data_dir p",
         {"dataset_name": None, "validation_split": None, "num_validation_images": 500}),
        ("--recipe imagenet100 --dataset_name b",
         {"dataset_name": ("b",), "validation_split": None}),
        ("--recipe imagenet100 --validation_data_dir v",
         {"validation_split": None, "dataset_name": ("clane9/imagenet-100",)}),
        ("--recipe ft-mse --pretrained_model_name_or_path x", {"decoder_only": True}),
        ("--recipe ft-mse --model_config_name_or_path x",
         {"decoder_only": False, "pretrained_model_name_or_path": None}),
        ("--recipe quickstart --pretrained_model_name_or_path x",
         {"layers_per_block": 2, "block_out_channels": None}),
        ("--recipe kl-f8 --pretrained_model_name_or_path x", {"vae_init": None}),
        ("--recipe quickstart --latent_channels 8", {"layers_per_block": 1}),
        ("--recipe quickstart --layers_per_block 2", {"block_out_channels": (16, 32, 64, 64)}),
        ("--recipe quickstart --no_decoder_only", {"block_out_channels": (16, 32, 64, 64)}),
        ("--recipe quickstart --num_train_epochs 2", {"max_train_steps": None}),
        ("--recipe quickstart --config {file} --num_train_epochs 2",
         {"max_train_steps": None, "train_data_dir": "q", "dataset_name": None}),
        ("--config {file} --validation_data_dir v", {"num_validation_images": None}),
        ("--config {file} --gradient_checkpointing", {"recompute": "none"}),
    ],
)  # fmt: skip
def test_a_users_answer_replaces_a_recipes(argv, wanted, tmp_path):
    file = tmp_path / "mine.yaml"
    lines = "train_data_dir: q", "max_train_steps: 9", "num_validation_images: 0", "recompute: norm"
    file.write_text("\n".join(lines))
    values = resolve_arguments(argv.format(file=file).split()).as_dict()
    assert {name: values[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    "argv",
    ["--data_files a.parquet", "--dataset_config_name c", "--recipe quickstart --data_files a.tar",
     "--dataset_name synthetic --train_data_dir p"],
)  # fmt: skip
def test_data_that_would_not_be_read_are_refused(argv):
    with pytest.raises(ArgumentError, match=r"needs the --dataset_name|drop one of the two"):
        resolve_arguments(argv.split())
