"""Step 1 of 4 from a record to image features: find and check the image files, and place their tokens in the prompt.

The other steps: ``image_files`` opens a file, ``images`` loads the processor that turns it into tensors, and
``image_features`` reads the images of a batch, encoded where the vision encoder is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from mint.data.chat import ChatTokenizer
from mint.data.image_files import find_image, image_size, open_image
from mint.data.images import Processor
from mint.data.preferences import Preference
from mint.data.processors.qwen_vl import QwenVLImageProcessor
from mint.errors import FileProblems, InputError
from mint.progress import Progress


@dataclass(frozen=True)
class ImageSlots:
    """The image tokens of a prompt.

    token: the id of an image token. count: tokens per image, None if it depends on the image's size; the processor then
    computes it.
    """

    token: int
    count: int | None
    processor: Processor

    def of(self, file: str) -> int:
        """The number of tokens of an image file."""
        if self.count is not None:
            return self.count
        return cast(QwenVLImageProcessor, self.processor).image_tokens(*image_size(file))


def find_images(
    preferences: Sequence[Preference], file: str | Path, anywhere: bool = False, corrupted: bool = False
) -> list[Preference]:
    """The records with the whole paths of their images, each of which has been read once.

    file: the preference file; paths are relative to its folder, and must not leave it (nor through links) unless
    ``anywhere``. corrupted: keep the corrupted images too. Raises FileProblems naming every record with an image that
    is missing, damaged, too large, no image, or outside the folder.
    """
    if not corrupted:
        preferences = [replace(preference, corrupted_images=()) for preference in preferences]
    if not any(preference.images for preference in preferences):
        return list(preferences)
    root = Path(file).resolve().parent
    names = dict.fromkeys(name for one in preferences for name in (*one.images, *one.corrupted_images))
    paths: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name in Progress(names, desc="images", unit="image", leave=False, show=len(preferences) > 1):
        try:
            paths[name] = str(find_image(root, name, anywhere))
            open_image(paths[name])
        except InputError as error:
            outside = " (--images-anywhere allows it)" * ("outside the folder" in str(error))
            wrong[name] = f"{error}{outside}"
    if wrong:
        lines = [(one.line, name) for one in preferences for name in (*one.images, *one.corrupted_images)]
        raise FileProblems(file, [f"{file}:{line}: {wrong[name]}" for line, name in lines if name in wrong])
    return [
        replace(
            one,
            images=tuple(paths[name] for name in one.images),
            corrupted_images=tuple(paths[name] for name in one.corrupted_images),
        )
        for one in preferences
    ]


def encode_with_images(
    tokenizer: ChatTokenizer, prompt: str | list[dict], files: Sequence[str], slots: ImageSlots
) -> list[int]:
    """Ids of a prompt whose first user message begins with the images, each as many image tokens as it has.

    A prompt given as a string is a user's message. Raises InputError if the chat template does not write one image
    token for each image.
    """
    messages: list[dict] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    first = next(i for i, message in enumerate(messages) if message["role"] == "user")
    text = {"type": "text", "text": messages[first]["content"]}
    messages[first] = {"role": "user", "content": [{"type": "image"}] * len(files) + [text]}
    ids = tokenizer.encode_chat(messages)
    written = ids.count(slots.token)
    if written != len(files):
        raise InputError(f"the chat template writes {written} image tokens for {len(files)} images")
    counts = iter([slots.of(file) for file in files])
    return [token for i in ids for token in ([i] * next(counts) if i == slots.token else [i])]
