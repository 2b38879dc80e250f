"""`maejax push` to a stand-in for the hub, and what reads from there."""

import json
from pathlib import Path

import pytest

from maejax.errors import WeightsError
from maejax.storage.retry import RetryPolicy
from maejax.weights import addresses, files
from maejax.weights.addresses import local

from ..hub import Hub

TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub()
    hub.roles = {TOKEN: "write", "hf_readreadread": "read"}
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    yield hub
    hub.stop()


def test_a_push_is_one_commit_and_the_same_again_is_none(maejax, weights, hub, same, tmp_path):
    files.write(made := weights("cls", image_size=(16, 16)), "w.safetensors", "maejax")
    report = {"scores": {"pretrained": {"knn": 12.34}}, "images": {"test": 7}, "classes": ["a"]}
    Path("report.json").write_text(json.dumps(report))
    Path("terms.txt").write_text("Do what you like.")
    push = "push", "w.safetensors", "lab/it", "--private", "--report", "report.json", "--licence", "terms.txt"
    code, printed = maejax(*push, "--json")
    assert code == 0 and json.loads(printed[printed.index("{") :])["changed"], printed
    first, pushed = hub.repositories["lab/it"]
    assert first.keys() == {".gitattributes"} and hub.private == {"lab/it"}
    assert (pushed["report.json"], pushed["LICENSE"]) == (json.dumps(report).encode(), b"Do what you like.")
    card = pushed["README.md"].decode()
    assert "license: other\n" in card and 'from_pretrained("lab/it")' in card and "| knn | 12.3 % |" in card
    code, again = maejax(*push)
    assert code == 0 and "has these files already: nothing changed" in again and len(hub.repositories["lab/it"]) == 2

    # Read back without a name of a file; the revision from before holds nothing.
    same(files.read(local("hf://lab/it")[0]).arrays, made.arrays)
    same(files.read(local(f"hf://lab/it@{hub.oid(2)}")[0]).arrays, made.arrays)
    with pytest.raises(WeightsError, match=rf"hf://lab/it@{hub.oid(1)} holds no weights: correct the name"):
        local(f"hf://lab/it@{hub.oid(1)}")
    assert maejax("convert", "hf://lab/it", "back.safetensors", "--to", "maejax")[0] == 0

    # A folder that was exported before, and changed by hand, is pushed as it is.
    assert maejax("export", "hf://lab/it", "--name", "lab/it")[0] == 0
    Path("it-hub/README.md").write_text("---\nlicense: mit\n---\n")
    code, printed = maejax("push", "it-hub", "lab/it")
    assert code == 0 and hub.repositories["lab/it"][-1]["README.md"] == b"---\nlicense: mit\n---\n"
    code, printed = maejax("push", "it-hub", "lab/it", "--onnx")
    assert code == 2 and "it-hub is pushed as it is: give --onnx to `maejax export`, or name the run" in printed
    said = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] + [again.encode(), printed.encode()]
    assert not [each for each in said if TOKEN.encode() in each]


def test_what_does_not_go_is_said_before_any_work(maejax, hub, monkeypatch):
    """CKPT is not there: it would be the first thing that the work needs."""
    hub.put("me/public", {".gitattributes": b""})

    def refused(name, *flags, code=2, token=TOKEN):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        else:
            monkeypatch.delenv("HF_TOKEN")
        found, printed = maejax("push", "none.safetensors", name, *flags)
        assert found == code and (not token or token not in printed), printed
        return printed

    assert "write OWNER/NAME" in refused("me")
    assert "you/it is another's: this login may write to me/it, lab/it" in refused("you/it")
    assert "club/it is another's" in refused("club/it"), "of an organisation that may only be read"
    assert "--private: me/public is public already" in refused("me/public", "--private")
    assert "give the hub's word for it" in refused("me/it", "--licence", "MIT licence")
    assert "me/it: this token may only read" in refused("me/it", token="hf_readreadread")
    assert "does not know this login: run `hf auth login`" in refused("me/it", token="hf_otherother")
    assert "no login for http://127.0.0.1" in refused("me/it", token="")
    assert "none.safetensors does not exist" in refused("me/it")
    assert not [seen for seen in hub.seen if seen[0] == "POST"]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "no answer from http://127.0.0.1:9; no file was changed there" in refused("me/it", code=1)


@pytest.mark.parametrize("status, code, said", [(403, 2, "may not write there"), (503, 1, "answers HTTP 503")])
def test_a_refusal_on_the_way_changes_nothing(maejax, weights, hub, status, code, said):
    files.write(weights("encoder"), "w.safetensors", "maejax")
    hub.put("me/it", {"README.md": b"old"})
    hub.status = status
    found, printed = maejax("push", "w.safetensors", "me/it")
    assert found == code and said in printed and hub.repositories["me/it"] == [{"README.md": b"old"}]


def test_a_repository_stands_for_its_file_of_weights(hub, weights, same, tmp_path, monkeypatch):
    made = weights("gap")  # transformers has no place for it
    files.write(made, tmp_path / "t.safetensors", "timm")
    data = (tmp_path / "t.safetensors").read_bytes()
    hub.put("me/timm", {"timm.safetensors": data, "README.md": b"", "sub/model.safetensors": b"another"})
    same(files.read(local("hf://me/timm")[0]).arrays, made.arrays)
    files.write(made, tmp_path / "w.safetensors", "maejax")
    hub.put("me/one", {"w.safetensors": (tmp_path / "w.safetensors").read_bytes()})
    same(files.read(local("hf://models/me/one/")[0]).arrays, made.arrays)
    hub.put("me/one", {"v.pth": b""})
    with pytest.raises(WeightsError, match="hf://me/one holds several files of weights: name one, hf://me/one/"):
        local("hf://me/one")
    with pytest.raises(WeightsError, match="hf://me/none: HTTP 404"):
        local("hf://me/none")
    hub.stop()
    monkeypatch.setattr(addresses, "ASKING", RetryPolicy(connect=0.1, stall=0.1, total=0.1))
    found, said = local("hf://me/timm")
    assert found.read_bytes() == data and "a copy from before" in said


def test_an_export_for_timm_alone_is_read_again(maejax, weights, same):
    made = weights("gap", dim=24, heads=3)
    files.write(made, "w.safetensors", "maejax")
    assert maejax("export", "w.safetensors")[0] == 0
    back = files.read("w-hub")
    same(back.arrays, made.arrays)
    assert back.config == made.config
