"""Model folders on the Hugging Face Hub, which hf:OWNER/NAME names."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gnet_jax.config.recipes import needs
from gnet_jax.model_folder import TrainedModel, WeightsError, write_folder
from gnet_jax.model_folder.folder import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, is_model_folder

PREFIX = "hf:"


def check(repo: str) -> None:
    """Raise WeightsError if `repo` is not OWNER/NAME, or huggingface_hub is not installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise WeightsError(needs(f"{PREFIX}{repo}", error, "hub")) from error
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise WeightsError(f"{PREFIX}{repo} is not the name of a model; use {PREFIX}OWNER/NAME")


def download(repo: str) -> Path:
    """Returns the local copy of the model folder in the repository `repo` (OWNER/NAME).

    The copy is in the cache of huggingface_hub, which is used without a connection, too. Raises
    WeightsError if the repository does not exist, cannot be read, or has no model folder.
    """
    with _hub(repo, "download") as api:
        folder = Path(api.snapshot_download(repo, allow_patterns=[WEIGHTS_FILE, CONFIG_FILE]))
    if not is_model_folder(folder):
        raise WeightsError(f"{PREFIX}{repo} lacks {WEIGHTS_FILE} or {CONFIG_FILE}")
    return folder


def upload(model: TrainedModel, repo: str, card: str | None = None, private: bool = False) -> str:
    """Upload a model folder to the repository `repo` (OWNER/NAME), and return its URL.

    The repository is created if it does not exist, private if `private`. `card` is the text of the
    model card; the default is a new one. Raises WeightsError if the model cannot be saved or
    uploaded, or if the repository exists and is public, but `private`.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, repo.rpartition("/")[2])
        write_folder(folder, model)
        file = folder / CARD_FILE
        text = file.read_text("utf-8") if card is None else card
        # The example in a card loads the folder; here, it loads the repository.
        call = f'gnet_jax.load("{PREFIX}{repo}")'
        file.write_text(re.sub(r"gnet_jax\.load\(.*\)", call, text, count=1), "utf-8")
        with _hub(repo, "upload") as api:
            url = api.create_repo(repo, exist_ok=True, private=private or None)
            # The Hub ignores `private` if the repository exists.
            public = private and not api.model_info(repo).private
        if public:
            raise WeightsError(
                f"{PREFIX}{repo} exists and is public; make it private in its settings on the Hub, "
                "or choose another name"
            )
        with _hub(repo, "upload") as api:
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload the model")
    return str(url)


@contextlib.contextmanager
def _hub(repo: str, task: str) -> Iterator[Any]:
    """Yields an HfApi. Errors in the body become WeightsErrors that name `repo` and the `task`."""
    check(repo)
    from huggingface_hub import HfApi

    try:
        yield HfApi()
    except Exception as error:  # their classes depend on the version of huggingface_hub
        reason = str(error).strip().partition("\n")[0]
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
            reason = "it does not exist, or requires an account with access (hf auth login)"
        raise WeightsError(f"cannot {task} {PREFIX}{repo}: {reason}") from error
