"""Chat templates and tokenizers of published model directories, against ids and texts of transformers."""

import json
from datetime import datetime

import pytest
from PIL import Image

from mint.data.chat import load_tokenizer
from mint.data.images import load_processor
from mint.data.record_images import ImageSlots, encode_with_images
from mint.data.template import ChatTemplate
from tests.reference.template_inputs import (
    ANSWER,
    CONSTRUCTS,
    CONTROL,
    CONVERSATIONS,
    DATE,
    FAMILIES,
    HERE,
    NAMES,
    TEXT_CONVERSATIONS,
    as_parts,
    model_dir,
)

REFERENCE = json.loads((HERE / "templates.json").read_text(encoding="utf-8"))
IMAGE_TOKENS = {"qwen25": 151655, "mllama": 128256, "llava": 32000}


@pytest.fixture(scope="module")
def tokenizers(shared_data, tmp_path_factory):
    """family -> its tokenizer, loaded once."""
    loaded, place = {}, tmp_path_factory.mktemp("published")

    def load(family):
        if family not in loaded:
            loaded[family] = load_tokenizer(model_dir(family, shared_data / "published_dirs", place / family))
        return loaded[family]

    return load


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_and_answers_have_the_ids_of_transformers(tokenizers, family):
    tokenizer = tokenizers(family)
    for name, expected in REFERENCE["ids"][family].items():
        messages = CONVERSATIONS[name]
        prompt = tokenizer.encode_prompt(messages)
        assert prompt == expected["prompt"], name
        *answer, end = tokenizer.encode_answer(ANSWER)
        whole = prompt + answer
        assert whole == expected["whole"][: len(whole)], name
        rest = expected["whole"][len(whole) :]  # the end of the turn, and what the template writes after it
        assert rest[0] == end or tokenizer.decode(rest) == "", name
        assert tokenizer.encode_chat([*messages, {"role": "assistant", "content": ANSWER}], False) == expected["whole"]


@pytest.mark.parametrize("family", ["qwen25", "mllama", "llava", "llava_first"])
def test_a_list_of_one_text_is_the_same_as_the_string(tokenizers, family):
    for name in ("system_turns", "spaces"):
        conversation = as_parts(CONVERSATIONS[name])
        assert tokenizers(family).encode_prompt(conversation) == REFERENCE["ids"][family][name]["prompt"]


@pytest.mark.parametrize("family", list(IMAGE_TOKENS))
def test_images_stand_before_the_first_question(tokenizers, tmp_path, family):
    file = tmp_path / "image.png"
    Image.new("RGB", (84, 56)).save(file)
    tokenizer = tokenizers(family)
    slots = ImageSlots(IMAGE_TOKENS[family], 1, load_processor(tokenizer._folder))
    question, answer, further = CONVERSATIONS["image_turns"]
    messages = [{**question, "content": question["content"][1]["text"]}, answer, further]
    ids = encode_with_images(tokenizer, messages, [str(file)], slots)
    assert ids == REFERENCE["ids"][family]["image_turns"]["prompt"]


@pytest.mark.parametrize("kind", list(CONSTRUCTS))
def test_constructs_of_published_templates_render_as_in_transformers(kind):
    control = [{"content": token, "id": i} for i, token in enumerate(CONTROL)]
    template = ChatTemplate(CONSTRUCTS[kind], control, NAMES, datetime.strptime(DATE, "%d %b %Y"), "here")
    for name in TEXT_CONVERSATIONS:
        for opened, expected in zip((True, False), REFERENCE["texts"][kind][name], strict=True):
            runs = template.runs(CONVERSATIONS[name], add_generation_prompt=opened)
            assert "".join(CONTROL[run] if isinstance(run, int) else run for run in runs) == expected, name
