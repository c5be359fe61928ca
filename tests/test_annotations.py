"""Annotation formats: small files written here against boxes worked out by hand, and the published files themselves."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from published_folders import CLIPS
from ssl_fast.data.annotations import DIRT, read, weight_map
from ssl_fast.data.sample_lists import DataError, normal_id

FOLDER = Path(
    os.environ.get("SSL_FAST_ANNOTATIONS", Path(__file__).resolve().parents[1] / "../shared/annotations")
).resolve()
published = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no folder of published annotations {FOLDER}")


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def slow_map(boxes, rule):
    """Pixel by pixel from the definition."""
    out = np.zeros((224, 224), np.float32)
    for y in range(224):
        for x in range(224):
            n = sum(left <= x < right and top <= y < bottom for left, top, right, bottom in boxes)
            out[y, x] = min(n / 2, 1) if rule == "consensus" else n > 0
    return out


def counts(found):
    return {kind: len(cases) for kind, cases in found.dirt.items() if cases}


# ---------------------------------------------------------------------------------------------------------------------
# Formats


@pytest.mark.parametrize("rule", ["union", "consensus"])
def test_weight_maps(rule):
    boxes = np.array([[10, 20, 100, 60], [50, 30, 224, 224], [90, 0, 95, 224]])
    got = weight_map(boxes, rule)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, slow_map(boxes, rule))
    assert not weight_map(np.zeros((0, 4), int), rule).any()
    with pytest.raises(ValueError, match="rule: expected union or consensus, got 'mean'"):
        weight_map(boxes, "mean")


def test_vggss_and_its_dirt(tmp_path):
    far = -2.8823037615171176e16
    path = write(
        tmp_path / "vggss.json",
        [
            {
                "file": "goodgoodgoo_000001",
                "class": "elk bugling",
                "bbox": [[0.403125, 0.253125, 0.6, 0.75], [0, 0, 0.01, 1]],
            },
            {
                "file": "farfarfar--_000002",
                "class": "eletric blender running",
                "bbox": [[0.4, 0.4, far, 0.9], [-0.1, 0.5, 0.5, 1]],
            },
            {"file": "thinthinthi_000003", "class": "owl hooting", "bbox": [[0.001, 0.1, 0.004, 0.9]]},
            {"file": "fullfullful_000004", "class": "owl hooting", "bbox": [[0, 0, 0.5, 1], [0.5, 0, 1.2, 1]]},
        ],
    )
    found = read("vgg-ss", path)
    assert found.rule == "union"
    assert [sample.boxes.tolist() for sample in found.samples] == [
        [[90, 56, 134, 168], [0, 0, 2, 224]],
        [[0, 112, 112, 224]],
        [],
        [[0, 0, 112, 224], [112, 0, 224, 224]],
    ]
    assert [sample.category for sample in found.samples][1] == "electric blender running"
    assert found.dirt == {
        "outside": ["farfarfar--_000002", "farfarfar--_000002", "fullfullful_000004"],
        "degenerate": ["farfarfar--_000002", "thinthinthi_000003"],
        "empty": ["thinthinthi_000003"],
        "whole frame": ["fullfullful_000004"],
        "misspelt": ["farfarfar--_000002"],
    }
    assert found.report()[0] == f"3 x outside ({DIRT['outside']}): 'farfarfar--_000002', 'fullfullful_000004'"
    part = read("vgg-ss", path, ids=write(tmp_path / "some.csv", "fullfullful_000004\ngoodgoodgoo_000001\n"))
    assert [sample.id for sample in part.samples] == ["fullfullful_000004", "goodgoodgoo_000001"]
    assert counts(part) == {"outside": 1, "whole frame": 1}


def test_flickr_consensus(tmp_path):
    def box(*sides):
        return "<bbox><label>x</label>" + "".join(f"<side>{side}</side>" for side in sides) + "</bbox>"

    second = box(1, 1, 256, 99) + box(5, 5, 9, 9)
    write(tmp_path / "7.xml", f"<a><one>{box(10, 20, 130, 255)}</one><two>{second}</two></a>")
    write(tmp_path / "12.xml", f"<a><one>{box(-3, 0, 256, 256)}</one><two>{box(0, 0, 256, 256)}</two></a>")
    found = read("flickr", tmp_path, ids=write(tmp_path / "list.csv", "7,202\n12,0\n"))
    assert found.rule == "consensus" and [sample.id for sample in found.samples] == ["7", "12"]
    # int(224 * v / 256)
    assert found.samples[0].boxes.tolist() == [[8, 17, 113, 223], [0, 0, 224, 86], [4, 4, 7, 7]]
    assert counts(found) == {"outside": 1, "whole frame": 1}
    weights = weight_map(found.samples[0].boxes, found.rule)
    assert [weights[50, 20], weights[5, 5], weights[200, 20], weights[200, 200]] == [1, 1, 0.5, 0]


@pytest.mark.parametrize(
    "xml, message",
    [
        (
            "<a><one><bbox><l>x</l><s>1</s><s>2</s><s>3</s></bbox></one></a>",
            r"expected boxes of four numbers up to 256",
        ),
        ("<a><one><name>x</name></one></a>", r"7.xml: expected bbox elements, got name"),
        ("<a><one></one></a>", r"7.xml: expected bbox elements, got none"),
        ("<a><one>", r"7.xml: expected boxes of numbers in XML, got no element found"),
        (
            "<a><one><bbox><l>x</l><s>one</s></bbox></one></a>",
            r"7.xml: expected boxes of numbers in XML, got could not",
        ),
    ],
)
def test_bad_xml(tmp_path, xml, message):
    write(tmp_path / "7.xml", xml)
    with pytest.raises(DataError, match=message):
        read("flickr", tmp_path)


def test_ssl_tie_xml(tmp_path):
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip("abcd", (0.403125, 0.253125, 0.6, -0.75)))
    fine = "".join(f"<{s}>{v}</{s}>" for s, v in zip("abcd", (0.403125, 0.253125, 0.6, 0.75)))
    write(tmp_path / "clip_000001.xml", f"<r><bbox><one>{sides}</one><two>{fine}</two></bbox></r>")
    found = read("vgg-ss-xml", tmp_path)
    assert [sample.boxes.tolist() for sample in found.samples] == [[[90, 56, 134, 168]]]
    assert counts(found) == {"outside": 1, "degenerate": 1}
    with pytest.raises(DataError, match=r"none: expected a folder of annotations ID.xml, got none"):
        read("vgg-ss-xml", tmp_path / "none")


def test_extended_lists(tmp_path):
    path = write(tmp_path / "vggss.json", [{"file": "a_1", "class": "owl hooting", "bbox": [[0, 0, 0.5, 0.5]]}])
    rows = "video,audio,label\na_1,b_2,non-sounding\nc_3,c_3,non-sounding\n"
    found = read("vgg-ss", path, negatives=write(tmp_path / "silent.csv", rows))
    assert [(s.id, s.image, s.audio, s.sounding, len(s.boxes)) for s in found.samples] == [
        ("a_1", "a_1", "a_1", True, 1),
        ("a_1+b_2", "a_1", "b_2", False, 0),
        ("c_3+c_3", "c_3", "c_3", False, 0),
    ]
    assert not counts(found)  # a negative has no ground truth by nature
    for text, message in (
        ("a_1,b_2,non-sounding\n", "silent.csv: expected the header video,audio,label, got 'a_1,b_2,non-sounding'"),
        (rows + "a_1,c_3,sounding\n", "silent.csv: line 4: expected VIDEO,AUDIO,non-sounding, got 'a_1,c_3,sounding'"),
        (rows + "a_1,b_2,non-sounding\n", r"silent.csv: 1 of 2 pairs listed more than once: 'a_1\+b_2'"),
    ):
        with pytest.raises(DataError, match=message):
            found.extended(write(tmp_path / "silent.csv", text))


def test_sslalign_jsons(tmp_path):
    entries = [
        {
            "image": f"/far/visual_frames/dog_car_12_{name}.jpg",
            "audio": f"/far/audio_wav/dog_car_12_{name}.wav",
            "gt_box": [20.9, 1.0, 224.0, 100.5],
        }
        for name in ("dog", "car")
    ]
    found = read("is3", write(tmp_path / "is3.json", entries))
    assert [(s.id, s.audio, s.category, s.group) for s in found.samples] == [
        (f"dog_car_12_{name}", f"dog_car_12_{name}", name, "dog_car_12") for name in ("dog", "car")
    ]
    assert found.samples[0].boxes.tolist() == [[20, 1, 224, 100]]

    def frame(n, box):
        return {"image": f"/x/test/cat_meowing/v_1/v_1_{n}.png", "audio": "/x/test/cat_meowing/v_1.wav", "gt_box": box}

    boxes = read("s4", write(tmp_path / "s4.json", [frame(1, [1.0, 2.0, 3.0, 4.0]), frame(2, [0.0] * 4)]))
    assert [(s.image, s.audio, s.category, s.group) for s in boxes.samples] == [
        (f"cat_meowing/v_1/v_1_{n}", "cat_meowing/v_1", "cat_meowing", "cat_meowing/v_1") for n in (1, 2)
    ]
    assert counts(boxes) == {"degenerate": 1, "empty": 1}
    seg = [frame(n, f"/x/gt_masks/test/cat_meowing/v_1/v_1_{n}.png") | {"offset": 1} for n in (1, 2)]
    masks = read("s4", write(tmp_path / "s4_seg.json", seg))
    assert masks.samples[0].boxes is None and masks.samples[0].mask == "cat_meowing/v_1/v_1_1.png"
    both = boxes.with_masks(masks)
    assert both.samples[1].mask == "cat_meowing/v_1/v_1_2.png" and both.samples[0].boxes.tolist() == [[1, 2, 3, 4]]
    less = masks.select(["cat_meowing/v_1/v_1_2"])
    with pytest.raises(DataError, match=r"s4_seg.json: 1 samples of .*s4.json without mask: 'cat_meowing/v_1/v_1_1'"):
        boxes.with_masks(less)


@pytest.mark.parametrize(
    "name, entries, message",
    [
        ("vgg-ss", [{"file": "a", "class": "b"}], r"a.json: 'a': expected a class and boxes, got file, class"),
        (
            "vgg-ss",
            [{"file": "a", "class": "b", "bbox": [[0, 0, 3, 1]]}],
            r"a.json: entry 0, 'a': bbox: expected fraction",
        ),
        ("is3", {}, r"a.json: expected a JSON list of annotations, got \{\}"),
        ("is3", "[", r"a.json: expected annotations as a JSON list, got Expecting"),
        ("is3", [{"image": "a_b.jpg", "gt_box": []}], r"a.json: entry 0: expected image, audio and gt_box, got"),
        (
            "is3",
            [{"image": "a_b.jpg", "audio": "a_b.wav", "gt_box": [0, 0, 9]}],
            r"a.json: 'a_b': expected boxes of four numbers up to 224, got \[\[0, 0, 9\]\]",
        ),
        ("is3", [{"image": "a_b.jpg", "audio": "a_b.wav", "gt_box": [0, 0, 9, 900]}], "up to 224"),
        (
            "is3",
            [{"image": "x/a_b.jpg", "audio": "a_b.wav", "gt_box": [0, 0, 9, 9]}] * 2,
            r"a.json: 1 of 1 samples listed more than once: 'a_b'",
        ),
        ("flicker", [], "set: expected one of vgg-ss, .*, got 'flicker'"),
    ],
)
def test_bad_files(tmp_path, name, entries, message):
    path = write(tmp_path / "a.json", entries)
    with pytest.raises(ValueError, match=message):
        read(name, path)


def test_lists_in_every_published_form(tmp_path):
    entry = {"class": "owl hooting", "bbox": [[0, 0, 0.5, 0.5]]}
    ids = ["gklbB7TYoK4_000030", "1F3_bvIT0ig_000000", "twvjW7ymUIQ_004159"]
    path = write(tmp_path / "vggss.json", [{"file": name} | entry for name in ids])
    for lines in (
        ids,
        [f"{one}.jpg" for one in ids],
        ["gklbB7TYoK4_30000_40000", "1F3_bvIT0ig_0_10000", "twvjW7ymUIQ_4159000_4169000"],
    ):
        found = read("vgg-ss", path, ids=write(tmp_path / "list.txt", "\n".join(lines[::-1])))
        assert [sample.id for sample in found.samples] == ids[::-1]
        assert list(map(normal_id, lines)) == ids
    assert normal_id("videos2/9/8/6/8/5/4/3/0/3098685430.mp4") == "3098685430" and normal_id("bell/7") == "bell/7"


def test_bad_lists(tmp_path):
    entry = {"class": "owl hooting", "bbox": [[0, 0, 0.5, 0.5]]}
    path = write(tmp_path / "vggss.json", [{"file": name} | entry for name in CLIPS[:2]])
    for text, message in (
        (f"{CLIPS[0]}\n{CLIPS[1]}\n{CLIPS[0]}\n", f"list.txt: 1 of 2 ids listed more than once: '{CLIPS[0]}'"),
        (
            "".join(f"{one}\n" for one in CLIPS),
            f"list.txt: 4 ids without annotation in .*vggss.json: '{CLIPS[2]}', '{CLIPS[3]}', ",
        ),
        (f"{CLIPS[0]}\n{CLIPS[1]}.jpg\n", "list.txt: line 2: expected an id as YTID_SECONDS .*, the form of line 1"),
        ("\n7\n", "list.txt: line 2: expected an id of vggsound, as YTID_SECONDS .*, YTID_SECONDS.jpg, .*, got '7'"),
        ("\n", "list.txt: expected a list of ids, got none"),
    ):
        with pytest.raises(DataError, match=message):
            read("vgg-ss", path, ids=write(tmp_path / "list.txt", text))


def test_hostile_numbers_and_nesting(tmp_path):
    """No OverflowError, no RecursionError, no ValueError without the file's name."""
    good = '{"image": "a_b.jpg", "audio": "a_b.wav", "gt_box": %s}'
    for name in ("is3", "s4", "vgg-ss"):
        for depth in (400, 900, 3000, 100_000):
            nested = "[" * depth + "]" * depth
            for text in (nested, f"[{good % nested}]", f'[{{"file": "a", "class": "b", "bbox": {nested}}}]'):
                with pytest.raises(DataError, match="^.*/a.json: "):
                    read(name, write(tmp_path / "a.json", text))
    zero = "0"
    for digits in (400, 5000):
        with pytest.raises(DataError, match="^.*/a.json: "):
            read("is3", write(tmp_path / "a.json", f"[{good % f'[0, 0, 9, 1{digits * zero}]'}]"))
    with pytest.raises(DataError, match=r"a.json: entry 0: expected paths of files, got '../../b.c'"):
        entry = {"image": "x/../../b.c.png", "audio": "a/b.wav", "gt_box": [0, 0, 9, 9]}
        read("s4", write(tmp_path / "a.json", [entry]))
    with pytest.raises(DataError, match=r"a.json: entry 0: expected image, audio and gt_box, got "):
        read("is3", write(tmp_path / "a.json", [{"image": "", "audio": "a.wav", "gt_box": [0, 0, 9, 9]}]))
    with pytest.raises(DataError, match="silent.csv: line 2: expected VIDEO,AUDIO,non-sounding, got '../a,b,non"):
        path = write(tmp_path / "vggss.json", [{"file": "a_1", "class": "owl hooting", "bbox": [[0, 0, 0.5, 0.5]]}])
        rows = "video,audio,label\n../a,b,non-sounding\n"
        read("vgg-ss", path, negatives=write(tmp_path / "silent.csv", rows))


# ---------------------------------------------------------------------------------------------------------------------
# The published files


@published
def test_published_vggss():
    found = read("vgg-ss", FOLDER / "vggss.json", ids=FOLDER / "vggss_test.csv")
    assert len(found.samples) == 5158 and len({sample.category for sample in found.samples}) == 221
    assert counts(found) == {"outside": 14, "degenerate": 18, "empty": 2, "whole frame": 3, "misspelt": 20}
    assert found.dirt["empty"] == ["M1P1xla8rg0_000000", "MKC9LvRivTM_000030"]
    boxes = {entry["file"]: entry["bbox"] for entry in json.loads((FOLDER / "vggss.json").read_text())}
    for sample in found.samples[::97]:
        slow = [[int(min(max(v, 0), 1) * 224) for v in box] for box in boxes[sample.id]]
        assert sample.boxes.tolist() == [box for box in slow if box[0] < box[2] and box[1] < box[3]]
    for part, size in (("heard", 2564), ("unheard", 2575)):
        some = read("vgg-ss", FOLDER / "vggss.json", ids=FOLDER / f"vggss_{part}_test.csv")
        assert len(some.samples) == size and len({sample.category for sample in some.samples}) == 110
    extended = found.extended(FOLDER / "vggss_test_plus_silent.csv").samples[5158:]
    assert len(extended) == 5158 and not any(sample.sounding for sample in extended)
    same = sum(sample.image == sample.audio for sample in extended)
    assert same == 379 and len({sample.audio for sample in extended if sample.image != sample.audio}) == 3092
    category = {sample.id: sample.category for sample in found.samples}
    pairs = [sample for sample in extended if sample.image != sample.audio]
    assert sum(category[sample.image] == category[sample.audio] for sample in pairs) == 1185


@published
def test_published_is3_and_s4():
    is3, s4 = read("is3", FOLDER / "synthetic3240_bbox.json"), read("s4", FOLDER / "s4_box.json")
    assert len(is3.samples) == 6480 and set(Counter(sample.group for sample in is3.samples).values()) == {2}
    assert len({sample.category for sample in is3.samples}) == 111 and counts(is3).keys() == {"whole frame"}
    assert len(s4.samples) == 3700 and set(Counter(sample.group for sample in s4.samples).values()) == {5}
    assert len({sample.category for sample in s4.samples}) == 23
    assert counts(s4) == {"degenerate": 6, "empty": 6}


@published
@pytest.mark.parametrize("lists", [249, 250])
def test_published_lists_of_flickr(tmp_path, lists):
    rows = (FOLDER / "flickr_test.csv").read_text().split()
    ids = [row.partition(",")[0] for row in rows]
    sides = "".join(f"<s>{v}</s>" for v in ("label", 16, 32, 128, 256))
    for name in ids:
        write(tmp_path / f"{name}.xml", f"<r><one><bbox>{sides}</bbox></one></r>")
    if lists == 249:  # one image is missing in the lists of four programs
        rows = [row for row in rows if not row.startswith("3908875350,")]
    found = read("flickr", tmp_path, ids=write(tmp_path / "list.csv", "\n".join(rows)))
    assert len(found.samples) == lists and found.samples[0].boxes.tolist() == [[14, 28, 112, 224]]
    negatives = found.extended(FOLDER / "flickr_test_plus_silent.csv").samples[lists:]
    assert sorted(sample.image for sample in negatives) == sorted(ids)
    assert len({sample.audio for sample in negatives}) == 160
    assert not any(sample.image == sample.audio or sample.sounding for sample in negatives)
