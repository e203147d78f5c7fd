"""Uploads a folder that is exported already to the Hugging Face Hub."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not marked so

from vlm2vec.errors import InputError
from vlm2vec.export.card import CARD, name_repository
from vlm2vec.export.companions import MODULE_FILE
from vlm2vec.formats.json_files import read_json
from vlm2vec.model_folder.adapter_files import ADAPTER_CONFIG
from vlm2vec.model_folder.settings import SETTINGS_FILE

_BRANCH = re.compile(r"[\w.-]+(/[\w.-]+)*")
_MAX_REASON = 300  # characters
# Files of an earlier upload that would be loaded beside or instead of the new ones, such as more shards or an adapter.
_REPLACED = ["*.safetensors", "*.safetensors.index.json", "*.bin", "config.json", ADAPTER_CONFIG]


@dataclass(frozen=True)
class HubTarget:
    """A repository on the Hub to upload to.

    Attributes:
        repository: "namespace/name", or "name" alone in the namespace of the user.
        private: Make it private if it does not exist, and refuse it if it is public.
        revision: The branch; made if there is none. None: "main".

    Raises:
        InputError: Not a name that the Hub allows.
    """

    repository: str
    private: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repository)
        except HFValidationError as error:
            raise InputError(
                f"--push_to_hub {self.repository}: not a repository's name, expected NAMESPACE/NAME or NAME ({error})"
            ) from error
        if self.revision is not None and not _BRANCH.fullmatch(self.revision):
            raise InputError(f"--hub_revision {self.revision}: not a branch's name, expected one such as v1 or main")

    def command(self, folder: Path) -> str:
        """The command that uploads a folder to this place."""
        words = ["python", "-m", "vlm2vec.export", str(folder), "--push_to_hub", self.repository]
        words += ["--private"] if self.private else []
        words += ["--hub_revision", self.revision] if self.revision is not None else []
        return shlex.join(words)


def log_in(target: HubTarget) -> HubTarget:
    """Asks the Hub who the user is, before anything else is done; nothing is changed there.

    The token comes from where huggingface_hub looks for it: `HF_TOKEN`, or what `hf auth login` stored.

    Returns:
        The target, with its namespace.

    Raises:
        InputError: No token, one that the Hub refuses, or no connection.
    """
    try:
        user = HfApi().whoami()["name"]
    except LocalTokenNotFoundError as error:
        raise InputError(
            f"--push_to_hub {target.repository}: no token for the Hub: run `hf auth login`, or set HF_TOKEN"
        ) from error
    except Exception as error:  # a refused token, no connection, offline mode: each layer has its types
        raise InputError(f"--push_to_hub {target.repository}: cannot log in to the Hub ({_reason(error)})") from error
    name = target.repository
    return target if "/" in name else replace(target, repository=f"{user}/{name}")


def refuse_unexported(folder: Path) -> None:
    """Before a folder is uploaded as it is.

    Raises:
        InputError: It is not what `vlm2vec.export` or `vlm2vec.average` wrote.
    """
    needed = (CARD, SETTINGS_FILE, MODULE_FILE)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: not an exported folder, it has no {missing[0]}; to export a checkpoint and upload it: "
            f"python -m vlm2vec.export {folder} OUT --push_to_hub NAME"
        )


def local_base(folder: Path) -> str | None:
    """The base of an adapter if it is a folder of this machine, which nobody else could load the adapter on."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    base = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))
    return base if Path(base).is_absolute() or Path(base).is_dir() else None


def push(folder: Path, target: HubTarget) -> str:
    """Uploads an exported folder; the repository and its branch are made if they do not exist.

    Weights and configurations of an earlier upload that the folder does not have are deleted there. The card's examples
    load the model by the repository's name from then on, in the folder too.

    Args:
        folder: What `vlm2vec.export` or `vlm2vec.average` wrote.
        target: With the namespace, see `log_in`.

    Returns:
        The address of the repository.

    Raises:
        InputError: The upload failed; the folder is complete, and the message holds the command to repeat it.
    """
    name_repository(folder, target.repository)
    api = HfApi()
    try:
        address = api.create_repo(target.repository, private=target.private or None, exist_ok=True)
        if target.private and not api.model_info(target.repository).private:
            raise InputError("it exists and is public; make it private in its settings, or choose another name")
        if target.revision is not None:
            api.create_branch(target.repository, branch=target.revision, exist_ok=True)
        api.upload_folder(
            repo_id=target.repository,
            folder_path=folder,
            commit_message="Upload with vlm2vec.export",
            revision=target.revision,
            delete_patterns=[
                name for name in api.list_repo_files(target.repository, revision=target.revision) if _is_replaced(name)
            ],
        )
    except Exception as error:  # of the network, of the Hub, of its storage: each layer has its types
        raise InputError(
            f"{folder} is complete, but it could not be uploaded to {target.repository} ({_reason(error)}); "
            f"to upload it again: {target.command(folder)}"
        ) from error
    return str(address)


def _is_replaced(name: str) -> bool:
    """Whether a file of the repository is of a model at its root, not of one in a sub-folder."""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in _REPLACED)


def _reason(error: Exception) -> str:
    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    text = " ".join(f"{str(error).splitlines()[0] if str(error) else type(error).__name__} {said or ''}".split())
    return text[:_MAX_REASON]
