"""Puts an export into a repository on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potluck.errors import EnvironmentProblem, UsageError


def token_for(repo: str) -> str:
    """The token of whoever is logged in here, as huggingface_hub finds it.

    Raises:
        UsageError: there is none, or ``repo`` is no repository's name.
    """
    import huggingface_hub
    from huggingface_hub import utils
    from huggingface_hub.errors import HFValidationError

    checks: Any = utils
    try:
        checks.validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--push {repo}: that is no repository's name, such as me/model: {error}") from error
    token = huggingface_hub.get_token()
    if not token:
        raise UsageError(
            "to put a model on the Hub takes a token that may write, and there is none here: `hf auth login` "
            "or set HF_TOKEN; without --push the model is only written to the directory"
        )
    return token


def push(directory: Path, repo: str) -> str:
    """Upload a directory to a model repository, which is made if there is none; returns its URL.

    Raises:
        UsageError: there is no token.
        EnvironmentProblem: the Hub can't be reached, or refuses.
    """
    import huggingface_hub

    api: Any = huggingface_hub.HfApi(token=token_for(repo))
    try:
        made = api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=directory, commit_message="Exported by Potluck")
    except Exception as error:  # huggingface_hub's HTTP library changes, and each has its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = " ".join(lines[:2])[:300] or type(error).__name__
        raise EnvironmentProblem(f"the model is in {directory}, but not at {repo}: {said}") from error
    return str(made)
