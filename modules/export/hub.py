"""The repository on the Hugging Face Hub: made, and asked whether it will take the run."""

from __future__ import annotations

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HTTPError

from modules.errors import ArgumentError, one_line


def make_repository(
    name: str, header: ModelCardData, *, private: bool = False, token: str | None = None
) -> str:
    """Creates the repository, if it is not there, and returns its full id.

    header: the metadata that the model card will have. Raises ArgumentError when the Hub refuses
    the token, the name or the licence, or would refuse the files later: no such mistake may cost a
    run.
    """
    api = HfApi(token=token)
    try:
        repository = api.create_repo(name, exist_ok=True, private=private or None).repo_id
        api.auth_check(repository, write=True)
        if private and not api.repo_info(repository).private:
            raise ArgumentError(
                f"--hub_private: the repository {repository} exists already and is public; make it "
                "private on its settings page, choose another --hub_model_id, or drop the flag"
            )
        try:
            ModelCard(f"---\n{header.to_yaml()}\n---\n").validate()
        except ValueError as error:
            raise ArgumentError(
                f"--hub_license={header.license}: the Hub refuses the model card "
                f"({one_line(error)}); spell the licence as https://hf.co/docs/hub has it"
            ) from error
    except (HTTPError, OSError) as error:  # a refusal, or no connection
        raise ArgumentError(
            f"--push_to_hub: the repository {name} cannot be created or written to "
            f"({one_line(error)}); run `hf auth login`, check --hub_model_id, or drop the flag "
            "and upload later"
        ) from error
    return repository
