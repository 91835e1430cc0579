"""What the flags say of the result: its model card, its latents, its repository on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from modules.builders.outline import changed_flags
from modules.config.arguments import GROUPS, Arguments
from modules.config.fates import shown
from modules.config.inputs import DataArguments
from modules.errors import ArgumentError
from modules.export.hub import make_repository
from modules.export.model_card import Training, card_data
from modules.export.publisher import Publisher
from modules.models.latents import LatentStatistics
from modules.output.run_files import COMPLETE_MIDWAY, KEPT_AT_HOME, UPLOADED, top_names

logger = logging.getLogger(__name__)

# What the weights come from; the other flags say what was written and where.
OF_THE_WEIGHTS = {
    flag.name: flag
    for name, group in GROUPS.items()
    if name not in ("checkpoints", "logging")
    for flag in fields(group)
}
MISSING_LICENSE = (
    "no --hub_license: others cannot know whether they may use the model; name yours, such as "
    "apache-2.0, or what the base model and the data ask for"
)


def latent_config(args: Arguments, latents: LatentStatistics | None) -> dict[str, Any]:
    """The configuration entries that normalise the latents; none where the encoder was frozen."""
    if latents is None or args.model.decoder_only:
        return {}
    return latents.normalization(args.checkpoints.latent_normalization)


def describe_training(
    args: Arguments,
    architecture: str = "",
    history: Iterable[Mapping[str, Any]] = (),
    repository: str | None = None,
    **known: Any,
) -> Training:
    """What a model card says of the run.

    history: at which steps it was resumed with other flags, as in a checkpoint. repository: the
    full id, if it is pushed to the Hub. known: what else there is to say, fields of Training.
    """
    data, wanted = args.data, args.logging.hub_model_id
    base, validation = args.model.pretrained_model_name_or_path, args.validation
    base_model, published = hub_id(base), hub_datasets(data)
    elsewhere = validation.validation_image or validation.validation_data_dir
    one = len(data.dataset_name or ()) == len(published) == 1 and not elsewhere
    return Training(
        title=repository or wanted or Path(args.checkpoints.output_dir).resolve().name,
        architecture=architecture,
        images=_images(data),
        repository=repository or (wanted if "/" in (hub_id(wanted) or "") else None),
        license=args.logging.hub_license,
        base=f"`{base_model}`" if base_model else "another VAE" if base else None,
        base_model=base_model,
        datasets=published,
        validation_dataset=published[0] if one else None,
        validation_split=(validation.validation_split or data.train_split) if one else None,
        decoder_only=args.model.decoder_only,
        flags=changed_flags(args, paths=False, among=OF_THE_WEIGHTS),
        changes=[text for change in history if (text := _change(change))],
        **known,
    )


def hub_id(name: str | None) -> str | None:
    """`name` where it is that of a repository on the Hub, None for anything on this machine."""
    if name is None or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def hub_datasets(args: DataArguments) -> list[str]:
    """The Hub ids among the data sets that training images come from."""
    # "imagefolder" and its like are no ids, but ways to read the files that other flags name.
    reads_files = bool(args.data_files or args.train_data_dir)
    return [
        name
        for name in args.dataset_name or ()
        if name != "synthetic" and hub_id(name) and ("/" in name or not reads_files)
    ]


def _images(args: DataArguments) -> str:
    published, names = hub_datasets(args), args.dataset_name or ()
    parts = [f"[{name}](https://huggingface.co/datasets/{name})" for name in published]
    if "synthetic" in names:
        parts.append("pictures drawn by the trainer itself (`--dataset_name synthetic`)")
    if {*names} - {*published, "synthetic"} or (args.train_data_dir and not names):
        parts.append("images that are not on the Hub")
    return " and ".join(parts)


def _change(change: Mapping[str, Any]) -> str:
    """A sentence on one resume with other flags; of those that name something, only which."""
    parts = []
    for name, (before, now) in change["flags"].items():
        if flag := OF_THE_WEIGHTS.get(name):
            free_text = "str" in flag.type and not flag.metadata["choices"]
            values = f"`{name}` {shown(now)} (before: {shown(before)})"
            parts.append(f"another `{name}`" if free_text else values)
    if change["measured_anew"]:
        parts.append("other validation images or sizes, so that metrics begin there")
    return f"From step {change['step']} on: {', '.join(parts)}." if parts else ""


def make_publisher(args: Arguments) -> Publisher:
    """Creates the repository on the Hub. Raises ArgumentError as `make_repository` does."""
    name, flags = _repository_name(args), args.logging
    if flags.hub_license is None:
        logger.warning(MISSING_LICENSE)
    header = card_data(describe_training(args))
    repository = make_repository(name, header, private=flags.hub_private, token=flags.hub_token)
    folder = Path(args.checkpoints.output_dir)
    return Publisher(repository, folder, _steps_between_pushes(args), flags.hub_token)


def planned_push(args: Arguments) -> str:
    """What --push_to_hub would do, for people; nothing is sent. Empty without the flag."""
    if not args.logging.push_to_hub:
        return ""
    name, steps = _repository_name(args), _steps_between_pushes(args)
    owner = "" if "/" in name else " under the name of whoever is logged in"
    kind = "private " if args.logging.hub_private else ""
    midway = ", ".join(("README.md", *top_names(COMPLETE_MIDWAY)))
    return "\n  ".join([
        f"Would push to the Hub (a dry run does not ask it): {name}{owner}",
        f"created before training as a {kind}repository, if it does not exist",
        *([f"every {steps} steps, in the background: {midway}"] if steps else []),
        f"at the end: {', '.join(top_names(UPLOADED))}",
        f"never: {', '.join(KEPT_AT_HOME)}",
        *([MISSING_LICENSE] if args.logging.hub_license is None else []),
    ])  # fmt: skip


def _repository_name(args: Arguments) -> str:
    """What the repository is to be called; the user's name is added by the Hub if it is missing.

    Raises ArgumentError for what cannot be a name.
    """
    name = args.logging.hub_model_id or Path(args.checkpoints.output_dir).resolve().name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ArgumentError(
            f"--hub_model_id={name} is no name of a repository ({error}); give one, such as "
            "me/my-vae (without the flag it is the name of --output_dir)"
        ) from error
    return name


def _steps_between_pushes(args: Arguments) -> int:
    """0 where only the end is pushed."""
    return (args.logging.push_every or 0) * args.checkpoints.checkpointing_steps
