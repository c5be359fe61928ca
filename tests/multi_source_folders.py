"""Small folders of the sets of several sources and of prompts, in the layouts of the programs, with their lists."""

import json

import numpy as np
from PIL import Image

from published_folders import put
from ssl_fast.data.test_sets import ANNOTATIONS

CLIPS = [f"abcdefghij{i}_00003{i}" for i in range(4)]
CLASSES = ["owl hooting", "railroad car, train wagon", "playing cello", "sharpen knife"]
FRAMES = [f"-abc_efghij_00{i}_0003{i}" for i in range(3)]
BOX = [0.25, 0.5, 0.5, 0.25]  # x, y, width, height
SAMPLES = [f"sample000{i}" for i in range(4)]
ROWS = [[0, 1], [1, 2], [2, 3], [1, 0]]  # pairs; two of them the same, the other way round


PROMPTS = """image_location,ade_class_id,timing,speech_prompt_file,vggsound_file
training/a/x_1.jpg,773,"[0.1, 0.5]",prompts/dog 1.wav,/far/s2.wav
training/a/x_1.jpg,12,,,/far/dog 1.wav
training/b/x_2.jpg,0,,prompts/s2.wav,/far/s2.wav
training/b/x_2.jpg,773,,prompts/s2.wav,
"""


def files_of(name, layout):
    """The images and sounds of a set."""
    if name.startswith("music"):
        sounds = ["-abc_efghij"] if layout == "avgn" else FRAMES
        return [*(f"frames/{one}.jpg" for one in FRAMES), *(f"audio/{one}.wav" for one in sounds)]
    if name.startswith("ade20k"):
        frames = [f"frames/training/{one}.jpg" for one in ("a/x_1", "b/x_2")]
        return [*frames, "audio/dog 1.wav", "audio/s2.wav"]
    names = CLIPS if name.startswith("vggsound") else SAMPLES
    return [f"{folder}/{one}.{suffix}" for one in names for folder, suffix in (("frames", "jpg"), ("audio", "wav"))]


def lists(root, name):
    """The annotation file of a set, as it is published."""
    path = root / ANNOTATIONS[name][0]
    if name == "music-solo":
        content = json.dumps([{"file": one, "class": "cello", "bbox": BOX} for one in FRAMES])
    elif name == "music-duet":
        more = {"class_src1": "cello", "bbox_src1": BOX, "class_src2": "acoustic_guitar", "bbox_src2": [0, 0, 0.5, 1.0]}
        content = json.dumps([{"file": one, **more} for one in FRAMES])
    elif name.startswith("ade20k"):
        content = PROMPTS
    else:
        names = CLIPS if name.startswith("vggsound") else SAMPLES
        cells = [f"{one},{label.replace(',', '').replace(' ', '_')}" for one, label in zip(names, CLASSES)]
        rows = ROWS if name.endswith("duet") else [[i] for i in range(4)]
        content = "\n".join(",".join(cells[i] for i in row) for row in rows)
        boxes = [{"file": one, "class": label, "bbox": [[0.1, 0.2, 0.9, 0.8]]} for one, label in zip(CLIPS, CLASSES)]
        boxes[2]["bbox"] = [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]
        (root / "vggss.json").write_text(json.dumps(boxes))
    path.write_text(content)
    return path


def make(root, name, layout="avgn"):
    root.mkdir(exist_ok=True)
    for file in files_of(name, layout):
        put(root, file)
    if name.startswith("vgg-instruments"):
        for one in SAMPLES:
            put(root, f"masks/gt_{one}.png").rename(root / f"masks/{one}.png")
    if name.startswith("ade20k"):
        for file, columns in (("a/x_1", 10), ("b/x_2", 20)):
            labels = np.zeros((30, 40, 3), np.uint8)
            labels[:, :, 2] = 200  # of instances
            labels[:, :columns] = 30 + 4, 773 - 3 * 256, 9  # 773, and a rest of red that is ignored
            labels[:15, 30:] = 0, 12, 9
            path = root / f"annotations/training/{file}_seg.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)
    lists(root, name)
    return root
