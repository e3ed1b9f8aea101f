import hashlib
import io
import threading
import time
import urllib.error
import urllib.request

import pytest

from arch_jax.data import Text
from arch_jax.data.files import directories
from arch_jax.data.text import sources, tinyshakespeare
from arch_jax.errors import RunError

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


@pytest.fixture
def server(empty_folder, monkeypatch):
    """Stands in for the network: what it serves, and what was asked of it."""

    class Server:
        content: bytes | Exception = TEXT.encode()
        asked: list = []  # noqa: RUF012

    def urlopen(url, timeout):
        Server.asked.append((url, timeout))
        time.sleep(0.05)  # long enough for others to come
        if isinstance(Server.content, Exception):
            raise Server.content
        return io.BytesIO(Server.content)

    Server.asked = []
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(tinyshakespeare, "SHA256", hashlib.sha256(TEXT.encode()).hexdigest())
    return Server


def test_it_is_downloaded_once(server, empty_folder):
    assert sources.documents("tinyshakespeare").texts == (TEXT,)
    assert sources.documents("tinyshakespeare").texts == (TEXT,)
    ((url, timeout),) = server.asked
    assert url == "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    assert 0 < timeout <= 60
    assert (empty_folder / "tinyshakespeare" / "input.txt").read_text() == TEXT


def test_several_at_once_download_once(server):
    threads = [threading.Thread(target=sources.documents, args=("tinyshakespeare",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "failure",
    [urllib.error.URLError("no route to host"), TimeoutError("no route to host"), ConnectionError("no route to host")],
)
def test_without_a_network_it_says_where_to_put_the_file(server, empty_folder, failure):
    server.content = failure
    with pytest.raises(RunError) as caught:
        sources.documents("tinyshakespeare")
    path = empty_folder / "tinyshakespeare" / "input.txt"
    for part in ("no route to host", tinyshakespeare.URL, str(path), "'pydocs'"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not path.exists()


def test_a_download_with_the_wrong_hash_is_not_kept(server, empty_folder):
    server.content = b"<html>Sign in to the wireless network</html>"
    with pytest.raises(RunError, match=r"is not Tiny Shakespeare \(its SHA-256 is .*put the right file by hand at"):
        sources.documents("tinyshakespeare")
    assert not (empty_folder / "tinyshakespeare" / "input.txt").exists()
    server.content = TEXT.encode()
    assert sources.documents("tinyshakespeare").texts == (TEXT,)


def test_a_file_put_there_is_checked_and_not_downloaded(server, empty_folder):
    path = empty_folder / "tinyshakespeare" / "input.txt"
    path.parent.mkdir(parents=True)
    path.write_text(TEXT)
    assert sources.documents("tinyshakespeare").texts == (TEXT,)
    path.write_text(TEXT[:-9])
    with pytest.raises(RunError, match=r"input\.txt' is not Tiny Shakespeare"):
        sources.documents("tinyshakespeare")
    assert server.asked == []


# Looked for when this file is read, before the tests replace the environment.
REAL = directories.find(tinyshakespeare.FILE)


@pytest.mark.skipif(
    REAL is None, reason="Tiny Shakespeare is not in the data folder ($ARCH_JAX_DATA or the user's cache)"
)
def test_the_real_text_is_the_one_the_field_knows(monkeypatch):
    monkeypatch.setenv("ARCH_JAX_DATA", str(REAL.parents[1]))
    corpus = Text(source="tinyshakespeare", tokenizer="characters", sampling="random").load()
    # nanoGPT's data/shakespeare_char/prepare.py: 65 characters, 1,003,854 training and 111,540 validation tokens.
    assert corpus.facts["vocabulary"] == 65
    assert corpus.facts["train_tokens"] == 1_003_854
    assert corpus.facts["validation_tokens"] == 111_540
    assert corpus.tokenizer.decode(corpus.train_stream.tokens[:14]) == "First Citizen:"
    assert "segment_ids" not in next(corpus.train(0))
