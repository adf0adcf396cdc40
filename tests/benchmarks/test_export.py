"""The export benchmark: what a model that goes through, and one that does not, leave behind."""

import json

import pytest

from benchmarks import export
from wsfvit.utils.errors import UserError


def test_failures_are_recorded_and_end_the_program(tmp_path, monkeypatch, capsys) -> None:
    def fake(model, images, format, dynamic_batch) -> bytes:
        assert images.shape == (1, *model.default_cfg["input_size"]) and not dynamic_batch
        if model.default_cfg["architecture"] == "test_vit":
            raise UserError("no way")
        return b"1234"

    monkeypatch.setattr(export, "export_model", fake)
    monkeypatch.setattr(export, "load_runner", lambda content, format: None)
    monkeypatch.setattr(export, "compare_outputs", lambda *_: (1e-7, 2.0))
    out = tmp_path / "run.json"
    with pytest.raises(SystemExit) as ended:
        export.main(["--models", "test_resnet", "test_vit", "--formats", "torch", "--fixed-batch", "--out", str(out)])
    assert ended.value.code == 1
    good, bad = json.loads(out.read_text())["results"]
    assert (good["model"], good["max_difference"], good["megabytes"]) == ("test_resnet", 1e-7, 4e-6)
    assert bad["error"] == "no way" and "no way" in capsys.readouterr().out
    with pytest.raises(UserError, match="no model is called nothing"):
        export.main(["--models", "nothing"])
