"""Losses, shards and results of several gloo processes against one process that holds everything."""

import datetime
import re

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loss_loops import CHANNELS, HEIGHT, WIDTH, features, flip
from ssl_fast import losses, ops
from ssl_fast.distributed import collect, shard
from ssl_fast.ops import checks

PROJECT = torch.from_numpy(np.random.default_rng(9).standard_normal((2, 4, CHANNELS)))
MIXED = {"beta": 0.2, "tau": 0.2}  # temperatures at which every pair has a say


def case(loss, **options):
    return lambda visual, audio, slow, **more: loss(visual[:, :CHANNELS], audio[:, :CHANNELS], **options, **more)


def slavc(with_momentum=True, **options):
    def call(visual, audio, slow, **more):
        v, a = visual.split(CHANNELS, 1), audio.split(CHANNELS, 1)
        momentum = (*slow[0].split(CHANNELS, 1), *slow[1].split(CHANNELS, 1)) if with_momentum else None
        return losses.slavc(*v, *a, momentum=momentum, tau=0.2, **options, **more)

    return call


def ssl_align(by_callables=True, projected=True, **options):
    def call(visual, audio, slow, **more):
        visuals, audios = visual.split(CHANNELS, 1), audio.split(CHANNELS, 1)
        visuals = (visuals[0], visuals[1][..., :1])  # views of two sizes
        project = [lambda x, p=p.to(visual.dtype): x @ p.t() for p in PROJECT]
        if not projected:
            return losses.ssl_align(visuals, audios, **options, **more)
        if by_callables:
            return losses.ssl_align(visuals, audios, *project, **options, **more)
        return losses.ssl_align(
            visuals,
            audios,
            projected_visuals=[project[0](v.mean((2, 3))) for v in visuals],
            projected_audios=[project[1](a) for a in audios],
            **options,
            **more,
        )

    return call


def ssl_tie(**options):
    def call(visual, audio, slow, **more):
        visual, transformed = visual.split(CHANNELS, 1)
        return losses.ssl_tie(visual, audio[:, :CHANNELS], transformed, flip, **MIXED, **options, **more)

    return call


def hard_positives(**options):
    def call(visual, audio, slow, **more):
        (visual, similar_visual), (audio, similar_audio) = (x.split(CHANNELS, 1) for x in (visual, audio))
        return losses.hard_positives(visual, audio, similar_visual, similar_audio, **MIXED, **options, **more)

    return call


def sspl(visual, audio, slow, **more):
    return losses.sspl(visual.split(CHANNELS, 1), audio[:, :CHANNELS], lambda x: (x, torch.tanh(x)), **more)


def clips(loss, **options):
    """audio (M, C, T) of the rows, T = 2, one token of which is masked."""

    def call(visual, audio, slow, **more):
        audio = torch.stack(audio.split(CHANNELS, 1), 2)
        mask = torch.ones(len(audio), 2, dtype=torch.bool)
        mask[audio[:, 0, 0] > 0, 1] = False
        masks = {"audio_mask": mask} if loss is losses.late_interaction else {"tokens": ops.TokenMean(mask)}
        return loss(visual[:, :CHANNELS], audio, **masks, **options, **more)

    return call


def extra(call, mask=False, several=False):
    """`call` with extra negatives: other numbers of some rows, weighted, of which one process has others than the next;
    several: those of both features of a sound, online and slow."""

    def with_extra(visual, audio, slow, **more):
        chosen = slow[1][:, 0] > 0.3
        first, second = audio.split(CHANNELS, 1)
        parts = (second, first, *slow[1].flip(1).split(CHANNELS, 1)) if several else (second,)
        if mask:
            parts = (torch.stack([second, first], 2),)
        sounds = [part[chosen] for part in parts]
        kept = torch.stack([chosen, audio[:, 1] > 0], 1)[chosen] if mask else None
        weight = slow[1][chosen, 1].exp()
        negatives = losses.ExtraNegatives(sounds if several else sounds[0], kept, weight)
        return call(visual, audio, slow, extra_negatives=negatives, **more)

    return with_extra


CASES = {
    "ssl_align": ssl_align(),
    "ssl_align-symmetric": ssl_align(by_callables=False, symmetric=True, mean_weight=0.3, pooling=ops.Max()),
    "ssl_align-plain": ssl_align(projected=False, pooling=ops.SoftThreshold(0.5, 0.2)),
    "margin_nce": case(losses.margin_nce, **MIXED),
    "margin_nce-symmetric": case(losses.margin_nce, symmetric=True, mean_weight=0.3, margin=0.1, **MIXED),
    "lvs": case(losses.lvs, **MIXED),
    "lvs-plain": case(losses.lvs, tri_map=False, hard_negative=False, margin=-0.2, mean_weight=0.3, **MIXED),
    "lvs-released": case(losses.lvs, diagonal="released", epsilon=0.5, beta=0.2, tau=0.5),
    "ez_vsl": case(losses.ez_vsl),
    "ez_vsl-margin": case(losses.ez_vsl, margin=-0.2, tau=0.2, mean_weight=0.4),
    "slavc": slavc(),
    "slavc-image": slavc(negatives="image", reduce="max"),
    "slavc-both": slavc(negatives="both"),
    "slavc-no-momentum": slavc(with_momentum=False, negatives="both", reduce="max"),
    "fnac": case(losses.fnac, tau=0.2),
    "fnac-nce": case(losses.fnac, weights=(0.0, 0.0, 0.0)),
    "fnac-fns2": case(lambda *x, **more: losses.fnac(*x, return_terms=True, **more)[1]["fns2"], tau=0.2, threshold=0.4),
    "ssl_tie": ssl_tie(weight=3.0),
    "hard_positives": hard_positives(margin=-0.1, mean_weight=0.3),
    "hard_positives-mil": hard_positives(combine="logsumexp", symmetric=True),
    "sspl": sspl,
    "ez_vsl-tokens": clips(losses.ez_vsl),
    "dense_av": clips(losses.dense_av, heads=1),
    "dense_av-paired": clips(losses.dense_av, heads=1, paired=True, scale=2.0),
    "late_interaction": clips(losses.late_interaction),
    "ssl_tie-detached": ssl_tie(detach_map=True, hard_negative=False, margin=-0.1),
    "ez_vsl-classes": case(losses.ez_vsl, margin=-0.1, tau=0.2),
    "ez_vsl-classes-extra": extra(case(losses.ez_vsl, tau=0.2)),
    "dense_av-classes-extra": extra(clips(losses.dense_av, heads=1), mask=True),
    "ssl_align-extra": extra(ssl_align(symmetric=True)),
    "slavc-extra": extra(slavc(negatives="both"), several=True),
    "fnac-extra": extra(case(losses.fnac, tau=0.2)),
    "lvs-extra": extra(case(losses.lvs, **MIXED)),
}
LAYOUTS = {2: {"even": (3, 3), "uneven": (4, 1)}, 3: {"even": (2, 2, 2), "uneven": (3, 1, 2)}}
PRECISE = [(name, layout, "reference") for name in CASES for layout in ("even", "uneven")[name.endswith("-extra") :]]
FAST = [(name, "uneven", backend) for name in CASES for backend in ("reference", "compiled")]


class Net(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Conv2d(CHANNELS, 2 * CHANNELS, 1, dtype=dtype)
        self.audio = nn.Linear(CHANNELS, 2 * CHANNELS, dtype=dtype)

    def forward(self, images, sounds):
        return self.visual(images), self.audio(sounds)


def positives_of_classes(count):
    """(count, count) bool: rows with one or two positives, and a column with none."""
    images, audios = torch.arange(count)[:, None], torch.arange(count)[None]
    return ((images + 2 * audios) % 3 == 0) & (audios != 1)


def evaluate(name, rows, count, dtype, wrap=lambda net: net, **more):
    """The case on these rows of a batch of `count`: value, gradients of the features, gradients of the parameters."""
    net = wrap(Net(dtype))
    joined = (*features(count, count, seed=3, dtype=dtype), *Net(dtype)(*features(count, count, seed=4, dtype=dtype)))
    images, sounds, *slow = (x[rows].detach() for x in joined)
    outputs = net(images, sounds)
    for x in outputs:
        x.retain_grad()
    if "-classes" in name:
        more["positives"] = positives_of_classes(count)[rows]
    value = CASES[name](*outputs, slow, **more)
    value.backward()
    return {
        "value": value.detach(),
        "visual": outputs[0].grad,
        "audio": outputs[1].grad,
        **{key.removeprefix("module."): p.grad for key, p in net.named_parameters()},
    }


def first_rows(layout):
    return [sum(layout[:rank]) for rank in range(len(layout) + 1)]


# ---------------------------------------------------------------------------------------------------------------------
# What runs in the processes


def misuses(rank, alone):
    """Arguments of ez_vsl where the last process, or each of them, does something wrong."""
    visual, audio = features(2, 2)
    right = {"visual": visual, "audio": audio, "group": dist.group.WORLD}
    matrix, silence = torch.ones(2, 2 * dist.get_world_size(), dtype=torch.bool), losses.ExtraNegatives(audio[:1])

    def last(**changes):
        return right | changes if rank == dist.get_world_size() - 1 else right

    return {
        "no image": last(visual=visual[:0], audio=audio[:0]),
        "more audios": last(audio=audio.repeat(2, 1)),
        "channels": last(visual=visual[:, :3], audio=audio[:, :3]),
        "channels of audio": last(audio=audio[:, :3]),
        "dtype": last(visual=visual.float(), audio=audio.float()),
        "gradient": last(audio=audio.clone().requires_grad_()),
        "positives": right | {"positives": torch.tensor([1, 0])},
        "columns": right | {"positives": torch.ones(2, 2, dtype=torch.bool)},
        "row without": {"positives": matrix} | last(positives=matrix & (torch.arange(2) < 1)[:, None]),
        "matrix of one": last(positives=matrix),
        "extra of one": last(extra_negatives=losses.ExtraNegatives(audio)),
        "tokens": {"tokens": ops.TokenMean()} | right | {"audio": audio[..., None].expand(-1, -1, 2 + (rank == 1))},
        "weight": {"extra_negatives": silence} | last(extra_negatives=losses.ExtraNegatives(audio, weight=-1.0)),
        "number of extra": last(extra_negatives=losses.ExtraNegatives(audio, torch.ones(3, 2, dtype=torch.bool))),
        "not a member": right | {"group": alone},
    }


def message(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except ValueError as error:
        return str(error)


def outcomes(rank, layouts):
    """Everything that the tests look at of one process."""
    size = dist.get_world_size()
    bounds = {name: first_rows(layout) for name, layout in layouts.items()}
    alone, pair = dist.new_group([0]), dist.new_group([size - 2, size - 1])

    def joined(name, layout, backend, dtype):
        first, end = bounds[layout][rank : rank + 2]
        return evaluate(
            name,
            slice(first, end),
            bounds[layout][-1],
            dtype,
            DistributedDataParallel,
            group=dist.group.WORLD,
            backend=backend,
        )

    found = {(*key, "float64"): joined(*key, torch.float64) for key in PRECISE}
    found |= {("again", *key): joined(*key, torch.float64) for key in PRECISE}
    if checks.extension is not None:
        found |= {(*key, "float32"): joined(*key, torch.float32) for key in FAST}
    if rank >= size - 2:
        first, end = bounds["uneven"][rank : rank + 2]
        found["pair"] = evaluate("fnac", slice(first, end), bounds["uneven"][-1], torch.float64, group=pair)
    found["errors"] = {name: message(losses.ez_vsl, **arguments) for name, arguments in misuses(rank, alone).items()}
    found["largest"] = largest_message(lambda: joined("slavc-both", "uneven", "reference", torch.float64))
    found["shards"] = {n: list(shard(n)) for n in (0, 1, 7, 12)}
    found["collected"] = {
        n: list(map(torch.from_numpy, collect([np.arange(i) for i in shard(n)], n))) for n in (0, 1, 7, 12)
    }
    found["too few"] = message(collect, list(shard(7))[: -1 if rank == 1 else None], 7)
    return found


def largest_message(function):
    """The most numbers that one collective of `function` takes from this process."""
    sizes, all_reduce = [], dist.all_reduce
    dist.all_reduce = lambda x, *args, **kwargs: (sizes.append(x.numel()), all_reduce(x, *args, **kwargs))[1]
    function()
    dist.all_reduce = all_reduce
    return max(sizes)


def work(rank, size, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.save(outcomes(rank, LAYOUTS[size]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=LAYOUTS)
def processes(request, tmp_path_factory):
    """The layouts, and the outcomes of each process."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (request.param, folder), request.param)
    return LAYOUTS[request.param], [
        torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Losses


def assert_joined(layout, shards, expected, rtol):
    """`shards` of the processes against `expected` of one process; rtol: of the largest entry."""
    bounds, count = first_rows(layout), len(layout)
    assert expected["visual"].abs().max() > 0 and expected["audio"].abs().max() > 0
    for rank, got in enumerate(shards):
        for name, truth in expected.items():
            if name in ("visual", "audio"):
                truth = count * truth[bounds[rank] : bounds[rank + 1]]
            scale = expected[name].abs().max() * (count if name in ("visual", "audio") else 1)
            assert (got[name] - truth).abs().max() <= rtol * scale, (name, rank)


@pytest.mark.slow
@pytest.mark.parametrize("name, layout, backend", PRECISE)
def test_distributed_loss_equals_one_process(name, layout, backend, processes):
    """Value, gradients of the features (times the number of processes) and of the parameters, after DDP's mean."""
    layouts, found = processes
    expected = evaluate(name, slice(None), sum(layouts[layout]), torch.float64, backend=backend)
    assert_joined(layouts[layout], [one[name, layout, backend, "float64"] for one in found], expected, 1e-12)


@pytest.mark.slow
@pytest.mark.skipif(checks.extension is None, reason=f"the compiled module is absent: {checks.extension_error}")
@pytest.mark.parametrize("name, layout, backend", FAST)
def test_distributed_loss_in_float32(name, layout, backend, processes):
    layouts, found = processes
    expected = evaluate(name, slice(None), sum(layouts[layout]), torch.float32, backend=backend)
    assert_joined(layouts[layout], [one[name, layout, backend, "float32"] for one in found], expected, 3e-6)


def test_distributed_loss_has_the_same_bits_again_and_everywhere(processes):
    _, found = processes
    for key in PRECISE:
        for one in found:
            first, again = one[(*key, "float64")], one[("again", *key)]
            assert all(torch.equal(first[name], again[name]) for name in first), key
            assert torch.equal(first["value"], found[0][(*key, "float64")]["value"])


def test_distributed_loss_of_some_of_the_processes(processes):
    layouts, found = processes
    bounds = first_rows(layouts["uneven"])
    expected = evaluate("fnac", slice(bounds[-3], None), bounds[-1], torch.float64)
    for one, rows in zip(found[-2:], (slice(None, bounds[-2] - bounds[-3]), slice(bounds[-2] - bounds[-3], None))):
        torch.testing.assert_close(one["pair"]["value"], expected["value"], rtol=1e-12, atol=0)
        torch.testing.assert_close(one["pair"]["visual"], 2 * expected["visual"][rows], rtol=1e-9, atol=1e-12)


def test_distributed_loss_sends_no_maps(processes):
    """Audio vectors of all, or one number for each of them: never visual features."""
    layouts, found = processes
    for one in found:
        assert one["largest"] == sum(layouts["uneven"]) * CHANNELS
        assert layouts["uneven"][0] * CHANNELS * HEIGHT * WIDTH > one["largest"]


ERRORS = {
    "no image": r"group: expected at least one image .* on process {last} images \(0, 5, 2, 3\) .*float64, audio \(0",
    "more audios": r"as many audios.* on process 0 images \(2, 5, 2, 3\) .* on process {last} .*, audio \(4, 5\)",
    "channels": r"the same channels .* on process {last} images \(2, 3, 2, 3\) torch.float64, audio \(2, 3\)",
    "channels of audio": r"the same channels .* on process {last} images \(2, 5, 2, 3\) .*float64, audio \(2, 3\)",
    "dtype": r"and dtypes everywhere, got on process 0 .*float64; .*process {last} images \(2, 5, 2, 3\) torch.float32",
    "gradient": r"process 0 .* audio \(2, 5\) torch.float64; .*process {last} .* torch.float64 with gradient",
    "positives": r"positives: expected none with a group, .* got \(2,\)",
    "tokens": r"of as many tokens, .* on process 0 .* audio \(2, 5, 2\) .*on process 1 .* audio \(2, 5, 3\)",
    "columns": r"positives: expected \(2,\) int64 or \(2, {columns}\) bool, got \(2, 2\) torch.bool",
    "row without": r"positives: expected at least one in every row, none in row 1$",
    "matrix of one": r"on process {last} images \(2, 5, 2, 3\) .*, positives \(2, {columns}\) torch.bool",
    "extra of one": r"on process {last} images .*, extra_negatives.audio \(2, 5\) .*, extra_negatives.weight \(2,\)",
    "number of extra": r"on process {last} images .*, extra_negatives.audio \(2, 5\) .*extra_negatives.mask \(3, 2\)",
    "weight": r"extra_negatives.weight: expected finite numbers > 0, got -1.0$",
}


@pytest.mark.parametrize("name", ERRORS)
def test_distributed_error_on_every_process(name, processes):
    _, found = processes
    for one in found:
        assert re.search(ERRORS[name].format(last=len(found) - 1, columns=2 * len(found)), one["errors"][name]), one[
            "errors"
        ][name]


def test_distributed_group_of_others(processes):
    _, found = processes
    assert found[0]["errors"]["not a member"] is None
    for one in found[1:]:
        assert one["errors"]["not a member"] == "group: expected one that this process belongs to, got one of others"


# ---------------------------------------------------------------------------------------------------------------------
# Shares and results


def test_distributed_shards_hold_every_sample_once_in_order(processes):
    _, found = processes
    for samples in (0, 1, 7, 12):
        parts = [one["shards"][samples] for one in found]
        assert [sample for part in parts for sample in part] == list(range(samples))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_distributed_results_come_together_in_order_on_every_process(processes):
    for one in processes[1]:
        for samples, rows in one["collected"].items():
            assert [row.tolist() for row in rows] == [list(range(i)) for i in range(samples)]


def test_distributed_results_missing(processes):
    _, found = processes
    for one in found:
        expected = len(found[1]["shards"][7])
        assert one["too few"] == (
            f"results: expected {expected} on process 1, one for each of its share of 7 samples, got {expected - 1}"
        )
