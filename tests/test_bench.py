import argparse
import dataclasses
import json
import re
import sys
import types
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssl_fast import ops
from ssl_fast.benchmarks import environment, measure, rivals
from ssl_fast.benchmarks import ops as bench
from ssl_fast.cli import bench as command
from ssl_fast.cli import main as cli

TINY = ["--batch", "4", "--maps", "3x2", "--channels", "16", "--rounds", "2", "--threads", "1", "--no-compile"]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")


def parse(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


# ---- Rows ----

NUMBER, OPTIONAL = float, (float, type(None))
SCHEMA = {
    "op": str,
    "batch": int,
    "height": int,
    "width": int,
    "channels": int,
    "dtype": str,
    "device": str,
    "pass": str,
    "ms": NUMBER,
    "reference_ms": NUMBER,
    "compiled_ms": OPTIONAL,
    "speedup": NUMBER,
    "compiled_speedup": OPTIONAL,
    "gflops": NUMBER,
    "mm_gflops": NUMBER,
    "peak_bytes": (int, type(None)),
    "reference_peak_bytes": (int, type(None)),
}


@pytest.mark.slow
def test_json_rows_and_header(tmp_path, capsys):
    file = tmp_path / "bench.json"
    threads = torch.get_num_threads()
    asked = ["--ops", "max,cosine_map", "--dtype", "float32,bfloat16", "--json", str(file)]
    assert cli.main(["bench", *TINY, *asked]) == 0
    assert torch.get_num_threads() == threads
    result = json.loads(file.read_text())
    rows, head = result["rows"], result["header"]
    assert result["failures"] == [] and head["threads"] == 1 and head["versions"]["torch"] == torch.__version__
    assert head["backend"] in ("compiled", "reference") and isinstance(head["machine"]["cpu"], str)
    expected = [
        (op, dtype, which)
        for op in ("max", "cosine_map")
        for dtype in ("float32", "bfloat16")
        for which in ("forward", "forward+backward")
    ]
    assert [(row["op"], row["dtype"], row["pass"]) for row in rows] == expected
    for row in rows:
        for key, kind in SCHEMA.items():
            assert isinstance(row[key], kind), key
        assert (row["batch"], row["height"], row["width"], row["channels"], row["device"]) == (4, 3, 2, 16, "cpu")
        assert row["compiled_ms"] is row["compiled_speedup"] is None and "--no-compile" in row["compiled_note"]
        assert row["gflops"] * row["ms"] == pytest.approx(row["flops"] / 1e6)
        assert row["mm_gflops"] * row["mm_ms"] == pytest.approx(2 * 4 * 4 * 6 * 16 / 1e6)
        assert row["quartiles_ms"][0] <= row["ms"] <= row["quartiles_ms"][1]
        assert (row["mm_fraction"] is None) == (row["op"] == "cosine_map")
    lines = capsys.readouterr().out.splitlines()
    table = lines[-1 - len(rows) :]
    assert len({len(line) for line in table}) == 1 and table[0].split()[:3] == ["op", "batch", "map"]


@pytest.mark.slow
def test_markdown_table(capsys):
    assert cli.main(["bench", *TINY, "--ops", "mean", "--markdown"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 and len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| mean | 4 | 3x2 | float32 | fwd | ")


def test_ratios_are_medians_of_rounds(monkeypatch):
    """A scripted clock: reference/kernel is 10, 2 and 3 in the three rounds, the ratio of medians would be 2.5."""
    seconds = {"fast": [1, 2, 4], "reference": [10, 4, 12], "mm": [1, 1, 1]}
    scripted = {
        name: (tuple(wall), tuple((2 if name == "fast" else 1) * x for x in wall)) for name, wall in seconds.items()
    }
    monkeypatch.setattr(bench, "time_rounds", lambda *_: scripted)
    monkeypatch.setattr(bench, "_peaks", lambda *_: [None, None])
    for clock, speedup in (("wall", 3), ("cpu", 1.5)):
        options = command.resolve(parse(*TINY, "--clock", clock))
        row = bench.measure("soft_threshold", bench.Shape(4, 3, 2, 16), torch.float32, options)[0]
        assert row["speedup"] == speedup and row["speedup_wall"] == 3 and row["speedup_cpu"] == 1.5
        assert (row["ms"], row["reference_ms"]) == (2000, 10000) and row["peak_bytes"] is None
        assert row["mm_fraction"] == (0.5 if clock == "wall" else 0.25)


def test_torch_compile_is_timed_or_visibly_absent(monkeypatch):
    monkeypatch.setattr(bench, "_peaks", lambda *_: [None, None])
    options = command.resolve(parse(*TINY))
    options.no_compile = False
    monkeypatch.setattr(torch, "compile", lambda call, fullgraph, dynamic: call)
    for row in bench.measure("max", bench.Shape(4, 3, 2, 16), torch.float32, options):
        assert row["compiled_ms"] > 0 and row["compiled_speedup"] > 0 and row["compiled_note"] is None

    def fail(*_):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    for row in bench.measure("max", bench.Shape(4, 3, 2, 16), torch.float32, options):
        assert row["compiled_ms"] is row["compiled_speedup"] is None and row["speedup"] > 0
        assert row["compiled_note"] == "failed: no C++ compiler"


def test_rounds_take_turns():
    calls = []
    jobs = {name: partial(calls.append, name) for name in "abc"}
    samples = measure.time_rounds(jobs, measure.Stopwatch("cpu"), 3, 0)
    assert "".join(calls) == "abcabc" + "abc" + "bca" + "cab"  # two rounds of warm-up, then the order rotates
    assert all(len(wall) == len(cpu) == 3 for wall, cpu in samples.values())


# ---- Flops ----


class Count:
    """Multiply-adds of loops over vectors, two flops each."""

    def __init__(self):
        self.flops = 0

    def dot(self, x, y):
        self.flops += 2 * len(x)
        return x @ y

    def add(self, target, scale, x):
        self.flops += 2 * len(x)
        target += scale * x


def brute_force(op, visual, audio, upstream, backward):
    """The op on vectors, pair by pair, and what it takes: (flops, output, gradient of visual, gradient of audio).

    visual (N, P, C), audio (M, C); both unit for the ops that leave the normalisation out.
    """
    count, (n, p, c), m = Count(), visual.shape, len(audio)
    d_visual, d_audio = torch.zeros_like(visual), torch.zeros_like(audio)
    if op in ("soft_threshold", "max"):
        alpha = [[[count.dot(visual[i, k], audio[j]) for k in range(p)] for j in range(m)] for i in range(n)]
        alpha = torch.tensor(alpha, dtype=visual.dtype, requires_grad=True)
        weight = torch.sigmoid((alpha - 0.65) / 0.03)
        output = alpha.max(2).values if op == "max" else (weight * alpha).sum(2) / weight.sum(2)
        slope = torch.autograd.grad(output, alpha, upstream)[0]
        for i, j, k in slope.nonzero().tolist() if backward else ():
            count.add(d_visual[i, k], slope[i, j, k], audio[j])
            count.add(d_audio[j], slope[i, j, k], visual[i, k])
        return count.flops, output.detach(), d_visual, d_audio
    inverse = torch.tensor([[count.dot(x, x) ** -0.5 for x in row] for row in visual], dtype=visual.dtype)
    if op == "mean":
        centre = torch.zeros(n, c, dtype=visual.dtype)
        for i in range(n):
            for k in range(p):
                count.add(centre[i], inverse[i, k] / p, visual[i, k])
        output = torch.stack([torch.stack([count.dot(centre[i], audio[j]) for j in range(m)]) for i in range(n)])
        d_centre = torch.zeros_like(centre)
        for i in range(n) if backward else ():
            for j in range(m):
                count.add(d_centre[i], upstream[i, j], audio[j])
                count.add(d_audio[j], upstream[i, j], centre[i])
            for k in range(p):
                d_visual[i, k] = d_centre[i] * inverse[i, k] / p
                count.add(d_visual[i, k], -count.dot(d_centre[i], visual[i, k]) * inverse[i, k] ** 3 / p, visual[i, k])
        return count.flops, output, d_visual, d_audio
    output = torch.zeros(n, p, dtype=visual.dtype)  # cosine_map
    for i in range(n):
        for k in range(p):
            output[i, k] = count.dot(visual[i, k], audio[i]) * inverse[i, k]
            if backward:
                scale = upstream[i, k] * inverse[i, k]
                count.add(d_visual[i, k], scale, audio[i])
                count.add(d_visual[i, k], -scale * output[i, k] * inverse[i, k], visual[i, k])
                count.add(d_audio[i], scale, visual[i, k])
    return count.flops, output, d_visual, d_audio


@pytest.mark.parametrize("op", ["soft_threshold", "max", "mean", "cosine_map"])
def test_flops_of_a_brute_force(op):
    n, height, width, c = 3, 2, 3, 5
    case = bench.CASES[op]
    inputs = bench.make_inputs(case, bench.Shape(n, height, width, c), torch.float64, "cpu")
    (visual,), (audio,) = inputs.visuals, inputs.audios
    visual.data[:] = torch.randn(visual.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    audio.data[:] = torch.nn.functional.normalize(audio.data)
    if not case.streams:
        visual.data[:] = torch.nn.functional.normalize(visual.data)
    truth = inputs.job(partial(case.call, backend="reference"), "forward+backward")()
    vectors = visual.detach().flatten(2).transpose(1, 2).contiguous()
    upstream = inputs.upstream.reshape(n, -1)
    for backward, work in ((False, case.forward), (True, case.both)):
        flops, output, d_visual, d_audio = brute_force(op, vectors, audio.detach(), upstream, backward)
        assert flops == work.flops(n, height * width, c)
    torch.testing.assert_close(output, truth[0].detach().reshape(output.shape))
    for gradient, x, expected in ((d_visual, vectors, truth[1].flatten(2).mT), (d_audio, audio.detach(), truth[2])):
        radial = (gradient * x).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True)  # what a normalisation takes out
        torch.testing.assert_close(gradient - radial * x, expected)


@pytest.mark.parametrize("op", ["soft_threshold", "product", "margin_nce", "slavc"])
def test_flops_of_the_products_that_torch_counts(op):
    """Matrix products of the references that do no more than the method needs, counted by torch."""
    inputs = bench.make_inputs(bench.CASES[op], bench.Shape(6, 3, 2, 8), torch.float32, "cpu")
    for which, work in zip(bench.PASSES, (bench.CASES[op].forward, bench.CASES[op].both)):
        with FlopCounterMode(display=False) as counter:
            inputs.job(partial(bench.CASES[op].call, backend="reference"), which)()
        assert counter.get_total_flops() == work.flops(6, 6, 8)


@pytest.mark.parametrize("op", ["tokens", "token_heads"])
def test_flops_with_tokens_are_those_of_its_products(op):
    """The reference has one product of all pairs of cells and tokens, beside the mean over the tokens; the gradient of
    a maximum goes to one cell a token."""
    case, shape = bench.CASES[op], bench.Shape(6, 3, 2, 8, 5)
    inputs = bench.make_inputs(case, shape, torch.float32, "cpu")
    with FlopCounterMode(display=False) as counter:
        inputs.job(partial(case.call, backend="reference"), "forward")()
    columns = shape.products[1]
    assert counter.get_total_flops() - 2 * 6 * columns == shape.flops(case.forward)
    # for each image, token and channel: a multiply-add of the cell's gradient and one of the token's
    assert shape.flops(case.both) - shape.flops(case.forward) == 2 * 2 * 6 * columns * 8


def test_a_rival_is_timed_or_says_why_not(monkeypatch):
    """A stand-in for maxsim-cpu: sums over the tokens of a query of the largest product with a document."""
    case, shape = bench.CASES["tokens"], bench.Shape(4, 3, 2, 16, 5)
    inputs = bench.make_inputs(case, shape, torch.float32, "cpu")
    visual, audio = inputs.visuals[0].detach(), inputs.audios[0].detach()
    monkeypatch.setitem(sys.modules, "maxsim_cpu", None)
    assert rivals.maxsim_cpu(visual, audio) == "not installed"
    package = types.SimpleNamespace(maxsim_scores=lambda query, documents: (documents @ query.T).max(1).sum(1))
    monkeypatch.setitem(sys.modules, "maxsim_cpu", package)
    torch.testing.assert_close(rivals.maxsim_cpu(visual, audio)(), case.call([visual], [audio], "reference"))
    right = package.maxsim_scores
    for wrong in (lambda *x: right(*x) * 1.01, lambda *x: right(*x) * float("inf")):
        monkeypatch.setattr(package, "maxsim_scores", wrong)
        assert rivals.maxsim_cpu(visual, audio) == "wrong scores at this size"
    monkeypatch.setattr(package, "maxsim_scores", right)
    monkeypatch.setattr(bench, "_peaks", lambda *_: [None, None])
    forward, both = bench.measure("tokens", shape, torch.float32, command.resolve(parse(*TINY)))
    assert forward["rivals"]["maxsim-cpu"]["speedup"] > 0 and both["rivals"] == {}


# ---- Agreement ----


def wrong(kind, visuals, audios, backend):
    """Right as the reference; as the kernel, off by what a careless kernel would be off."""
    visual, audio = visuals[0], audios[0]
    if backend == "reference":
        return ops.pooled_similarity(visual, audio, ops.SoftThreshold(), backend="reference")
    if kind == "loses the last cell":
        visual = torch.cat([visual.flatten(2)[..., :-1], visual.flatten(2)[..., :1]], 2).view_as(visual)
    if kind == "gradient of audio off by a hundredth":
        audio = audio + 0.01 * (audio - audio.detach())
    scores = ops.pooled_similarity(visual, audio, ops.SoftThreshold(), backend="reference")
    return {"NaN": scores * torch.nan, "dtype": scores.double()}.get(kind, scores)


@pytest.mark.parametrize(
    "kind, where",
    [
        ("loses the last cell", "output: expected an error of at most"),
        ("gradient of audio off by a hundredth", "gradient of audio 0: expected an error of at most"),
        ("NaN", "output: expected an error of at most .*nan"),
        ("dtype", "output: expected .* as the reference returns"),
    ],
)
def test_wrong_kernel_is_not_timed(monkeypatch, tmp_path, capsys, kind, where):
    fake = dataclasses.replace(bench.CASES["soft_threshold"], call=partial(wrong, kind))
    monkeypatch.setattr(bench, "CASES", {**bench.CASES, "fake": fake})
    monkeypatch.setattr(command, "OPS", (*command.OPS, "fake"))
    monkeypatch.setattr(bench.checks, "use_compiled", lambda *_: True)
    monkeypatch.setattr(bench, "_peaks", lambda *_: [None, None])
    monkeypatch.setattr(environment, "copy_gbytes_per_s", lambda *_: 1.0)
    timed = []
    monkeypatch.setattr(bench, "_timings", lambda *arguments: timed.append(arguments) or {})
    file = tmp_path / "bench.json"
    assert cli.main(["bench", *TINY, "--ops", "fake", "--json", str(file)]) == 1
    result = json.loads(file.read_text())
    assert not timed and result["rows"] == [] and len(result["failures"]) == 1
    assert re.search(f"fake float32 batch 4 map 3x2: {where}", result["failures"][0])
    assert result["failures"][0] in capsys.readouterr().err


@pytest.mark.grid
@pytest.mark.parametrize("op", bench.CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_case_agrees(op, dtype):
    options = command.resolve(parse())
    shape = bench.Shape(6, 3, 4, 24, 5 if bench.CASES[op].shapes else None)
    inputs = bench.make_inputs(bench.CASES[op], shape, dtype, "cpu")
    assert len(inputs.wanted) == 2 * (bench.CASES[op].spaces - bench.CASES[op].frozen)
    bench.verify(bench.CASES[op], partial(bench.CASES[op].call, backend=options.backend), inputs)


# ---- Memory ----

MIB = 2**20


def allocate(transient, kept, reset):
    """Peak of a job that needs `transient` MiB and returns `kept` MiB, beside 32 MiB that were there before."""
    torch.set_num_threads(1)
    before = torch.ones(32 * MIB // 4)

    def job(transient=transient * MIB, kept=kept * MIB):
        scratch = torch.ones(transient // 4)
        result = torch.full((kept // 4,), float(scratch[-1] + before[-1]))
        return result, result.view(-1)  # the same storage, to be counted once

    job(4, 4)  # code that is loaded when it first runs is memory too
    return measure.peak_resident(job, reset)


@LINUX
@pytest.mark.parametrize("reset", ["/proc/self/clear_refs", "/proc/self/no_such_file"], ids=["reset", "sampled"])
@pytest.mark.parametrize("kept", [0, 16])
def test_peak_of_a_known_allocation(reset, kept):
    assert measure.in_fresh_process(allocate, 64, kept, reset) == pytest.approx(64 * MIB, rel=0.1)


@LINUX
def test_peak_grows_with_the_pairs_of_the_reference():
    """The reference holds at least one float32 map of all pairs beyond what it returns."""
    peaks = measure.in_fresh_process(
        bench._peaks_here, "max", "reference", bench.Shape(128, 14, 14, 8), torch.float32, 1
    )
    assert min(peaks) >= 128 * 128 * 196 * 4


@LINUX
def test_a_process_that_dies_gives_no_peak(capsys):
    assert measure.in_fresh_process(sys.exit, 3) is None
    assert "exit code 3" in capsys.readouterr().err


# ---- Arguments ----


def test_names_of_ops_and_dtypes_are_those_that_can_be_timed():
    assert list(command.OPS) == list(bench.CASES) and list(command.DTYPES) == list(bench.DTYPES)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--ops", "max,softmax"], "expected soft_threshold, max, .*token_heads; got 'softmax'"),
        (["--device", "tpu"], "invalid choice: 'tpu' .choose from '?cpu'?, '?cuda'?."),
        (["--dtype", "float8"], "expected float32, bfloat16, float16, float64; got 'float8'"),
        (["--batch", "32,1"], "expected batches >= 2"),
        (["--batch", "many"], "expected a whole number >= 1, got 'many'"),
        (["--maps", "7x7x7"], "expected sizes as 7 or 7x9"),
        (["--rounds", "0"], "expected a whole number >= 1, got '0'"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--device", "cuda"], "--device cuda: expected a usable CUDA device, got none"),
        (["--tf32"], "--flush-l2, --tf32: expected --device cuda"),
        (["--set", "vggsound", "--workers", "0"], "--set, --workers: expected with --data"),
        (
            ["--json", "there/is/no/such/folder.json"],
            "--json there/is/no/such/folder.json: expected an existing folder",
        ),
    ],
)
def test_what_cannot_run_here(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_defaults_by_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(bench.checks, "use_compiled", lambda *_: True)
    cpu, cuda, quick = (command.resolve(parse(*a)) for a in ([], ["--device", "cuda"], ["--quick", "--rounds", "5"]))
    assert cpu.batch == [32, 128, 256] and cpu.maps == [(7, 7), (14, 14)] and cpu.dtype == ["float32"]
    assert max(cuda.batch) == 1024 and cuda.dtype == ["float32", "bfloat16"] and not cuda.no_compile
    assert quick.no_compile and quick.rounds == 5 and cpu.ops == list(bench.CASES)
