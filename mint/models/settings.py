"""Reading the settings of ``config.json`` into dataclasses, and the ranges that its numbers must be in.

The ranges are wider than those of any published model. They keep a damaged or hostile file from asking for a network
of a million layers, which takes hours and gigabytes to build even without its weights.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, TypeVar

from mint.errors import InputError
from mint.ranges import SHARE, Range, check_number, check_numbers, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


NESTED = ("text_config", "vision_config", "text_config_dict", "vision_config_dict", "rope_scaling", "rope_parameters")
LAYERS, WIDTH, HEADS, SIDE = Range(1, 300), Range(1, 1_000_000), Range(1, 10_000), Range(1, 100_000)
TOKENS, EPSILON, FACTOR = Range(0, 100_000_000), Range(0, 1, whole=False), Range(1e-9, 1e12, whole=False)
NUMBERS = {
    **dict.fromkeys(("num_hidden_layers", "depth"), LAYERS),
    "num_global_layers": Range(0, 300),
    "max_window_layers": Range(0, 1_000_000),
    **dict.fromkeys(("hidden_size", "intermediate_size", "out_hidden_size", "projection_dim", "head_dim"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "attention_heads", "num_heads"), HEADS),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "num_position_embeddings"), Range(1, 100_000_000)),
    **dict.fromkeys(("type_vocab_size", "modality_type_vocab_size"), Range(1, 10_000)),
    **dict.fromkeys(("image_size", "patch_size", "window_size"), SIDE),
    **dict.fromkeys(("num_channels", "in_channels", "in_chans", "max_num_tiles"), Range(1, 1_000)),
    **dict.fromkeys(("spatial_merge_size", "temporal_patch_size"), Range(1, 100)),
    **dict.fromkeys(("image_token_index", "image_token_id"), TOKENS),
    "sliding_window": Range(0, 1_000_000_000),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "norm_eps"), EPSILON),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), SHARE),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "rope_theta"), FACTOR),
    "original_max_position_embeddings": Range(1, 1_000_000_000),
    "initializer_range": Range(0, 100, whole=False),
}
LISTS = {  # of whole numbers
    **dict.fromkeys(("cross_attention_layers", "intermediate_layers_indices"), Range(0, 1_000)),
    **dict.fromkeys(("fullatt_block_indexes", "deepstack_visual_indexes"), Range(0, 1_000)),
    "vision_feature_layer": Range(-1_000, 1_000),
    "mrope_section": Range(0, 1_000_000),
    "widths": WIDTH,
}
LONGEST = 1_000  # entries of such a list
OBJECTS = ("id2label", *NESTED)


def check_config(raw: object, where: object) -> dict:
    """The settings of a ``config.json`` without numbers that are null, which counts as absent.

    raw: its content. where: the file or model, for messages. Raises InputError for a number that is of another type or
    out of range. Settings of other names are not looked at, and ``sliding_window`` may be null: it then means none.
    """
    if not isinstance(raw, dict):
        raise InputError(f"{where}: config.json must hold a JSON object")
    check_numbers(f"{where}: config.json", raw, NUMBERS)
    for name, allowed in LISTS.items():
        value = raw.get(name)
        single = name == "vision_feature_layer" and not isinstance(value, list)
        entries = [] if value is None else [value] if single else value
        if not isinstance(entries, list | tuple) or len(entries) > LONGEST:
            raise InputError(f"{where}: config.json: {name} must be a list of whole numbers, not {shown(value)}")
        for entry in entries:
            check_number(f"{where}: config.json: an entry of {name}", entry, allowed)
    for name in OBJECTS:
        if not isinstance(raw.get(name), dict | None):
            raise InputError(f"{where}: config.json: {name} must be an object, not {shown(raw[name])}")
    kept = {k: x for k, x in raw.items() if x is not None or k not in NUMBERS or k == "sliding_window"}
    return kept | {name: check_config(raw[name], where) for name in NESTED if raw.get(name)}


def read_settings(cls: type[Settings], raw: dict, kind: str, /, **derived) -> Settings:
    """An instance of the dataclass ``cls`` from the entries of ``raw`` that are its fields, lists as tuples.

    Fields that ``raw`` lacks keep their defaults. derived: fields that the caller computed. Raises InputError for a
    field without a default that is missing.
    """
    values = {f.name: raw[f.name] for f in fields(cls) if f.name in raw} | derived
    missing = [f.name for f in fields(cls) if f.name not in values and f.default is f.default_factory is MISSING]
    if missing:
        raise InputError(f"config.json of a {kind} model lacks {missing[0]!r}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def check_choice(kind: str, name: str, value: object, known: Collection) -> None:
    """Raises InputError unless ``value`` is one of ``known``."""
    if value not in known:
        raise InputError(f"{kind}: {name} {value!r} is not supported; known are {', '.join(map(str, known))}")


def check_heads(kind: str, width: int, heads: int) -> None:
    """Raises InputError unless the heads divide the width."""
    if width % heads:
        raise InputError(f"{kind}: {heads} heads do not divide a width of {width}")


def check_attention(heads: int, key_heads: int, head_size: int) -> None:
    """Raises InputError unless key/value heads divide the heads, and the size of a head is even and not 0."""
    if heads % key_heads or head_size % 2 or head_size < 2:
        raise InputError(
            f"config.json: {key_heads} key/value heads must divide {heads} heads, and the head size {head_size} be even"
        )
