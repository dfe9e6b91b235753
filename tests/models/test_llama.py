"""The decoder against transformers' numbers, a trained checkpoint, and itself packed and cached."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mint.data.batch import EncodedPair, collate
from mint.errors import InputError
from mint.models import init_model, load_model
from mint.models.generate import generate
from mint.models.llama_config import LlamaConfig
from mint.models.rotary import rope_frequencies
from tests.reference.weights import TINY_LLAMA, reference_weights

REFERENCE = Path(__file__).parent.parent / "reference"
RECORD = json.loads((REFERENCE / "models.json").read_text())
LOGITS = load_file(REFERENCE / "models.safetensors")
# Decoding by ids: answers come back as the ids themselves.
IDS = SimpleNamespace(eos_ids=set(), decode=lambda ids: list(ids))


def write_directory(name, folder):
    """A model directory with the reference weights (four times as large, as in make_models.py)."""
    config = RECORD["configs"][name]
    weights = {k: v * (4 if v.dim() > 1 else 1) for k, v in reference_weights(config, RECORD["seed"]).items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", sorted(RECORD["configs"]))
def test_logits_and_greedy_text_equal_transformers(name, tmp_path, each_device):
    model = load_model(write_directory(name, tmp_path))
    tokens = LOGITS["tokens"]
    with torch.no_grad():
        logits = model.to(each_device)(tokens.to(each_device)).cpu()
        torch.testing.assert_close(logits, LOGITS[name], rtol=0, atol=1e-5)
    prompt = tokens[0, : tokens.shape[1] // 2].tolist()
    assert generate(model, IDS, [prompt], max_new_tokens=12) == [RECORD["greedy"][name]]


def stories260k(source: Path, folder: Path) -> Path:
    """The trained stories260K checkpoint as a model directory; its rotary pairs are adjacent, ours are halves apart."""
    data = (source / "stories260K.bin").read_bytes()
    width, inner, layers, heads, kv_heads, vocabulary, _ = struct.unpack("<7i", data[:28])
    values = torch.frombuffer(bytearray(data[28:]), dtype=torch.float32)
    size, place = width // heads, 0

    def take(*shape):
        nonlocal place
        count = torch.Size(shape).numel()
        place += count
        return values[place - count : place].view(shape).clone()

    def halves(weight, count):
        return weight.view(count, size // 2, 2, width).transpose(1, 2).reshape(count * size, width).contiguous()

    tensors = {"model.embed_tokens.weight": take(vocabulary, width)}
    stacks = {
        "input_layernorm": take(layers, width),
        "self_attn.q_proj": take(layers, width, width),
        "self_attn.k_proj": take(layers, kv_heads * size, width),
        "self_attn.v_proj": take(layers, kv_heads * size, width),
        "self_attn.o_proj": take(layers, width, width),
        "post_attention_layernorm": take(layers, width),
        "mlp.gate_proj": take(layers, inner, width),
        "mlp.down_proj": take(layers, width, inner),
        "mlp.up_proj": take(layers, inner, width),
    }
    tensors["model.norm.weight"] = take(width)
    for name, stack in stacks.items():
        for layer, weight in enumerate(stack):
            weight = halves(weight, heads) if "q_proj" in name else weight
            weight = halves(weight, kv_heads) if "k_proj" in name else weight
            tensors[f"model.layers.{layer}.{name}.weight"] = weight.clone()
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read_pieces(path: Path) -> list[bytes]:
    data, pieces, place = path.read_bytes(), [], 4
    while place < len(data):
        _, length = struct.unpack_from("<fi", data, place)
        pieces.append(data[place + 8 : place + 8 + length])
        place += 8 + length
    return pieces


def test_a_trained_checkpoint_tells_its_story(shared_data, tmp_path):
    source = shared_data / "stories260K"
    model = load_model(stories260k(source, tmp_path))
    pieces = read_pieces(source / "tok512.bin")
    [ids] = generate(model, IDS, [[1]], max_new_tokens=80)
    text = b"".join(pieces[i] for i in ids).decode().replace("<0x0A>", "\n")
    assert text.startswith(
        " Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she "
        "saw a big, red ball. She wanted to play with it, but it was too high.\nLily's mom said,"
    )


# -- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": "wide"}, "setting of the wrong type"),
        ({"rope_scaling": "llama3"}, "setting of the wrong type"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope scaling 'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "lacks low_freq_factor"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "some layers",
        ),
    ],
)
def test_unsupported_settings_are_named(change, message):
    with pytest.raises(InputError, match=message):
        LlamaConfig.from_dict(TINY_LLAMA | change)


def test_a_missing_setting_is_named():
    with pytest.raises(InputError, match="config.json lacks 'hidden_size'"):
        LlamaConfig.from_dict({k: v for k, v in TINY_LLAMA.items() if k != "hidden_size"})


def test_rope_frequencies_by_hand():
    plain = rope_frequencies(LlamaConfig.from_dict(TINY_LLAMA | {"head_dim": 4, "rope_theta": 100.0}))
    torch.testing.assert_close(plain, torch.tensor([1.0, 0.1]))
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 16
    scaled = rope_frequencies(
        LlamaConfig.from_dict(TINY_LLAMA | {"head_dim": 4, "rope_theta": 100.0, "rope_scaling": scaling})
    )
    # 16 / 2 pi = 2.546 turns lie between 1 and 4: a blend of 0.5155; 0.2546 turns are below 1: a full stretch by 8
    blend = (16 / (2 * torch.pi) - 1) / 3
    torch.testing.assert_close(scaled, torch.tensor([blend + (1 - blend) / 8, 0.1 / 8]))


# -- packed rows -------------------------------------------------------------------------------------------------


def pairs():
    g = torch.Generator().manual_seed(3)
    draw = lambda n: torch.randint(3, 128, (n,), generator=g).tolist()  # noqa: E731
    return [EncodedPair(str(i), draw(4 + i), draw(3 + 2 * i), draw(6 - i)) for i in range(4)]


@pytest.mark.parametrize(
    "name, backend",
    [("llama3", "dense"), ("llama3", "flash"), ("llama3", "split"), ("mistral", "dense"), ("mistral", "flash")],
)
@pytest.mark.usefixtures("flash_on_cpu")
@torch.no_grad()
def test_packed_hidden_states_equal_those_of_each_sequence_alone(name, backend, tmp_path):
    model = load_model(write_directory(name, tmp_path))
    model.attention_backend = backend
    batch = collate(pairs(), row_length=40, rows=3)
    hidden = model.hidden_states(batch)
    compared = 0
    for index, pair in enumerate(pairs()):
        for role, answer in ((1, pair.chosen), (2, pair.rejected)):
            alone = collate([EncodedPair("x", pair.prompt, answer, [])])
            expected = model.hidden_states(alone)[0]
            torch.testing.assert_close(expected @ model.head_weight.T, model(alone.tokens)[0], rtol=0, atol=1e-4)
            at_prompt, at_answer = (batch.segments == 3 * index + r for r in (0, role))
            torch.testing.assert_close(hidden[at_prompt], expected[: len(pair.prompt)], rtol=0, atol=1e-5)
            torch.testing.assert_close(hidden[at_answer], expected[len(pair.prompt) :], rtol=0, atol=1e-5)
            compared += len(answer)
    assert compared == sum(len(p.chosen) + len(p.rejected) for p in pairs())


@pytest.mark.parametrize("backend", ["dense", "flash", "split"])
@pytest.mark.usefixtures("flash_on_cpu")
@torch.no_grad()
def test_the_rejected_answer_never_sees_the_chosen_one(backend):
    model = init_model(TINY_LLAMA)
    model.attention_backend = backend
    pair = EncodedPair("a", [1, 5, 6], [7, 8], [9, 10, 11])
    other = EncodedPair("a", [1, 5, 6], [70, 80], [9, 10, 11])
    ours, theirs = (model.hidden_states(collate([p], row_length=10))[0] for p in (pair, other))
    for seen in (slice(0, 3), slice(5, 8)):
        torch.testing.assert_close(ours[seen], theirs[seen], rtol=0, atol=1e-6)
    assert not torch.allclose(ours[3:5], theirs[3:5])


def test_padding_gives_no_nan_gradients():
    model = init_model(TINY_LLAMA)
    batch = collate(pairs()[:1], row_length=32, rows=3)
    model.hidden_states(batch).flatten(0, 1)[batch.predict].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# -- with a GPU --------------------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_compiled_flash_equals_dense_in_bfloat16():
    model = init_model(TINY_LLAMA | {"head_dim": 16}, dtype=torch.bfloat16).cuda()
    batch = collate(pairs() * 8, row_length=128, rows=8).to("cuda")
    model.attention_backend = "dense"
    dense = model.hidden_states(batch).float()
    model.attention_backend = "auto"
    model.compile_blocks()
    real = batch.segments >= 0
    error = (model.hidden_states(batch).float() - dense)[real].norm() / dense[real].norm()
    assert error < 1e-2


@pytest.mark.cuda
def test_no_recompilation_after_warm_up():
    from torch._dynamo.utils import counters

    model = init_model(TINY_LLAMA | {"head_dim": 16}, dtype=torch.bfloat16).cuda()
    model.compile_blocks()
    shape = {"row_length": 128, "rows": 8}
    for step in range(5):
        if step == 2:
            counters.clear()
        batch = collate((pairs() * 8)[step:], **shape).to("cuda")
        model.hidden_states(batch).sum().backward()
    assert counters["stats"].get("unique_graphs", 0) == 0
