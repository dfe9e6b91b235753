"""LLaVA's own file form: converted, it is the same model, with a token for images and a chat template."""

import gzip
import json
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mint.convert import convert, main
from mint.data.chat import load_tokenizer
from mint.data.image_features import ImageReader
from mint.data.images import load_processor
from mint.data.phrases import train_phrases
from mint.data.record_images import ImageSlots, encode_with_images
from mint.errors import InputError
from mint.models import init_model, load_model, save_model
from mint.models.llava_med import ROWS, nested_config
from tests.reference.clip_inputs import TINY as CLIP
from tests.reference.llava_inputs import CONFIGS, IMAGE, PATCHES, TEXT, pixels, tokens, weights

VOCABULARY, BOS, EOS = 259, 257, 258  # bytes, and three control tokens
OWN_NAMES = (  # from ours to LLaVA's own
    (r"^model\.language_model\.", "model."),
    (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
)


def own_names(tensors):
    for pattern, replacement in OWN_NAMES:
        tensors = {re.sub(pattern, replacement, name): value for name, value in tensors.items()}
    return tensors


@pytest.fixture
def source(tmp_path):
    """A directory in LLaVA's own form, a CLIP of the same tower, and the model they make."""
    text = {**TEXT, "model_type": "mistral", "sliding_window": None, "vocab_size": VOCABULARY}
    config = {**CONFIGS["llama"], "text_config": text}
    model = init_model(config)
    model.load_state_dict(weights({name: p.shape for name, p in model.named_parameters()}))
    own = tmp_path / "own"
    own.mkdir()
    save_file(own_names(model.bfloat16().state_dict()), own / "model.safetensors")
    tokenizer = train_phrases(["Is there an effusion? no yes"] * 3, VOCABULARY, ("<unk>", "<s>", "</s>"), "<s> $A")
    assert tokenizer.get_vocab_size() == VOCABULARY and tokenizer.token_to_id("</s>") == EOS
    tokenizer.save(str(own / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"}
    (own / "tokenizer_config.json").write_text(json.dumps(names))
    raw = {**text, "model_type": "llava_mistral", "architectures": ["LlavaMistralForCausalLM"]}
    raw |= {"mm_vision_tower": "clip", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    raw |= {"mm_vision_select_feature": "patch", "mm_use_im_start_end": False, "image_aspect_ratio": "pad"}
    raw |= {"bos_token_id": BOS, "eos_token_id": EOS}
    (own / "config.json").write_text(json.dumps(raw))
    clip = init_model(CLIP)
    clip.vision_model.load_state_dict(model.model.vision_tower.state_dict())
    save_model(clip, tmp_path / "clip")
    return tmp_path, model.float()


def change(folder, **settings):
    path = folder / "own" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_the_converted_model_is_the_same(source):
    folder, model = source
    converted = load_model(convert(folder / "own", folder / "out", tower=str(folder / "clip")))
    ids = tokens("llama")
    with torch.no_grad():
        expected = model(ids, {"pixel_values": pixels()})
        found = converted(torch.where(ids == IMAGE, VOCABULARY, ids), {"pixel_values": pixels()})[..., :VOCABULARY]
    torch.testing.assert_close(found, expected)
    rows = converted.decoder.embed_tokens.weight
    assert rows.shape[0] == VOCABULARY + ROWS
    torch.testing.assert_close(rows[VOCABULARY:], rows[:VOCABULARY].mean(0).bfloat16().float().expand(ROWS, -1))


def edit(folder, change):
    tensors = load_file(folder / "own" / "model.safetensors")
    save_file(change(tensors), folder / "own" / "model.safetensors")


def without_tower(tensors):
    return {name: tensor for name, tensor in tensors.items() if "vision_tower" not in name}


@pytest.mark.parametrize("pickled", [False, True])
def test_the_tower_may_lie_elsewhere(source, pickled, capsys):
    """openai/clip-vit-large-patch14-336 is published as a pickle alone."""
    folder, model = source
    edit(folder, without_tower)
    if pickled:
        torch.save(load_file(folder / "clip" / "model.safetensors"), folder / "clip" / "pytorch_model.bin")
        (folder / "clip" / "model.safetensors").unlink()
    assert main([f"{folder}/own", "--out", f"{folder}/out", "--tower", f"{folder}/clip"]) == 0
    assert f"image tower: that of {folder}/clip; the checkpoint stores none" in capsys.readouterr().out
    found = load_model(folder / "out").state_dict()
    for name, value in model.model.vision_tower.state_dict().items():
        assert torch.equal(found[f"model.vision_tower.{name}"], value)


def test_a_pickled_source(source):
    folder, model = source
    torch.save(load_file(folder / "own" / "model.safetensors"), folder / "own" / "pytorch_model.bin")
    safe = load_model(convert(folder / "own", folder / "out", tower=f"{folder}/clip")).state_dict()
    (folder / "own" / "model.safetensors").unlink()
    pickled = load_model(convert(folder / "own", folder / "again", tower=f"{folder}/clip")).state_dict()
    assert pickled.keys() == safe.keys() and all(torch.equal(pickled[name], safe[name]) for name in safe)


def test_two_towers_are_compared_and_the_checkpoints_own_is_used(source, capsys):
    """Equal up to the rounding of the checkpoint's dtype, or trained further."""
    folder, model = source
    convert(folder / "own", folder / "equal", tower=f"{folder}/clip")
    assert f"image tower: the checkpoint's own, which equals that of {folder}/clip\n" in capsys.readouterr().out
    name = "model.vision_tower.vision_tower.vision_model.post_layernorm.weight"
    edit(folder, lambda tensors: {**tensors, name: tensors[name] + 0.5})
    count = len(model.model.vision_tower.state_dict())
    convert(folder / "own", folder / "other", tower=f"{folder}/clip")
    said = capsys.readouterr().out
    assert f"the checkpoint's own, not that of {folder}/clip: 1 of {count} tensors differ, by at most 0." in said
    assert "(post_layernorm.weight)" in said
    stored, written = (load_file(folder / part / "model.safetensors") for part in ("own", "other"))
    assert torch.equal(written["model.vision_tower.post_layernorm.weight"], stored[name])


def test_no_weights_are_drawn(source, monkeypatch):
    folder, _ = source

    def draw(tensor, *_, **__):
        assert tensor.is_meta
        return tensor

    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, draw)
    convert(folder / "own", folder / "out", tower=f"{folder}/clip")


def test_the_published_settings(shared_data, tmp_path):
    """LLaVA-Med 1.5's own configuration and tokenizer, with a tower of fewer layers than the published one."""
    published = shared_data / "published_dirs" / "llavamed"
    raw = json.loads((published / "config.json").read_text())
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text(json.dumps(raw))
    (tmp_path / "own" / "tokenizer.json").write_bytes(gzip.decompress((published / "tokenizer.json.gz").read_bytes()))
    names = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"}  # as Mistral's
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps(names))
    clip = init_model({**CLIP, "vision_config": {**CLIP["vision_config"], "image_size": 28, "patch_size": 14}})
    save_model(clip, tmp_path / "clip")
    config = nested_config(raw, tmp_path, tmp_path / "clip")
    text = {**config["text_config"], "vocab_size": raw["vocab_size"]}
    model = init_model({**config, "text_config": text, "image_token_index": 5}, seed=3)
    tensors = without_tower(own_names(model.state_dict()))
    torch.save(tensors, tmp_path / "own" / "pytorch_model.bin")
    out = convert(tmp_path / "own", tmp_path / "out", tower=f"{tmp_path}/clip")
    converted, tokenizer = load_model(out), load_tokenizer(out)
    assert converted.image_slots[0] == 32000
    assert tokenizer.encode_prompt([{"role": "user", "content": "Is it?"}])[0] == 1
    assert torch.equal(converted.lm_head.weight[:32000], model.lm_head.weight.bfloat16().float())
    assert torch.equal(converted.model.vision_tower.state_dict()["post_layernorm.weight"],
                       clip.vision_model.state_dict()["post_layernorm.weight"])  # fmt: skip


def test_chats_with_images(source):
    """Mistral's form; as many image tokens as the tower has patches, and the words behind them."""
    folder, _ = source
    out = convert(folder / "own", folder / "out", tower=str(folder / "clip"))
    model, tokenizer, processor = load_model(out), load_tokenizer(out), load_processor(out)
    Image.new("RGB", (60, 30), (9, 9, 9)).save(folder / "x.png")
    slots = ImageSlots(*model.image_slots, processor)
    ids = encode_with_images(
        tokenizer, [{"role": "user", "content": "Is there an <image>?"}], [str(folder / "x.png")], slots
    )
    assert ids.count(VOCABULARY) == PATCHES and ids[0] == BOS
    first = ids.index(VOCABULARY)
    assert tokenizer.decode(ids[:first], False).replace(" ", "") == "<s>[INST]"
    assert tokenizer.decode(ids[first + PATCHES :], False).replace(" ", "") == "\nIsthere an<image>?[/INST]".replace(
        " ", ""
    )
    answer = tokenizer.encode_answer("no", chat=True)
    assert answer[-1] == EOS and tokenizer.decode(answer[:-1]).strip() == "no"
    pixels = ImageReader(processor)([str(folder / "x.png")])["pixel_values"][0]
    ground = torch.tensor([int(v * 255) / 255 for v in processor.mean.flatten().tolist()]).view(3, 1)
    torch.testing.assert_close(pixels[:, 0], ((ground - processor.mean[:, 0]) / processor.std[:, 0]).expand(-1, 48))


@pytest.mark.parametrize(
    "settings, options, message",
    [
        ({"model_type": "llava"}, {}, "--tower and --tokenizer are for LLaVA's own form .model_type llava_mistral"),
        ({"mm_projector_type": "linear"}, {}, "only the projector mlp2x_gelu"),
        ({"mm_use_im_start_end": True}, {}, "without marks"),
        ({"mm_vision_select_feature": "all"}, {}, "'all' is none of patch, cls_patch"),
        ({}, {"tower": None}, "reads images with 'clip': say where that is"),
        ({"vocab_size": 250}, {}, "goes up to 258, the model to 249"),
        ({"hidden_size": 24}, {}, "config.json asks for"),
    ],
)
def test_what_cannot_be_converted(source, settings, options, message):
    folder, _ = source
    change(folder, **settings)
    with pytest.raises(InputError, match=message):
        convert(folder / "own", folder / "out", **{"tower": str(folder / "clip"), **options})
    assert not (folder / "out").exists()


def test_what_is_missing_is_named(source, monkeypatch):
    folder, _ = source
    tensors = load_file(folder / "own" / "model.safetensors")
    save_file({**tensors, "model.odd": torch.zeros(1)}, folder / "own" / "model.safetensors")
    with pytest.raises(InputError, match="'model.odd', which this llava model has no place for"):
        convert(folder / "own", folder / "out", tower=str(folder / "clip"))
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, folder / "own" / "model.safetensors")
    with pytest.raises(InputError, match="lacks weights: model.language_model.layers.0.mlp.up_proj.weight"):
        convert(folder / "own", folder / "out", tower=str(folder / "clip"))
    with pytest.raises(InputError, match="convert it first, with python -m mint.convert .*own --out DIR"):
        load_model(folder / "own")
    save_file(without_tower(tensors), folder / "own" / "model.safetensors")
    change(folder, mm_vision_tower="openai/clip-vit-large-patch14-336")
    monkeypatch.setattr("mint.models.llava_med.CLIP_LARGE", CLIP["vision_config"])
    with pytest.raises(InputError, match="holds no image tower: give the CLIP that reads its images .--tower"):
        convert(folder / "own", folder / "out")
    (folder / "own" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer.json: name a directory"):
        convert(folder / "own", folder / "out", tower=str(folder / "clip"))
