"""The decoding flags, and a model's generation_config.json in their place."""

import argparse
import json

import pytest

from mint.errors import InputError
from mint.evaluation.decoding import add_decoding_options, sampling, settle_decoding
from mint.models import init_model, save_model
from tests.reference.weights import TINY_LLAMA

TASK = {"temperature": 0.7, "top_p": 0.6, "top_k": 10, "max_new_tokens": 64, "batch_size": 16}
QWEN = {  # Qwen2.5-VL's, with a field more
    "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "top_p": 0.001, "num_beams": 4,
    "transformers_version": "4.49.0",
}  # fmt: skip


@pytest.fixture
def decode(tmp_path, capsys):
    """Flags and the content of generation_config.json -> (keyword arguments for generate, the output, the flags)."""
    save_model(init_model(TINY_LLAMA), tmp_path / "model")

    def run(*flags, content=None):
        if content is not None:
            (tmp_path / "model" / "generation_config.json").write_text(json.dumps(content))
        parser = argparse.ArgumentParser()
        add_decoding_options(parser, **TASK)
        args = parser.parse_args(flags)
        args.model, args.adapter = str(tmp_path / "model"), None
        settle_decoding(args)
        settings = sampling(args)
        assert json.dumps(vars(args)) and not hasattr(args, "given")  # as runs save them
        settings = {key: value for key, value in settings.items() if key not in ("batch_size", "seed")}
        return settings, capsys.readouterr().out, args

    return run


def test_without_the_flag_the_file_has_no_effect(decode):
    settings, printed, _ = decode(content=QWEN)
    assert settings == {"max_new_tokens": 64, "repetition_penalty": 1.0} and not printed
    settings, _, _ = decode("--decode", "sample", "--repetition-penalty", "1.2", "--sample-top-k", "0")
    assert settings == {
        "max_new_tokens": 64, "repetition_penalty": 1.2, "temperature": 0.7, "top_p": 0.6, "top_k": 0
    }  # fmt: skip


def test_the_file_is_applied_and_what_is_ignored_is_printed(decode):
    settings, printed, args = decode("--generation-config", content=QWEN | {"max_new_tokens": 128})
    assert settings == {
        "max_new_tokens": 128, "repetition_penalty": 1.05, "temperature": 0.1, "top_p": 0.001, "top_k": 1
    }  # fmt: skip
    assert (args.decode, args.sample_top_k) == ("sample", 1)  # saved with the answers
    assert "--decode sample --temperature 0.1 --sample-top-p 0.001 --sample-top-k 1" in printed
    assert printed.endswith("ignored: num_beams 4\n")


def test_given_flags_win_over_the_file(decode):
    flags = ["--generation-config", "--temperature", "0.7", "--sample-top-k", "10", "--repetition-penalty", "1"]
    settings, _, _ = decode(*flags, content=QWEN)
    assert settings == {
        "max_new_tokens": 64, "repetition_penalty": 1.0, "temperature": 0.7, "top_p": 0.001, "top_k": 10
    }  # fmt: skip
    assert "temperature" not in decode("--generation-config", "--decode", "greedy", content=QWEN)[0]


def test_what_the_file_leaves_open_is_as_in_transformers(decode):
    settings, printed, _ = decode("--generation-config", content={"do_sample": True, "temperature": 0.6, "top_p": None})
    assert settings == {
        "max_new_tokens": 64, "repetition_penalty": 1.0, "temperature": 0.6, "top_p": 1.0, "top_k": 50
    }  # fmt: skip
    assert printed.endswith("ignored: nothing\n")
    settings, _, _ = decode("--generation-config", content={"temperature": 0.6})
    assert settings == {"max_new_tokens": 64, "repetition_penalty": 1.0}


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "has no generation_config.json"),
        ([], "must hold a JSON object"),
        ({"temperature": "warm"}, "temperature is 'warm', not a number"),
        ({"top_k": 2.5}, "top_k is 2.5, not a whole number"),
        ({"top_p": True}, "top_p is True, not a number"),
    ],
)
def test_a_file_that_cannot_be_applied(decode, content, message):
    with pytest.raises(InputError, match=message):
        decode("--generation-config", content=content)


def test_published_files(decode, shared_data):
    """All that the published vision-language models name is applied."""
    for name in ("qwen25", "qwen3", "mllama"):
        path = shared_data / "published_dirs" / name / "generation_config.json"
        settings, printed, _ = decode("--generation-config", content=json.loads(path.read_text()))
        assert 0 < settings["temperature"] <= 1 and printed.endswith("ignored: nothing\n")
