"""Files of a Hugging Face Hub repository, listed and downloaded at one commit.

huggingface_hub downloads and resumes. This module adds retries while the Hub is busy, and errors that say what to do.
HF_TOKEN and HF_ENDPOINT mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dreamllm.sources.services import http
from dreamllm.sources.services.http import ATTEMPTS, PASSING, FetchProblem

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, "datasets/OWNER/NAME" or "models/OWNER/NAME", at a commit.

    size: in bytes.  sha256: as the Hub states it, or "" for a small file, for which it states none.
    """

    repository: str
    commit: str
    path: str
    size: int
    sha256: str

    @property
    def origin(self) -> str:
        """Repository, commit and path as one word."""
        return f"{self.repository}@{self.commit}/{self.path}"


def list_files(repository: str, patterns: Sequence[str], revision: str | None = None) -> list[HubFile]:
    """The files whose paths match one of `patterns` (* and ?), at `revision` or else at the newest commit.

    Raises FetchProblem for an unknown repository or revision, and when no file matches.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    kind, name = repository.split("s/", 1)
    api = HfApi(endpoint=_endpoint())

    def tree() -> tuple[str, list[RepoFile]]:
        commit = str(api.repo_info(name, repo_type=kind, revision=revision).sha)
        entries = api.list_repo_tree(name, repo_type=kind, revision=commit, recursive=True)
        return commit, [entry for entry in entries if isinstance(entry, RepoFile)]

    commit, entries = _with_retries(tree, repository, revision)
    matching = [entry for entry in entries if any(fnmatch.fnmatchcase(entry.path, pattern) for pattern in patterns)]
    if not matching:
        raise FetchProblem(f"{repository}@{commit}: no file matches {', '.join(map(repr, patterns))}")
    return [
        HubFile(repository, commit, entry.path, entry.size, entry.lfs.sha256 if entry.lfs else "") for entry in matching
    ]


def download(file: HubFile, folder: Path) -> None:
    """Download to `folder`/`file.path`, resuming an interrupted download. The content is not checked.

    Raises FetchProblem.
    """
    from huggingface_hub import hf_hub_download

    kind, name = file.repository.split("s/", 1)

    def get() -> None:
        hf_hub_download(name, file.path, repo_type=kind, revision=file.commit, local_dir=folder, endpoint=_endpoint())

    _with_retries(get, file.repository, file.commit)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's metadata


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None  # huggingface_hub reads it at import only


def _with_retries(call: Callable[[], Answer], repository: str, revision: str | None) -> Answer:
    """The result of `call`, retried when the Hub is busy or the connection breaks. Raises FetchProblem otherwise."""
    import httpx2  # huggingface_hub's HTTP client, whose errors it lets through
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    for attempt in range(ATTEMPTS):
        wait = http.BACKOFF * 2**attempt
        try:
            return call()
        except RevisionNotFoundError:
            raise FetchProblem(
                f"{repository}: there is no revision {revision!r}; choose one from the history on its page"
            ) from None
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else None
            if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
                raise FetchProblem(
                    f"{repository}: it does not exist, or its conditions are not accepted: open "
                    f"https://huggingface.co/{repository.removeprefix('models/')} with an account, accept them, and "
                    "put the account's token into the environment variable HF_TOKEN"
                ) from None
            if status not in PASSING or attempt + 1 == ATTEMPTS:
                raise FetchProblem(f"{repository}@{revision}: {' '.join(str(error).split())}") from None
            retry_after = error.response.headers.get("Retry-After", "")
            wait = min(int(retry_after), http.LONGEST_WAIT) if retry_after.isdigit() else wait
        except (OSError, httpx2.TransportError) as error:  # connection lost, or fewer bytes than announced
            if attempt + 1 == ATTEMPTS:
                raise FetchProblem(f"{repository}@{revision}: {error}; run the same command again to resume") from None
        time.sleep(wait)
    raise AssertionError("unreachable")
