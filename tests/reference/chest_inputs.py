"""Image processors compared on real chest X-rays (class in transformers -> settings), and the compared statistics."""

from torch import Tensor

PROCESSORS = {
    "CLIPImageProcessor": {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
    "LlavaImageProcessor": {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_pad": True},
    "MllamaImageProcessor": {"size": {"height": 224, "width": 224}, "max_image_tiles": 4},
    "Qwen2VLImageProcessor": {"size": {"shortest_edge": 3136, "longest_edge": 200704}},
    "ViltImageProcessor": {"size": {"shortest_edge": 384}, "size_divisor": 32},
}


def summary(pixels: Tensor) -> tuple[list[int], float, list[float]]:
    """Of ``pixel_values``: the shape, the mean, and a grid of 4 x 4 of the first image or tile (of all patches)."""
    first = pixels.flatten(0, -4)[0] if pixels.dim() > 2 else pixels[None]
    _, height, width = first.shape
    grid = first[:, height // 8 :: height // 4, width // 8 :: width // 4][:, :4, :4]
    return list(pixels.shape), pixels.mean().item(), grid.flatten().tolist()
