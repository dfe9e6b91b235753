"""LLaVA's own file form: converted, it is the same model, with a token for images and a chat template."""

import json
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mint.data.chat import load_tokenizer
from mint.data.images import load_processor
from mint.data.pair_images import ImageReader, ImageSlots, encode_with_images
from mint.data.phrases import train_phrases
from mint.errors import InputError
from mint.models import init_model, load_model, save_model
from mint.models.llava_med import ROWS, convert, main
from tests.reference.clip_inputs import TINY as CLIP
from tests.reference.llava_inputs import CONFIGS, IMAGE, PATCHES, TEXT, pixels, tokens, weights

VOCABULARY, BOS, EOS = 259, 257, 258  # bytes, and three control tokens
OWN_NAMES = (  # from ours to LLaVA's own
    (r"^model\.language_model\.", "model."),
    (r"^model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
)


@pytest.fixture
def source(tmp_path):
    """A directory in LLaVA's own form, a CLIP of the same tower, and the model they make."""
    text = {**TEXT, "model_type": "mistral", "sliding_window": None, "vocab_size": VOCABULARY}
    config = {**CONFIGS["llama"], "text_config": text}
    model = init_model(config)
    model.load_state_dict(weights({name: p.shape for name, p in model.named_parameters()}))
    own = tmp_path / "own"
    own.mkdir()
    tensors = model.bfloat16().state_dict()
    for pattern, replacement in OWN_NAMES:
        tensors = {re.sub(pattern, replacement, name): value for name, value in tensors.items()}
    save_file(tensors, own / "model.safetensors")
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
    converted = load_model(convert(folder / "own", folder / "out", str(folder / "clip")))
    ids = tokens("llama")
    with torch.no_grad():
        expected = model(ids, {"pixel_values": pixels()})
        found = converted(torch.where(ids == IMAGE, VOCABULARY, ids), {"pixel_values": pixels()})[..., :VOCABULARY]
    torch.testing.assert_close(found, expected)
    rows = converted.decoder.embed_tokens.weight
    assert rows.shape[0] == VOCABULARY + ROWS
    torch.testing.assert_close(rows[VOCABULARY:], rows[:VOCABULARY].mean(0).bfloat16().float().expand(ROWS, -1))


def test_the_tower_may_lie_elsewhere(source):
    folder, model = source
    tensors = load_file(folder / "own" / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "vision_tower" not in n}, folder / "own" / "model.safetensors")
    assert main(["--source", f"{folder}/own", "--out", f"{folder}/out", "--tower", f"{folder}/clip"]) == 0
    found = load_model(folder / "out").state_dict()
    for name, value in model.model.vision_tower.state_dict().items():
        assert torch.equal(found[f"model.vision_tower.{name}"], value)


def test_chats_with_images(source):
    """Mistral's form; as many image tokens as the tower has patches, and the words behind them."""
    folder, _ = source
    out = convert(folder / "own", folder / "out", str(folder / "clip"))
    model, tokenizer, processor = load_model(out), load_tokenizer(out), load_processor(out)
    Image.new("RGB", (60, 30), (9, 9, 9)).save(folder / "x.png")
    slots = ImageSlots(*model.image_slots, processor)
    ids = encode_with_images(tokenizer, [{"role": "user", "content": "Is there an <image>?"}], [str(folder / "x.png")], slots)
    assert ids.count(VOCABULARY) == PATCHES and ids[0] == BOS
    first = ids.index(VOCABULARY)
    assert tokenizer.decode(ids[:first], False).replace(" ", "") == "<s>[INST]"
    assert tokenizer.decode(ids[first + PATCHES :], False).replace(" ", "") == "\nIsthere an<image>?[/INST]".replace(" ", "")
    answer = tokenizer.encode_answer("no", chat=True)
    assert answer[-1] == EOS and tokenizer.decode(answer[:-1]).strip() == "no"
    pixels = ImageReader(processor)([str(folder / "x.png")])["pixel_values"][0]
    ground = torch.tensor([int(v * 255) / 255 for v in processor.mean.flatten().tolist()]).view(3, 1)
    torch.testing.assert_close(pixels[:, 0], ((ground - processor.mean[:, 0]) / processor.std[:, 0]).expand(-1, 48))


@pytest.mark.parametrize(
    "settings, options, message",
    [
        ({"model_type": "llava"}, {}, "'llava' is none of llava_mistral"),
        ({"mm_projector_type": "linear"}, {}, "only the projector mlp2x_gelu"),
        ({"mm_use_im_start_end": True}, {}, "without marks"),
        ({"mm_vision_select_feature": "all"}, {}, "'all' is none of patch, cls_patch"),
        ({}, {"tower": None}, "reads images with 'clip': say where that is"),
        ({"vocab_size": 250}, {}, "goes up to 258, the model to 249"),
        ({"hidden_size": 20}, {}, "the settings ask for"),
    ],
)
def test_what_cannot_be_converted(source, settings, options, message):
    folder, _ = source
    change(folder, **settings)
    with pytest.raises(InputError, match=message):
        convert(folder / "own", folder / "out", **{"tower": str(folder / "clip"), **options})
    assert not (folder / "out").exists()


def test_what_is_missing_is_named(source):
    folder, _ = source
    tensors = load_file(folder / "own" / "model.safetensors")
    save_file({**tensors, "model.odd": torch.zeros(1)}, folder / "own" / "model.safetensors")
    with pytest.raises(InputError, match="'model.odd', which a LLaVA has no place for"):
        convert(folder / "own", folder / "out", str(folder / "clip"))
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, folder / "own" / "model.safetensors")
    with pytest.raises(InputError, match="lacks 1 weights, as model.language_model.layers.0.mlp.up_proj.weight"):
        convert(folder / "own", folder / "out", str(folder / "clip"))
    with pytest.raises(InputError, match="convert it first"):
        load_model(folder / "own")
    (folder / "own" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer.json: name a directory"):
        convert(folder / "own", folder / "out", str(folder / "clip"))
