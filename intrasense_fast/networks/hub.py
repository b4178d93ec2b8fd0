"""Checkpoints on the Hugging Face Hub: "owner/name" becomes a folder of its cache, and a folder a
commit.

Only the files named below travel, none of which can hold code; what arrives is checked like any
other checkpoint. A local folder always comes before a repository of its name.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from intrasense_fast.errors import first_line
from intrasense_fast.networks.cards import CARD_FILE, is_foreign, network_card
from intrasense_fast.networks.checksums import CHECKSUM_FILE
from intrasense_fast.networks.pretrained import CONFIG_FILE, WEIGHTS_FILE
from intrasense_fast.networks.selftest import SELFTEST_FILE

_BESIDE = ("trained_on.json", "calibration.json")
FILES = (CONFIG_FILE, WEIGHTS_FILE, CHECKSUM_FILE, SELFTEST_FILE, *_BESIDE, CARD_FILE)
_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([\w./-]+))?", re.ASCII)
# Folders of a run: a path to one that is missing is no name on the Hub.
_OF_RUNS = ("best", "last", "previous")
_MESSAGE = "Upload of an intrasense-fast checkpoint"


class HubError(ValueError):
    """A repository that cannot be read or written: which, why, and what to do."""


class Located(NamedTuple):
    """A checkpoint's folder, and the repository it came from; `repository` is "" for a folder of
    one's own, `commit` the revision's."""

    folder: Path
    repository: str = ""
    commit: str = ""

    def __str__(self) -> str:
        if not self.repository:
            return str(self.folder)
        return f"{self.repository} of the Hub, commit {self.commit[:10]}, in {self.folder}"


def locate(
    checkpoint: str | os.PathLike[str],
    revision: str | None = None,
    *,
    local_files_only: bool = False,
) -> Located:
    """The folder of a checkpoint, downloaded into the Hub's cache where it names a repository.

    A string "owner/name", or "owner/name@revision", is a repository where there is no such folder,
    no folder "owner" (unless a revision is given), and "name" is not best, last or previous.
    Everything else is a path.

    Args:
        checkpoint: a folder, or a name on the Hub.
        revision: branch, tag or commit of a repository; None = its main branch.
        local_files_only: take it from the cache alone, as HF_HUB_OFFLINE=1 does.

    Raises:
        HubError: it cannot be had; the message says why.
    """
    path = Path(checkpoint)
    match = _NAME.fullmatch(checkpoint) if isinstance(checkpoint, str) else None
    if path.exists() or match is None:
        if revision is not None:
            reason = "is a folder here" if path.exists() else "is no name like owner/name"
            raise HubError(
                f"{checkpoint}: {reason}, and only a repository of the Hub has a revision "
                f"({revision!r}); leave it out, or give another name"
            )
        return Located(path)
    repository, given = match[1], revision or match[2]
    owner, name = repository.split("/")
    if given is None and (name in _OF_RUNS or Path(owner).is_dir()):
        return Located(path)
    return _fetched(repository, given, local_files_only)


@contextlib.contextmanager
def named(located: Located) -> Iterator[None]:
    """A ValueError of the block names the repository that the folder came from."""
    try:
        yield
    except ValueError as error:
        if not located.repository:
            raise
        raise ValueError(f"{located.repository} of the Hub: {error}") from error


def push_checkpoint(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    message: str = _MESSAGE,
) -> str:
    """Upload the checkpoint of a folder, such as RUN/best with its card, as one commit; a missing
    repository is made.

    It is loaded and checked first. Only `FILES` are uploaded, no training state. A card in the
    repository that is not ours is kept.

    Args:
        folder: with config.json and model.safetensors.
        repository: "owner/name".
        revision: branch to write to; None = the main branch.
        private: whether a repository that is made is private; None = as the owner's default.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        HubError: no such name, no permission, or no way there.
        ValueError: the folder holds no sound checkpoint.
    """
    from intrasense_fast.networks import load_network

    match = _NAME.fullmatch(repository) if isinstance(repository, str) else None
    if match is None or match[2]:
        raise HubError(f"{repository!r}: is no repository; it must be written owner/name")
    net = load_network(Path(folder))
    hub = _library(repository)
    present = {name: Path(folder) / name for name in FILES if (Path(folder) / name).is_file()}
    contents: dict[str, Any] = {name: str(path) for name, path in present.items()}
    contents.setdefault(CARD_FILE, network_card(net).encode())
    api = hub.HfApi(library_name="intrasense-fast")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if _has_foreign_card(hub, repository, revision):
            del contents[CARD_FILE]
        operations = [
            hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in contents.items()
        ]
        done = api.create_commit(
            repository, operations=operations, commit_message=message, revision=revision
        )
    # What may go wrong on the way changes with the library's HTTP client.
    except Exception as error:
        raise HubError(_reason(hub, repository, revision, error)) from error
    return str(done.commit_url)


def push_network(
    net: nn.Module, repository: str, extra: dict[str, Any] | None = None, **options: Any
) -> str:
    """Upload a network with a minimal card; `extra` as in `save_network`, the rest, the result and
    the errors as in `push_checkpoint`."""
    from intrasense_fast.networks import save_network

    with tempfile.TemporaryDirectory() as folder:
        save_network(net, folder, extra, card=True)
        return push_checkpoint(folder, repository, **options)


def _fetched(repository: str, revision: str | None, local_files_only: bool) -> Located:
    hub = _library(repository)
    try:
        folder = hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(FILES),
            local_files_only=local_files_only,
            library_name="intrasense-fast",
        )
    except Exception as error:
        raise HubError(_reason(hub, repository, revision, error)) from error
    # The cache names a snapshot by its commit.
    return Located(Path(folder), repository, Path(folder).name)


def _has_foreign_card(hub: ModuleType, repository: str, revision: str | None) -> bool:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return is_foreign(Path(hub.hf_hub_download(repository, CARD_FILE, revision=revision)))
    except EntryNotFoundError:
        return False


def _library(repository: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(
            f"{repository}: no such folder here; if it is a repository of the Hugging Face Hub, "
            f"install what reads it ({first_line(error)}): pip install 'intrasense-fast[hub]'"
        ) from error
    return huggingface_hub


def _reason(hub: ModuleType, repository: str, revision: str | None, error: Exception) -> str:
    """Why a repository cannot be used, in one line."""
    from huggingface_hub import errors

    where = hub.constants.ENDPOINT
    cache = hub.constants.HF_HUB_CACHE
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repository}: asks for consent: accept its conditions on {where}/{repository}, then "
            "log in with: hf auth login"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repository}: no such folder here, and no such repository on {where}, or a private "
            "one: check the name, or log in with: hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository}: has no revision {revision!r}; see {where}/{repository}/commits"
    status = _status(error)
    if status in (401, 403):
        return (
            f"{repository}: no permission on {where} ({status}): log in with `hf auth login`, with "
            "a token that may do this"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        offline = hub.constants.HF_HUB_OFFLINE or error.__cause__ is None
        reason = "offline was asked for" if offline else f"{where} cannot be reached"
        at = f" at revision {revision!r}" if revision else ""
        return (
            f"{repository}: no such folder here, and no whole copy{at} in the cache {cache}, and "
            f"{reason}: load it once with a connection, or give a folder"
        )
    if status is not None:
        return f"{repository}: {where} answered {status} ({first_line(error)}): try again later"
    kind = type(error).__name__
    return f"{repository}: {where} cannot be used ({kind}: {first_line(error)}); try again later"


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, if there is one."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None
