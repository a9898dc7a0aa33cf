"""The Hugging Face Hub: how its libraries are used, and what a repository says of itself."""

import os
from pathlib import Path


def set_environment(offline: bool) -> None:
    """Set what the Hub's libraries read when they are imported, which must not have happened."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def licence_of(readme: Path) -> str | None:
    """The `license` in the header of a repository's README.md; None where there is none, or no README."""
    from huggingface_hub.repocard import metadata_load

    try:
        found = (metadata_load(readme) or {}).get("license")
    except Exception:  # whatever its author wrote there
        return None
    return found if isinstance(found, str) else None


def refusal(error: Exception, key: str, revision: str | None) -> str | None:
    """Cause and remedy where the Hub says no, in one line; None for other errors. `key` is what names the repository."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return "is gated; ask for access on its page and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"not found on the Hugging Face Hub; check {key}, or set HF_TOKEN if it is private"
    if isinstance(error, RevisionNotFoundError):
        return f"has no revision {revision!r}; name a branch, tag or commit of it"
    return None
