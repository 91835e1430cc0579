"""The result on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from modules.arguments import LoggingArguments
from modules.errors import ArgumentError, RunStopped

NOT_UPLOADED = ["checkpoints/*", "logs/*", ".*"]


def make_repository(args: LoggingArguments, output_dir: Path) -> str | None:
    """Creates the repository before training, so that a wrong token does not cost a run.

    Returns its id, or None without --push_to_hub. Raises ArgumentError when the Hub refuses.
    """
    if not args.push_to_hub:
        return None
    name = args.hub_model_id or output_dir.resolve().name
    try:
        return HfApi(token=args.hub_token).create_repo(name, exist_ok=True).repo_id
    except (HfHubHTTPError, OSError) as error:
        raise ArgumentError(
            f"--push_to_hub: the repository {name} cannot be created ({error}); run "
            "`hf auth login`, check --hub_model_id, or drop the flag and upload later"
        ) from error


def upload(args: LoggingArguments, output_dir: Path, repository: str) -> None:
    """Uploads what `make_repository` made room for. Raises RunStopped; the files stay on disk."""
    try:
        HfApi(token=args.hub_token).upload_folder(
            repo_id=repository,
            folder_path=output_dir,
            commit_message="End of training",
            ignore_patterns=NOT_UPLOADED,
        )
    except (HfHubHTTPError, OSError) as error:
        raise RunStopped(
            f"training is complete in {output_dir}, but the upload to {repository} failed "
            f"({error}); repeat it with `hf upload {repository} {output_dir}`"
        ) from error
