"""docs/extending.md: its examples run as they are written, each from a folder of its own."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import generate_prefs
import mint.data.processors
import mint.models
import train
from mint.data.chat import load_tokenizer
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.preferences import read_preferences
from mint.demo import __main__ as demo
from mint.demo.tiny_model import TOWER, write_base
from mint.errors import FileProblems
from mint.evaluation.decoding import answer_prompts
from mint.models import init_model, load_model, save_model

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def example(name, text=""):
    """The code block that follows ``name``, a file, in the page, and holds ``text``."""
    blocks = re.findall(r"```(?:python)?\n(.*?)```", PAGE[PAGE.index(f"`{name}`:") :], re.DOTALL)
    return next(block for block in blocks if text in block)


def load(path, monkeypatch):
    """The file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # where a dataclass looks up its annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_loss(folder, monkeypatch, capsys):
    """Its unit test, and the three steps whose losses the page prints."""
    Path("mine").mkdir()
    for name in ("mine/my_loss.py", "mine/test_my_loss.py", "mine/pairs.jsonl"):
        Path(name).write_text(example(name))
    load(folder / "mine/my_loss.py", monkeypatch)
    load(folder / "mine/test_my_loss.py", monkeypatch).test_by_hand()
    assert demo.main("base --pairs mine/pairs.jsonl --shape demo --out mine/model".split()) == 0
    command = "--loss mine/my_loss.py:offset_dpo --loss-arg tau=2 --model mine/model --data mine/pairs.jsonl"
    assert train.main([*command.split(), *"--steps 3 --lr 1e-2 --out mine/run --device cpu".split()]) == 0
    losses = [json.loads(line)["loss"] for line in Path("mine/run/metrics.jsonl").read_text().splitlines()[:3]]
    printed = [float(loss) for loss in re.findall(r'{"step": \d, "loss": ([\d.]+)', PAGE)]
    assert len(printed) == 3 and losses == pytest.approx(printed, rel=1e-3)


def test_a_task(folder, monkeypatch, capsys):
    """Its scores by hand; pairs, evaluation, resume and comparison by the file's name."""
    Path("triage.py").write_text(example("triage.py"))
    module = load(folder / "triage.py", monkeypatch)
    task, note = module.Triage(), module.Note("a", "No pulse.", "emergency")
    assert task.parse("Urgent, if not an emergency") == "urgent" and task.parse("?") is None
    assert task.score("urgent", note) == {"right": 0.0, "too_low": 1.0}
    assert task.score("emergency", note) == {"right": 1.0, "too_low": 0.0}
    assert task.score(None, note) == {"right": 0.0, "too_low": 0.0}
    rows = [{"id": "a", "text": "No pulse.", "level": "emergency"}, {"id": "b", "text": "A cough.", "level": "routine"}]
    Path("notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert generate_prefs.main("triage.py:Triage --notes notes.jsonl --out pairs.jsonl".split()) == 0
    assert [pair.id for pair in read_preferences("pairs.jsonl")] == [
        "a-urgent", "a-routine", "b-emergency", "b-urgent"
    ]  # fmt: skip
    assert demo.main("base --pairs pairs.jsonl --shape demo --vocabulary 300 --out model".split()) == 0
    command = "triage.py:Triage --notes notes.jsonl --device cpu --out".split()
    assert evaluate.main([*command, "scores", "--model", "model"]) == 0
    assert "2 notes: right " in capsys.readouterr().out
    assert evaluate.main([*command, "scores", "--model", "model", "--resume"]) == 0
    true = [{"id": row["id"], "answer": row["level"].title()} for row in rows]
    Path("true.jsonl").write_text("".join(json.dumps(row) + "\n" for row in true))
    assert evaluate.main([*command, "true", "--predictions", "true.jsonl"]) == 0
    assert json.loads(Path("true/metrics.json").read_text())["scores"]["right"]["value"] == 1.0
    assert evaluate.main("compare scores true --task triage.py:Triage --out compared".split()) == 0
    assert "| model | true.jsonl | right |" in capsys.readouterr().out
    assert evaluate.main("compare scores true --out other".split()) == 2
    assert "is of no known task; name yours with --task FILE.py:CLASS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py:Triage", "the task file none.py does not exist"),
        ("broken.py:Triage", "broken.py cannot be imported: ZeroDivisionError"),
        ("other.py:Triage", "other.py has no class 'Triage'"),
        ("other.py:dict", "other.py has no class 'dict'"),
        ("other.py:Other", "other.py:Other is no subclass of mint.tasks.base.Task"),
    ],
)
def test_a_task_that_cannot_be_loaded(folder, capsys, name, message):
    Path("broken.py").write_text("1 / 0")
    Path("other.py").write_text("class Other:\n    pass\n")
    with pytest.raises(SystemExit) as exit:
        evaluate.main([name, "--model", "x"])
    errors = capsys.readouterr().err
    assert exit.value.code == 2 and errors.startswith("error: ") and message in errors and errors.count("\n") == 1


def test_a_vision_family(folder, monkeypatch):
    """Two files beside the package's own: its images decide its answers, and it is saved and loaded again."""
    for package, name in ((mint.models, "mint/models"), (mint.data.processors, "mint/data/processors")):
        file = folder / name / "linear_llava.py"
        file.parent.mkdir(parents=True)
        file.write_text(example(f"{name}/linear_llava.py"))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(file.parent)])
    base = write_base("base", ["What is it?", "user assistant"], "demo", 300, vision=TOWER)
    config = json.loads((base / "config.json").read_text()) | {"model_type": "linear_llava"}
    model = init_model({key: value for key, value in config.items() if key != "architectures"}, seed=1)
    assert type(model).__name__ == "LinearLlava"
    model.source_dir = base
    save_model(model, "model")
    Path("model/preprocessor_config.json").write_text(json.dumps({"size": TOWER["image_size"]}))
    assert json.loads(Path("model/config.json").read_text())["architectures"] == ["LinearLlavaForConditionalGeneration"]
    for name, shade in (("dark", 10), ("light", 240)):
        Image.fromarray(np.full((20, 30, 3), shade, dtype=np.uint8)).save(f"{name}.png")
    processor = load_processor("model")
    pixels = processor([Image.open("dark.png")])["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64) and torch.allclose(pixels, torch.tensor(10 / 127.5 - 1))
    loaded = load_model("model"), load_tokenizer("model"), ImageReader(processor)
    asked = [[{"role": "user", "content": "What is it?"}]] * 2
    dark, light = answer_prompts(loaded, asked, [["dark.png"], ["light.png"]], max_new_tokens=8)
    assert dark != light


def test_a_cohort_format(folder, monkeypatch):
    Path("case_lines.py").write_text(example("mint/data/case_lines.py"))
    module, path = load(folder / "case_lines.py", monkeypatch), Path("cases.jsonl")
    path.write_text(json.dumps({"id": 1, "disease": "Gout", "findings": ["Podagra"]}) + "\n")
    (case,), report = module.read_case_lines(path)
    assert (case.id, case.disease, case.observed[0].label, report) == ("1", "Gout", "Podagra", "1 cases")
    path.write_text('{"id": 1}\n')
    with pytest.raises(FileProblems, match="cases.jsonl:1: not a case"):
        module.read_case_lines(path)
