"""The eight broad categories of what sounds (vssl_eval), and which class of a test set belongs to which.

    from ssl_fast.data.categories import BROAD, broad_categories
    broad_categories("vgg-ss")["owl hooting"]           # "animals"

The paper names the categories; its list of classes is unpublished, this one is our own: broad_categories.json. Sounds
from another broad category are the off-screen negatives of a test set (`negatives`).
"""

import json
from pathlib import Path

BROAD = (
    "music/instruments",
    "human voice",
    "vehicles",
    "devices/machines",
    "animals",
    "weapons",
    "nature ambient",
    "others",
)
# The list of classes that a test set is of.
BROAD_OF = {name: name for name in ("vgg-ss", "is3", "s4")}
BROAD_OF |= {"is3-plus": "is3"} | dict.fromkeys(("vgg-ss-xml", "vggsound-single", "vggsound-duet"), "vgg-ss")


def broad_categories(name: str) -> dict[str, str]:
    """{class: broad category} of "vgg-ss" (221 classes, spelt right), "is3" (111 tokens) or "s4" (23)."""
    sets = json.loads(Path(__file__).with_name("broad_categories.json").read_text(encoding="utf-8"))
    if name not in sets:
        raise ValueError(f"set: expected one of {', '.join(sets)}, got {name!r}")
    return {one: broad for broad, classes in sets[name].items() for one in classes}
