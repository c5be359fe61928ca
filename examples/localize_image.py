"""One image and one sound: where it is made, whether anything there makes it, and a picture of the maps.

python examples/localize_image.py frame.jpg clip.wav out.png [runs/mine]
"""

import sys

from PIL import Image

from ssl_fast.inference.localize import LocalizationPipeline
from ssl_fast.models import checkpoints


def main(image: str, sound: str, out: str, weights: str = str(checkpoints.EMBEDDED)) -> None:
    pipeline = LocalizationPipeline(checkpoints.load(weights))  # a run's folder, a file, a published checkpoint
    answer = pipeline.localize(pipeline.read_image(image), pipeline.read_sound(sound))
    scores = answer.scores()
    print(f"highest cosine {scores['maximum']:.3f} at {scores['x']:.2f} of the width, {scores['y']:.2f} of the height")
    if scores["found"] is not None:  # the checkpoint has a threshold
        print(f"{scores['area']:.1%} of the image is above the threshold of {scores['threshold']:.3f}")
    Image.fromarray(answer.sheet(alpha=0.4)).save(out)  # answer.audio_visual is the map itself, (h, w) cosines


if __name__ == "__main__":
    main(*sys.argv[1:])
