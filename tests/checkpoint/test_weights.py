"""wsfvit weights: from a local server, a file and stand-ins for gdown and huggingface_hub, to pretrained=True."""

import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from parity import fill_by_key
from PIL import Image
from safetensors.torch import save_file

from wsfvit.cli.train import parse_train_args
from wsfvit.factory.model import build_train_model
from wsfvit.models import _published
from wsfvit.models._published import PUBLISHED, PublishedFile, cache_dir, find_cached, sha256_of
from wsfvit.utils.errors import UserError
from wsfvit_cli import dispatch

NAME = "wsfvit_p0_224"  # stands for a published model: this one loads in a moment
Capture = pytest.CaptureFixture[str]
Errors = Callable[..., str]
Patch = pytest.MonkeyPatch
KEY = "stages.2.blocks.1.attn_inter.attn.qkv.weight"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = fill_by_key(timm.create_model(NAME)).float().state_dict()
    path = tmp_path_factory.mktemp("release") / "release.pth.tar"
    torch.save({"epoch": 299, "arch": NAME, "state_dict": state}, path)
    return path


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setitem(PUBLISHED, NAME, PublishedFile("DRIVE-ID", 2.9, 0.62, "top-1 76.2"))


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`; the first part of the path chooses what goes wrong."""

    server: Any

    def do_GET(self) -> None:
        content, asked, kind = self.server.content, self.headers["Range"], self.path.split("/")[1]
        self.server.ranges.append(asked)
        content = b"\n<!DOCTYPE html><html>Google Drive cannot scan" if kind == "page" else content
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and kind != "no-range" else 0
        if kind == "missing" or first >= len(content):
            return self.send_error(404 if kind == "missing" else 416)
        self.send_response(302 if kind == "moved" else 206 if first else 200)
        if kind == "moved":
            self.send_header("Location", "/whole/w.pth")
        if kind != "no-length":
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first : len(content) // 2 if kind in ("cut", "no-range") and not asked else None])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(weights: Path) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.ranges, server.url = weights.read_bytes(), [], f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(source: object, *more: str, model: str = NAME) -> None:
    dispatch(["weights", "get", str(source), "--model", model, *more])


def assert_pretrained(weights: Path) -> None:
    expected = torch.load(weights, weights_only=True)["state_dict"][KEY]
    assert torch.equal(timm.create_model(NAME, pretrained=True).state_dict()[KEY], expected)


def test_the_list_names_every_file(weights: Path, capsys: Capture) -> None:
    get(weights)
    (cache_dir() / "wsfvit_t_224.pth").write_bytes(b"put here by hand")
    capsys.readouterr()
    dispatch(["weights"])
    rows = {row.split()[1]: row for row in capsys.readouterr().out.splitlines()[2:-1]}
    assert rows.keys() == PUBLISHED.keys() and len(rows) == 18 + 1
    assert all(file.drive_id in rows[name] and file.figures in rows[name] for name, file in PUBLISHED.items())
    assert [rows[name].split()[-2] for name in (NAME, "wsfvit_t_224", "wsfvit_s_224")] == ["yes", "unchecked", "no"]


def test_the_table_is_that_of_the_registered_models() -> None:
    registered = {name for name in timm.list_models(module="wsfvit") if "_dwt_" not in name}
    assert {name for name in PUBLISHED if name.startswith("wsfvit_")} == registered  # with NAME
    cfg = timm.get_pretrained_cfg("wsfvit_t_224")
    assert cfg.origin_url == PUBLISHED["wsfvit_t_224"].url and cfg.paper_name == "WSF-ViT"
    assert timm.get_pretrained_cfg("wsfvit_dwt_t_224").origin_url is None
    assert len({file.drive_id for file in PUBLISHED.values()}) == len(PUBLISHED)


@pytest.mark.parametrize("kind", ["whole", "moved", "no-length"])
def test_a_url_is_fetched_checked_and_recorded(server: Any, weights: Path, kind: str, capsys: Capture) -> None:
    get(f"{server.url}/{kind}/w.pth")
    path = cache_dir() / f"{NAME}.pth"
    assert path.read_bytes() == weights.read_bytes()
    assert Path(f"{path}.sha256").read_text() == f"{sha256_of(weights)}  {path.name}\n"
    assert sorted(cache_dir().iterdir()) == [path, Path(f"{path}.sha256")]
    assert f"SHA-256 {sha256_of(weights)}, loads strictly" in capsys.readouterr().out
    server.shutdown()
    get(f"{server.url}/{kind}/w.pth")
    assert "is in the cache" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["cut", "no-range"])
def test_an_interrupted_download_continues(server: Any, weights: Path, kind: str, error_of: Errors) -> None:
    size = len(server.content)
    assert error_of(lambda: get(f"{server.url}/{kind}/w.pth")).endswith("; repeat to continue")
    [part] = cache_dir().iterdir()
    assert ".part" in part.name and part.stat().st_size == size // 2 and find_cached(NAME) is None
    get(f"{server.url}/{kind}/w.pth")
    assert server.ranges == [None, f"bytes={size // 2}-"]
    assert_pretrained(weights)
    # Nothing follows a part whose process was killed before it was checked: it is fetched again.
    part.write_bytes(server.content)
    if kind == "cut":
        assert "416" in error_of(lambda: get(f"{server.url}/{kind}/w.pth", "--force")) and not part.exists()


@pytest.mark.parametrize(
    ("source", "model", "expected"),
    [
        ("{url}/missing/w.pth", NAME, "HTTP Error 404"),
        ("{url}/page/w.pth", NAME, "is refused: it is empty or a web page"),
        ("{url}/page/w.pth", "cascade_wsfvit_t", "a web page"),
        ("{url}/whole/w.pth", "wsfvit_p1_224", "does not fit wsfvit_p1_224"),
        ("http://127.0.0.1:9/w.pth", NAME, "Connection refused"),
        ("{tmp}/damaged.pth", NAME, "damaged"),
        ("{tmp}/unsafe.pth", NAME, "was refused: it wants to call"),
        ("{tmp}/none.pth", NAME, "No such file"),
        ("{tmp}/damaged.pth", "wsfvit_t_242", "unknown name 'wsfvit_t_242', did you mean 'wsfvit_t_224'?"),
        ("wsfvit_t_242", "", "unknown name 'wsfvit_t_242', did you mean 'wsfvit_t_224'?"),
        ("wsfvit_p0_448", "resnet50", "unknown name 'resnet50'"),
        ("wsfvit_dwt_t_224", "", "is not in the list of published files: pass SOURCE --model NAME"),
        ("{tmp}/damaged.pth", "", "pass SOURCE --model NAME"),
        ("", "", "unknown name ''"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    server: Any, weights: Path, tmp_path: Path, source: str, model: str, expected: str, error_of: Errors
) -> None:
    (tmp_path / "damaged.pth").write_bytes(weights.read_bytes()[:100_000])
    torch.save({"state_dict": SimpleNamespace(a=1)}, tmp_path / "unsafe.pth")
    argv = ["weights", "get", source.format(url=server.url, tmp=tmp_path), *(["--model", model] if model else [])]
    assert expected in error_of(lambda: dispatch(argv))
    assert not cache_dir().exists() or not list(cache_dir().iterdir())


def test_drive_by_gdown(weights: Path, monkeypatch: Patch, error_of: Errors) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    assert "needs gdown: pip install 'wsfvit[hub]'" in error_of(lambda: dispatch(["weights", "get", NAME]))
    asked = []

    def download(id: str, output: str, resume: bool) -> object:
        asked.append(id)
        if len(asked) == 1:
            raise RuntimeError("Failed to retrieve\n\n  too many users")
        return None if len(asked) == 2 else Path(output).write_bytes(weights.read_bytes())

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download))
    for reason in ("Failed to retrieve too many users", "the reason is above"):
        assert reason in error_of(lambda: dispatch(["weights", "get", NAME]))
    dispatch(["weights", "get", NAME])
    get("https://drive.google.com/uc?export=download&id=OTHER-ID", "--force")
    assert asked == ["DRIVE-ID"] * 3 + ["OTHER-ID"]
    assert_pretrained(weights)


def test_hub_and_safetensors(weights: Path, tmp_path: Path, monkeypatch: Patch, error_of: Errors) -> None:
    get(weights)
    state = torch.load(weights, weights_only=True)["state_dict"]
    save_file(state | {KEY: state[KEY] + 1}, tmp_path / "w.safetensors")

    def hf_hub_download(repo: str, filename: str) -> str:
        if (repo, filename) != ("owner/repo", "folder/w.safetensors"):
            raise OSError("404 Client Error\nEntry Not Found")
        return str(tmp_path / "w.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    assert "Entry Not Found" in error_of(lambda: get("hf://owner/repo/none.pth", "--force"))
    assert "No such file" in error_of(lambda: get("hf://owner/repo", "--force"))
    assert_pretrained(weights)  # what was there is untouched
    get("hf://owner/repo/folder/w.safetensors", "--force")
    assert {path.name for path in cache_dir().iterdir()} == {f"{NAME}.safetensors", f"{NAME}.safetensors.sha256"}
    assert torch.equal(timm.create_model(NAME, pretrained=True).state_dict()[KEY], state[KEY] + 1)


def test_a_changed_file_is_refused(weights: Path, error_of: Errors) -> None:
    get(weights)
    path = cache_dir() / f"{NAME}.pth"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="its SHA-256 is not the recorded one"):
        timm.create_model(NAME, pretrained=True)
    assert "is not the recorded one" in error_of(lambda: get(weights))
    get(weights, "--force")
    assert_pretrained(weights)


def test_detectors_are_not_loaded_and_video_models_are(weights: Path, capsys: Capture, error_of: Errors) -> None:
    get(weights, model="mask_rcnn_wsfvit_t")
    assert "not loaded: the names of mmdet's parameters" in capsys.readouterr().out
    assert "lacks the configuration of its video model" in error_of(lambda: get(weights, model="simvp_wsfvit_200ep"))


def test_commands_use_the_cached_file(
    weights: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture, error_of: Errors
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    argv = ["predict", str(tmp_path / "image.png"), "--model", NAME, "--pretrained", "--img-size", "64", "-j", "1"]
    assert error_of(lambda: dispatch(argv)).endswith(f"fetch them with wsfvit weights get {NAME}")
    get(weights)
    capsys.readouterr()
    dispatch([*argv, "--device", "cpu"])
    assert "image.png" in capsys.readouterr().out
    expected = torch.load(weights, weights_only=True)["state_dict"][KEY]
    args = parse_train_args(["--model", NAME, "--num-classes", "3", "--in-chans", "1", "--pretrained"])
    assert torch.equal(build_train_model(args).state_dict()[KEY], expected)
    features = timm.create_model(NAME, pretrained=True, features_only=True)
    assert torch.equal(features.model.state_dict()[KEY], expected)
    monkeypatch.setattr(_published, "cache_dir", None)  # a look into the cache would fail
    timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(weights)))
    timm.create_model(NAME)
