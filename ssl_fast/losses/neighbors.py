"""HardPos, the loss whose positives are nearest neighbours too."""

from typing import Literal

import torch
from torch import Tensor

from .. import ops
from ..ops.checks import check_tensor
from .cross_entropy import check_one_positive, check_positives, check_tau, contrast, join, own, target_columns
from .extra import ExtraNegatives
from .options import check_choice
from .scores import direction, pooled


def hard_positives(
    visual: Tensor,
    audio: Tensor,
    similar_visual: Tensor,
    similar_audio: Tensor,
    *,
    combine: Literal["mean", "sum", "logsumexp"] = "mean",
    epsilon: float = 0.65,
    beta: float = 0.03,
    tau: float = 0.07,
    margin: float = 0.0,
    symmetric: bool = False,
    mean_weight: float = 0.0,
    positives: Tensor | None = None,
    extra_negatives: ExtraNegatives | None = None,
    group=None,
    backend: str = "auto",
) -> Tensor:
    """HardPos: image and sound of semantically similar samples are positives too (Senocak et al., ICASSP 2022).

        S = soft-threshold pooling of the cosines (epsilon, beta)
        P_i = `combine` of S(v_i, a_i), S(v_i, a'_i), S(v'_i, a_i), S(v'_i, a'_i)             ' = the similar sample's
        L = mean over i of  log(1 + sum over j != i of exp((S(v_i, a_j) - P_i + margin) / tau))

    similar_visual (N, C, h', w'), similar_audio (N, C): the image, and the sound, of a nearest neighbour of each pair,
    found in each modality by itself (`data.neighbors`); they are nobody's negatives.
    combine: "mean"; "sum", since the paper adds the four response maps, without a released program: here, with a logit
        for each negative as in LVS's program, four cosines of 1 against one make the sum's best net a collapsed one;
        "logsumexp", tau log sum exp(S / tau): the sum over positives in the numerator of MIL-NCE.
    symmetric: the mean with the same over S(v_j, a_i), against other images.
    positives: no matrix, as the similar samples are those of one pair; extra negatives are among the j.
    """
    check_tau(tau)
    check_choice("combine", combine, hard_positives)
    check_tensor("visual", visual)
    check_tensor("audio", audio)
    rows = visual.shape[:1].numel()
    for name, similar, dims in (("similar_visual", similar_visual, 4), ("similar_audio", similar_audio, 2)):
        check_tensor(name, similar)
        if similar.dim() != dims or similar.shape[0] != rows:
            shape = f"({rows}, C, h, w)" if dims == 4 else f"({rows}, C)"
            raise ValueError(f"{name}: expected {shape}, one of each image, got {tuple(similar.shape)}")
    pooling = ops.SoftThreshold(epsilon, beta)
    check_one_positive(positives, "beside the similar samples, which are those of one pair")
    batch, positives, extra, audio = join(group, positives, extra_negatives, visual, audio=audio)
    scores = pooled(visual, extra.behind(audio), pooling, mean_weight, backend)
    check_positives(rows, len(audio), positives, scores.device)
    pairs = (visual, similar_audio), (similar_visual, own(audio, positives)), (similar_visual, similar_audio)
    maps = [ops.cosine_map(*pair, backend=backend).flatten(1) for pair in pairs]
    paired = [torch.lerp(pooling.reference(cells), cells.mean(1), mean_weight) for cells in maps]
    four = torch.stack([scores.gather(1, target_columns(positives, scores))[:, 0], *paired], 1)
    if combine == "logsumexp":
        positive = tau * (four / tau).logsumexp(1, keepdim=True)
    else:
        positive = four.sum(1, keepdim=True) / (4 if combine == "mean" else 1)
    negatives, weight = direction(symmetric)
    return contrast(batch, scores, positives, extra, negatives, tau, margin, positive=positive) * weight
