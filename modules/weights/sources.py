"""Where the files of a model lie: a folder, or a repository on the Hugging Face Hub.

Files are called by their names relative to the model's root, with `/` between folders.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from modules.errors import one_line
from modules.weights.tensor_files import UnusableModel


class Folder:
    """A folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fetch(self, name: str) -> Path | None:
        """The path of a file, or None where there is none."""
        path = self.root / name
        return path if path.is_file() else None

    def listing(self) -> list[str]:
        """The files of the folder and of the folders in it."""
        files = [*self.root.glob("*"), *self.root.glob("*/*")]
        return sorted(path.relative_to(self.root).as_posix() for path in files if path.is_file())


class HubRepository:
    """A repository on the Hub, read through huggingface_hub's cache and cached login.

    Once the Hub has not answered, only the cache is asked: each attempt to connect takes the
    library's retries, some 20 seconds.
    """

    def __init__(self, repo_id: str, revision: str | None, cache_dir: str | Path | None) -> None:
        self.repo_id, self.revision, self.cache_dir = repo_id, revision, cache_dir
        self.failure: LocalEntryNotFoundError | None = None

    def fetch(self, name: str) -> Path | None:
        """The path of a file in the cache, downloaded if need be; raises UnusableModel.

        None where there is no such file, or where nobody could be asked: `listing` tells.
        """
        try:
            file = hf_hub_download(
                self.repo_id,
                name,
                revision=self.revision,
                cache_dir=self.cache_dir,
                local_files_only=self.failure is not None,
            )
        except LocalEntryNotFoundError as error:
            self.failure = self.failure or error
            return None
        except EntryNotFoundError:
            return None
        except HFValidationError as error:
            raise UnusableModel(
                "no such file or folder, and no hub id (owner/name) either; check the spelling"
            ) from error
        except HfHubHTTPError as error:
            raise UnusableModel(self._explain(error)) from error
        return Path(file)

    def listing(self) -> list[str]:
        """All files of the repository; raises UnusableModel where the Hub does not tell."""
        if self.failure is not None:
            reason = one_line(self.failure.__cause__ or self.failure)
            raise UnusableModel(
                "no such file or folder, and as a hub id it is not complete in the cache and the "
                f"Hub could not be reached ({reason}); check the path, the connection, and "
                "HF_HUB_OFFLINE"
            ) from self.failure
        try:
            return HfApi().list_repo_files(self.repo_id, revision=self.revision)
        except HfHubHTTPError as error:
            raise UnusableModel(self._explain(error)) from error

    def _explain(self, error: HfHubHTTPError) -> str:
        if isinstance(error, GatedRepoError):
            page = f"https://huggingface.co/{self.repo_id}"
            return f"it is gated: accept its terms at {page}, then run `hf auth login`"
        if isinstance(error, RepositoryNotFoundError):
            return (
                "no such file or folder, and the Hub shows no such repository; check the spelling, "
                "or run `hf auth login` if it is private"
            )
        if isinstance(error, RevisionNotFoundError):
            return f"it has no branch, tag or commit --revision={self.revision}"
        return f"it could not be downloaded: {one_line(error)}"


Source = Folder | HubRepository
