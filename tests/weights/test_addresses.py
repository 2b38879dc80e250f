"""Weights at addresses: what is fetched, when it is fetched again, and what is refused."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import save

from maejax.errors import WeightsError
from maejax.weights import files, huggingface
from maejax.weights.addresses import fetch_weights, local
from maejax.weights.pretrained import fetch_pretrained
from tests.data.server import Server


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = Server()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.stop()


def fetched(address):
    return fetch_weights(address).path.read_bytes()


def test_a_file_is_fetched_again_only_if_it_changed_or_was_damaged(server):
    path, address = "/w.pth", server.url + "/w.pth"
    server.files[path] = b"weights"
    first = fetch_weights(address)
    assert (first.path.read_bytes(), first.size) == (b"weights", 7)
    assert first.sha256 == hashlib.sha256(b"weights").hexdigest()
    inode = first.path.stat().st_ino
    assert fetch_weights(address).path.stat().st_ino == inode
    first.path.write_bytes(b"wEights")
    assert fetched(address) == b"weights"
    server.files[path] = b"renewed"
    assert fetched(address) == b"renewed"
    server.plans[path] = [403]
    assert "a copy from before, since there is now: HTTP 403" in fetch_weights(address).describe(address)
    with pytest.raises(WeightsError, match=r"none\.pth: HTTP 404"):
        fetch_weights(server.url + "/none.pth")


def test_no_two_addresses_share_a_file(server, monkeypatch):
    """The secret is what tells them apart; no message shows it."""
    from maejax.weights import addresses

    monkeypatch.setattr(addresses, "identify", lambda address, policy: "")
    monkeypatch.setattr(addresses, "read_address", lambda address, policy: [address.encode()])
    forms = [f"https://{user}host/{folder}w.pth?token=" for user in ("", "me:it@") for folder in ("", "a/")]
    twins = [form + key for form in forms for key in ("number1", "number2")]
    assert [fetched(address).decode() for address in twins * 2] == twins * 2
    line = fetch_weights(twins[-1]).describe(twins[-1])
    assert "number" not in line and "it@" not in line and "number" not in str(fetch_weights(twins[-1]).path)


def test_a_pin_names_the_content(server):
    server.files["/w.pth"] = b"weights"
    pin = hashlib.sha256(b"weights").hexdigest()
    assert fetched(f"{server.url}/w.pth#sha256={pin}") == b"weights"
    seen = len(server.seen)
    assert local(f"{server.url}/w.pth#sha256={pin.upper()}")[0].read_bytes() == b"weights"
    assert len(server.seen) == seen, "what is pinned and here needs no server"
    server.files["/w.pth"] = b"another"
    with pytest.raises(WeightsError, match=r"w\.pth\?again: its SHA-256 is .*, not the one after #sha256="):
        fetch_weights(f"{server.url}/w.pth?again#sha256={pin}")
    with pytest.raises(WeightsError, match="give the 64 hexadecimal digits"):
        fetch_weights(f"{server.url}/w.pth#sha256=12")


def test_a_branch_of_the_hub_is_renewed(server, weights, same, tmp_path):
    revision = "0123456789abcdef" * 2 + "01234567"

    def publish(kind):
        files.write(weights(kind), tmp_path / kind, "hf")
        for name in ("config.json", "model.safetensors"):
            for branch in ("main", revision):
                server.files[f"/owner/name/resolve/{branch}/{name}"] = (tmp_path / kind / name).read_bytes()

    def read(revision):
        return fetch_pretrained(f"hf://owner/name{revision}/model.safetensors", (16, 24), 3)[0]

    publish("encoder")
    for branch in ("", f"@{revision}"):
        same(read(branch).arrays, weights("encoder").arrays)
    publish("cls")
    assert read("").config.kind == "classifier"
    assert read(f"@{revision}").config.kind == "encoder", "a commit never changes"


def test_all_parts_of_an_index_are_fetched(server, weights, same, tmp_path):
    made, where = weights("encoder", "learnable", image_size=(16, 16)), "/owner/name/resolve/main/"
    state, _ = huggingface.state_of(made)
    for i, names in enumerate((sorted(state)[:9], sorted(state)[9:])):
        server.files[f"{where}model-{i}.safetensors"] = save({name: np.array(state[name], order="C") for name in names})
    places = {name: f"model-{int(i >= 9)}.safetensors" for i, name in enumerate(sorted(state))}
    server.files[f"{where}model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    config = {"model_type": "vit", "image_size": 16, "patch_size": 4, "hidden_size": 64, "num_attention_heads": 1}
    server.files[f"{where}config.json"] = json.dumps(config).encode()
    path, said = local("hf://owner/name/model.safetensors.index.json")
    assert "and the 2 parts that it names" in said
    same(files.read(path).arrays, made.arrays)
    del server.files[f"{where}model-1.safetensors"]
    with pytest.raises(WeightsError, match=r"model-1.safetensors: a copy|HTTP 404"):
        local("hf://owner/name/model.safetensors.index.json", str(tmp_path))


def test_one_of_several_at_once_fetches(server):
    server.files["/w.pth"] = bytes(1 << 20)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(fetch_weights, [f"{server.url}/w.pth"] * 4))
    assert len(found) == 1 and len(server.seen) == 5, "each asks for the version, and one fetches"
    assert {path.name for path in next(iter(found)).path.parent.iterdir()} == {"w.pth", ".w.pth.fetched"}


def test_fsspec_addresses_are_read_and_renewed(server):
    import fsspec

    for content in (b"four", b"other"):
        with fsspec.open("memory://w/x.bin", "wb") as file:
            file.write(content)  # type: ignore[union-attr]
        assert fetched("memory://w/x.bin") == content
