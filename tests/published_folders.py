"""Small folders of six samples as the published programs read them: files, the list of their ids, annotations.

    folder = FOLDERS["ssl-tie: flickr"]
    make(tmp_path, folder)          # tmp_path/list.txt, tmp_path/frames/videos/1/6/0/10000130160.mp4/00000003.jpg ...

Paths, lines of lists and annotations are written out here as the programs have them, not by the code that is tested.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

CLIPS = [f"abcdefghij{i}_00003{i}" for i in range(6)]
CLIPS_MS = [f"abcdefghij{i}_3{i}000_4{i}000" for i in range(6)]
CLASSES = ["owl hooting", "playing cello", "train horning", "owl hooting", "machine gun shooting", "playing cello"]
NUMBERS = [f"1000013016{i}" for i in range(6)]
FILMS = [
    *(f"videos/1/6/{i}/1000013016{i}.mp4" for i in range(3)),
    *(f"videos2/0/0/1/3/0/1/6/{i}/1000013016{i}.mp4" for i in range(3, 6)),
]
PAIRS = [f"owl_train_{number}_{name}" for number in (7, 8, 9) for name in ("owl", "train")]
FRAMES = [f"dog_barking/v-1/v-1_{k}" for k in (1, 2, 3)] + [f"cat_meowing/v-2/v-2_{k}" for k in (1, 2, 3)]
MIXED = [f"v-{v}_0/v-{v}_0.mp4_{k}" for v in (1, 2) for k in (1, 2, 3)]
OBJECTS = [f"00000006249{i // 2}_43235{i}" for i in range(6)]
SSL_ALIGN = ("is3", "is3-plus", "s4", "ms3", "vpo-ss", "vpo-ms")  # published as its JSON


@dataclass(frozen=True)
class Folder:
    """A published folder: of which set, in which layout, with the ids of its samples, the lines of its list, and the
    files of each sample."""

    of: str
    layout: str
    ids: list[str]
    lines: list[str]
    files: list[tuple[str, ...]]
    annotations: str = ""  # their name in the folder; "" for training


def _clips(of, layout, frame, sound, annotations="", lines=CLIPS, names=CLIPS):
    files = [(frame.format(one), sound.format(one)) for one in names]
    return Folder(of, layout, CLIPS, lines, files, annotations)


def _numbers(layout, frame, sound, annotations="", lines=NUMBERS, names=NUMBERS):
    files = [(frame.format(one), sound.format(one)) for one in names]
    return Folder("flickr", layout, NUMBERS, lines, files, annotations)


def _jpg(ids):
    return [f"{one}.jpg" for one in ids]


_MS = {"lines": CLIPS_MS, "names": CLIPS_MS}
_PHOTOS = "Flickr_Sound_Top5_Dataset_img_test/{}.mp4/some frame.jpg"
_S4 = [
    (f"visual_frames/test/{k}.png", f"audio_wav/test/{k.rpartition('/')[0]}.wav", f"gt_masks/test/{k}.png")
    for k in FRAMES
]
_MS3 = [
    (
        f"visual_frames/{k}.png",
        f"audio_wav/test/{k.partition('/')[0]}.wav",
        f"gt_masks/test/{k.replace('.mp4', '')}.png",
    )
    for k in MIXED
]
_IS3, _VISUAL = (
    [(f"{folder}/{k}.jpg", f"audio_wav/{k}.wav", f"gt_segmentation/{k}.png") for k in PAIRS]
    for folder in ("images", "visual_frames")
)
_VPO = [(f"visual_frames/{k}.jpg", f"audio_wav/{k}.wav", f"gray_masks/{k}.jpg") for k in OBJECTS]
FOLDERS = {
    # to train
    "ez-vsl, slavc: vggsound": _clips("vggsound", "slavc", "frames/{}.jpg", "audio/{}.wav"),
    "fnac: vggsound": _clips("vggsound", "fnac", "frames/{}.png", "audio/{}.wav"),
    "ssl-align: vggsound": _clips(
        "vggsound", "ssl-align", "VGGSound_img/{}/image_050.jpg", "VGGSound_aud/{}.wav", **_MS
    ),
    "ssl-align, frames: vggsound": _clips("vggsound", "ssl-align", "frames/{}/image_050.jpg", "audio/{}.wav", **_MS),
    "ssl-tie: vggsound": _clips("vggsound", "ssl-tie", "total_video_frames/{}/125.jpg", "total_video_3s_audio/{}.wav"),
    "ez-vsl, slavc, fnac: flickr": _numbers("slavc", "frames/{}.jpg", "audio/{}.wav"),
    "ssl-align: flickr": _numbers("ssl-align", "frames/{}.mp4/some frame.jpg", "audio/{}.wav"),
    "ssl-tie: flickr": _numbers("ssl-tie", "frames/{}/00000003.jpg", "mp3/{}.mp3", lines=FILMS, names=FILMS),
    "ssl-tie, numbers: flickr": _numbers("ssl-tie", "frames/{}/00000003.jpg", "mp3/{}.mp3"),
    # to test
    "lvs, ez-vsl, slavc: vgg-ss": _clips("vgg-ss", "slavc", "frames/{}.jpg", "audio/{}.wav", "vggss.json"),
    "fnac: vgg-ss": _clips("vgg-ss", "fnac", "frames/{}.png", "audio/{}.wav", "vggss.json"),
    "ssl-align: vgg-ss": _clips(
        "vgg-ss", "ssl-align", "VGGSound_img/{}/image_050.jpg", "VGGSound_aud/{}.wav", "vggss.json", **_MS
    ),
    "ssl-align, audios_wav: vgg-ss": _clips(
        "vgg-ss", "ssl-align", "VGGSound_img/{}/image_050.jpg", "audios_wav/{}.wav", "vggss.json", **_MS
    ),
    "ssl-tie: vgg-ss-xml": _clips("vgg-ss-xml", "ssl-tie", "frame/{}.jpg", "audio/{}.wav", "anno", lines=_jpg(CLIPS)),
    "ez-vsl, slavc: flickr test": _numbers("slavc", "frames/{}.jpg", "audio/{}.wav", "Annotations"),
    "ssl-align: flickr test": _numbers(
        "ssl-align", _PHOTOS, "Flickr_Sound_Top5_Dataset_wav_test/{}.wav", "annotations", lines=_jpg(NUMBERS)
    ),
    "ssl-align, 250: flickr test": _numbers("ssl-align", "frames_250/{}.jpg", "audio_250/{}.wav", "annotations"),
    "ssl-tie: flickr test": _numbers("ssl-tie", "frame/{}.jpg", "mp3/{}.mp3", "anno", lines=_jpg(NUMBERS)),
    "ssl-tie, vggsound: flickr test": _numbers("ssl-tie", "frame/{}.jpg", "audio/{}.wav", "anno", lines=_jpg(NUMBERS)),
    "is3": Folder("is3", "is3", PAIRS, PAIRS, _IS3, "synthetic3240_bbox.json"),
    "ssl-align: is3": Folder("is3", "ssl-align", PAIRS, PAIRS, _VISUAL, "synthetic3240_bbox.json"),
    "is3: is3-plus": Folder("is3-plus", "is3", PAIRS, PAIRS, _IS3, "is3_plus_bbox.json"),
    "ssl-align: is3-plus": Folder("is3-plus", "ssl-align", PAIRS, PAIRS, _VISUAL, "is3_plus_bbox.json"),
    "avsbench: s4": Folder("s4", "avsbench", FRAMES, FRAMES, _S4, "s4_box.json"),
    "avsbench: ms3": Folder("ms3", "avsbench", MIXED, MIXED, _MS3, "ms3_box.json"),
    "ssl-align: vpo-ss": Folder("vpo-ss", "ssl-align", OBJECTS, OBJECTS, _VPO, "vpo_ss_bbox.json"),
    "ssl-align: vpo-ms": Folder("vpo-ms", "ssl-align", OBJECTS, OBJECTS, _VPO, "vpo_ms_bbox.json"),
}
TRAINING = [name for name, folder in FOLDERS.items() if not folder.annotations]
TESTING = [name for name, folder in FOLDERS.items() if folder.annotations]


def put(root, file):
    """An image, a mask whose left third is white, or a sound, of what its name seeds."""
    path, rng = root / file, np.random.default_rng(zlib.crc32(file.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".wav":
        soundfile.write(path, rng.uniform(-0.5, 0.5, 8000), 16000)
    elif path.suffix == ".mp3":
        soundfile.write(path, rng.uniform(-0.5, 0.5, 8000), 16000, format="MP3", subtype="MPEG_LAYER_III")
    elif "gt_" in file or "mask" in file:
        pixels = np.zeros((224, 224), np.uint8)
        pixels[:, :75] = 255
        Image.fromarray(pixels).save(path)
    else:
        size = (224, 224) if "visual_frames/" in file and path.suffix == ".png" else (30, 40)  # AVSBench's are squares
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


# AVSBench as downloaded
S4_CSV = """name,start,category,split
v-1,3,dog_barking,test
v-2,0,helicopter,test
v-3,1,dog_barking,val
v-6,0,helicopter,val
v-4,1,dog_barking,train
"""
MS3_CSV = "video_id,split\nv-1_0,test\nv-2_0,test\nv-3_7,train\n"
SEMANTIC_CSV = """vid,uid,s_min,s_sec,a_obj,split,label
v-1_0,a,0,3,man_guitar,test,v1m
v-2_0,b,0,3,dog,test,v1m
v-3_7,c,0,3,cat,train,v1m
v-4_1,d,0,3,dog,test,v1s
v-5_0,e,0,3,guitar,test,v1m
"""


def s4(root: Path) -> Path:
    """The folder of the download, with the csv beside that of the data; clips to train with have one mask."""
    for split, clip, masks in (
        ("test", "dog_barking/v-1", 5),
        ("test", "helicopter/v-2", 5),
        ("val", "dog_barking/v-3", 5),
        ("val", "helicopter/v-6", 5),
        ("train", "dog_barking/v-4", 1),
    ):
        put(root, f"s4_data/audio_wav/{split}/{clip}.wav")
        for n in range(1, 6):
            put(root, f"s4_data/visual_frames/{split}/{clip}/{clip.partition('/')[2]}_{n}.png")
        for n in range(1, masks + 1):
            put(root, f"s4_data/gt_masks/{split}/{clip}/{clip.partition('/')[2]}_{n}.png")
    (root / "s4_meta_data.csv").write_text(S4_CSV)
    return root


def ms3(root: Path) -> Path:
    """Alike; metadata.csv is AVSBench-semantic's, with a clip more."""
    for split, name in (("test", "v-1_0"), ("test", "v-2_0"), ("train", "v-3_7"), ("test", "v-5_0")):
        put(root, f"ms3_data/audio_wav/{split}/{name}.wav")
        for n in range(1, 6):
            put(root, f"ms3_data/visual_frames/{name}/{name}.mp4_{n}.png")
            put(root, f"ms3_data/gt_masks/{split}/{name}/{name}_{n}.png")
    (root / "ms3_meta_data.csv").write_text(MS3_CSV)
    (root / "metadata.csv").write_text(SEMANTIC_CSV)
    return root


def make(root: Path, folder: Folder) -> Path:
    """Write the folder, with list.txt and, to test, its annotations; returns it."""
    for file in dict.fromkeys(file for files in folder.files for file in files):
        put(root, file)
    (root / "list.txt").write_text("".join(f"{line}\n" for line in folder.lines), encoding="utf-8")
    if folder.annotations:
        annotate(root / folder.annotations, folder)
    return root


def annotate(path: Path, folder: Folder) -> None:
    """Annotations of the folder's samples as the set publishes them: a box each, and another one on Flickr."""
    if folder.of == "vgg-ss":
        entries = [
            {"file": one, "class": name, "bbox": [[0.1, 0.2, 0.5, 0.9]]} for one, name in zip(folder.ids, CLASSES)
        ]
        path.write_text(json.dumps(entries))
    elif folder.of in SSL_ALIGN:
        entries = [
            {"image": f"/far/away/{image}", "audio": f"/far/away/{sound}", "gt_box": [10.0, 20.0, 100.0, 200.0]}
            for image, sound, _ in folder.files
        ]
        path.write_text(json.dumps(entries))
        masks = [entry | {"gt_box": f"/far/{mask}", "offset": 1} for entry, (*_, mask) in zip(entries, folder.files)]
        path.with_name(f"{folder.of.replace('-', '_')}_seg.json").write_text(json.dumps(masks))
    else:
        path.mkdir()
        for one in folder.ids:
            if folder.of == "flickr":
                boxes = ("label", 10, 20, 130, 255), ("label", 50, 20, 130, 255)
                sides = ["".join(f"<s>{v}</s>" for v in box) for box in boxes]
                text = "".join(f"<one><bbox>{part}</bbox></one>" for part in sides)
            else:
                text = f"<bbox><one>{''.join(f'<s>{v}</s>' for v in (0.1, 0.2, 0.5, 0.9))}</one></bbox>"
            (path / f"{one}.xml").write_text(f"<r>{text}</r>")
