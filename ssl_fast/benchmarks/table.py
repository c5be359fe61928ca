"""The table of `ssl-fast bench`: rows of `ops.measure` as plain text or Markdown, and its caption."""


def _number(x: float | None, scale: float = 1) -> str:
    if x is None:
        return "-"
    x *= scale
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


COLUMNS = {  # title: width, text of a row
    "op": (26, lambda r: r["op"] if r["tokens"] is None else f"{r['op']} T={r['tokens']} C={r['channels']}"),
    "batch": (5, lambda r: str(r["batch"])),
    "map": (5, lambda r: f"{r['height']}x{r['width']}"),
    "dtype": (8, lambda r: r["dtype"]),
    "pass": (7, lambda r: r["pass"].replace("forward", "fwd").replace("backward", "bwd")),
    "ms": (13, lambda r: f"{_number(r['ms'])} ± {_number((r['quartiles_ms'][1] - r['quartiles_ms'][0]) / 2)}"),
    "x reference": (11, lambda r: _number(r["speedup"])),
    "x torch.compile": (15, lambda r: _number(r["compiled_speedup"])),
    "x rivals": (
        15,
        lambda r: ", ".join(f"{_number(x.get('speedup'))} {name}" for name, x in r["rivals"].items()) or "-",
    ),
    "GFLOP/s": (7, lambda r: _number(r["gflops"])),
    "% of mm": (7, lambda r: _number(r["mm_fraction"], 100)),
    "GB/s": (5, lambda r: "-" if r["mm_fraction"] is not None else _number(r["gbytes_per_s"])),
    "peak MiB": (8, lambda r: _number(r["peak_bytes"], 2**-20)),
    "reference MiB": (13, lambda r: _number(r["reference_peak_bytes"], 2**-20)),
}


def line(row: dict | None = None) -> str:
    """A row as plain text; None: the titles of the columns."""
    return "  ".join((text(row) if row else title).rjust(width) for title, (width, text) in COLUMNS.items())


def markdown(rows: list[dict]) -> str:
    """All rows as a Markdown table."""
    body = [[text(row) for _, text in COLUMNS.values()] for row in rows]
    lines = [list(COLUMNS), ["---", *["---:"] * (len(COLUMNS) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def caption(head: dict, channels: int) -> str:
    """Caption of the table: machine, versions, meaning of the columns. head: see `environment.header`."""
    machine, versions = head["machine"], head["versions"]
    clock = {"wall": "wall time", "cpu": "CPU time"}[head["clock"]]
    where = machine["gpu"] or f"{head['threads']} threads of {machine['cpu']} ({machine['cores']} cores)"
    kernels = "NO COMPILED KERNELS: the reference against itself"
    if head["backend"] == "compiled":
        kernels = "compiled kernels" if machine["gpu"] else f"compiled kernels, {head['instruction_set']}"
    return (
        f"ssl_fast {versions['ssl_fast']} ({kernels}), torch {versions['torch']}, {where}, C = {channels}. "
        f"ms: median wall time ± half the interquartile range. x, % of mm: medians of ratios of {clock} within "
        f"interleaved rounds. GB/s: of memory-bound ops; a copy reaches {head['copy_gbytes_per_s']:.0f}. "
        f"Peak MiB of the kernels and of the reference: beyond inputs, output and gradients."
    )
