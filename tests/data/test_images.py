"""Image files of every kind, and the processor against transformers'."""

import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mint.data.image_files import image_size, open_image, to_rgb
from mint.data.images import load_processor
from mint.data.processors.clip import ClipImageProcessor
from mint.data.processors.mllama import MllamaImageProcessor
from mint.data.processors.qwen_vl import QwenVLImageProcessor
from mint.data.processors.vilt import ViltImageProcessor
from mint.errors import InputError
from tests.reference import chest_inputs, clip_inputs, mllama_inputs, qwen_vl_inputs
from tests.reference.vilt_inputs import HERE, IMAGES, PROCESSOR, image

RESULTS = load_file(HERE / "vilt.safetensors")
KINDS = {kind.__name__: kind for kind in (MllamaImageProcessor, ViltImageProcessor)}
KINDS["CLIPImageProcessor"] = KINDS["LlavaImageProcessor"] = ClipImageProcessor
KINDS["Qwen2VLImageProcessor"] = QwenVLImageProcessor
TILES = load_file(HERE / "mllama.safetensors")
PATCHES = load_file(HERE / "qwen_vl.safetensors")
SIZES = json.loads((HERE / "image_sizes.json").read_text())
CHEST = json.loads((HERE / "chest.json").read_text())


def test_the_processor_equals_transformers():
    made = ViltImageProcessor(PROCESSOR)([image(name) for name in IMAGES])
    assert list(made["pixel_values"].shape) == json.loads((HERE / "vilt.json").read_text())["size"]
    assert torch.equal(made["pixel_mask"].sum((1, 2)), RESULTS["processor.mask_sums"])
    assert torch.allclose(made["pixel_values"][:, :, 3::16, 5::16], RESULTS["processor.sample"], atol=1e-5)


def test_the_clip_processor_equals_transformers():
    made = ClipImageProcessor(clip_inputs.PROCESSOR)([image(name) for name in IMAGES])
    expected = load_file(HERE / "clip.safetensors")["processor"]
    assert torch.allclose(made["pixel_values"], expected, atol=1e-5)


@pytest.mark.parametrize("name", mllama_inputs.SIZES)
def test_the_tiles_equal_transformers(name):
    made = MllamaImageProcessor(mllama_inputs.PROCESSOR)([mllama_inputs.picture(mllama_inputs.SIZES[name])])
    for key, value in made.items():
        expected = TILES[f"processor.{name}.{key}"]
        assert torch.allclose(value[..., ::3, ::3] if key == "pixel_values" else value, expected, atol=1e-5), key


@pytest.mark.parametrize("name", mllama_inputs.SIZES)
def test_the_patches_equal_transformers(name):
    size = mllama_inputs.SIZES[name]
    processor = QwenVLImageProcessor(qwen_vl_inputs.PROCESSOR)
    if max(size) > 200 * min(size):
        with pytest.raises(InputError, match="500 x 2 is more than 200 times"):
            processor([mllama_inputs.picture(size)])
        return
    made = processor([mllama_inputs.picture(size)])
    assert torch.equal(made["image_grid_thw"], PATCHES[f"processor.{name}.image_grid_thw"])
    assert torch.allclose(made["pixel_values"][:, ::5], PATCHES[f"processor.{name}.pixel_values"], atol=1e-5)
    assert processor.image_tokens(*size) == len(made["pixel_values"]) // 4


@pytest.mark.parametrize("side, most, sizes", SIZES["mllama"])
def test_tiles_and_sizes_equal_transformers(side, most, sizes):
    """Those too for which a product with a rounded scale is a pixel less than the exact one."""
    processor = MllamaImageProcessor({"size": {"height": side, "width": side}, "max_image_tiles": most})
    for width, height, rows, columns, *resized in sizes:
        assert processor.arrange(width, height) == (rows, columns), (width, height)
        assert processor.fit(width, height, columns * side, rows * side) == tuple(resized), (width, height)


@pytest.mark.parametrize("patch, least, most, sizes", SIZES["qwen"])
def test_grids_and_their_limits_equal_transformers(patch, least, most, sizes):
    """The limits as --max-pixels, and in both forms that settings give them."""
    common = {"patch_size": patch, "min_pixels": least}
    limited = QwenVLImageProcessor({**common, "max_pixels": 10**9})
    limited.limit(most)
    processors = [limited, QwenVLImageProcessor({**common, "max_pixels": most})]
    size = {"shortest_edge": least, "longest_edge": most}
    processors.append(QwenVLImageProcessor({"patch_size": patch, "size": size}))
    for width, height, rows, columns in sizes:
        assert [processor.grid(width, height) for processor in processors] == [(rows, columns)] * 3, (width, height)


@pytest.mark.parametrize("name", SIZES["published"])
def test_processors_of_published_directories_equal_transformers(shared_data, name, tmp_path):
    """As they are, and where the settings name no class, or one of older versions."""
    source = shared_data / "published_dirs" / name
    settings = json.loads((source / "preprocessor_config.json").read_text())
    bare = {key: value for key, value in settings.items() if not key.endswith(("processor_type", "extractor_type"))}
    forms = {"bare": bare}
    if "qwen" in name:
        forms["older"] = {**bare, "image_processor_type": "Qwen2_5_VLImageProcessor"}
    for form, content in forms.items():
        (tmp_path / form).mkdir()
        shutil.copy(source / "config.json", tmp_path / form)
        (tmp_path / form / "preprocessor_config.json").write_text(json.dumps(content))
    shape, mean, grid = SIZES["published"][name]
    for folder in (source, *(tmp_path / form for form in forms)):
        found = chest_inputs.summary(load_processor(folder)([mllama_inputs.picture((300, 200))])["pixel_values"])
        assert found[0] == shape and found[1] == pytest.approx(mean, abs=1e-4)
        assert found[2] == pytest.approx(grid, abs=1e-4)


def test_max_pixels(tmp_path):
    """An image of 140 x 56 has 10 x 4 patches, which are 10 tokens; of at most 3136 pixels, 6 x 2."""
    path = tmp_path / "preprocessor_config.json"
    path.write_text('{"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 1568, "max_pixels": 50000}')
    assert load_processor(tmp_path).image_tokens(140, 56) == 10
    assert load_processor(tmp_path, max_pixels=3136).image_tokens(140, 56) == 3
    with pytest.raises(InputError, match="--max-pixels 1567 is below the least of this image processor, 1568"):
        load_processor(tmp_path, max_pixels=1567)
    path.write_text('{"image_processor_type": "CLIPImageProcessor"}')
    with pytest.raises(InputError, match="--max-pixels is for Qwen-VL models; with CLIPImageProcessor all images"):
        load_processor(tmp_path, max_pixels=3136)


def test_settings_in_the_newer_file_come_first(tmp_path):
    """As in transformers, an image processor in processor_config.json; without one there, preprocessor_config.json."""
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViltImageProcessor", "size": 384}')
    newer = tmp_path / "processor_config.json"
    newer.write_text('{"processor_class": "LlavaProcessor"}')
    assert load_processor(tmp_path).shorter == 384
    newer.write_text('{"image_processor": {"image_processor_type": "ViltImageProcessor", "size": 200}}')
    assert load_processor(tmp_path).shorter == 200


def test_the_images_of_a_sample_and_its_tiles_by_hand():
    """A red 40 x 20 image unscaled on two adjacent tiles: 20 rows of the first are red, 8 columns of the second."""
    plain = {"size": {"height": 32, "width": 32}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    made = MllamaImageProcessor(plain)([Image.new("RGB", (40, 20), (255, 0, 0)), Image.new("L", (8, 8), 255)])
    assert made["pixel_values"].shape == (1, 2, 4, 3, 32, 32)
    assert made["aspect_ratio_ids"].tolist() == [[2, 1]]
    assert made["aspect_ratio_mask"].tolist() == [[[1, 1, 0, 0], [1, 0, 0, 0]]]
    red = made["pixel_values"][0, 0, :2, 0]
    assert red[0, :20].eq(1).all() and red[1, :20, :8].eq(1).all() and red.sum() == 20 * 40
    assert made["pixel_values"][0, 0, 2:].abs().sum() == 0
    assert made["pixel_values"][0, 1, 0].eq(1).all()  # one tile, filled
    with pytest.raises(ValueError, match="square"):
        MllamaImageProcessor({"size": {"height": 32, "width": 16}})


def test_the_middle_of_an_image_by_hand(tmp_path):
    """6 x 4 pixels with red columns 0 and 5: the central 4 x 4 has none; a larger crop is padded with black."""
    picture = Image.new("RGB", (6, 4))
    for column in (0, 5):
        picture.paste((255, 0, 0), (column, 0, column + 1, 4))
    plain = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "do_resize": False}
    assert ClipImageProcessor({**plain, "crop_size": 4})([picture])["pixel_values"].sum() == 0
    larger = ClipImageProcessor({**plain, "crop_size": {"height": 8, "width": 10}})([picture])["pixel_values"]
    assert larger.shape == (1, 3, 8, 10) and larger[0, 0].nonzero().tolist() == [
        [y, x] for y in range(2, 6) for x in (2, 7)
    ]
    squeezed = ClipImageProcessor(
        {**plain, "do_resize": True, "size": {"height": 3, "width": 5}, "do_center_crop": False}
    )
    assert squeezed([picture])["pixel_values"].shape == (1, 3, 3, 5)


def test_one_size_is_kept_as_it_is():
    """By hand: (255 / 255 - 0.5) / 0.5 = 1, and nothing is resampled."""
    picture = Image.new("RGB", (112, 112), (255, 0, 128))
    made = ViltImageProcessor({"size": {"shortest_edge": 112}, "size_divisor": 16})([picture])
    assert made["pixel_values"].shape == (1, 3, 112, 112) and made["pixel_mask"].all()
    assert torch.allclose(made["pixel_values"][0, :, 50, 50], torch.tensor([1.0, -1.0, 128 / 255 * 2 - 1]), atol=1e-6)


@pytest.mark.parametrize(
    "size, target",
    [((1000, 10), (96, 32)), ((10, 1000), (32, 96)), ((64, 64), (64, 64)), ((1, 1), (64, 64)), ((99, 66), (96, 64))],
)
def test_sizes_after_resizing(size, target):
    """The longer edge is at most 1333/800 of 64 = 106, rounded down to 96; an edge is never less than one patch."""
    made = ViltImageProcessor({"size": 64, "size_divisor": 32}).resize(Image.new("RGB", size))
    assert made.dtype == torch.uint8 and tuple(made.shape) == (3, target[1], target[0])


def test_every_mode_becomes_rgb(tmp_path):
    grey = np.linspace(0, 65535, 64).reshape(8, 8)
    pictures = {
        "1": Image.new("1", (8, 8), 1),
        "L": Image.new("L", (8, 8), 200),
        "P": Image.new("RGB", (8, 8), (255, 0, 0)).convert("P"),
        "RGBA": Image.new("RGBA", (8, 8), (255, 0, 0, 0)),
        "LA": Image.new("LA", (8, 8), (0, 255)),
        "CMYK": Image.new("CMYK", (8, 8), (0, 0, 0, 0)),
        "I;16": Image.fromarray(grey.astype(np.uint16)),
        "I": Image.fromarray(grey.astype(np.int32)),
    }
    for mode, picture in pictures.items():
        path = tmp_path / ("x." + {"CMYK": "jpg", "I": "tif"}.get(mode, "png"))
        picture.save(path)
        opened = open_image(path)
        assert opened.mode == "RGB" and opened.size == (8, 8), mode
    assert to_rgb(pictures["RGBA"]).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(pictures["LA"]).getpixel((0, 0)) == (0, 0, 0)
    for mode in ("I;16", "I"):  # scaled, not cut at 255
        values = np.asarray(to_rgb(pictures[mode]))[..., 0]
        assert np.abs(values.ravel() - np.linspace(0, 255, 64)).max() <= 1


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (4, 2))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert open_image(tmp_path / "x.jpg").size == image_size(tmp_path / "x.jpg") == (2, 4)
    picture.save(tmp_path / "y.jpg")
    assert open_image(tmp_path / "y.jpg").size == image_size(tmp_path / "y.jpg") == (4, 2)


def test_threads_that_open_images_leave_the_filters_of_warnings_as_they_were(tmp_path):
    """Which belong to the process: a thread would restore them to what another one has set."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(open_image, [tmp_path / "a.png"] * 400))
    assert warnings.filters == before


def test_images_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    with pytest.raises(InputError, match="does not exist"):
        open_image(path)
    Image.effect_noise((40, 40), 50).save(path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-300], whole[:40]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            open_image(path)
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="more than 1,000 pixels"):
        open_image(path)
    with pytest.raises(InputError, match="cannot be read"):
        open_image(tmp_path)


def test_processors_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="has no preprocessor_config.json"):
        load_processor(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_processor(tmp_path)
    path.write_text('{"image_processor_type": "BlipImageProcessor"}')
    with pytest.raises(InputError, match="'BlipImageProcessor' is not supported; known are CLIPImageProcessor, Llava"):
        load_processor(tmp_path)
    path.write_text('{"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 3}}')
    with pytest.raises(InputError, match="a setting of the wrong form: 'height'"):
        load_processor(tmp_path)
    path.write_text("{}")
    with pytest.raises(InputError, match="has no image_processor_type, and config.json no model_type that implies one"):
        load_processor(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="and config.json no model_type that implies one"):
        load_processor(tmp_path)
    path.write_text("[1]")
    with pytest.raises(InputError, match="preprocessor_config.json must hold a JSON object"):
        load_processor(tmp_path)
    path.write_text('{"feature_extractor_type": "ViltFeatureExtractor", "size": 384}')
    assert load_processor(tmp_path).shorter == 384


@pytest.mark.parametrize("name", chest_inputs.PROCESSORS)
def test_real_chest_images_equal_transformers(shared_data, name):
    """Pictures of odd sizes and modes: on average less than 1/255 of the value range apart."""
    folder = shared_data / "cxr" / "images"
    if not folder.is_dir():
        pytest.skip("the chest images are not present beside the project")
    processor = KINDS[name](chest_inputs.PROCESSORS[name])
    step = (1 / 255 / processor.std).min()  # one grey value, as the processor scales it
    for file, expected in CHEST["images"].items():
        shape, mean, grid = chest_inputs.summary(processor([open_image(folder / file)])["pixel_values"])
        assert shape == expected[name]["shape"] and abs(mean - expected[name]["mean"]) < step
        assert (torch.tensor(grid) - torch.tensor(expected[name]["grid"])).abs().mean() < step
