"""The results of the GPU benchmark as a page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.gpu.agreement import LIMITS
from benchmarks.gpu.flops import PEAK, utilisation
from benchmarks.gpu.parts import Result
from benchmarks.step_time import check_agreement

GIB = 2**30
NAMES = {"orpo": "ORPO", "dpo": "DPO", "fire": "FiRe", "ours": "ours", "trl": "TRL"}


def render(results: Sequence[Result], about: dict[str, str], flags: str) -> str:
    """The page: what was measured on, a table for each kind of part that has rows, and what is missing."""
    kinds = {
        kind: [row for result in results if result.name.startswith(kind) for row in result.rows] for kind in TABLES
    }
    lines = [f"**{about['date']}, commit {about['commit']}**, {about['device']}; {about['versions']}; `{flags}`"]
    for kind, rows in kinds.items():
        if rows:
            title, header, make_lines = TABLES[kind]
            lines += ["", f"{title}:", "", _line(header), _line(["---"] * len(header)), *map(_line, make_lines(rows))]
    if missing := [f"* {result.name}: {result.failure}" for result in results if result.failure]:
        lines += ["", "Missing:", "", *missing]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def tests(rows: Sequence[dict]) -> list[list[str]]:
    return [[*(str(row[name]) for name in ("passed", "failed", "skipped")), ", ".join(row["names"])] for row in rows]


def agreement(rows: Sequence[dict]) -> list[list[str]]:
    lines = []
    for row in rows:
        loss, gradient = LIMITS[row["dtype"]]
        within = row["difference"] <= loss and row["gradient"] <= gradient
        numbers = [f"{row[name]:.1e}" for name in ("difference", "gradient", "worst")]
        lines.append([row["case"], row["dtype"], f"{row['loss']:.5f}", *numbers, "yes" if within else "**no**"])
    return lines


def derive(row: dict) -> dict[str, float]:
    """Of a row of steps: pairs and tokens per second, utilisation of ``PEAK`` without and with the adapter's products,
    and padding, the share of the cells that hold no token.
    """
    flops, seconds = row["flops"], row["seconds"]
    model = flops["layers"] + flops["attention"] + flops["head"]
    return {
        "pairs": row["pairs"] / seconds,
        "tokens": row["tokens"] / seconds,
        "utilisation": utilisation(model, seconds),
        "with_adapter": utilisation(model + flops["adapter"], seconds),
        "padding": 1 - row["tokens"] / row["cells"],
    }


def steps(rows: Sequence[dict]) -> list[list[str]]:
    """Ours, and below it TRL's best setting next to it, unless their first losses differ."""
    lines = []
    peers = [row for row in rows if row["side"] == "trl"]
    for row in rows:
        if row["side"] != "ours":
            continue
        lines.append(_failed(row) if "failure" in row else _ours(row))
        if "failure" not in row:
            same = [
                peer for peer in peers if (peer["problem"], peer["objective"]) == (row["problem"], row["objective"])
            ]
            lines += _best(same, row)
    alone = {(row["problem"], row["objective"]) for row in rows if row["side"] == "ours" and "failure" not in row}
    lines += [_failed(row) for row in peers if "failure" in row and (row["problem"], row["objective"]) not in alone]
    return lines


def _head(row: dict) -> list[str]:
    recompute = "recomputed" if row["recompute"] else "kept"
    if "at_once" in row:
        recompute += f", {row['at_once']} pairs at a time"
    return [row["problem"], NAMES[row["objective"]], NAMES[row["side"]], recompute]


def _failed(row: dict) -> list[str]:
    return [*_head(row), row["failure"], *[""] * (len(TABLES["steps"][1]) - 5)]


def _ours(row: dict) -> list[str]:
    found, cuda = derive(row), row["device"] == "cuda"
    shares = [f"{100 * found[name]:.1f} %" if cuda else "" for name in ("utilisation", "with_adapter")]
    return [
        *_head(row), f"{found['pairs']:.2f}", f"{found['tokens']:,.0f}", _memory(row), *shares,
        f"{100 * found['padding']:.1f} %", str(row["graphs"]), str(row["recompilations"]), f"{row['loss']:.4f}",
    ]  # fmt: skip


def _memory(row: dict) -> str:
    return "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / GIB:.1f}"


def _best(peers: Sequence[dict], ours: dict) -> list[list[str]]:
    """The fastest of TRL's settings; those that failed as they are, where none is left."""
    measured = [row for row in peers if "failure" not in row]
    if not measured:
        return [_failed(row) for row in peers]
    best = max(measured, key=lambda row: row["pairs"] / row["seconds"])
    try:
        check_agreement(ours, best, ours["dtype"])
    except SystemExit as error:
        return [_failed(best | {"failure": str(error)})]
    speed, memory = best["pairs"] / best["seconds"], _memory(best)
    times = f" (ours {derive(ours)['pairs'] / speed:.2f} x)"
    share = f" (ours {ours['peak_bytes'] / best['peak_bytes']:.2f} x)" if memory else ""
    return [[*_head(best), f"{speed:.2f}{times}", "", memory + share, *[""] * 5, f"{best['loss']:.4f}"]]


def decoding(rows: Sequence[dict]) -> list[list[str]]:
    return [
        [row["problem"], " ".join(filter(None, (row["side"], row["setting"]))), str(row["prompts"])]
        + [str(row["tokens"]), f"{row['tokens'] / row['seconds']:,.0f}"]
        for row in sorted(rows, key=lambda row: (row["prompts"], row["side"] != "ours"))
    ]


TABLES = {  # by how the parts' names begin: title, header, rows to lines
    "tests": ("Tests that need a CUDA device", ("passed", "failed", "skipped", "names of the failed"), tests),
    "agreement": (
        "A step against float32 on the CPU, TF32 off: differences of the loss and of the adapter's gradients, by norm",
        ("step", "dtype", "loss", "loss differs", "gradients differ", "worst factor", "as expected"),
        agreement,
    ),
    "steps": (
        f"Training steps; MFU of {PEAK / 1e12:.0f} TFLOP/s, graphs compiled in the warm-up and after it",
        (
            "model", "loss", "side", "activations", "pairs/s", "tokens/s", "GiB", "MFU", "with adapter", "padding",
            "graphs", "later", "first loss",
        ),
        steps,
    ),
    "decoding": ("Greedy decoding", ("model", "side", "prompts", "tokens", "tokens/s"), decoding),
}  # fmt: skip
