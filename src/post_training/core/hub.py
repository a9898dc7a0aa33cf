"""What a repository of the Hub says of itself."""

from pathlib import Path


def licence_of(readme: Path) -> str | None:
    """The `license` in the header of a repository's README.md; None where there is none, or no README."""
    from huggingface_hub.repocard import metadata_load

    try:
        found = (metadata_load(readme) or {}).get("license")
    except Exception:  # whatever its author wrote there
        return None
    return found if isinstance(found, str) else None
