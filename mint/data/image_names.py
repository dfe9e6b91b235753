"""The images that a record names."""

from __future__ import annotations

from collections.abc import Mapping

from mint.errors import InputError


def image_names(record: Mapping) -> tuple[str, ...]:
    """The file names in ``images`` (a list), or in ``image`` (one name, or a list); () if both are absent or null.

    Raises InputError for values of another form, empty names, and a record with both fields.
    """
    images, image = record.get("images"), record.get("image")
    if images is not None and image is not None:
        raise InputError("give either images or image, not both")
    if images is not None and not isinstance(images, list):
        raise InputError("images must be a list of file names")
    names = images if images is not None else image if isinstance(image, list) else [] if image is None else [image]
    if not all(isinstance(name, str) and name for name in names):
        raise InputError("images must be a list of file names" if images is not None else "image must be a file name")
    return tuple(names)
