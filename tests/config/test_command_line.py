"""Every flag of diffusers' script, YAML below flags, and mistakes answered before torch loads."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from modules.config.arguments import GROUPS, LAUNCH_ONLY
from modules.config.command_line import (
    RECIPES,
    for_trackers,
    recipe_names,
    resolve_arguments,
    to_yaml,
)
from modules.errors import ArgumentError

ROOT = Path(__file__).parents[2]

# With a value other than our default for each, as in a command line for train_autoencoderkl.py.
DIFFUSERS_FLAGS = shlex.split("""
--pretrained_model_name_or_path=a/b --revision=main --output_dir=out --cache_dir=cache --seed=3
--resolution=256 --train_batch_size=2 --num_train_epochs=3 --max_train_steps=7
--checkpointing_steps=5 --checkpoints_total_limit=2 --resume_from_checkpoint=latest
--gradient_accumulation_steps=4 --gradient_checkpointing --learning_rate=1e-4
--disc_learning_rate=2e-4 --scale_lr --lr_scheduler=cosine --disc_lr_scheduler=linear
--lr_warmup_steps=9 --lr_num_cycles=2 --lr_power=2.0 --use_8bit_adam --use_ema
--dataloader_num_workers=1 --adam_beta1=0.5 --adam_beta2=0.9 --adam_weight_decay=0.1
--adam_epsilon=1e-7 --max_grad_norm=2.0 --push_to_hub --hub_token=secret --hub_model_id=me/mine
--logging_dir=log --allow_tf32 --report_to=none --mixed_precision=fp16
--enable_xformers_memory_efficient_attention --set_grads_to_none --dataset_name=d/e
--dataset_config_name=f --train_data_dir=g --image_column=img --max_train_samples=11
--validation_steps=13 --tracker_project_name=h --rec_loss=l1 --kl_scale=1e-5
--perceptual_scale=0.25 --disc_start=17 --disc_factor=0.5 --disc_scale=0.75 --disc_loss=vanilla
--decoder_only
""")  # fmt: skip


def flat(arguments) -> dict[str, object]:
    groups = [vars(getattr(arguments, name)) for name in GROUPS]
    return {name: value for group in groups for name, value in group.items()}


def test_a_command_line_for_diffusers_script_is_understood():
    values = flat(resolve_arguments([*DIFFUSERS_FLAGS, "--validation_image", "a.png", "b.png"]))
    for flag in DIFFUSERS_FLAGS:
        name, given, value = flag.removeprefix("--").partition("=")
        wanted = (value,) if name == "dataset_name" else type(values[name])(value)
        assert values[name] == (wanted if given else True), name
    assert values["validation_image"] == ("a.png", "b.png")
    assert len(DIFFUSERS_FLAGS) + 2 == 56  # these, --validation_image and the next
    assert resolve_arguments(["--model_config_name_or_path=x"]).model.model_config_name_or_path


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_resolves_and_only_sets_what_it_changes(name):
    arguments = resolve_arguments(["--recipe", name])
    values, defaults = flat(arguments), flat(resolve_arguments([]))
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert content
    for key, value in content.items():
        if isinstance(values[key], tuple):  # one of them may stand alone
            value = tuple(value) if isinstance(value, list) else (value,)
        assert values[key] == value
    assert {key for key in values if values[key] != defaults[key]} <= content.keys()


def test_of_several_recipes_the_later_wins_and_the_data_of_the_first_stay():
    both = resolve_arguments(["--recipe", "imagenet100", "8gb"])
    assert resolve_arguments(["--recipe=imagenet100", "--recipe=8gb"]) == both
    values, first, last = (flat(resolve_arguments(["--recipe", *names])) for names in (
        ["imagenet100", "8gb"], ["imagenet100"], ["8gb"]))  # fmt: skip
    for name in ("train_batch_size", "dataloader_num_workers", "checkpointing_steps"):
        assert values[name] == last[name] != first[name]
    for name in ("dataset_name", "validation_split", "num_validation_images", "min_image_size",
                 "rec_loss", "learning_rate", "lr_scheduler"):  # fmt: skip
        assert values[name] == first[name] != last[name]
    assert both.launch.recipes == ("imagenet100", "8gb")


@pytest.mark.parametrize(
    ("argv", "rates"),
    [
        ("", (1e-4, 1e-4)),
        ("--pretrained_model_name_or_path x", (4.5e-6, 4.5e-6)),
        ("--scale_lr", (4.5e-6, 4.5e-6)),
        ("--pretrained_model_name_or_path x --learning_rate 1e-3", (1e-3, 1e-3)),
        ("--disc_learning_rate 1e-5", (1e-4, 1e-5)),
    ],
)
def test_learning_rates_fit_what_is_trained_unless_they_are_given(argv, rates):
    assert resolve_arguments([*argv.split(), "--dataset_name=synthetic"]).peak_rates == rates


def test_kl_f8_is_latent_diffusions_as_published():
    """configs/autoencoder/autoencoder_kl_32x32x4.yaml there, and what its code adds to that."""
    published = {
        "downsample_factor": 8, "latent_channels": None, "vae_init": "random", "resolution": 256,
        "train_batch_size": 12,
        "gradient_accumulation_steps": 2, "learning_rate": 4.5e-6 * 12 * 2, "lr_scheduler":
        "constant", "disc_lr_scheduler": "constant", "adam_beta1": 0.5, "adam_beta2": 0.9,
        "disc_adam_beta1": None, "disc_adam_beta2": None, "adam_weight_decay": 0.0,
        "max_grad_norm": 0.0, "use_ema": False, "rec_loss": "l1", "perceptual_scale": 1.0,
        "lpips_backbone": "vgg", "kl_scale": 1e-6, "disc_start": 50001, "disc_warmup_steps": 0,
        "disc_ramp_steps": 0, "disc_factor": 1.0, "disc_scale": 0.5, "disc_loss": "hinge",
        "disc_adaptive_weight": True, "disc_weight_max": 1e4, "disc_norm_type": "batch",
        "disc_hidden_channels": 64, "disc_num_layers": 3, "gan_guard": False,
        "alternation": "every_step",
    }  # fmt: skip
    values = flat(resolve_arguments(["--recipe=kl-f8"]))
    assert {name: values[name] for name in published} == pytest.approx(published)
    assert values["disc_learning_rate"] is None  # the VAE's


def test_flags_beat_the_config_which_beats_the_recipe_which_beats_the_default(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("learning_rate: 3e-4\nseed: 5\nblock_out_channels: [8, 8, 8, 8]\n")
    argv = ["--recipe=kl-f8", f"--config={config}", "--seed=6", "--no_use_ema"]
    values = flat(resolve_arguments(argv))
    assert values["seed"] == 6
    assert values["learning_rate"] == 3e-4
    assert values["block_out_channels"] == (8, 8, 8, 8)
    assert values["rec_loss"] == "l1"  # the recipe's
    assert values["adam_epsilon"] == 1e-8  # the default


def test_the_written_configuration_gives_equal_arguments(tmp_path):
    lists = ["--validation_image", "a.png", "--data_files", "x", "y", "--no_scale_lr"]
    arguments = resolve_arguments([*DIFFUSERS_FLAGS, *lists])
    file = tmp_path / "train_config.yaml"
    file.write_text(to_yaml(arguments), encoding="utf-8")
    again = resolve_arguments([f"--config={file}"])
    assert again.as_dict() == arguments.as_dict()
    assert not set(LAUNCH_ONLY) & arguments.as_dict().keys()
    assert "secret" not in file.read_text()
    assert all(isinstance(value, int | float | str) for value in for_trackers(arguments).values())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--learning_rte=1", "--learning_rte is not a flag; did you mean --learning_rate?"),
        ("--wibble", "--wibble is not a flag; see --help"),
        ("--lr=1", "--lr is not a flag; did you mean --learning_rate?"),
        ("--resume", "--resume is not a flag; did you mean --resume_from_checkpoint?"),
        ("--validation_sp=a", "did you mean --validation_split?"),
        ("--learning_rate=fast", "--learning_rate: invalid float value: 'fast'"),
        ("--train_batch_size=0", "--train_batch_size=0 must be at least 1"),
        ("--train_batch_size=1.5", "--train_batch_size: invalid int value: '1.5'"),
        ("--rec_loss=l3", "--rec_loss: invalid choice: 'l3' (choose from 'l1', 'l2')"),
        ("--adam_beta1=1", "--adam_beta1=1.0 must be at least 0 and below 1"),
        ("--max_grad_norm=-1", "--max_grad_norm=-1.0 must be at least 0"),
        ("--disc_start=-1", "--disc_start=-1 must be a whole number of steps, at least 0 and"),
        ("--resolution=100", "--resolution=100 must be divisible by --downsample_factor=8; try 96"),
        ("--resolution=100 --downsample_factor=16", "--downsample_factor=16; try 96"),
        ("--block_out_channels 8 8", "--block_out_channels=8 8 must list 4 widths"),
        ("--block_out_channels 8 8 8 9 --norm_num_groups=4", "must divide every width of"),
        ("--disc_norm_type=batch --train_batch_size=1", "use --disc_norm_type=spectral_group"),
        ("--decoder_only", "--decoder_only needs --pretrained_model_name_or_path"),
        ("--streaming", "--streaming needs --dataset_name"),
        ("--streaming --dataset_name=x", "--streaming needs --max_train_steps"),
        ("--best_metric=lpips --perceptual_scale=0", "--validation_metrics are psnr ssim here"),
        ("--best_metric=rfid --validation_metrics=ssim", "--validation_metrics are psnr ssim here"),
        ("--validation_metrics=fid", "invalid choice: 'fid'"),
        ("--early_stopping=3 --num_validation_images=0", "or drop --early_stopping"),
        ("--validation_split=test", "--validation_split=test needs --dataset_name"),
        ("--validation_image a b a", "--validation_image=a is given twice"),
        ("--validation_split=t --validation_image=i", "exclude each other; keep one"),
        ("--hub_token=x --report_to=wandb", "run `hf auth login` instead"),
        ("--recipe=none", "--recipe=none is not one of"),
        ("--config=/nowhere.yaml", "--config=/nowhere.yaml does not exist"),
        ("--max_bad_images=2", "--max_bad_images=2.0 must be at least 0 and at most 1"),
        ("--disc_num_groups=48", "--disc_num_groups=48 must divide --disc_hidden_channels=64"),
        (
            "--disc_type=patch --disc_num_groups=48",
            "--disc_num_groups=48 must divide twice --disc_hidden_channels=64",
        ),
        ("--disc_num_layers=4", "--disc_num_layers=4 means layers of a patch discriminator: add "),
    ],
)
def test_a_mistake_names_flag_value_and_cure(argv, message):
    with pytest.raises(ArgumentError) as raised:
        resolve_arguments(argv.split())
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rte: 1\n", "'learning_rte' is not a flag; did you mean learning_rate?"),
        ("3: 1\n", "3 is not a flag"),
        ("seed: one\n", "seed: 'one' must be int"),
        ("seed: true\n", "seed: True must be int"),
        ("use_ema: 1\n", "use_ema: 1 must be bool"),
        ("rec_loss: l3\n", "rec_loss: 'l3' must be one of l1, l2"),
        ("block_out_channels: [a]\n", "block_out_channels: ['a'] must be a list of int"),
        ("seed: null\n", "seed: None must be int"),
        ("- seed\n", "must hold `flag: value` lines"),
        ("seed: [\n", "cannot be read as YAML"),
        ("resolution: 100\n", "--resolution=100 must be divisible"),
    ],
)
def test_a_mistake_in_a_configuration_names_the_file_and_the_key(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ArgumentError) as raised:
        resolve_arguments([f"--config={file}"])
    assert message in str(raised.value)


def run_script(*argv: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the script as a user starts it."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "train_vae.py"), *argv]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return found.returncode, found.stdout, found.stderr


@pytest.mark.parametrize("argv", [["--learning_rte=1"], ["--recipe=x"], ["--recipe=8gb"]])
def test_a_mistake_is_answered_within_3_seconds_and_before_torch_is_imported(argv):
    start = time.monotonic()
    code, output, errors = run_script(*argv)
    assert time.monotonic() - start < 3
    assert code == 2
    assert not output
    assert not re.search(r"\| +torch$", errors, re.MULTILINE)
    assert re.search(r"\| +yaml$", errors, re.MULTILINE)  # such lines are what is looked for
    messages = [line for line in errors.splitlines() if not line.startswith("import time:")]
    assert len(messages) == 1
    assert messages[0].startswith(f"train_vae.py: error: {argv[0].split('=')[0]}")


def test_a_folder_that_is_taken_is_refused_at_once_without_advice_that_leads_nowhere(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    code, _, errors = run_script("--recipe=quickstart", f"--output_dir={tmp_path}")
    assert code == 2
    assert not re.search(r"\| +torch$", errors, re.MULTILINE)
    message = errors.splitlines()[-1]
    assert f"--output_dir={tmp_path} already holds a run (metrics.jsonl): choose" in message
    assert "--resume_from_checkpoint" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_help_shows_every_group_and_the_default_of_every_flag():
    code, output, errors = run_script("--help")
    assert code == 0
    assert not re.search(r"\| +torch$", errors, re.MULTILINE)
    titles = re.findall(r"^(\w.*):$", output, re.MULTILINE)
    assert titles[-len(GROUPS) :] == [group.__doc__ for group in GROUPS.values()]
    assert len(re.findall(r"\(default:\s", output)) == len(flat(resolve_arguments([])))
    descriptions = output.split("\n\n", 1)[1]
    assert max(map(len, descriptions.splitlines())) <= 100
