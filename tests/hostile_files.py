"""Untrusted files that try to run code: each would leave a trace if a reader did what it says."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import torch
import yaml
from PIL import Image

from tools.fuzz_checkpoints import Gadget

MODULE = "canary_module"
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"
GHOSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"


def arguments(canary):
    """Arguments of a training, each of which would run, import, fetch or unpickle something."""
    return [
        {"dataset": "wds/", "train_split": f"pipe:touch {canary}", "val_split": "pipe:x"},
        {"dataset": "wds/", "data_dir": "http://127.0.0.1:9/x", "train_split": "a.tar|8"},
        {"dataset": "HFIDS/somebody/something"},
        {"dataset": "tfds/mnist"},
        {"dataset": "torch/cifar10", "dataset_download": True},
        {"class_map": f"pipe:touch {canary}"},
        {"model": "hf-hub:somebody/something"},
        {"model_kwargs": {"checkpoint_path": f"{canary}.pth"}},
        {"model_kwargs": {"pretrained_cfg": {"url": "http://127.0.0.1:9/x"}}, "pretrained": True},
        {"torchcompile": "inductor", "torchcompile_options": [f"cpp.cxx=touch {canary}"]},
        {"log_wandb": True},
        {"log_trackio": True},
    ]


def checkpoints(folder, canary, task, key=""):
    """Files for --checkpoint and --resume; ``key`` is what a dump needs to be one."""
    step = {"bad_step": {"rank": 0, "world_size": 1, "epoch": 0, "batches": [0], "indices": [[0]], "losses": [0.0]}}
    base = {"task": task, "state_dict": {"weight": torch.zeros(2)}, **(step if key else {})}
    described = {"model": {"frames_in": Gadget(os.mkdir, str(canary))}, "data": {}}
    yield _pickled(folder / "reduce.pth", {**base, "args": Gadget(os.mkdir, str(canary))})
    yield _pickled(folder / "import.pth", {**base, "config": Gadget(__import__, MODULE)})
    yield _pickled(folder / "config.pth", {**base, "config": described})
    for number, args in enumerate(arguments(canary) if task == "classification" else ()):
        kwargs = args.get("model_kwargs", {"checkpoint_path": "x"})
        meta = {} if key else {"arch": args.get("model", "test_resnet"), "model_kwargs": kwargs}
        yield _pickled(folder / f"args{number}.pth", {**base, **meta, "args": {"model": "test_resnet", **args}})


def dumps(folder, canary, task):
    return checkpoints(folder, canary, task, "bad_step")


def configs(folder, canary, task):
    trusted = _pickled(folder / "trusted.pth", {"state_dict": Gadget(os.mkdir, str(canary))})
    own = [{"trust_checkpoint": True, "initial_checkpoint": str(trusted)}, {"device_modules": [MODULE]}]
    own += [{"trust_checkpoint": True, "resume": str(trusted)}, {"trust_checkpoint": False, "resume": str(trusted)}]
    shared = arguments(canary) if task == "classification" else arguments(canary)[-2:]
    for number, content in enumerate(own + shared):
        yield _text(folder / f"{number}.yaml", yaml.safe_dump(content))
    yield _text(folder / "python.yaml", f"seed: !!python/object/apply:os.mkdir ['{canary}']\n")
    yield _text(folder / "module.yaml", f"seed: !!python/module:{MODULE}\n")


def runs(folder, canary, task):
    shared = arguments(canary) if task == "classification" else arguments(canary)[-2:]
    for number, content in enumerate(shared):
        run = folder / f"run{number}"
        run.mkdir()
        _text(run / "args.yaml", yaml.safe_dump({"model": "test_resnet", **content}))
        _pickled(run / "last.pth.tar", {"args": Gadget(os.mkdir, str(canary))})
        yield run


def class_maps(folder, canary, task):
    yield _bytes(folder / "map.pkl", pickle.dumps({"a": Gadget(os.mkdir, str(canary))}))
    yield _text(folder / "map.json", "{}")


def arrays(folder, canary, task):
    objects = np.empty(1, object)
    objects[0] = Gadget(os.mkdir, str(canary))
    buffer = io.BytesIO()
    np.save(buffer, objects, allow_pickle=True)
    yield _bytes(folder / "frames.npy", buffer.getvalue())
    with zipfile.ZipFile(folder / "frames.npz", "w") as archive:
        archive.writestr("a.npy", buffer.getvalue())
    yield folder / "frames.npz"
    for name, content in (("list.mp4", PLAYLIST), ("concat.mkv", "ffconcat version 1.0\nfile http://127.0.0.1:9/x\n")):
        yield _text(folder / name, content)
    yield _text(folder / "session.avi", "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n")


def images(folder, canary, task):
    yield _bytes(folder / "page.png", GHOSTSCRIPT)


def folders(folder, canary, task):
    root = folder / "images"
    for split in ("train", "validation"):
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            _bytes(root / split / name / "page.png", GHOSTSCRIPT)
    yield root


def annotations(folder, canary, task):
    image = {"id": 1, "height": 40, "width": 40}
    for number, name in enumerate(("http://127.0.0.1:9/x.png", f"pipe:touch {canary}", "page.png")):
        _bytes(folder / "page.png", GHOSTSCRIPT)
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 30, 30], "area": 900, "iscrowd": 0}
        box["segmentation"] = [[1, 1, 31, 1, 31, 31, 1, 31]]
        content = {
            "categories": [{"id": id, "name": name} for id, name in enumerate(("circle", "square", "triangle"), 1)]
        }
        content |= {"images": [{**image, "file_name": name}], "annotations": [box]}
        yield _text(folder / f"{number}.json", json.dumps(content))
    yield _bytes(folder / "pickle.json", pickle.dumps(Gadget(os.mkdir, str(canary))))


def shards(folder, canary, task):
    names = [f"pipe:touch {canary}", "http://127.0.0.1:9/x.tar"]
    for name in names:
        splits = {split: {"name": split, "num_samples": 8, "filenames": [name], "shard_lengths": [8]}
                  for split in ("train", "validation")}  # fmt: skip
        _text(folder / "_info.json", json.dumps({"splits": splits}))
        yield folder


def picture(folder):
    Image.new("RGB", (40, 40)).save(folder / "fine.png")
    return folder / "fine.png"


def _pickled(path, content):
    torch.save(content, path)
    return path


def _text(path, text):
    return _bytes(path, text.encode())


def _bytes(path, blob):
    path.write_bytes(blob)
    return path
