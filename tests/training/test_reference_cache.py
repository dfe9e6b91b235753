"""``--cache-reference``: the numbers of a run without it, and a store that holds the right values or none."""

# ruff: noqa: F811

import re
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mint.config import TrainConfig
from mint.data.batch import EncodedPair
from mint.errors import InputError
from mint.losses import load_loss
from mint.models import load_model
from mint.models.llama import CausalLM
from mint.models.lora import add_lora, lora_layers
from mint.training import reference_cache, reference_store, setup
from mint.training.forward import Forward
from mint.training.reference_cache import cache_bytes, cache_reference
from tests.test_corrupted_images import load, pictured  # noqa: F401 (a fixture)
from tests.test_train import rows, run, settings
from tests.test_train import setting as texts  # noqa: F401 (a fixture)
from tests.test_train_images import setting  # noqa: F401 (a fixture)

LOSSES = {
    "dpo": {},
    "dpo ipo": {"kind": "ipo"},
    "mdpo": {},
    "fire": {"alpha": 0.5, "gamma": 0.4, "lam": 0.3},
    "mask-dpo": {},
}


def forward_of(folder, name, **fields):
    """An adapter over a LLaVA in float64, and pairs with corrupted images; the step is one pair, then three."""
    loss = load_loss(name.split()[0], LOSSES[name])
    model, pairs, reader, _ = load(folder, loss.needs.corrupted_answers)
    forward = Forward(model.double(), loss, 3, images=lambda files: doubled(reader(files)), **fields)
    return forward, setup.Data(pairs, [], None, None)


def doubled(tensors):
    return {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}


def gradients(forward, pairs):
    forward.model.zero_grad()
    total = 0.0
    for batch, tokens, share in forward.micro_batches(pairs):
        output = forward(batch, tokens)
        (output.loss * share).backward()
        total += output.loss.item() * share
    return total, [p.grad.clone() for p in forward.model.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_are_those_without_a_cache(pictured, tmp_path, name):
    """Computed in batches of training, read in another order; with a policy that has moved since."""
    forward, data = forward_of(pictured, name)
    layers = lora_layers(forward.model).values()
    for layer in layers:  # the reference has an adapter of its own
        layer.start = layer.lora_A.weight.detach().clone(), 0.5 * layer.lora_B.weight.detach()
    cached = cache_reference(forward, data, [data.pairs[:1], data.pairs[1:]], tmp_path / "reference")
    with torch.no_grad():
        for layer in layers:
            layer.lora_B.weight.mul_(-1)
    pairs = [data.pairs[i] for i in (2, 0, 3, 1)]
    (expected, theirs), (found, ours) = gradients(forward, pairs), gradients(cached, pairs)
    assert found == pytest.approx(expected, abs=1e-9) and found != 0
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-6)


def test_the_reference_runs_once_for_a_pair(pictured, tmp_path, monkeypatch):
    forward, data = forward_of(pictured, "fire")
    passes = []
    states = CausalLM.hidden_states
    monkeypatch.setattr(CausalLM, "hidden_states", lambda *args: passes.append(1) or states(*args))
    cached = cache_reference(forward, data, [data.pairs], tmp_path / "reference")
    assert len(passes) == 2
    for _ in range(2):
        gradients(cached, data.pairs)
    assert len(passes) == 2 + 4
    cache_reference(forward, data, [data.pairs], tmp_path / "reference")
    assert len(passes) == 6


def test_dropout_acts_on_the_policy_alone(pictured, tmp_path):
    forward, data = forward_of(pictured, "fire")
    for layer in lora_layers(forward.model).values():
        layer.dropout = 0.3
    cached = cache_reference(forward, data, [data.pairs], tmp_path / "reference")
    losses = []
    for which in (forward, cached):
        torch.manual_seed(1)
        losses.append(gradients(which, data.pairs)[0])
    assert losses[1] == pytest.approx(losses[0], abs=1e-9)


def test_a_run_is_the_same_with_a_cache_and_resumed(texts, tmp_path, monkeypatch, capsys):
    """With ``--full`` there is no second model, and the values are those of the weights that training started from."""
    common = ("--loss", "fire", "--full", "--lr", "1e-3", "--schedule", "constant", "--batch-size", "8")
    common += ("--eval-data", f"{texts}/eval.jsonl", "--eval-every", "2")
    run(*settings(texts, tmp_path / "plain", *common, "--steps", "4"))
    monkeypatch.setattr(setup, "copy", None)
    out = tmp_path / "cached"
    computed = []
    for steps in ("2", "4"):
        run(*settings(texts, out, *common, "--cache-reference", "--resume", "auto", "--steps", steps))
        computed += map(int, re.findall(r"^reference cache: (\d+) pairs, ", capsys.readouterr().out, re.MULTILINE))
    assert len(computed) == 2 and sum(computed) == 24 and computed[0] >= 16  # held-out pairs are among them
    plain, cached = rows(tmp_path / "plain"), rows(out)
    for a, b in zip(plain, cached, strict=True):
        for key in a.keys() - {"step_seconds", *(["eval/rewards/accuracies"] if a["step"] == 0 else [])}:  # all equal
            assert b[key] == pytest.approx(a[key], rel=1e-6, abs=1e-6), key
    kept = list((out / "reference").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o700, 0o600}

    for path in stored(out / "reference"):
        path.write_bytes(path.read_bytes()[:-3])
    run(*settings(texts, out, *common, "--cache-reference", "--resume", "auto", "--steps", "5"))
    printed = capsys.readouterr()
    assert "reference cache: 24 pairs, " in printed.out and "is damaged: the reference of its pairs is c" in printed.err


# -- the store ---------------------------------------------------------------------------------------------------

PAIRS = [EncodedPair(str(i), [1, 2, 3 + i], [4, 5][: 1 + i % 2], [6, 7 + i, 8]) for i in range(5)]


@pytest.fixture(scope="module")
def model(texts):
    return add_lora(load_model(texts / "model"), rank=2)


def cached(model, folder, loss="dpo", pairs=PAIRS, **fields):
    forward = Forward(model, load_loss(loss), 2, **fields)
    return cache_reference(forward, setup.Data(list(pairs), [], None, None), [pairs], folder)


def stored(folder):
    return sorted(folder.rglob("*.safetensors"))


def test_another_reference_has_another_folder(model, tmp_path):
    """Not one with another policy. What was stored of another reference is deleted."""
    folder, names = tmp_path / "reference", []

    def name():
        [place] = folder.iterdir()
        return place.name

    cached(model, folder)
    names.append(name())
    layer = next(iter(lora_layers(model).values()))
    with torch.no_grad():
        layer.lora_B.weight.add_(0.1)
    cached(model, folder)
    assert name() == names[0]
    for change in (
        lambda: setattr(layer, "start", (layer.lora_A.weight.detach(), layer.lora_B.weight.detach())),
        lambda: model.decoder.norm.weight.data.mul_(1.1),
        lambda: model.config.raw.update(rope_theta=7.0),
        lambda: model.bfloat16(),
    ):
        change()
        cached(model, folder)
        names.append(name())
    cached(model, folder, "fire")
    names.append(name())
    cached(model, folder, "fire", autocast=torch.bfloat16)
    assert len({*names, name()}) == 7


def test_a_pair_is_known_by_its_content(tmp_path):
    """Not by its id or place; the image's content counts and its name does not."""
    for name, shade in (("a", 10), ("b", 10), ("c", 90)):
        Image.new("L", (4, 4), shade).save(tmp_path / f"{name}.png")
    files = {name: (str(tmp_path / f"{name}.png"),) for name in "abc"}
    store = reference_store.ReferenceStore(tmp_path / "store", load_loss("dpo").needs)
    pair = EncodedPair("x", [1, 2], [3], [4, 5], images=files["a"])
    pair = replace(pair, twin=replace(pair, images=files["c"]))
    same = replace(pair, id="y", images=files["b"])
    others = [
        replace(pair, prompt=[1], chosen=[2, 3]),
        replace(pair, chosen=[3, 4], rejected=[5]),
        replace(pair, chosen_span=[True]),
        replace(pair, images=files["c"]),
        replace(pair, twin=None),
        replace(pair, twin=replace(pair.twin, images=files["b"])),
    ]
    assert store.key(pair) == store.key(same)
    assert len({store.key(other) for other in [pair, *others]}) == 7


def test_what_a_killed_process_has_written_is_kept(model, tmp_path, monkeypatch):
    monkeypatch.setattr(reference_store, "FILE_PAIRS", 2)
    folder = tmp_path / "reference"
    put = reference_store.ReferenceStore.put

    def killed(self, batch, values):
        if PAIRS[4] in batch.records:
            raise KeyboardInterrupt
        put(self, batch, values)

    monkeypatch.setattr(reference_store.ReferenceStore, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        cached(model, folder)
    monkeypatch.setattr(reference_store.ReferenceStore, "put", put)
    [place] = folder.iterdir()
    (place / ".writing-1-2.safetensors").touch()
    before = stored(folder)
    assert len(before) == 2 + 1  # and the leftover
    forward = cached(model, folder)
    assert len(stored(folder)) == 3 and set(before) < {*stored(folder), place / ".writing-1-2.safetensors"}
    assert all(pair in forward.reference for pair in PAIRS)


@pytest.mark.parametrize("loss", ["dpo", "fire"])
def test_the_announced_size_is_that_of_the_files(model, tmp_path, loss):
    marked = [replace(pair, chosen_span=[True] * len(pair.chosen)) for pair in PAIRS[:2]]
    pairs = [*marked, *PAIRS[2:]]
    size = cache_bytes(Forward(model, load_loss(loss), 2), pairs)
    cached(model, tmp_path, loss, pairs)
    [file] = stored(tmp_path)
    assert size < file.stat().st_size < size + 500  # the header


def test_a_disk_without_room_is_refused(model, tmp_path, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(reference_cache.shutil, "disk_usage", lambda path: usage(100, 50, 50))
    with pytest.raises(InputError, match=r"--cache-reference needs 0.0 GB in .*: give an --out on a larger disk"):
        cached(model, tmp_path / "reference")
    assert not stored(tmp_path)


def test_a_loss_without_a_reference_is_refused():
    with pytest.raises(InputError, match="--cache-reference: the loss 'orpo' has no reference model; leave the flag"):
        setup.choose_loss(TrainConfig(loss="orpo", cache_reference=True))
