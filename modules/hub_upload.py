"""Uploads what a run wrote to the Hugging Face Hub, also by hand and after the run.

    python -m modules.hub_upload me/my-vae runs/mine

The trainer starts this as a process of its own: an upload takes neither time nor memory of training
then, nothing that happens to it can end the run, and it can be ended although the Hub never answers
(huggingface_hub waits without limit).
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

from huggingface_hub import HfApi

from modules.run_files import uploaded_files


def upload(repository: str, folder: str | Path, message: str = "Upload of a finished run") -> None:
    """Commits what a run wrote into `folder`, all of it at once; the token is the cached one.

    Other files there are the user's, and stay where they are.
    """
    HfApi().upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message=message,
        allow_patterns=uploaded_files(Path(folder)),
    )


def _tell_in_one_line(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    del traceback
    print(f"{kind.__name__}: {' '.join(str(error).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.excepthook = _tell_in_one_line
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    upload(*sys.argv[1:])
