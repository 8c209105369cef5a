"""Fetching: the folder ``ZOO_DATA``, the cache, the network, and everything that can go wrong on the way."""

import errno
import hashlib
import io
import lzma
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from zoo.data import fetch as module
from zoo.data import sources
from zoo.data.fetch import Source, fetch

CONTENT = bytes(range(256)) * 1000
SUM = hashlib.sha256(CONTENT).hexdigest()


def source(*urls, sha256=SUM):
    return Source("family/file.bin", sha256, urls)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.delenv("ZOO_DATA", raising=False)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


@pytest.fixture
def origin(tmp_path):
    path = tmp_path / "origin.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def given(tmp_path, monkeypatch):
    """The folder of ``ZOO_DATA``; a test that asks the network fails."""
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "given"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network with ZOO_DATA set"))
    (tmp_path / "given" / "family").mkdir(parents=True)
    return tmp_path / "given"


@pytest.fixture
def closed():
    """An address where nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}/file.bin"


@pytest.fixture
def server():
    """An address that answers with CONTENT; ``/short`` breaks off half-way, ``/missing`` is a 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if self.path == "/missing" else 200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/short" else CONTENT)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_file_is_fetched_once_and_kept(cache, origin):
    wanted = source(origin.as_uri())
    assert fetch(wanted) == CONTENT
    assert files(cache) == ["family/file.bin"]
    origin.unlink()
    assert fetch(wanted) == CONTENT


def test_the_cache_gets_its_file_whole_or_not_at_all(cache, origin, monkeypatch):
    write, written = Path.write_bytes, []
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: written.append(path) or write(path, content))
    fetch(source(origin.as_uri()))
    assert [path.parent for path in written] == [cache / "family"] and written[0].name != "file.bin"  # moved there when complete


def test_a_damaged_file_in_the_cache_is_fetched_again(cache, origin):
    kept = cache / "family" / "file.bin"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(CONTENT[:100])
    assert fetch(source(origin.as_uri())) == CONTENT == kept.read_bytes()


def test_the_next_address_is_tried(cache, server, closed):
    assert fetch(source(closed, f"{server}/missing", f"{server}/short", f"{server}/whole")) == CONTENT
    assert files(cache) == ["family/file.bin"]


@pytest.mark.parametrize("path", ["/missing", "/short"])
def test_an_answer_that_is_not_the_file_leaves_nothing(cache, server, path):
    with pytest.raises(OSError, match=rf"could not fetch family/file.bin.*set ZOO_DATA.*{path}"):
        fetch(source(server + path))
    assert files(cache.parent) == []


def test_no_network_names_every_address(cache, closed):
    with pytest.raises(OSError, match=f"could not fetch family/file.bin.*{closed}: .*; {closed}/again: "):
        fetch(source(closed, f"{closed}/again"))
    assert not cache.exists()


def test_another_file_is_refused_with_both_sums(cache, origin):
    wrong = "0" * 64
    with pytest.raises(OSError, match=rf"origin.bin is damaged or another file: SHA-256 {SUM}, expected {wrong}"):
        fetch(source(origin.as_uri(), sha256=wrong))
    assert not cache.exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_breaks_off_leaves_nothing(cache, origin, monkeypatch, error):
    whole = Path.write_bytes

    def half(path, content):
        whole(path, content[: len(content) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(type(error)) as caught:
        fetch(source(origin.as_uri()))
    assert files(cache) == []
    if isinstance(error, OSError):
        assert re.search(r"could not store .*file.bin: .*No space left.*ZOO_CACHE.*256,000 bytes free", str(caught.value))


def test_a_cache_that_cannot_be_made(cache, origin):
    cache.write_text("a file where the folder should be")
    with pytest.raises(OSError, match="could not store .*set ZOO_CACHE to a folder"):
        fetch(source(origin.as_uri()))
    assert cache.read_text() == "a file where the folder should be"


def test_an_empty_zoo_cache_means_the_default(cache, origin, monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    fetch(source(origin.as_uri()))
    assert files(tmp_path / "home") == [".cache/perception-zoo/family/file.bin"]


def test_progress_is_shown_on_a_terminal_and_nowhere_else(cache, server, monkeypatch, capsys):
    fetch(source(f"{server}/whole"))
    assert capsys.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert module._download(source(f"{server}/whole")) == CONTENT
    assert "family/file.bin" in terminal.getvalue()


@pytest.mark.parametrize("ending", ["", ".xz"])
def test_zoo_data_holds_the_file_itself_or_compressed(given, ending):
    (given / "family" / f"file.bin{ending}").write_bytes(lzma.compress(CONTENT, preset=0) if ending else CONTENT)
    assert fetch(source("http://nowhere.invalid/")) == CONTENT


def test_zoo_data_without_the_file(given):
    with pytest.raises(FileNotFoundError, match=r"family.file.bin nor .*file.bin.xz is there"):
        fetch(source("http://nowhere.invalid/"))


@pytest.mark.parametrize(("name", "content"), [
    ("file.bin", CONTENT[:-1]),
    ("file.bin.xz", lzma.compress(CONTENT[1:], preset=0)),
    ("file.bin.xz", lzma.compress(CONTENT, preset=0)[:-20]),
    ("file.bin.xz", b"not compressed"),
])
def test_zoo_data_with_a_damaged_file(given, name, content):
    (given / "family" / name).write_bytes(content)
    with pytest.raises(OSError, match=rf"{re.escape(name)} is damaged"):
        fetch(source("http://nowhere.invalid/"))
    assert files(given) == [f"family/{name}"]


def test_every_public_file_has_a_place_a_sum_and_a_secure_address():
    every = [*sources.VAN_HATEREN, *sources.OLSHAUSEN, *sources.MNIST.values(), sources.OMNIGLOT]
    assert [len(group) for group in (sources.VAN_HATEREN, sources.OLSHAUSEN, sources.MNIST)] == [16, 10, 4]
    assert len({one.path for one in every}) == len({one.sha256 for one in every}) == len(every)
    for one in every:
        assert re.fullmatch("[0-9a-f]{64}", one.sha256)
        assert one.urls and all(url.startswith("https://") for url in one.urls)
        if not one.path.startswith("olshausen"):
            assert all(url.endswith("/" + one.path.split("/")[1]) for url in one.urls)
    assert sources.MNIST["train-images"].urls[0].endswith("/train-images-idx3-ubyte.gz")
