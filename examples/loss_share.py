"""How much of a training step's arithmetic the loss of all pairs is, and what its maps would take, by batch.

    python examples/loss_share.py

Nets are those of the published recipes, ResNet-18 at 224 x 224 for frames and one for spectrograms, forward and
backward. The loss is counted as a program multiplies that keeps the maps: 6 N^2 h w C T P, see
`ssl_fast.benchmarks.step`. maps: N^2 h w T P float32 numbers for each head; such a program keeps several
like them.
"""

from ssl_fast.benchmarks import step
from ssl_fast.training import recipes

TOKENS = "ez_vsl nets, 14x14 cells, 250 tokens, 768 channels"
CASES = [  # method, batches
    ("ez_vsl", (128, 512)),
    ("ssl_align", (128, 512)),
    ("dense_av", (40, 256)),
]


def row(name: str, batch: int, nets: int, loss: int, channels: int) -> str:
    """nets, loss: multiply-adds as two."""
    gib = loss / (6 * channels) * 4 / 2**30
    return f"| {name} | {batch} | {nets / batch / 1e9:.1f} | {100 * loss / nets:.2f} | {gib:.2f} |"


def main() -> None:
    print("| method | batch | nets, GFLOP a sample | loss, % of the nets | maps, GiB a head |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for method, batches in CASES:
        recipe = recipes.recipe(method, "published")
        for batch in batches:
            counted = step.flops(recipe, batch)
            print(row(method, batch, counted["nets"], counted["loss"], channels=512))
    nets = step.net_flops(recipes.recipe("ez_vsl", "published"))
    for batch in (40, 256):
        print(row(TOKENS, batch, batch * nets, step.loss_flops(batch, 196, 768, 250), channels=768))


if __name__ == "__main__":
    main()
