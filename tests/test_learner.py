"""Image nets that start from ImageNet (what a step computes: test_training, test_views)."""

import pytest
import torch

from ssl_fast.models import ResNet18, storage
from ssl_fast.training.learner import Learner
from ssl_fast.training.loop import train
from ssl_fast.training.recipes import recipe
from training_toys import ToySet


def imagenet(path, seed=0, **changes):
    """A file such as torchvision's; `changes` replace its entries, None takes one out."""
    torch.manual_seed(seed)
    state = {
        name: torch.randn_like(value).abs() if value.is_floating_point() else value  # variances are not negative
        for name, value in ResNet18().state_dict().items()
    }
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)} | changes
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    return state


@pytest.mark.parametrize("method", ["ez_vsl", "slavc", "ssl_align"])
def test_image_nets_start_from_a_file_and_the_rest_as_ever(method, tmp_path):
    state, one = imagenet(tmp_path / "net.pth"), recipe(method, "published")
    plain, learner = Learner(one, seed=3), Learner(one, seed=3, init=tmp_path / "net.pth")
    assert plain.unused == [] and learner.unused == ["fc.weight", "fc.bias"]
    from_file = {f"visual_net.{name}": value for name, value in state.items() if not name.startswith("fc.")}
    expected = plain.localizer.state_dict() | from_file
    nets = [learner.localizer] if method != "slavc" else [learner.localizer, learner.momentum.localizer]
    for net in nets:
        got = net.state_dict()
        assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)


def test_files_that_do_not_fit_an_image_net_are_named(tmp_path):
    one, path = recipe("ez_vsl", "published"), tmp_path / "net.pth"
    imagenet(
        path,
        **{"layer2.0.conv1.weight": None, "layer9.weight": torch.zeros(1), "conv1.weight": torch.zeros(64, 1, 7, 7)},
    )
    with pytest.raises(storage.CheckpointError) as error:
        Learner(one, init=path)
    for part in (
        f"{path}: expected the weights of torchvision's ResNet-18",
        "layer2.0.conv1.weight",
        "layer9.weight",
        "conv1.weight: expected (64, 3, 7, 7), got (64, 1, 7, 7)",
    ):
        assert part in str(error.value)
    torch.save([1, 2], path)
    with pytest.raises(storage.CheckpointError, match="net.pth: expected the weights of .*, got list"):
        Learner(one, init=path)
    with pytest.raises(storage.CheckpointError, match="absent.pth: no such file"):
        Learner(one, init=tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="init: expected a net of torchvision's ResNet-18 for .*pth, got SmallResNet"):
        Learner(recipe("ez_vsl"), init=path)


@pytest.mark.slow
def test_resume_refuses_another_file_of_weights(tmp_path):
    one = recipe("ez_vsl", "published", batch_size=20, epochs=1, image_size=32, augmentation="none", front_end="scenes")
    for seed in (1, 2):
        imagenet(tmp_path / f"{seed}.pth", seed)
    options = {"out": tmp_path / "run", "progress": False}
    first, again = (train(ToySet(), one, init=tmp_path / "1.pth", resume=resume, **options) for resume in (False, True))
    assert first.unused == ["fc.weight", "fc.bias"] and again.history == first.history
    for init in (tmp_path / "2.pth", None):
        with pytest.raises(ValueError, match="belongs to a run with init='[0-9a-f]{16}', asked to go on with init="):
            train(ToySet(), one, init=init, resume=True, **options)
