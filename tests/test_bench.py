import argparse
import dataclasses
import json
import mmap
import multiprocessing
import re
import signal
import sys
import time
import types
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from op_checks import needs_compiled
from ssl_fast import ops
from ssl_fast.benchmarks import agreement, environment, measure, rivals, table
from ssl_fast.benchmarks import ops as bench
from ssl_fast.cli import bench as command
from ssl_fast.cli import main as cli
from ssl_fast.ops import kernels

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
        assert row["compiled_ms"] is row["max_autotune_ms"] is row["compiled_speedup"] is None
        assert (row["amp_ms"] is None) == (row["low_precision_ms"] is None) == (row["dtype"] == "float32")
        assert row["load"] >= 0 and row["cpu_ms"] > 0
        if head["backend"] == "compiled":
            assert row["instruction_set"] == head["instruction_set"] == bench.checks.extension.instruction_set()
        assert row["gflops"] * row["ms"] == pytest.approx(row["flops"] / 1e6)
        assert row["mm_gflops"] * row["mm_ms"] == pytest.approx(2 * 4 * 4 * 6 * 16 / 1e6)
        assert row["quartiles_ms"][0] <= row["ms"] <= row["quartiles_ms"][1]
        assert (row["mm_fraction"] is None) == (row["op"] == "cosine_map")
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.split()[:3] == ["op", "batch", "map"])
    assert len({len(line) for line in lines[first : first + 1 + len(rows)]}) == 1
    assert lines[first + 1 + len(rows) :] == [
        "not timed: late-interaction-kernels (max): 16-bit features on CUDA only",
        "not timed: flash-maxsim (max): 16-bit features on CUDA only",
    ]


@pytest.mark.slow
def test_markdown_table(capsys):
    assert cli.main(["bench", *TINY, "--ops", "mean", "--markdown"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 and len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| mean | 4 | 3x2 | float32 | ") and " | fwd | " in table[2]


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
    options = command.resolve(parse(*TINY[:-1], "--compile-modes", "default,max-autotune"))
    modes = []
    monkeypatch.setattr(torch, "compile", lambda call, mode, **_: modes.append(mode) or call)
    for row in bench.measure("mean", bench.Shape(4, 3, 2, 16), torch.float32, options):
        for name in ("compiled", "max_autotune"):
            assert row[f"{name}_ms"] > 0 and row[f"{name}_speedup"] > 0 and row[f"{name}_note"] is None
    assert modes == ["default", "max-autotune"] * 2

    def fail(*_):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda call, mode, **_: call if mode == "default" else fail)
    rows = bench.measure("mean", bench.Shape(4, 3, 2, 16), torch.float32, options)
    for row in rows:
        assert row["compiled_ms"] > 0 and row["compiled_note"] is None
        assert row["max_autotune_ms"] is row["max_autotune_speedup"] is None and row["speedup"] > 0
        assert row["max_autotune_note"] == "failed: no C++ compiler"
    assert table.left_out(rows) == ["not timed: max-autotune (mean): failed: no C++ compiler"]
    rows = bench.measure("mean", bench.Shape(4, 3, 2, 16), torch.float32, command.resolve(parse(*TINY)))
    assert {row["compiled_note"] for row in rows} == {"not asked for"} and table.left_out(rows) == []


def test_rounds_take_turns():
    calls = []
    jobs = {name: partial(calls.append, name) for name in "abc"}
    samples = measure.time_rounds(jobs, measure.Stopwatch("cpu"), 3, 0)
    # two rounds of warm-up, then the order rotates; each timed call follows an untimed one
    assert "".join(calls) == "abcabc" + "aabbcc" + "bbccaa" + "ccaabb"
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


# ---- Candidates ----


@pytest.mark.parametrize("op", [name for name, case in bench.CASES.items() if case.script])
def test_scripts_are_the_ops_that_they_stand_for(op):
    """In float64, output and gradients."""
    case, shape = bench.CASES[op], bench.Shape(5, 3, 2, 8, 4 if bench.CASES[op].shapes else None)
    inputs = bench.make_inputs(case, shape, torch.float64, "cpu")
    script = inputs.job(partial(case.script, pooled=torch.float64), "forward+backward")
    expected = inputs.job(partial(case.call, backend="reference"), "forward+backward")
    for result, own in zip(script(), expected(), strict=True):
        torch.testing.assert_close(result, own)


def test_scripts_run_in_the_dtypes_that_their_names_say(monkeypatch):
    """What is pooled is float32 under autocast, and bfloat16 without; the products are bfloat16 in both."""
    seen = []

    def script(visuals, audios, pooled):
        seen.append((torch.is_autocast_enabled("cpu"), (visuals[0].float() @ audios[0].t().float()).dtype, pooled))
        return visuals[0].sum()

    case = dataclasses.replace(bench.CASES["max"], script=script)
    features = [torch.ones(2, 3, dtype=torch.bfloat16)], [torch.ones(2, 3, dtype=torch.bfloat16)]
    for call in bench._scripts(case, torch.bfloat16, "cpu").values():
        call(*features)
    assert seen == [(True, torch.bfloat16, torch.float32), (False, torch.float32, torch.bfloat16)]
    assert bench._scripts(case, torch.float32, "cpu") == {}


def test_errors_of_the_candidates_are_those_of_their_dtypes():
    """All but the kernels round cosines to 8 bits, which a sum of two of them shows."""
    options = command.resolve(parse(*TINY))
    for row in bench.measure("soft_threshold", bench.Shape(6, 3, 2, 64), torch.bfloat16, options):
        errors = row["errors"]
        assert list(errors) == ["fast", "reference", "amp", "low_precision"]
        assert min(errors["reference"], errors["amp"]) > 1e-4 and errors["amp"] < errors["low_precision"] < 0.05
        assert row["amp_ms"] > 0 and row["low_precision_ms"] > 0 and row["amp_speedup"] > 0
        if options.backend == "compiled":
            assert errors["fast"] < 1e-5


def brute_maxsim(queries, documents, lengths, normalize):
    """MaxSim of queries (Q, L, C), whose first `lengths` tokens count, with documents (D, P, C), product by product:
    (Q, D)."""
    rows = []
    for query, length in zip(queries.float(), lengths):
        row = []
        for document in documents.float():
            total = torch.zeros(())
            for token in query[:length]:
                products = [
                    (token * cell).sum() / (token.norm() * cell.norm() if normalize else 1) for cell in document
                ]
                total = total + torch.stack(products).max()
            row.append(total)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def packages(change=lambda scores: scores):
    """Stand-ins with the interfaces of the packages; change: what is wrong with them."""

    def maxsim(Q, D, q_mask=None, d_mask=None, *, normalize=False, backward=None):
        assert d_mask is None and (q_mask.long().diff(dim=1) <= 0).all()
        return change(brute_maxsim(Q, D, q_mask.sum(1), normalize))

    def flash(Q, D, shared_docs=True, doc_lengths=None, query_lengths=None):
        assert shared_docs and doc_lengths is None
        return change(brute_maxsim(Q, D, query_lengths, False))

    def batched(Q, D, doc_lengths=None, shared_docs=True, query_lengths=None, pad_lq=True, query_chunk_size=128):
        return flash(Q, D, shared_docs, doc_lengths, query_lengths)

    def maxsim_scores(query, documents):
        return change(torch.from_numpy((documents @ query.T).max(1).sum(1))).numpy()

    return {
        "late_interaction_kernels": types.SimpleNamespace(maxsim=maxsim),
        "flash_maxsim": types.SimpleNamespace(flash_maxsim_batched=batched, flash_maxsim_batched_train=flash),
        "maxsim_cpu": types.SimpleNamespace(maxsim_scores=maxsim_scores),
    }


@pytest.fixture
def install(monkeypatch):
    """Puts packages in place, and lets the CPU stand for a GPU."""

    def put(modules):
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)

    monkeypatch.setattr(rivals, "_matched", lambda x: True)
    monkeypatch.setattr(bench, "_peaks", lambda *_: [None, None])
    return put


def gradient_off(scores):
    return scores + 0.1 * (scores - scores.detach())


@pytest.mark.parametrize("op", ["max", "tokens"])
def test_rivals_are_timed_where_they_agree(install, op):
    shape = bench.Shape(4, 3, 2, 16, 5 if op == "tokens" else None)
    options = command.resolve(parse(*TINY))
    install(packages())
    forward, both = bench.measure(op, shape, torch.float32, options)
    for name in ("late-interaction-kernels", "flash-maxsim"):
        assert forward["rivals"][name]["speedup"] > 0 and both["rivals"][name]["ms"] > 0, name
    if op == "tokens":
        assert forward["rivals"]["maxsim-cpu"]["ms"] > 0
        assert both["rivals"]["maxsim-cpu"] == {"note": "no backward pass"}
    assert "late-interaction-kernels" in table.line(forward)


@pytest.mark.parametrize(
    "change, forward, both",
    [
        (lambda scores: scores * 1.01, *["wrong at this size: output: expected an error of at most "] * 2),
        (lambda scores: scores * float("inf"), *["wrong at this size: output: .*got (inf|nan)"] * 2),
        (lambda scores: scores.double(), *["wrong at this size: output: expected .*float32"] * 2),
        (lambda scores: torch.mm(scores, scores[:0]), *["failed: RuntimeError: "] * 2),
        (gradient_off, None, "wrong at this size: gradient of visual 0: expected an error of at most "),
        (lambda x: x if torch.is_grad_enabled() else x + 1, "wrong at this size: output: ", None),
    ],
    ids=["off by a hundredth", "infinite", "dtype", "raises", "gradient", "forward alone"],
)
def test_rivals_that_are_wrong_are_named_and_not_timed(install, change, forward, both):
    """In that pass: without gradients another kernel may run."""
    install(packages(change))
    rows = bench.measure("tokens", bench.Shape(4, 3, 2, 16, 5), torch.float32, command.resolve(parse(*TINY)))
    for name in ("late-interaction-kernels", "flash-maxsim"):
        for row, note in zip(rows, (forward, both)):
            assert row["ms"] > 0
            if note is None:
                assert row["rivals"][name]["ms"] > 0
            else:
                assert re.match(note, row["rivals"][name]["note"]) and "ms" not in row["rivals"][name]
                assert any(re.match(f"not timed: {name} .tokens.: {note}", line) for line in table.left_out(rows))


def test_rivals_that_are_not_there_are_named(install, monkeypatch):
    install(dict.fromkeys(packages()))
    features = torch.ones(2, 3, 4), torch.ones(2, 1, 4), torch.ones(2, 1, dtype=torch.bool)
    names = bench.CASES["tokens"].rivals
    assert {name: rival(*features, False) for name, rival in names.items()} == dict.fromkeys(names, "not installed")
    monkeypatch.undo()
    for name, why in (("flash-maxsim", "16-bit features on CUDA only"), ("maxsim-cpu", "float32 dot products")):
        assert names[name](*features, True).startswith(why)


# ---- Instruction sets ----


def test_each_case_runs_under_each_instruction_set(use_set, tmp_path, monkeypatch):
    extension, ran = bench.checks.extension, []
    before, there = extension.instruction_set(), extension.instruction_sets()
    real = bench._timings

    def timings(*arguments):
        extension.take_last_instruction_set()
        arguments[4]["fast"]([torch.ones(2, 4, 1, 1)], [torch.ones(2, 4)])
        ran.append(extension.take_last_instruction_set())
        return real(*arguments)

    monkeypatch.setattr(bench, "_timings", timings)
    monkeypatch.setattr(bench, "_peaks", lambda *_: [None, None])
    monkeypatch.setattr(environment, "copy_gbytes_per_s", lambda *_: 1.0)
    file = tmp_path / "bench.json"
    assert cli.main(["bench", *TINY, "--ops", "max", "--instruction-sets", "all", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["instruction_set"] for row in rows] == [name for name in there for _ in range(2)]
    assert set(ran) <= set(there) and ran[0] == there[0]  # a kernel of float32 may be another set's
    assert extension.instruction_set() == before


@LINUX
def test_peaks_are_of_the_instruction_set_in_use(use_set, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "in_fresh_process", lambda _, *arguments: asked.append(arguments[-1]) or [1, 1])
    use_set("baseline")
    inputs = bench.make_inputs(bench.CASES["max"], bench.Shape(2, 1, 1, 4), torch.float32, "cpu")
    bench._peaks("max", "compiled", bench.Shape(2, 1, 1, 4), inputs, "cpu")
    assert asked == ["baseline"]


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
    agreement.verify(bench.CASES[op], partial(bench.CASES[op].call, backend=options.backend), inputs)


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


def sleep_and_write(file):
    time.sleep(10)
    file.write_text("measured")


def test_an_interrupted_measurement_ends_its_process(tmp_path, capfd):
    """Ctrl-C while the process measures: it is gone before it has measured, without a word."""

    def interrupt(*_):
        raise KeyboardInterrupt

    measure.in_fresh_process(len, "")  # starts the server
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        with pytest.raises(KeyboardInterrupt):
            measure.in_fresh_process(sleep_and_write, tmp_path / "measured")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not multiprocessing.active_children() and list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


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
        (["--batch", "many"], "expected a positive integer, got 'many'"),
        (["--batch", "9" * 22], "expected an integer up to 2147483647, got '9999999999999999999999'"),
        (["--maps", "7x7x7"], "expected sizes as 7 or 7x9"),
        (["--threads", "1025"], "argument --threads: expected at most 1024, got 1025"),
        (["--rounds", "0"], "expected a positive integer, got '0'"),
        (["--compile-modes", "fast"], "expected default, max-autotune; got 'fast'"),
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
        (["--method", "lvs"], "--method: expected with --step or --data"),
        (["--ops", "max,mean,max"], "--ops: expected each once, got max twice"),
        (["--maps", "7,7x7"], "--maps: expected each once, got (7, 7) twice"),
        (["--step", "--ops", "max", "--quick"], "--ops, --quick: expected without --step"),
        (["--ops", "tokens", "--batch", "4"], "--batch: expected with other --ops than tokens and token_heads"),
        (["--ops", "tokens", "--channels", "8"], "--channels: expected with other --ops than tokens and token_heads"),
        (["--step", "--channels", "8"], "--channels: expected without --step"),
        (["--step", "--method", "sspl"], "--method: expected some of ssl_align, margin_nce"),
        (["--step", "--dtype", "float64"], "--dtype: expected float32, bfloat16 or float16 with --step"),
        (["--data", "there", "--step"], "--step: expected without --data"),
        (["--data", "there", "--instruction-sets", "all"], "--instruction-sets: expected without --data"),
        (["--instruction-sets", "all,sse2"], "--instruction-sets: expected "),
        (["--instruction-sets", "all,baseline"], "--instruction-sets: expected all, or some of baseline"),
        (["--no-compile", "--compile-modes", "default"], "--compile-modes: expected without --no-compile"),
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
    assert max(cuda.batch) == 1024 and cuda.dtype == ["float32", "bfloat16"]
    assert cpu.compile_modes == ["default"] and cuda.compile_modes == ["default", "max-autotune"]
    assert quick.compile_modes == [] and quick.rounds == 5 and cpu.ops == list(bench.CASES)


@pytest.mark.parametrize("allocate", [partial(torch.empty, 2**58), partial(bytearray, 2**60)])
def test_what_does_not_fit_into_the_memory_of_a_cpu_is_a_failure(monkeypatch, capsys, allocate):
    monkeypatch.setattr(bench, "measure", lambda *_: allocate())
    monkeypatch.setattr(environment, "copy_gbytes_per_s", lambda *_: 1.0)
    assert cli.main(["bench", *TINY, "--ops", "max"]) == 1
    error = capsys.readouterr().err
    assert "ssl-fast bench: max float32 batch 4 map 3x2: " in error and "Traceback" not in error


# ---- What stands between ops and losses ----


class Recorded:
    """The compiled module, with the names of the kernels that were called."""

    def __init__(self, module):
        self.module, self.names = module, []

    def __getattr__(self, name):
        self.names += [name] * measure.is_kernel(name)
        return getattr(self.module, name)


ONE_PASS = {"margin_nce": ["similarity_row_loss"], "lvs": ["similarity_row_loss"], "slavc": ["product_row_loss"] * 2}


@needs_compiled
@pytest.mark.parametrize("which", bench.PASSES)
@pytest.mark.parametrize("name", [name for name in command.LOSSES if bench.CASES[name].ops])
def test_a_loss_calls_its_ops_and_little_else(name, which, monkeypatch):
    case = bench.CASES[name]
    inputs = bench.make_inputs(case, bench.Shape(4, 3, 2, 16), torch.float32, "cpu")
    jobs = (
        inputs.job(partial(case.call, backend="compiled"), which),
        inputs.ops_job(partial(case.ops, backend="compiled"), which),
    )
    called = []
    for job in jobs:
        recorded = Recorded(kernels.extension)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "extension", recorded)
            job()
        called.append(sorted(recorded.names))
    if which == bench.PASSES[1] and name in ONE_PASS:  # in place of the ops
        assert called[0] == ONE_PASS[name]
        return
    more = {"cross_entropy", "mean_forward", "mean_backward"}
    assert [one for one in called[0] if one not in more] == called[1]
    assert "cross_entropy" in called[0]


def test_seconds_outside_of_kernels(monkeypatch):
    """A scripted clock: 2 s of Python, 1 s of a helper, 5 s in a kernel."""
    clock = [0.0]

    def lasts(seconds):
        clock[0] += seconds

    module = types.SimpleNamespace(max_forward=partial(lasts, 5), panel=partial(lasts, 1))
    monkeypatch.setattr(kernels, "extension", module)
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))

    def job():
        lasts(2)
        kernels.extension.max_forward()
        kernels.extension.panel()

    assert measure.seconds_outside(job, 2) == [3, 3] and kernels.extension is module


def test_page_faults_are_those_of_one_call():
    """Of 4 KiB pages; memory that was there before the call has none."""
    pages = 5000
    before = mmap.mmap(-1, pages * mmap.PAGESIZE)

    def touch(memory):
        for page in range(pages):
            memory[page * mmap.PAGESIZE] = 1

    def fresh():
        memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        touch(memory)

    found = measure.page_faults(fresh, 2)
    assert len(found) == 2
    assert all(pages <= faults < pages + 500 and seconds >= 0 for faults, seconds in found)
    assert measure.page_faults(partial(touch, before), 1)[0][0] < 500


def test_losses_stand_for_all_of_them():
    assert parse("--ops", "losses").ops == ["ssl_align", "margin_nce", "lvs", "ez_vsl", "slavc", "fnac", "ssl_tie"]
