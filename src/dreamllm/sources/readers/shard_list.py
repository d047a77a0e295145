"""A list of shards that stay where they are (`dreamllm.data.remote`): its documents are read while training.

`dreamllm.sources.build` copies the list; no document passes through here.
"""

from __future__ import annotations

from pathlib import Path

from dreamllm.data.remote import RemoteShard, ShardCache, read_list
from dreamllm.sources.records import BuildProblem, files_below


def only_list(folder: Path) -> Path:
    """The one shard list of a folder. Raises BuildProblem when there is none, or another file too."""
    found = [path for path in files_below(folder) if not path.name.startswith(".")]
    if [path.suffix for path in found] != [".json"]:
        raise BuildProblem(
            f"{folder}: format shard_list needs one file, the list that `dreamllm list-shards` writes as *.json; "
            f"there are {len(found)} files"
        )
    return found[0]


def shards_of(folder: Path) -> list[tuple[Path | RemoteShard, int]]:
    """The shards of the folder's list, with their numbers of documents. Nothing is fetched.

    Raises BuildProblem for a relative path, which would mean another place in the copy; RemoteShardProblem.
    """
    path = only_list(folder)
    listed = read_list(path, ShardCache(folder, 0))
    for shard, _ in listed:
        if isinstance(shard, Path) and shard.is_relative_to(folder):
            raise BuildProblem(
                f"{path}: {shard.name} has a relative path; write addresses or absolute paths (the flag --base of "
                "dreamllm list-shards)"
            )
    return listed
