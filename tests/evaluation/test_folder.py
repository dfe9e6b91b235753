"""The folder of an evaluation: its name, what keeps it from being overwritten or continued."""

import argparse

import pytest

from mint.errors import InputError
from mint.evaluation.folder import EvaluationFolder, default_folder, take_first


def flags(out, resume=False, **others):
    return argparse.Namespace(out=out, resume=resume, run=print, model=None, adapter=None, **others)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (["disease", "meta-llama/Llama-3.2-3B", None, "greedy"], "disease-meta-llama-Llama-3.2-3B-greedy"),
        (["vqa", "/a/b/runs/sft/model", "runs/orpo/adapter/", "sample"], "vqa-sft-model-orpo-adapter-sample"),
        (["vqa", "../model", "./a b:c", "greedy"], "vqa-model-a-b-c-greedy"),
        (["vqa", ".", None, "greedy"], "vqa-model-greedy"),
    ],
)
def test_default_names(parts, name):
    assert default_folder(*parts).parts == ("runs", "eval", name)


def test_continued_with_the_same_settings_and_cases_alone(tmp_path):
    out = str(tmp_path / "out")
    folder = EvaluationFolder(flags(out, seed=1, batch_size=4))
    folder.answers(["a", "b"], ["prompt"]).save({1: "x"})
    with pytest.raises(InputError, match="holds an evaluation already: add --resume"):
        EvaluationFolder(flags(out, seed=1, batch_size=4))
    with pytest.raises(InputError, match="seed: 1 -> 2"):
        EvaluationFolder(flags(out, True, seed=2, batch_size=4))
    again = EvaluationFolder(flags(out, True, seed=1, batch_size=8))
    assert again.answers(["a", "b"], ["prompt"]).known == {1: "x"}
    for ids, prompts in ((["a"], ["prompt"]), (["a", "b"], ["other"])):
        with pytest.raises(InputError, match="other cases or prompts"):
            again.answers(ids, prompts)


def test_other_weights_are_other_settings(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    args = flags(f"{tmp_path}/out")
    args.adapter = str(tmp_path)
    EvaluationFolder(args).answers(["a"], []).save({0: "x"})
    (tmp_path / "adapter_model.safetensors").write_bytes(b"trained on")
    args.resume = True
    with pytest.raises(InputError, match="weights: "):
        EvaluationFolder(args)


def test_results_without_settings_cannot_be_continued(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="already"):
        EvaluationFolder(flags(str(tmp_path)))
    with pytest.raises(InputError, match="cannot be resumed"):
        EvaluationFolder(flags(str(tmp_path), True))


def test_limits():
    assert (take_first([1, 2, 3], None), take_first([1, 2, 3], 2)) == ([1, 2, 3], [1, 2])
    with pytest.raises(InputError, match="must be at least 1"):
        take_first([1], 0)
