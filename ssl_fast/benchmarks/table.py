"""The table of `ssl-fast bench`: rows of `ops.measure` as plain text or Markdown, and its caption."""


def _number(x: float | None, scale: float = 1) -> str:
    if x is None:
        return "-"
    x *= scale
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


NOT_ASKED = "not asked for"
COLUMNS = {  # title: width, text of a row
    "op": (26, lambda r: r["op"] if r["tokens"] is None else f"{r['op']} T={r['tokens']} C={r['channels']}"),
    "batch": (5, lambda r: str(r["batch"])),
    "map": (5, lambda r: f"{r['height']}x{r['width']}"),
    "dtype": (8, lambda r: r["dtype"]),
    "set": (12, lambda r: r["instruction_set"] or "-"),
    "pass": (7, lambda r: r["pass"].replace("forward", "fwd").replace("backward", "bwd")),
    "ms": (13, lambda r: f"{_number(r['ms'])} ± {_number((r['quartiles_ms'][1] - r['quartiles_ms'][0]) / 2)}"),
    "CPU ms": (6, lambda r: _number(r["cpu_ms"])),
    "x reference": (11, lambda r: _number(r["speedup"])),
    "x amp": (5, lambda r: _number(r["amp_speedup"])),
    "x low precision": (15, lambda r: _number(r["low_precision_speedup"])),
    "x torch.compile": (15, lambda r: _number(r["compiled_speedup"])),
    "x max-autotune": (14, lambda r: _number(r["max_autotune_speedup"])),
    "x rivals": (
        15,
        lambda r: ", ".join(f"{_number(x['speedup'])} {name}" for name, x in r["rivals"].items() if "ms" in x) or "-",
    ),
    "GFLOP/s": (7, lambda r: _number(r["gflops"])),
    "% of mm": (7, lambda r: _number(r["mm_fraction"], 100)),
    "GB/s": (5, lambda r: "-" if r["mm_fraction"] is not None else _number(r["gbytes_per_s"])),
    "loss / ops": (10, lambda r: _number(r["loss_per_ops"])),
    "us outside": (10, lambda r: _number(r["dispatch_us"])),
    "faults": (6, lambda r: _number(r["page_faults"])),
    "system ms": (9, lambda r: _number(r["system_ms"])),
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


def left_out(rows: list[dict]) -> list[str]:
    """What was asked for and not timed, and why: a line for each candidate and reason, with its ops."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        notes = {name: rival.get("note") for name, rival in row["rivals"].items()}
        notes |= {"torch.compile": row["compiled_note"], "max-autotune": row["max_autotune_note"]}
        for name, note in notes.items():
            if note and note != NOT_ASKED:
                ops = reasons.setdefault((name, note), [])
                ops += [row["op"]] * (row["op"] not in ops)
    return [f"not timed: {name} ({', '.join(ops)}): {note}" for (name, note), ops in reasons.items()]


CLOCKS = {"wall": "wall time", "cpu": "CPU time of all threads"}


def machine(head: dict) -> str:
    """Versions, kernels and machine in words. head: see `environment.header`."""
    machine, versions = head["machine"], head["versions"]
    where = machine["gpu"] or f"{head['threads']} threads of {machine['cpu']} ({machine['cores']} cores)"
    kernels = "NO COMPILED KERNELS: the reference against itself"
    if head["backend"] == "compiled":
        kernels = "compiled kernels" if machine["gpu"] else f"compiled kernels, {head['instruction_set']}"
    return f"ssl_fast {versions['ssl_fast']} ({kernels}), torch {versions['torch']}, {where}"


def caption(head: dict, channels: int) -> str:
    """Caption of the table: machine, versions, meaning of the columns. head: see `environment.header`."""
    return (
        f"{machine(head)}, C = {channels}. ms: median wall time ± half the interquartile range; CPU ms: of all "
        f"threads. x, % of mm, loss / ops: medians of ratios of {CLOCKS[head['clock']]} within interleaved rounds. "
        f"GB/s: of memory-bound ops; a copy reaches {head['copy_gbytes_per_s']:.0f}. us outside: what a call takes "
        f"outside of kernels; faults, system ms: its first touches of fresh pages, CPU time in the operating system. "
        f"Peak MiB of the kernels and of the reference: beyond inputs, output and gradients."
    )
