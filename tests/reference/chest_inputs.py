"""The image processors that are compared on real chest X-rays: class in transformers -> settings."""

PROCESSORS = {
    "CLIPImageProcessor": {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
    "ViltImageProcessor": {"size": {"shortest_edge": 384}, "size_divisor": 32},
}
