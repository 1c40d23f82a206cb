"""Uploading a checkpoint to the Hugging Face Hub."""

from pathlib import Path

import huggingface_hub

from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.training.training_state import STATE_FOLDER

PLACE_OF_REPOSITORY = "THIS_REPOSITORY"  # in model_cards/template.md


def check_hub_access() -> None:
    """Find out before training, not after it, whether an upload can work.

    Raises:
        CheckpointError: there is no valid token, or no connection.
    """
    try:
        huggingface_hub.whoami()
    except Exception as error:
        raise CheckpointError(
            f"--push-to-hub cannot upload: {error}. Log in with `hf auth login` or set HF_TOKEN, or leave it out and "
            "upload the checkpoint later."
        ) from error


def push_checkpoint(checkpoint: Path, repository: str, private: bool = False) -> str:
    """Upload a checkpoint folder without its training state; returns the address of the repository."""
    api = huggingface_hub.HfApi()
    name = api.create_repo(repository, private=private, exist_ok=True).repo_id
    api.upload_folder(
        repo_id=name,
        folder_path=checkpoint.resolve(),
        ignore_patterns=[f"{STATE_FOLDER}/*", "README.md"],
        commit_message=f"Upload {checkpoint.resolve().name}",
    )
    card = checkpoint / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8").replace(PLACE_OF_REPOSITORY, name)
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=name)
    return f"https://huggingface.co/{name}"
