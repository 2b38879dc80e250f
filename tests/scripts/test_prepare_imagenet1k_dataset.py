"""The script against a hub on loopback: tokens, redirects, what was cut, and a bucket."""

import hashlib
import json
import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from maejax.cli import main

from ..conftest import ROOT

SCRIPT = ROOT / "scripts/prepare-imagenet1k-dataset.sh"
NAMES = [f"imagenet1k-train-000{i}.tar" for i in range(3)]
TOKEN = "hf_secret"


class Hub(BaseHTTPRequestHandler):
    """Redirects from /datasets/... to /storage/..., which is another host, as the hub does."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server = self.server
        server.seen.append((self.command, self.path, self.headers.get("Authorization"), self.headers.get("Range")))
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/datasets/"):
            given = self.headers.get("Authorization")
            if server.status != 200 or given != f"Bearer {TOKEN}" or name not in server.shards:
                return self.answer(server.status if server.status != 200 else 404 if given else 401)
            data = server.shards[name]
            location = f"http://localhost:{server.server_port}/storage/{name}"
            headers = {
                "Location": location,
                "X-Linked-Size": len(data),
                "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            }
            return self.answer(302, b"", headers)
        data = server.shards[name]
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if server.cuts:  # the connection breaks in the middle
            server.cuts -= 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        return self.answer(206 if start else 200, data[start:], {"Content-Range": f"bytes {start}-/{len(data)}"})

    def answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """Serve three tiny shards."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.status, server.cuts, server.seen, server.shards = 200, 0, [], {}
    for i, name in enumerate(NAMES):
        folder = tmp_path / "made" / str(i)
        folder.mkdir(parents=True)
        for j in range(4):
            noise = np.random.default_rng(4 * i + j).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(folder / f"{i}{j}.png")
        shutil.make_archive(str(tmp_path / "made" / name.removesuffix(".tar")), "tar", folder, ".")
        server.shards[name] = (tmp_path / "made" / name).read_bytes()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def prepare(tmp_path, hub):
    """Run the script; every argument that curl gets is written to curl.txt."""
    tools = tmp_path / "tools"
    tools.mkdir()

    def tool(name, text):
        (tools / name).write_text("#!/usr/bin/env bash\n" + text)
        (tools / name).chmod(0o755)

    tool("curl", f'echo "$*" >> {tmp_path}/curl.txt; exec {shutil.which("curl")} "$@"\n')
    # A bucket as a folder, with what the script uses of gcloud.
    tool(
        "gcloud",
        f"""bucket={tmp_path}/bucket; [[ $1 == storage ]] && shift
        case $1 in
            ls) shift 2; path=$bucket/${{1#gs://}}; [[ -e $path ]] || {{ echo "ERROR: One or more URLs matched no objects."; exit 1; }} >&2
                for f in $(find "$path" -type f); do echo "  $(wc -c < "$f")  2026-01-01T00:00:00Z  gs://${{f#"$bucket"/}}"; done ;;
            cp) path=$bucket/${{3#gs://}}; mkdir -p "$(dirname "$path")"; echo "$3" >> {tmp_path}/uploads.txt; cp "$2" "$path" ;;
        esac
        """,  # noqa: E501
    )

    def prepare(target, *names, **environment):
        run = subprocess.run(
            ["bash", SCRIPT, *(names or NAMES)], text=True, capture_output=True, timeout=600,
            env={"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path), "TMPDIR": str(tmp_path),
                 "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": TOKEN, "JOBS": "3", "PAUSE": "0",
                 "GCS_DATASET_DIR": str(target), **environment},
        )  # fmt: skip
        assert TOKEN not in run.stdout + run.stderr
        if (tmp_path / "curl.txt").exists():
            assert TOKEN not in (tmp_path / "curl.txt").read_text()
        return run

    return prepare


def downloads(hub):
    return [
        (path.rpartition("/")[2], wanted) for method, path, _, wanted in hub.seen if method == "GET" and "/st" in path
    ]


def test_a_folder_gets_all_shards_and_only_what_is_cut_again(tmp_path, hub, prepare):
    hub.cuts = 1
    run = prepare(tmp_path)
    folder = tmp_path / "imagenet-1k-wds"
    assert run.returncode == 0, run.stderr
    assert {name: (folder / name).read_bytes() for name in NAMES} == hub.shards
    assert len(downloads(hub)) == 4, "one connection broke, and went on"
    assert all(given is None for _, path, given, _ in hub.seen if path.startswith("/storage")), "token to another host"
    index = json.loads((folder / "index.json").read_text())
    assert [entry["name"] for entry in index["shards"]] == NAMES
    assert index["shards"][0]["sha256"] == hashlib.sha256(hub.shards[NAMES[0]]).hexdigest()
    assert main(["pack", "--verify", "--deep", str(folder)]) == 0

    cut = folder / NAMES[1]
    cut.write_bytes(cut.read_bytes()[:700])
    assert main(["pack", "--verify", str(folder)]) == 2
    hub.seen.clear()
    run = prepare(tmp_path)
    assert run.returncode == 0 and run.stdout.count("is there") == 2, run.stdout + run.stderr
    assert downloads(hub) == [(NAMES[1], "bytes=700-")]
    assert main(["pack", "--verify", str(folder)]) == 0

    cut.write_bytes(bytes(700))  # does not go on as the shard does
    run = prepare(tmp_path)
    assert run.returncode == 0 and "downloading it anew" in run.stderr
    assert cut.read_bytes() == hub.shards[NAMES[1]]


def test_a_bucket_gets_all_shards_once(tmp_path, hub, prepare):
    for _ in range(2):
        run = prepare("gs://mine/sets/")
        assert run.returncode == 0, run.stderr
    bucket = tmp_path / "bucket/mine/sets/imagenet-1k-wds"
    assert {name: (bucket / name).read_bytes() for name in NAMES} == hub.shards
    assert len(json.loads((bucket / "index.json").read_text())["shards"]) == 3
    assert len(downloads(hub)) == 3
    (bucket / NAMES[2]).write_bytes(b"cut")
    assert prepare("gs://mine/sets").returncode == 0
    uploads = [line.rpartition("/")[2] for line in (tmp_path / "uploads.txt").read_text().splitlines()]
    assert sorted(uploads) == sorted([*NAMES, NAMES[2], *["index.json"] * 3])
    assert not list(tmp_path.glob("imagenet-1k-wds/*.tar*"))


def test_what_is_wrong_gets_one_sentence(tmp_path, hub, prepare):
    for environment, sentence in (
        ({"HF_TOKEN": ""}, "HF_TOKEN is missing"),
        ({"HF_TOKEN": "a b"}, "holds other signs"),
        ({"GCS_DATASET_DIR": ""}, "GCS_DATASET_DIR is missing"),
        ({"JOBS": "0"}, "JOBS=0"),
    ):
        run = prepare(tmp_path, **environment)
        assert run.returncode == 2 and sentence in run.stderr and run.stderr.count("\n") == 1, run.stderr
    for status, code, sentence in (
        (401, 2, "does not know HF_TOKEN (401)"),
        (403, 2, "accept the licence"),
        (503, 1, "the hub answers 503"),
    ):
        hub.status = status
        run = prepare(tmp_path, ATTEMPTS="2")
        assert run.returncode == code and sentence in run.stderr and run.stderr.count("\n") == 1, run.stderr
    hub.status = 200
    run = prepare(tmp_path, NAMES[0], "imagenet1k-train-9999.tar")
    assert run.returncode == 1 and "9999.tar is not at" in run.stderr and "not all of 2 shards" in run.stderr
    assert (tmp_path / "imagenet-1k-wds" / NAMES[0]).exists()
    assert not (tmp_path / "imagenet-1k-wds/index.json").exists()
