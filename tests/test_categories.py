"""The broad categories against the classes of the published files."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ssl_fast.data import categories
from ssl_fast.data.annotations import read
from ssl_fast.data.categories import BROAD, broad_categories
from test_annotations import FOLDER, published

SIZES = {  # in the order of BROAD
    "vgg-ss": (53, 33, 26, 22, 64, 4, 4, 15),
    "is3": (25, 6, 15, 14, 37, 3, 4, 7),
    "s4": (6, 3, 4, 3, 6, 1, 0, 0),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_that_no_class_is_listed_twice(name):
    found = broad_categories(name)
    assert tuple(Counter(found.values())[broad] for broad in BROAD) == SIZES[name]
    listed = json.loads((Path(categories.__file__).parent / "broad_categories.json").read_text())[name]
    assert tuple(listed) == BROAD and sum(map(len, listed.values())) == len(found)


@published
@pytest.mark.parametrize(
    "name, file", [("vgg-ss", "vggss.json"), ("is3", "synthetic3240_bbox.json"), ("s4", "s4_box.json")]
)
def test_published_classes(name, file):
    assert broad_categories(name).keys() == {sample.category for sample in read(name, FOLDER / file).samples}


def test_a_class_of_each_broad_category():
    found = broad_categories("vgg-ss")
    ours = {
        "playing violin, fiddle": 0,
        "singing choir": 1,
        "police car (siren)": 2,
        "electric blender running": 3,
        "bird wings flapping": 4,
        "cap gun shooting": 5,
        "ocean burbling": 6,
        "sharpen knife": 7,
    }
    assert {one: BROAD.index(found[one]) for one in ours} == ours
    with pytest.raises(ValueError, match="set: expected one of vgg-ss, is3, s4, got 'flickr'"):
        broad_categories("flickr")


def test_sets_agree_on_what_they_share():
    vggss, is3 = broad_categories("vgg-ss"), broad_categories("is3")
    shared = {
        "chips": "people eating crisps",
        "popcorn": "popping popcorn",
        "firework": "fireworks banging",
        "windchime": "wind chime",
        "churchbell": "church bell ringing",
        "marching": "people marching",
        "icecreamtruck": "ice cream truck, ice cream van",
        "female": "female singing",
    }
    assert all(is3[token] == vggss[one] for token, one in shared.items())
    for one, broad in broad_categories("s4").items():  # names of VGGSound with underscores, some of them shortened
        same = [name for name in vggss if name.startswith(one.replace("_", " "))]
        assert all(vggss[name] == broad for name in same), one
