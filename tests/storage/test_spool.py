"""Fetching shards from servers, commands and buckets that misbehave."""

import base64
import bz2
import gzip
import hashlib
import io
import lzma
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from maejax.errors import FetchError, InputError
from maejax.storage.http import resolve
from maejax.storage.retry import RetryPolicy
from maejax.storage.spool import Spool, stem_of
from maejax.storage.unpack import zstd

PATIENT = RetryPolicy(backoff=0.02)  # for what succeeds, on a machine however busy
HASTY = replace(PATIENT, stall=0.5)  # for what stalls and then succeeds
QUICK = RetryPolicy(connect=2, stall=2, total=1.5, backoff=0.02)  # for what is given up
BODY = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()


@pytest.fixture
def fetched(tmp_path):
    """Fetch an address to the end and return its bytes; every spool is closed in the end."""
    spools = []

    def fetched(address, keep=False, **arguments):
        spool = Spool(address, tmp_path / "spool", stem_of(address), keep=keep, **{"policy": PATIENT} | arguments)
        spools.append(spool)
        size = spool.wait(1 << 40)
        return spool.path.read_bytes()[:size]

    yield fetched
    for each in spools:
        each.close()
    assert not list((tmp_path / "spool").glob("*.part"))


def reason(fetched, address, policy=QUICK):
    with pytest.raises(FetchError) as caught:
        fetched(address, policy=policy)
    return str(caught.value)


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
@pytest.mark.parametrize("moods", [["reset"] * 3, ["stall"], [500, 503, (429, {"Retry-After": "0"}), "reset", 502]])
def test_what_passes_is_tried_again_from_the_byte_reached(server, fetched, moods, ranges):
    server.files["/s.tar"], server.plans["/s.tar"], server.ranges = BODY, list(moods), ranges
    assert fetched(f"{server.url}/s.tar", policy=HASTY if "stall" in moods else PATIENT) == BODY
    assert len(server.seen) == len(moods) + 1 or ("stall" in moods and len(server.seen) > 1)
    if "reset" in moods:
        assert int(server.seen[-1][1].removeprefix("bytes=").rstrip("-")) > len(BODY) // 4


def test_retry_after_is_waited_for(server, fetched):
    server.files["/s.tar"], server.plans["/s.tar"] = BODY, [(429, {"Retry-After": "1"})]
    start = time.monotonic()
    assert fetched(f"{server.url}/s.tar") == BODY
    assert time.monotonic() - start >= 1


@pytest.mark.parametrize(("status", "words"), [(401, "401.*HF_TOKEN"), (403, "403.*terms"), (404, "404.*correct")])
def test_what_will_not_pass_is_said_at_once(server, fetched, status, words):
    server.plans["/s.tar"] = [status] * 9
    with pytest.raises(FetchError, match=words):
        fetched(f"{server.url}/s.tar")
    assert len(server.seen) == 1


def test_patience_has_an_end(server, fetched):
    server.plans["/s.tar"] = [500] * 99
    assert "HTTP 500" in reason(fetched, f"{server.url}/s.tar")
    assert 1 < len(server.seen) < 99
    assert "no connection" in reason(fetched, "http://127.0.0.1:9/s.tar")


def test_a_file_that_changes_meanwhile_is_an_error(server, fetched):
    class Changing(dict):
        def get(self, path):
            self[path] = self[path][::-1]
            return self[path]

    server.files, server.plans["/s.tar"] = Changing({"/s.tar": BODY}), ["reset"]
    assert "changed while it was read" in reason(fetched, f"{server.url}/s.tar")


def test_a_web_page_is_named(server, fetched):
    server.files["/s.tar"] = b"<!DOCTYPE html><html>Please log in</html>"
    assert "is a web page, not a tar" in reason(fetched, f"{server.url}/s.tar")


def test_packed_shards_are_told_by_their_bytes(server, fetched, tmp_path):
    text = b"0123456789" * 100_000
    server.files["/gz"] = gzip.compress(text[:700_000]) + gzip.compress(text[700_000:])
    server.files["/zst"] = zstd.compress(text[:700_000]) + zstd.compress(text[700_000:])
    server.files["/bz2"] = bz2.compress(text[:700_000]) + bz2.compress(text[700_000:])
    server.files["/xz"] = lzma.compress(text[:700_000]) + lzma.compress(text[700_000:])
    for kind in ("gz", "zst", "bz2", "xz"):
        server.plans[f"/{kind}"] = ["reset"]
        assert fetched(f"{server.url}/{kind}") == text
    (tmp_path / "s.tar.gz").write_bytes(server.files["/gz"])
    assert fetched(str(tmp_path / "s.tar.gz")) == text
    for kind in ("gz", "zst", "bz2", "xz"):
        server.files["/cut"] = server.files[f"/{kind}"][:-20]
        assert "data end early" in reason(fetched, f"{server.url}/cut")
        server.files["/bad"] = server.files[f"/{kind}"][:40] + bytes(40) + server.files[f"/{kind}"][80:]
        assert "damaged" in reason(fetched, f"{server.url}/bad")


def test_readers_follow_while_it_grows(server, tmp_path):
    server.files["/s.tar"], server.plans["/s.tar"] = BODY, ["stall"]
    spool = Spool(f"{server.url}/s.tar", tmp_path, "s", keep=False, policy=PATIENT)
    assert 1000 <= spool.wait(1000) < len(BODY)
    assert not spool.done
    assert spool.path.read_bytes()[:1000] == BODY[:1000]
    server.stalls.set()
    assert spool.wait(1 << 40) == len(BODY)
    spool.close()
    assert not list(tmp_path.iterdir())


def test_kept_shards_are_fetched_once_and_checked_by_length(server, fetched, tmp_path):
    server.files["/a/s.tar"] = BODY
    for _ in range(2):
        assert fetched(f"{server.url}/a/s.tar?sig=secret", keep=True) == BODY
    assert fetched(f"{server.url}/a/s.tar?sig=signed-anew", keep=True) == BODY
    assert len(server.seen) == 1
    (kept,) = (tmp_path / "spool").glob("*.tar")
    assert kept.name.startswith("s.") and "secret" not in kept.name
    kept.write_bytes(BODY[:1000])
    assert fetched(f"{server.url}/a/s.tar?sig=secret", keep=True) == BODY
    assert len(server.seen) == 2


def test_the_disk_is_never_filled(server, fetched):
    server.files["/s.tar"] = BODY
    with pytest.raises(InputError, match=r"GB are free there.*--cache-dir"):
        fetched(f"{server.url}/s.tar", reserve=1 << 60)


def test_a_token_goes_to_its_host_alone(server, fetched, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    path = "/datasets/me/set/resolve/main/a/s.tar"
    server.plans[path] = [(302, {"Location": f"{elsewhere}/there"})]
    server.files["/there"] = BODY
    assert fetched("hf://datasets/me/set/a/s.tar") == BODY
    assert [(seen[0], seen[2]) for seen in server.seen] == [(path, "Bearer hf_secret"), ("/there", None)]


def test_a_password_in_an_address_is_unquoted():
    url, headers = resolve("https://me%40home:p%40ss%3A@host/s.tar")
    assert url == "https://host/s.tar"
    assert base64.b64decode(headers["authorization"].removeprefix("Basic ")) == b"me@home:p@ss:"


def test_a_range_of_unknown_length_is_read_on(server, fetched):
    server.files["/s.tar"], server.plans["/s.tar"], server.named = BODY, ["reset"], False
    assert fetched(f"{server.url}/s.tar") == BODY


def test_commands_are_read_tried_again_and_killed(fetched, tmp_path):
    file = tmp_path / "s.bin"
    file.write_bytes(BODY)
    assert fetched(f"pipe:cat {file}") == BODY
    once = f"if [ -e {tmp_path}/once ]; then cat {file}; else touch {tmp_path}/once; head -c 1000000 {file}; exit 7; fi"
    assert fetched(f"pipe:{once}") == BODY
    assert "exit code 22: it says ***" in reason(fetched, "pipe:echo 'it says hf_abcdefghijkl' >&2; exit 22")
    assert "exit code 1" in reason(fetched, "pipe:false | cat")
    assert "other bytes" in reason(fetched, "pipe:date +%N; sleep .1; exit 1")
    mark = f"3{time.time_ns() % 10**6}"
    assert "printed nothing" in reason(fetched, f"pipe:sleep {mark} & sleep {mark}")
    spool = Spool(f"pipe:cat {file}; sleep {mark}", tmp_path, "s", keep=False, policy=PATIENT)
    spool.wait(len(BODY))
    spool.close()
    deadline = time.monotonic() + 120
    while subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list(tmp_path.glob("*.part"))


def test_buckets_are_read_by_fsspec(fetched):
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/s.tar", BODY)
    assert hashlib.sha256(fetched("memory://bucket/s.tar")).digest() == hashlib.sha256(BODY).digest()
    assert "not found" in reason(fetched, "memory://bucket/t.tar")
    assert "no kind of address" in reason(fetched, "nonsense://bucket/t.tar")
    system.rm("/bucket", recursive=True)


def test_buckets_that_fail_in_the_middle(fetched):
    class Flaky(MemoryFileSystem):
        protocol = "flaky"
        failures = 0
        fail: Callable

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.replace("flaky://", "memory://"))

        def _open(self, path, *args, **kwargs):
            if not Flaky.failures:
                return super()._open(path, *args, **kwargs)
            Flaky.failures -= 1
            return Breaking(BODY)

    class Breaking(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > len(BODY) // 3:
                Flaky.fail()
            return super().read(size)

    def moment():
        raise RuntimeError("the cloud has a moment")

    woken = threading.Event()

    fsspec.register_implementation("flaky", Flaky, clobber=True)
    system = fsspec.filesystem("flaky")
    system.pipe("/bucket/s.tar", BODY)
    for Flaky.fail in (moment, woken.wait):
        Flaky.failures = 3
        assert fetched("flaky://bucket/s.tar", policy=HASTY) == BODY
        assert Flaky.failures == 0
    Flaky.failures = 99
    short = replace(QUICK, stall=0.3)
    assert "nothing came for 0.3 s (gave up" in reason(fetched, "flaky://bucket/s.tar", short)
    woken.set()
    Flaky.fail = moment
    assert "the cloud has a moment (gave up" in reason(fetched, "flaky://bucket/s.tar")
    system.rm("/bucket", recursive=True)


def test_a_missing_file_system_names_the_extra(fetched, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for scheme in ("gs", "s3"):  # fsspec keeps what an earlier test of this process has loaded
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    for scheme, extra in (("gs", "gcs"), ("s3", "s3")):
        assert f"pip install 'maejax[{extra}]'" in reason(fetched, f"{scheme}://bucket/s.tar")


def test_no_thread_is_left(server, tmp_path):
    server.files["/s.tar"], server.plans["/s.tar"] = BODY, [503] * 99
    spool = Spool(f"{server.url}/s.tar", tmp_path, "s", keep=False, policy=RetryPolicy(backoff=30))
    time.sleep(0.1)
    spool.close()
    deadline = time.monotonic() + 120
    while any(thread.name == "maejax-fetch" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not list(tmp_path.iterdir())


def test_hugging_face_addresses_of_data_sets_and_models(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub")
    for address, path in {
        "hf://datasets/me/set@v1/a/s.tar": "datasets/me/set/resolve/v1/a/s.tar",
        "hf://me/model@v1/a/b.pth": "me/model/resolve/v1/a/b.pth",
        "hf://models/me/model/b.pth": "me/model/resolve/main/b.pth",
    }.items():
        assert resolve(address)[0] == f"https://hub/{path}"
    with pytest.raises(FetchError, match="write hf://datasets/OWNER/NAME/PATH, or hf://OWNER/NAME/FILE"):
        resolve("hf://me/model")
