"""The playground's answers, and what it refuses."""

import base64
import io
import shutil
import socket
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from rich.console import Console
from starlette.testclient import TestClient

from maejax.commands.serve import ServeCommand
from maejax.data.form import Form
from maejax.models.build import initial_model
from maejax.models.description import ViT
from maejax.playground import server
from maejax.playground.gallery import empty_gallery
from maejax.playground.playground import Playground
from maejax.playground.run_steps import RunSteps

ADDRESS = "http://127.0.0.1:6230"


@pytest.fixture(scope="module")
def run(trained_once, tmp_path_factory):
    return shutil.copytree(trained_once, tmp_path_factory.mktemp("played") / "run")


@pytest.fixture(scope="module")
def playground(run, images):
    return ServeCommand(str(run), images=str(images)).open(Console(quiet=True))[0]


@pytest.fixture(scope="module")
def client(playground):
    return TestClient(server.build_app(playground), base_url=ADDRESS)


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pixels_in(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_what_is_hidden_changes_nothing_in_the_answer(client, playground):
    hidden = [1, 4, 5, 11]
    image = playground.gallery.images[0]
    other = image.copy()
    for i in hidden:
        row, column = 4 * (i // 4), 4 * (i % 4)
        other[row : row + 4, column : column + 4] = 77
    filled = []
    for each in (image, other):
        asked = {"pixels": base64.b64encode(each.tobytes()).decode(), "hidden": hidden, "step": 6}
        filled.append(client.post("/reconstruct", json=asked).json())
    first, second = (pixels_in(each["picture"]) for each in filled)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[12:], image[12:])
    assert filled[0]["loss"] != filled[1]["loss"]


def test_attention_is_that_of_the_model_for_any_layer_and_head(client, playground):
    picture, model = client.get("/picture/3").json(), playground.steps.first
    for layer in (0, 1):
        wanted = np.asarray(model.attention(playground.gallery.images[3:4], layer))[0][:, :, 1:]
        for head, rows in ((-1, wanted.mean(axis=0)), (1, wanted[1])):
            asked = {"pixels": picture["pixels"], "layer": layer, "head": head, "step": 6}
            weights = base64.b64decode(client.post("/attention", json=asked).json()["weights"])
            found = np.frombuffer(weights, np.uint8).reshape(17, 16)
            assert np.abs(found - 255 * rows / rows.max(axis=1, keepdims=True)).max() < 1


def test_neighbours_leave_the_picture_itself_out_and_know_it_otherwise(client):
    asked = {"pixels": client.get("/picture/3").json()["pixels"], "step": 6}
    found = client.post("/neighbours", json=asked).json()["neighbours"]
    assert found[0]["number"] == 3 and found[0]["similarity"] == pytest.approx(1)
    without = client.post("/neighbours", json=asked | {"number": 3}).json()["neighbours"]
    assert [each["number"] for each in without][:11] == [each["number"] for each in found][1:]


def test_checkpoints_of_a_run_and_one_that_is_gone(client, run):
    about = client.get("/about").json()
    assert (about["steps"], about["step"]) == ([0, 2, 4, 6], 6)
    asked = {"pixels": client.get("/picture/0").json()["pixels"], "hidden": [1, 2]}
    losses = {client.post("/reconstruct", json=asked | {"step": step}).json()["loss"] for step in (0, 4, 6)}
    assert len(losses) == 3
    shutil.rmtree(run / "checkpoints/2")
    answer = client.post("/reconstruct", json=asked | {"step": 2})
    assert answer.status_code == 422 and "checkpoint 2 is gone: a run in training" in answer.json()["error"]
    assert answer.json()["steps"] == [0, 4, 6]
    shutil.rmtree(run / "checkpoints/4")
    assert client.post("/reconstruct", json=asked | {"step": 4}).status_code == 200  # it is in memory still


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/about", {}, 200),
        ("/about", {"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200),  # through a tunnel
        ("/about", {"Host": "[::1]:6230", "Sec-Fetch-Site": "same-origin"}, 200),
        ("/about", {"Host": "evil.example:6230"}, 403),
        ("/", {"Host": "127.0.0.1.evil.example"}, 403),
        ("/about", {"Host": ""}, 403),
        ("/about", {"Host": "192.168.1.2:6230"}, 403),
        ("/about", {"Origin": "http://evil.example"}, 403),
        ("/about", {"Origin": "http://127.0.0.1:8888"}, 403),
        ("/about", {"Origin": "null"}, 403),
        ("/thumbnail/0", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/", {"Sec-Fetch-Site": "cross-site"}, 200),
        ("/../../etc/passwd", {}, 404),
        ("/%2e%2e/%2e%2e/etc/passwd", {}, 404),
        ("/playground.html", {}, 404),
        ("/picture/99", {}, 422),
        ("/picture/..%2fconfig.json", {}, 404),
    ],
)
def test_hosts_origins_and_paths(client, path, headers, status):
    answer = client.get(path, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    if status > 400:
        assert answer.json()["error"]


def test_a_host_that_all_reach_is_asked_for_by_number_or_by_its_own_name(playground):
    guard = server.Guard(None, "0.0.0.0")
    for host, refused in (("192.168.1.2:6230", False), (socket.gethostname(), False), ("evil.example", True)):
        assert bool(guard.refusal({"host": host}, "/about")) == refused


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "NONCE" not in page.text and "http" not in page.text


def test_an_upload_is_cropped_to_the_model(client):
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[6:34] = 200
    answer = client.post("/upload?name=mine.png", content=encoded(pixels)).json()
    np.testing.assert_array_equal(pixels_in(answer["picture"]), np.full((16, 16, 3), 200))
    assert len(base64.b64decode(answer["pixels"])) == 16 * 16 * 3


def bomb(kind):
    """Make a small file that would unpack to much more."""
    if kind == "PNG":  # whose head promises more than 200 million values
        head = b"IHDR" + (60_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
        png = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + head + zlib.crc32(head).to_bytes(4)
        body = b"IDAT" + zlib.compress(bytes(1000))
        return png + (len(body) - 4).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
    file = io.BytesIO()
    if kind == "large TIFF":
        shape, parts = (9000, 9000, 5), [zlib.compress(b"")]
    else:
        shape, parts = (8, 8, 5), [zlib.compress(bytes(10**6))]
    form = {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib", "rowsperstrip": shape[0]}
    with tifffile.TiffWriter(file) as writer:
        writer.write(iter(parts), shape=shape, dtype="uint8", **form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "a.png cannot be read: the file is empty"),
        (b"no image", "a.png cannot be read: no image format known here"),
        (encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[:5000], "damaged PNG"),
        (bomb("PNG"), "10,800,000,000 values"),
        (bomb("large TIFF"), "405,000,000 values"),
        (bomb("deflated TIFF"), "a part holds more than its page"),
        (bytes(128) + b"DICM" + b"1.2.840.10008.1.2.1.99", "deflated as a whole"),
        (b"\x93NUMPY\x01\0\x76\0{'descr': '<u2', 'fortran_order': False, 'shape': (2, 2, 3)}".ljust(128) + bytes(24),
         "holds uint16, and uint8 is needed"),
    ],
    ids=["empty", "text", "cut", "bomb", "large TIFF", "bomb TIFF", "DICOM", "other type"],
)  # fmt: skip
def test_a_bad_upload_gets_a_sentence(client, data, sentence):
    answer = client.post("/upload?name=a.png", content=data)
    assert answer.status_code == 422 and sentence in answer.json()["error"], answer.text


def test_a_long_request_is_refused_whether_it_says_its_length_or_not(client, monkeypatch):
    monkeypatch.setattr(server, "MOST_BYTES", 1000)
    for content in (bytes(2000), iter([bytes(600)] * 2)):
        answer = client.post("/upload", content=content)
        assert answer.status_code == 413 and "send a smaller picture" in answer.json()["error"]
    assert client.post("/order", content=b"[" * 10**6).status_code == 413


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("order", "[" * 900),
        ("order", "[]"),
        ("order", '{"kind": "spiral"}'),
        ("order", '{"kind": "random", "seed": 1e9}'),
        ("reconstruct", '{"pixels": "AAAA", "hidden": [1]}'),
        ("reconstruct", '{"pixels": 7, "hidden": [1]}'),
        ("reconstruct", '{"pixels": "ALL", "hidden": [16]}'),
        ("reconstruct", '{"pixels": "ALL", "hidden": [true]}'),
        ("reconstruct", '{"pixels": "ALL", "hidden": []}'),
        ("reconstruct", '{"pixels": "ALL", "hidden": [1], "step": 3}'),
        ("reconstruct", '{"pixels": "ALL", "hidden": [1], "step": "../2"}'),
        ("attention", '{"pixels": "ALL", "layer": 2, "head": 0}'),
        ("attention", '{"pixels": "ALL", "layer": 0, "head": -2}'),
        ("neighbours", '{"pixels": "ALL", "number": "x"}'),
    ],
)
def test_a_wrong_request_gets_a_sentence(client, path, asked):
    everything = base64.b64encode(bytes(16 * 16 * 3)).decode()
    answer = client.post(f"/{path}", content=asked.replace("ALL", everything))
    assert answer.status_code == 422 and answer.json()["error"], answer.text


def test_an_encoder_alone_shows_attention_and_says_what_it_lacks():
    model = initial_model(ViT(image_size=(8, 8), patch_size=4, dim=8, layers=1, heads=2, cls_token=False))
    playground = Playground(RunSteps(model), empty_gallery(model.config), Form(), lambda image, _: image, (0, 1, 2))
    client = TestClient(server.build_app(playground), base_url=ADDRESS)
    about = client.get("/about").json()
    assert "encoder without a decoder" in about["no_decoder"] and about["steps"] == [] and about["tokens"] == []
    asked = {"pixels": base64.b64encode(bytes(8 * 8 * 3)).decode(), "layer": 0, "head": -1, "hidden": [1]}
    assert client.post("/attention", json=asked).status_code == 200
    assert "without a decoder" in client.post("/reconstruct", json=asked).json()["error"]
    assert "give --images" in client.post("/neighbours", json=asked).json()["error"]


def test_what_cannot_be_served_ends_in_a_sentence(maejax, run, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, printed = maejax("serve", run, "--port", taken.getsockname()[1])
        assert code == 2 and "give another --port, or --port 0" in printed, printed
    for args, sentence in (
        ((run, "--host", "no such host", "--port", 0), "no address of this machine"),
        ((run, "--port", 70000), "give a number from 0 to 65535"),
        (("nothing", "--port", 0), "nothing does not exist"),
        ((run, "--images", "nowhere", "--port", 0), "nowhere"),
    ):
        code, printed = maejax("serve", *args)
        assert code == 2 and sentence in printed, printed
    monkeypatch.delitem(sys.modules, "maejax.playground.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, printed = maejax("serve", run)
    assert code == 2 and "pip install 'maejax[serve]'" in printed, printed
