"""RCGrad's way to a map: Grad-CAM of the similarity of an image and a sound that are each one vector.

cd examples && RCGRAD_WEIGHTS=../runs/mine ssl-fast evaluate --data DIR --model rcgrad:maps \
    --front-end scenes --image-size 112 --out results      # front end, size and --fit of the run in RCGRAD_WEIGHTS
RCGRAD_WEIGHTS=runs/mine python examples/rcgrad.py DIR     # with the threshold that vssl_eval's paper takes for RCGrad

Its nets are trained by the cosine of pooled features in both directions, here losses.ssl_align with symmetric=True on
[visual.mean((2, 3), keepdim=True)] and [audio]. Grad-CAM weighs the channels of the image net's last layer by the mean
over cells of the gradient of that similarity (of raw features, as released), leaves out what is below 0, and scales
each map to [0, 1].
"""

import os
import sys

import torch

from ssl_fast.data.datasets import FolderSet
from ssl_fast.evaluation import evaluate, protocols
from ssl_fast.models import checkpoints

found = checkpoints.load(os.environ.get("RCGRAD_WEIGHTS", checkpoints.EMBEDDED))
# Maps are in [0, 1] already, and no negatives choose the threshold.
PROTOCOL = protocols.Protocol("rcgrad", rules=(protocols.Rule("grad_cam", "value", ">", value=0.75),))


def maps(images: torch.Tensor, spectrograms: torch.Tensor) -> torch.Tensor:
    """Images uint8 (B, 3, H, W) and spectrograms (B, 1, F, T) -> maps (B, h, w) in [0, 1]."""
    net, kept = found.localizer, []

    def keep(module, inputs, output):
        kept.append(output.detach().requires_grad_())
        return kept[0]

    audio = net.audio_features(net.normalize_spectrograms(spectrograms))
    hook = net.visual_net.register_forward_hook(keep)
    with torch.enable_grad():
        visual = net.visual_features(net.normalize_images(images))
        if "visual_projected" in visual:  # ssl_align's two vectors
            score = (visual["visual_projected"] * audio["audio_projected"]).sum()
        else:
            sound = audio["audio"].mean(2) if net.has_tokens else audio["audio"]
            score = (visual["visual"].mean((2, 3)) * sound).sum()
        (gradient,) = torch.autograd.grad(score, kept[0])
    hook.remove()
    cam = (gradient.mean((2, 3), keepdim=True) * kept[0].detach()).sum(1).clamp_min(0)
    low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
    return (cam - low) / (high - low + 1e-7)


def main(folder: str) -> None:
    samples = FolderSet(folder, **found.reading)
    results = evaluate(maps, {"folder": samples}, published=[PROTOCOL], negatives=(), progress=False)
    figures = results["protocols"]["folder"]["rcgrad"]["model"]["figures"]["audio_visual"]["localization"]
    print(f"above .75: success rate {figures['ciou_grad_cam']:.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
