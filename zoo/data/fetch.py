"""Files from public homes: fetched once, checked against their SHA-256, kept in a cache; or taken from the folder ``ZOO_DATA``."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import os
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from zoo.files import atomic_file

__all__ = ["Source", "cache_folder", "fetch"]

TIMEOUT = 30.0  # seconds without an answer
CHUNK = 1 << 16  # bytes read between two steps of the progress display


@dataclass(frozen=True)
class Source:
    """A public file: its place under ``ZOO_DATA`` or the cache, SHA-256 of its bytes, and where it can be fetched."""

    path: str
    sha256: str
    urls: tuple[str, ...]


def fetch(source: Source) -> bytes:
    """The file's bytes, checked.

    With the environment variable ``ZOO_DATA`` set, the file is read there (itself, or compressed with ``.xz`` appended) and never
    fetched. Otherwise it is read from the cache (``ZOO_CACHE``, by default ``~/.cache/perception-zoo``), into which it is
    fetched first where it is missing or damaged. The cache never holds a file that is incomplete or fails its checksum.

    Raises:
        FileNotFoundError: if it is not in ``ZOO_DATA``.
        OSError: if its bytes do not have the expected checksum, it cannot be fetched, or the cache cannot be written.
    """
    if folder := os.environ.get("ZOO_DATA"):
        return _given(Path(folder).expanduser() / source.path, source)
    path = cache_folder() / source.path
    if path.is_file() and _sum(content := path.read_bytes()) == source.sha256:
        return content
    content = _download(source)
    _store(path, content)
    return content


def cache_folder() -> Path:
    """Where fetched and generated data are kept: ``ZOO_CACHE``, by default ``~/.cache/perception-zoo``."""
    return Path(os.environ.get("ZOO_CACHE") or "~/.cache/perception-zoo").expanduser()


def _given(path: Path, source: Source) -> bytes:
    packed = path.with_name(path.name + ".xz")
    if path.is_file():
        return _checked(path.read_bytes(), source, str(path))
    if not packed.is_file():
        raise FileNotFoundError(f"ZOO_DATA is set, but neither {path} nor {packed} is there; without ZOO_DATA it is fetched")
    try:
        content = lzma.decompress(packed.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise OSError(f"{packed} is damaged: {error}") from error
    return _checked(content, source, str(packed))


def _download(source: Source) -> bytes:
    failures = []
    for url in source.urls:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                return _checked(_read(answer, source.path), source, url)
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and checksums are OSErrors
            failures.append(f"{url}: {error}")
    raise OSError(f"could not fetch {source.path}; put it into a folder and set ZOO_DATA to that. Tried " + "; ".join(failures))


def _read(answer, name: str) -> bytes:
    """All bytes of an answer, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    length = answer.headers.get("Content-Length")
    chunks = []
    columns = TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(name, total=int(length) if length else None)
        while chunk := answer.read(CHUNK):
            chunks.append(chunk)
            progress.advance(task, len(chunk))
    return b"".join(chunks)


def _store(path: Path, content: bytes) -> None:
    try:
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise OSError(f"could not store {path}: {error}; set ZOO_CACHE to a folder with {len(content):,} bytes free") from error


def _checked(content: bytes, source: Source, where: str) -> bytes:
    found = _sum(content)
    if found != source.sha256:
        raise OSError(f"{where} is damaged or another file: SHA-256 {found}, expected {source.sha256}")
    return content


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
