"""The repository on the Hugging Face Hub: its name, what goes there, and that it will be let in."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from modules.arguments import Arguments
from modules.errors import ArgumentError
from modules.model_card import card_data
from modules.run_files import COMPLETE_MIDWAY, KEPT_AT_HOME, UPLOADED, top_names

logger = logging.getLogger(__name__)

MISSING_LICENSE = (
    "no --hub_license: others cannot know whether they may use the model; name yours, such as "
    "apache-2.0, or what the base model and the data ask for"
)


def repository_name(args: Arguments) -> str:
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


def planned_push(args: Arguments) -> str:
    """What --push_to_hub would do, for people; nothing is sent. Empty without the flag."""
    if not args.logging.push_to_hub:
        return ""
    name, every = repository_name(args), args.logging.push_every
    owner = "" if "/" in name else " under the name of whoever is logged in"
    kind = "private " if args.logging.hub_private else ""
    lines = [
        f"Would push to the Hub (a dry run does not ask it): {name}{owner}",
        f"  created before training as a {kind}repository, if it does not exist",
        f"  at the end: {', '.join(top_names(UPLOADED))}",
        f"  never: {', '.join(KEPT_AT_HOME)}",
    ]
    if every is not None:
        steps = every * args.checkpoints.checkpointing_steps
        midway = ", ".join(("README.md", *top_names(COMPLETE_MIDWAY)))
        lines.insert(2, f"  every {steps} steps, in the background: {midway}")
    if args.logging.hub_license is None:
        lines.append(f"  {MISSING_LICENSE}")
    return "\n".join(lines)


def make_repository(args: Arguments) -> str:
    """Creates the repository, if it is not there, and returns its full id.

    Raises ArgumentError when the Hub refuses the token, the name or the licence, or would refuse
    the files later: no such mistake may cost a run.
    """
    name, flags = repository_name(args), args.logging
    if flags.hub_license is None:
        logger.warning(MISSING_LICENSE)
    api = HfApi(token=flags.hub_token)
    try:
        repository = api.create_repo(name, exist_ok=True, private=flags.hub_private or None).repo_id
        api.auth_check(repository, write=True)
        public = flags.hub_private and not api.repo_info(repository).private
    except (HTTPError, OSError) as error:  # a refusal, or no connection
        raise ArgumentError(
            f"--push_to_hub: the repository {name} cannot be created or written to "
            f"({_in_one_line(error)}); run `hf auth login`, check --hub_model_id, or drop the flag "
            "and upload later"
        ) from error
    if public:
        raise ArgumentError(
            f"--hub_private: the repository {repository} exists already and is public; make it "
            "private on its settings page, choose another --hub_model_id, or drop the flag"
        )
    _check_card(args, repository)
    return repository


def _check_card(args: Arguments, repository: str) -> None:
    """Lets the Hub judge the card's metadata: later it would refuse the upload because of it."""
    header = card_data(args, repository).to_yaml()
    try:
        ModelCard(f"---\n{header}\n---\n").validate()
    except ValueError as error:
        raise ArgumentError(
            f"--hub_license={args.logging.hub_license}: the Hub refuses the model card "
            f"({_in_one_line(error)}); spell the licence as https://hf.co/docs/hub has it"
        ) from error
    except (HTTPError, OSError) as error:
        raise ArgumentError(
            f"--push_to_hub: the Hub does not answer any more ({_in_one_line(error)}); try again"
        ) from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
