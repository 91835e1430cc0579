"""Uploads what a run wrote to the Hugging Face Hub, also by hand and after the run.

    python -m modules.export.upload me/my-vae runs/mine

The trainer starts this as a process of its own: an upload takes neither time nor memory of training
then, nothing that happens to it can end the run, and it can be ended although the Hub never answers
(huggingface_hub waits without limit). `hf upload` would send checkpoints, logs and whatever else
lies there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub import HfApi

from modules.errors import one_line
from modules.output.run_files import uploaded_files


def upload(repository: str, folder: str | Path, message: str = "Upload of a finished run") -> None:
    """Commits what a run wrote into `folder`; the token is HF_TOKEN's or the cached one.

    Other files there are the user's, and stay where they are.
    """
    HfApi().upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message=message,
        allow_patterns=uploaded_files(Path(folder)),
    )


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        upload(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {one_line(error)}")
