"""Maps of any model through published protocols: the same maps, and what each released program says of them.

python examples/evaluate_maps.py maps.npy ground_truth.npy [ez_vsl,lvs,ssl_tie,default]

maps.npy: (N, h, w) cosines. ground_truth.npy: (N, 224, 224), 1 where the sounding object is.
"""

import sys

import numpy as np

from ssl_fast.evaluation import protocols


def main(maps_file: str, truth_file: str, names: str = "ez_vsl,lvs,ssl_tie,default") -> None:
    maps, ground_truth = np.load(maps_file), np.load(truth_file)
    for name in names.split(","):
        figures = protocols.run(name, maps, ground_truth)["figures"]["audio_visual"]["localization"]
        print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items() if key.startswith("ciou")))
    own = protocols.Protocol("own", rules=(protocols.Rule("top20", fraction=0.2),))  # a protocol is data
    figures = protocols.run(own, maps, ground_truth)["figures"]["audio_visual"]["localization"]
    print(f"own: success rate with the top 20 % {figures['ciou_top20']:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
