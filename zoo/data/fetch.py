"""Files from public homes: fetched once, checked against their SHA-256, kept in a cache; or taken from the folder ``ZOO_DATA``."""

from __future__ import annotations

import hashlib
import lzma
import os
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Source", "fetch"]

TIMEOUT = 30.0  # seconds without an answer


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
    fetched first where it is missing or damaged.

    Raises:
        FileNotFoundError: if it is not in ``ZOO_DATA``.
        OSError: if its bytes do not have the expected checksum, it cannot be fetched, or the cache cannot be written.
    """
    if folder := os.environ.get("ZOO_DATA"):
        path = Path(folder) / source.path
        packed = path.with_name(path.name + ".xz")
        if path.exists():
            return _checked(path.read_bytes(), source, str(path))
        if packed.exists():
            return _checked(lzma.decompress(packed.read_bytes()), source, str(packed))
        raise FileNotFoundError(f"ZOO_DATA is set, but neither {path} nor {packed} is there")
    path = Path(os.environ.get("ZOO_CACHE", Path.home() / ".cache" / "perception-zoo")) / source.path
    if path.exists() and _sum(content := path.read_bytes()) == source.sha256:
        return content
    content = _download(source)
    _store(path, content)
    return content


def _download(source: Source) -> bytes:
    failures = []
    for url in source.urls:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                return _checked(answer.read(), source, url)
        except OSError as error:  # URLError, timeouts and checksums are OSErrors
            failures.append(f"{url}: {error}")
    raise OSError(f"could not fetch {source.path}; put it into a folder and set ZOO_DATA to that. Tried " + "; ".join(failures))


def _store(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise OSError(f"could not store {path}: {error}; set ZOO_CACHE to a folder with {len(content):,} bytes free") from error


def _checked(content: bytes, source: Source, where: str) -> bytes:
    found = _sum(content)
    if found != source.sha256:
        raise OSError(f"{where} is damaged or another file: SHA-256 {found}, expected {source.sha256}")
    return content


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
