"""Train a localizer on a folder of frames/ and audio/, by a recipe in which you change what you like.

python examples/train_on_folder.py DIR runs/mine [--method ez_vsl] [--epochs 18]
"""

import argparse

from ssl_fast.data.datasets import FolderSet
from ssl_fast.training import recipe, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DIR")
    parser.add_argument("out")
    parser.add_argument("--method", default="ez_vsl")
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()

    # "published" in place of "quickstart": ResNet-18 and all that the paper says; any field can be replaced by its name
    how = recipe(args.method, "quickstart", epochs=args.epochs, batch_size=args.batch_size, learning_rate=1e-3)
    samples = FolderSet(args.data, **how.reading)
    run = train(samples, how, out=args.out, resume=True, progress=False)  # goes on where it was stopped
    print(
        f"{run.steps} steps, loss {run.final_loss:.3f} (of a collapsed net {run.chance:.3f}): {args.out}/checkpoint.pt"
    )


if __name__ == "__main__":
    main()
