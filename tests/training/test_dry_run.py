"""``--dry-run``: its estimates against real steps, what it prints, and that it writes nothing."""

import functools
import gc
import itertools
import json
import re
import shutil
import textwrap
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import train
from mint.config import TrainConfig
from mint.data.batch import EncodedPair, collate
from mint.data.image_features import ImageReader, frozen_encoder
from mint.data.order import PairOrder
from mint.data.pair_summary import render_pair
from mint.data.preferences import write_jsonl
from mint.demo.tiny_model import write_base
from mint.errors import SHOW_TEXT, InputError
from mint.models import load_model
from mint.models.lora import add_lora, save_adapter
from mint.optim import make_optimizer
from mint.training import setup
from mint.training.dry_run import dry_run, scaled
from mint.training.forward import Forward
from mint.training.reference_cache import cache_reference
from mint.training.step_trace import KINDS, StepTrace
from tests.test_train_images import become

NOTHING = dict.fromkeys(KINDS, 0)
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWER |= {"image_size": 32, "patch_size": 4}
SHADES = ("dark", "grey", "bright", "white")


def records():
    for number, shade in enumerate(SHADES):
        yield {
            "id": f"image-{number}",
            "prompt": [{"role": "user", "content": "Which shade does the image have?" + " Look closely." * number}],
            "images": [f"{shade}.png"],
            "corrupted_images": ["noise.png"],
            "chosen": f"The image is <mask>{shade}</mask>.",
            "rejected": f"The image is <mask>{SHADES[number - 1]}</mask>, I think.",
        }


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A blank LLaVA and four pairs with images."""
    folder = tmp_path_factory.mktemp("dry")
    for number, shade in enumerate((*SHADES, "noise")):
        Image.new("L", (20, 16), 60 * number).save(folder / f"{shade}.png")
    write_jsonl(folder / "pairs.jsonl", records())
    write_base(folder / "model", [str(record) for record in records()] * 20, "shallow", 300, vision=TOWER)
    return folder


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def settings(setting, **given):
    common = {"model": str(setting / "model"), "data": str(setting / "pairs.jsonl"), "device": "cpu", "steps": 1}
    return TrainConfig(**{**common, "batch_size": 2, "lora_rank": 8, **given})


class RealStep:
    """A training step on the CPU, with the optimiser's state and the image features of an earlier step.

    flops: of the earlier step, as PyTorch's counter has them.
    """

    def __init__(self, config, folder=None):
        """folder: of the cached reference."""
        loss = setup.choose_loss(config)
        model, frozen, config = setup.load_policy(config, loss, torch.device("cpu"), torch.float32)
        data = setup.read_data(config, model, loss)
        images = ImageReader(data.processor, frozen_encoder(model))
        order = PairOrder(len(data.pairs), config.seed)
        shape = setup.compile_and_shape(config, [model], data, order)
        self.networks, self.config = [model, frozen] if frozen else [model], config
        self.pairs = [data.pairs[i] for i in order.step(0, config.batch_size * config.grad_accum)]
        self.forward = Forward(model, loss, config.batch_size, frozen, shape, images=images)
        if config.cache_reference:
            self.forward = cache_reference(self.forward, data, [self.pairs], folder)
            self.networks += [self.forward.frozen] if self.forward.frozen else []
        self.optimizer = make_optimizer(model, config)
        for batch, _, _ in self.forward.micro_batches(self.pairs):
            images(batch.image_files)
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            self()
        self.flops = counter.get_total_flops()

    def __call__(self):
        train.accumulate_gradients(self.forward, self.pairs, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def held(self):
        """Bytes between steps."""
        states = [x for state in self.optimizer.state.values() for x in state.values()]
        parameters = [p for network in self.networks for p in network.parameters()]
        return sum(x.nbytes for x in [*states, *parameters])

    def peak(self):
        """Bytes beyond those, as PyTorch's CPU allocator reports them to its profiler."""
        gc.collect()
        with torch.profiler.profile(profile_memory=True) as profile:
            self()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def attention(query, key, *_, out_shape=None, **__):
    """q k^T, and the sums of v: 2 B N T S D operations each."""
    return 2 * 2 * query[0] * query[1] * query[2] * key[2] * query[3]


def attention_backward(grad, query, key, *_, out_shape=None, **__):
    """q k^T again, and the gradients of q, k, v and of the weights."""
    return 5 * 2 * query[0] * query[1] * query[2] * key[2] * query[3]


ATTENTION = {  # the operators of the CPU, for which PyTorch's counter has no formula
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


@pytest.fixture(scope="module")
def estimate(setting):
    """The estimate for settings, made once for all tests."""
    return functools.cache(lambda **given: dry_run(settings(setting, **given)))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("loss", ["orpo", "dpo", "fire"])
def test_the_estimate_is_that_of_a_real_step(setting, estimate, loss, full, checkpointing):
    """Of memory within 10 %, with and without what is held between steps; of operations exactly."""
    given = {"loss": loss, "full": full, "checkpoint_activations": checkpointing}
    given |= {"grad_accum": 2} if loss == "dpo" and not (full or checkpointing) else {}
    trace, real = estimate(**given), RealStep(settings(setting, **given))
    held, peak = real.held(), real.peak()
    assert trace.flops == real.flops
    assert trace.total == pytest.approx(held + peak, rel=0.1)
    made = sum(trace.peak[kind] for kind in ("gradients", "activations", "LM head"))
    assert made == pytest.approx(peak, rel=0.1) and peak > held / 4


def test_the_estimate_of_selective_checkpointing(setting, estimate):
    """At the operations of a step that keeps everything."""
    given = {"loss": "orpo", "full": True}
    plain, selective, everything = (
        estimate(**given, checkpoint_activations=choice) for choice in (False, "selective", True)
    )
    real = RealStep(settings(setting, **given, checkpoint_activations="selective"))
    assert selective.flops == real.flops == plain.flops < everything.flops
    assert selective.total == pytest.approx(real.held() + real.peak(), rel=0.1)


@pytest.mark.parametrize("loss, full", [("dpo", False), ("fire", True)])
def test_the_estimate_with_a_cached_reference(setting, estimate, loss, full, tmp_path, capsys):
    """Fewer operations than without it, and with ``--full`` no second model, only its head."""
    given = {"loss": loss, "full": full}
    plain = estimate(**given)
    trace = dry_run(settings(setting, **given, cache_reference=True))
    assert "\nreference cache: " in capsys.readouterr().out
    real = RealStep(settings(setting, **given, cache_reference=True), tmp_path)
    assert trace.flops == real.flops < 0.85 * plain.flops
    assert trace.total == pytest.approx(real.held() + real.peak(), rel=0.1)
    assert trace.peak["reference"] < 0.2 * trace.peak["weights"] and (trace.peak["reference"] > 0) == full


@pytest.mark.parametrize("family, tolerance", [("mllama", 0.05), ("qwen3_vl", 0)])
def test_other_families_are_traced_too(setting, tmp_path, family, tolerance):
    """With image features whose indices depend on the sizes of the images.

    mllama: the trace takes the absent tiles of an image as equal, which they are not with random embeddings.
    """
    shutil.copytree(setting, tmp_path / "other")
    settings_file = tmp_path / "other" / "model" / "config.json"
    raw = json.loads(settings_file.read_text())
    raw["text_config"]["num_hidden_layers"] = 2  # Llama 3.2 Vision's second one is for cross-attention
    settings_file.write_text(json.dumps(raw))
    become(tmp_path / "other", family)
    config = settings(tmp_path / "other", loss="orpo", batch_size=1)
    trace, real = dry_run(config), RealStep(config)
    assert trace.flops == pytest.approx(real.flops, rel=tolerance)
    assert trace.total == pytest.approx(real.held() + real.peak(), rel=0.1)


def test_sizes_packing_and_the_first_batch_are_printed(setting, capsys):
    """Parameters and bytes by hand; rows and padding as ``collate`` makes them."""
    config = settings(setting, loss="fire")
    trace = dry_run(config)
    printed = capsys.readouterr().out
    model = load_model(setting / "model")
    count = sum(p.numel() for p in model.parameters())
    layers = [m for m in model.decoder.modules() if isinstance(m, torch.nn.Linear)]
    adapter = sum(8 * (layer.in_features + layer.out_features) for layer in layers)
    assert f"model: {count:,} parameters, {4 * count / 1e6:.3g} MB in float32\n" in printed
    assert f"adapter: {adapter:,} parameters, {4 * adapter / 1e3:.3g} kB in float32\n" in printed
    assert (trace.peak["weights"], trace.peak["adapter"]) == (4 * count, 4 * adapter)
    assert trace.peak["optimizer state"] == pytest.approx(8 * adapter, rel=1e-3)
    assert trace.highest["gradients"] == 4 * adapter

    pairs = setup.read_data(config, model, setup.choose_loss(config)).pairs
    step = [pairs[i] for i in PairOrder(len(pairs), 0).step(0, 2)]
    batch = collate(step)
    tokens = sum(length for pair in step for length in pair.lengths)
    share = f"{100 * tokens / batch.tokens.numel():.1f} %"
    assert f"4 rows of {batch.tokens.shape[1]} cells in the first 1 forward passes; {share} of the cells" in printed
    short, long = sorted(step, key=len)
    row = f"{long.id} with corrupted images: prompt {len(long.prompt)} (64 of images), chosen {len(long.chosen)} ("
    assert row in printed and f"padding {len(long) - len(short)}\n" in printed


def test_it_writes_nothing(setting, tmp_path, monkeypatch, capsys):
    """Neither a run directory nor a cache: no file appears or changes where the run could write."""
    monkeypatch.chdir(tmp_path)
    before = files(setting)
    flags = ["--model", f"{setting}/model", "--data", f"{setting}/pairs.jsonl", "--batch-size", "2", "--steps", "1"]
    assert train.main([*flags, "--device", "cpu", "--image-features", f"{setting}/features", "--dry-run"]) == 0
    assert "optimiser steps: 1, of 2 pairs" in capsys.readouterr().out
    assert files(setting) == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("terminal", [False, True])
def test_texts_are_shown_on_request_and_coloured_on_a_terminal(setting, monkeypatch, capsys, terminal):
    flags = ["--model", f"{setting}/model", "--data", f"{setting}/pairs.jsonl", "--batch-size", "2", "--steps", "1"]
    flags += ["--device", "cpu", "--dry-run"]
    monkeypatch.setenv(SHOW_TEXT, "")  # as it was, at the end of the test
    monkeypatch.setattr("mint.training.dry_run.trace_step", lambda *_: StepTrace(NOTHING, NOTHING, 0))
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert train.main(flags) == 0
    assert "shade" not in capsys.readouterr().out
    assert train.main([*flags, "--show-text"]) == 0
    printed = capsys.readouterr().out.partition("first batch")[2]
    span = r"\x1b\[7m(dark|grey|bright|white)\x1b\[27m" if terminal else r"\[\[(dark|grey|bright|white)\]\]"
    assert len(re.findall(rf"The image is {span}", printed)) == 4  # both answers of two pairs
    for role, code in (("prompt", 36), ("chosen", 32), ("rejected", 31)):
        assert len(re.findall(rf"\x1b\[{code}m--- {role}", printed)) == (2 if terminal else 0)


def test_the_first_batch_of_a_step_over_two_epochs(setting, monkeypatch, capsys):
    """It has each pair once, though the step has all of them twice."""
    monkeypatch.setenv(SHOW_TEXT, "1")
    monkeypatch.setattr("mint.training.dry_run.trace_step", lambda *_: StepTrace(NOTHING, NOTHING, 0))
    dry_run(settings(setting, loss="dpo", batch_size=4, grad_accum=2))
    assert capsys.readouterr().out.partition("first batch")[2].count("--- chosen") == 4


def test_text_cannot_control_the_terminal():
    """Escape sequences of a record are shown, not sent."""
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special: "\x1b[2J" * len(ids))
    assert "\x1b[2J" not in render_pair(EncodedPair("a", [0], [1], []), tokenizer, colours=True)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_cuda_is_estimated_on_a_machine_without_it(setting, estimate, full, capsys, monkeypatch):
    """In bfloat16: frozen weights of half the size, and smaller activations. Afterwards all is as before."""
    monkeypatch.setattr("mint.data.order.CUDA_ROW_STEP", 8)  # hardly any padding, as on the CPU
    given = {"loss": "orpo", "full": full, "checkpoint_activations": not full}
    cpu, trace = estimate(**given), dry_run(settings(setting, device="cuda", compile=False, **given))
    assert "in the memory of cuda" in capsys.readouterr().out
    assert trace.peak["weights"] == cpu.peak["weights"] / (1 if full else 2)
    assert trace.flops == pytest.approx(cpu.flops, rel=0.1)
    assert 0.4 * cpu.peak["activations"] < trace.peak["activations"] < 0.9 * cpu.peak["activations"]
    assert not torch.ones(1).is_cuda and not torch.is_autocast_enabled("cuda")


def test_the_shape_of_compiled_batches_is_used(setting):
    """Nothing is compiled for it."""
    shapes = []

    def look(forward, *_):
        shapes.append(forward.shape)
        return StepTrace(NOTHING, NOTHING, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mint.training.dry_run.trace_step", look)
        patch.setattr("torch.nn.Module.compile", None)
        dry_run(settings(setting, loss="orpo", compile=True))
        dry_run(settings(setting, loss="orpo", device="cuda"))
    budget = shapes[0]["budget"]
    assert shapes == [{"rows": 1, "multiple": step, "budget": budget} for step in (8, 128)] and budget > 0


def test_the_reference_adapter_is_counted(setting, tmp_path):
    """Continuing from an adapter, its start is part of the reference."""
    model = add_lora(load_model(setting / "model"), 4)
    save_adapter(model, tmp_path / "adapter")
    trace = dry_run(settings(setting, loss="dpo", lora_rank=None, adapter=str(tmp_path / "adapter")))
    assert trace.peak["reference"] == trace.peak["adapter"] > 0


def test_weights_are_checked_without_being_read(setting, tmp_path):
    """A tensor of another shape is reported, as a run would; a hub repository needs no weights."""
    shutil.copytree(setting / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="config.json asks for"):
        dry_run(settings(setting, loss="orpo", model=str(tmp_path / "model")))


def test_a_loss_may_read_values_and_masks(setting, tmp_path):
    """As custom losses do: item() for a metric, and an index by the mask of an answer."""
    code = """
    import torch
    from mint import LossOutput

    def loss(chosen, rejected):
        values = chosen.logps[chosen.mask]
        return LossOutput(-values.mean() + rejected.logp_mean.mean(), {"mean": values.mean().item()})
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    config = settings(setting, loss=f"{tmp_path}/mine.py:loss")
    assert dry_run(config).flops == RealStep(config).flops


def test_a_loss_that_selects_by_values_cannot_be_estimated(setting, tmp_path):
    code = """
    from mint import LossOutput

    def loss(chosen, rejected):
        unlikely = chosen.logps < -0.1
        return LossOutput(-chosen.logps[unlikely].mean() + rejected.logp_mean.mean(), {})
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    with pytest.raises(InputError, match="cannot be estimated: .*mine.py:loss depends on values"):
        dry_run(settings(setting, loss=f"{tmp_path}/mine.py:loss"))


def test_a_dry_run_needs_a_model(capsys):
    assert train.main(["--loss", "orpo", "--dry-run"]) == 2
    assert "--dry-run describes a run on your model and data" in capsys.readouterr().err


def test_numbers_have_three_digits_and_a_prefix():
    values = (0, 999, 999.6, 2_470_000_000, 41.2e12, 5e18)
    assert [scaled(value, "B") for value in values] == ["0 B", "999 B", "1 kB", "2.47 GB", "41.2 TB", "5e+03 PB"]


# -- out of memory ---------------------------------------------------------------------------------------------------

CUDA_MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.2 GiB is free."
)


@pytest.mark.parametrize(
    "flags, named, unnamed",
    [
        (
            ["--batch-size", "8", "--dtype", "float32"],
            ["--batch-size 4 --grad-accum 2", "--checkpoint-activations", "--max-length, now 2048", "--dtype bfloat16",
             "--lora-rank, now 16", "--quantize int8"],
            ["--full"],
        ),
        (
            ["--batch-size", "1", "--full", "--checkpoint-activations", "--max-length", "512"],
            ["--max-length, now 512", "no --full", "--cache-reference"],
            ["--batch-size", "--checkpoint-activations", "--lora-rank", "--dtype bfloat16", "--quantize"],
        ),
    ],
)  # fmt: skip
def test_out_of_memory_names_the_flags_that_help(setting, monkeypatch, capsys, tmp_path, flags, named, unnamed):
    def fail(*_):
        raise torch.cuda.OutOfMemoryError(CUDA_MESSAGE)

    monkeypatch.setattr(train, "accumulate_gradients", fail)
    common = ["--model", f"{setting}/model", "--data", f"{setting}/pairs.jsonl", "--out", f"{tmp_path}/run"]
    assert train.main([*common, "--device", "cpu", "--steps", "1", *flags]) == 2
    printed = capsys.readouterr().err
    assert "error: CUDA out of memory. Tried to allocate 2.00 GiB. These flags" in printed and "79.10" not in printed
    assert all(text in printed for text in [*named, "--dry-run"]) and not any(text in printed for text in unnamed)


def test_other_errors_stay_as_they_are(setting, monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(train, "accumulate_gradients", fail)
    common = ["--model", f"{setting}/model", "--data", f"{setting}/pairs.jsonl", "--out", f"{tmp_path}/run"]
    with pytest.raises(RuntimeError, match="mat1"):
        train.main([*common, "--device", "cpu", "--steps", "1"])
