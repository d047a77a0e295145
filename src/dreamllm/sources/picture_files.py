"""The pictures of public data sets: found by name in folders and zip archives, decoded, and made as small as stored."""

from __future__ import annotations

import functools
import posixpath
import zipfile
from pathlib import Path

from PIL import Image

from dreamllm.data import images
from dreamllm.data.damage import LARGEST_PICTURE, damage_as, is_fork
from dreamllm.sources.records import Member, files_below

Folders = tuple[tuple[str, Path], ...]


class PictureFiles:
    """Picture files by path: FOLDER/NAME for a plain file or a member of FOLDER/*.zip.

    Archives are read as if they were unpacked side by side, and no name can lead out of a folder.
    folders: ("", the set's own folder), and (prefix, folder) for another set whose pictures are named PREFIX/NAME.
    """

    def __init__(self, folders: Folders) -> None:
        self._where: dict[str, tuple[Path | zipfile.ZipFile, str]] = {}
        self._by_name: dict[str, list[str]] = {}
        found = [(top, folder, path) for top, folder in folders for path in files_below(folder)]
        for top, folder, path in found:
            below = (Path(top) / path.parent.relative_to(folder)).as_posix()
            prefix = "" if below == "." else f"{below}/"
            if path.suffix == ".zip":
                with Member(path).damage():
                    archive = zipfile.ZipFile(path)
                names = (name for name in archive.namelist() if not is_fork(name))
                self._where |= {prefix + name: (archive, name) for name in names}
            else:
                self._where[prefix + path.name] = (path, path.name)
        for name in self._where:
            self._by_name.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def read_by_name(self, name: str) -> bytes:
        """`read` by the name of the file alone, in whatever folder or archive it is, as COCO and GQA name pictures.

        Raises ValueError also when several files of this name differ.
        """
        first, *others = self._by_name[name]
        data = self.read(first)
        if differs := next((other for other in others if self.read(other) != data), None):
            raise ValueError(f"{first} and {differs} have one name and differ")
        return data

    def has(self, name: str) -> bool:
        """Whether a file has this name, in whatever folder or archive."""
        return name in self._by_name

    def holders(self, name: str) -> list[Path]:
        """The files called `name` that lie in folders, and the archives that hold one. Raises KeyError."""
        holders = [self._where[found][0] for found in self._by_name[name]]
        return [holder if isinstance(holder, Path) else Path(str(holder.filename)) for holder in holders]

    def read(self, name: str) -> bytes:
        """The bytes of a picture file. Raises KeyError when there is none, ValueError when it is damaged or huge."""
        holder, inside = self._where[posixpath.normpath(name)]
        size = holder.stat().st_size if isinstance(holder, Path) else holder.getinfo(inside).file_size
        if size > LARGEST_PICTURE:
            raise ValueError(f"has {size} bytes")
        with damage_as(ValueError):
            return holder.read_bytes() if isinstance(holder, Path) else holder.read(inside)


def folders_of(entries: list[str]) -> Folders:
    """The folders of command-line arguments PREFIX=FOLDER."""
    return tuple((prefix, Path(folder)) for prefix, _, folder in (entry.partition("=") for entry in entries))


@functools.cache
def picture_files(folders: Folders) -> PictureFiles:
    """`PictureFiles`, made once per process, since listing a big archive takes a second."""
    return PictureFiles(folders)


def picture(data: bytes, side: int, smallest: int, orientation: int = 1) -> Image.Image:
    """Decode a picture file to RGB and shrink it until its shorter side has at most `side` pixels.

    orientation: as in `images.decode`
    Of a strip the middle is kept (`data.images.centre`), which is more than models see of it.
    Raises ValueError("cannot be decoded ...") or ValueError("is smaller than ...").
    """
    return shrunk(images.decode(data, orientation), side, smallest)


def shrunk(image: Image.Image, side: int, smallest: int) -> Image.Image:
    """`picture` of one that is decoded. Raises ValueError("is smaller than ...")."""
    shorter = min(image.size)
    if shorter < smallest:
        raise ValueError(f"is smaller than {smallest} pixels")
    image = images.centre(image)
    if shorter <= side:
        return image
    width, height = (max(1, round(length * side / shorter)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def picture_problem(error: ValueError) -> str:
    """The reason by which reports count an error of `picture` or `PictureFiles.read`."""
    return "picture is too small" if str(error).startswith("is smaller") else "picture or its data cannot be read"
