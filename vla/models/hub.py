"""Checkpoints by the name of a folder or of a repository on the hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download


def folder_of(pretrained: str, patterns: Sequence[str]) -> Path:
    """The folder of a checkpoint: as named, or from the hub's cache, or downloaded, only files of these patterns."""
    folder = Path(pretrained)
    return folder if folder.is_dir() else Path(snapshot_download(pretrained, allow_patterns=list(patterns)))
