"""Where the files of a model lie: a folder, or a repository on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

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

from modules.weights.tensor_files import UnusableModel


class Source(Protocol):
    """Files by their name relative to the model's root, with `/` between folders."""

    def fetch(self, name: str) -> Path | None:
        """The local path of a file, or None where the model has no such file."""
        ...

    def listing(self) -> list[str]:
        """The names of all files, for error messages."""
        ...

    def raise_if_unreachable(self) -> None:
        """Raise UnusableModel if a None of `fetch` may have meant that nobody could be asked."""
        ...


class Folder:
    """A folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fetch(self, name: str) -> Path | None:
        """The path of a file that exists."""
        path = self.root / name
        return path if path.is_file() else None

    def listing(self) -> list[str]:
        """The files of the folder and of the folders in it."""
        files = [*self.root.glob("*"), *self.root.glob("*/*")]
        return sorted(path.relative_to(self.root).as_posix() for path in files if path.is_file())

    def raise_if_unreachable(self) -> None:
        """A folder can always be asked."""


class HubRepository:
    """A repository on the Hub, read through huggingface_hub's cache and cached login.

    Once the Hub has not answered, only the cache is asked: each attempt to connect takes the
    library's retries, some 20 seconds.
    """

    def __init__(
        self,
        repo_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        token: str | None,
    ) -> None:
        self.repo_id, self.revision = repo_id, revision
        self.cache_dir, self.token = cache_dir, token
        self.failure: LocalEntryNotFoundError | None = None

    def fetch(self, name: str) -> Path | None:
        """The path of a file in the cache, downloaded if need be; raises UnusableModel."""
        try:
            return Path(
                hf_hub_download(
                    self.repo_id,
                    name,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    token=self.token,
                    local_files_only=self.failure is not None,
                )
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

    def listing(self) -> list[str]:
        """All files of the repository; raises UnusableModel."""
        try:
            return HfApi(token=self.token).list_repo_files(self.repo_id, revision=self.revision)
        except HfHubHTTPError as error:
            raise UnusableModel(self._explain(error)) from error

    def raise_if_unreachable(self) -> None:
        """Raise UnusableModel with the cause if the Hub could not be asked."""
        if self.failure is None:
            return
        reason = _first_line(self.failure.__cause__ or self.failure)
        raise UnusableModel(
            "no such file or folder, and as a hub id it is not complete in the cache and the Hub "
            f"could not be reached ({reason}); check the path, the connection, and HF_HUB_OFFLINE"
        ) from self.failure

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
        return f"it could not be downloaded: {_first_line(error)}"


def join(folder: str, name: str) -> str:
    """A file's name inside a folder of the model; "" is its root."""
    return f"{folder}/{name}" if folder else name


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
