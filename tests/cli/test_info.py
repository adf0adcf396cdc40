"""wsfvit info."""

import importlib.metadata
import re

import timm

from wsfvit.analysis import info
from wsfvit_cli import dispatch


def test_info_names_versions_devices_and_variables(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    dispatch(["info"])
    out = capsys.readouterr().out
    assert f"torch {importlib.metadata.version('torch')}" in out
    assert "wavelet backend" in out
    assert f"Pillow {importlib.metadata.version('Pillow')}, decoded by PIL" in out
    assert "webdataset " in out and "trackio " in out and "threads of" in out
    assert "processes: gloo" in out
    counts = {family: int(count) for count, family in re.findall(r"(\d+) (\w+_\*)", out)}
    assert counts.keys() == {f"{name}_*" for name in ("afno", "gfn", "mwa", "sa", "wacnn", "wavemix", "wsfvit")}
    assert counts["wsfvit_*"] == len(timm.list_models(module="wsfvit")) and counts["mwa_*"] == 3
    assert "OMP_NUM_THREADS=3" in out


def test_info_reports_a_backend_that_cannot_be_used(monkeypatch, capsys):
    def refuse(device):
        raise RuntimeError("no kernels here")

    monkeypatch.setattr(info, "resolve_backend", refuse)
    dispatch(["info"])
    assert "unusable: no kernels here" in capsys.readouterr().out
