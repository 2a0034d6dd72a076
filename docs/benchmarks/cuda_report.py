"""The rows of `cuda.sh` as a page with a table and a plot: `python cuda_report.py ROWS.jsonl NAME` writes NAME.md and NAME.svg."""

import json
import statistics
import sys
from html import escape
from pathlib import Path

BAR, GAP, LEFT, WIDTH = 18, 14, 420, 900


def merged(rows: list[dict]) -> dict:
    """By model and size, then by side: what all runs of that side said. Seconds are the best of all runs."""
    groups: dict = {}
    for row in rows:
        side = groups.setdefault((row["model"], row["size"]), {}).setdefault(row["side"], dict(runs=[], failed=None))
        if "failed" in row:
            side["failed"] = row["failed"]
        else:
            side["runs"].append(row["result"])
    for sides in groups.values():
        for side in sides.values():
            every = [s for run in side["runs"] for s in run["seconds"]["denoise"]["all"]]
            side["best"], side["median"] = (min(every), statistics.median(every)) if every else (None, None)
    return groups


def cells(name: str, side: dict, best_peer: float | None, work: float | None) -> list[str]:
    if not side["runs"]:
        return [name, f"failed: {side['failed']}".replace("|", "/")] + [""] * 7
    runs, first = side["runs"], side["runs"][0]
    number = lambda x, form, unit=1.0: "" if x is None else format(x * unit, form)
    memory = max((run["memory"]["device_bytes"] or 0 for run in runs), default=0)
    steps = first["steps"]
    peak = max((run["peak_tflops"] for run in runs if "peak_tflops" in run), default=None)
    rate = work and work * steps / side["best"]
    return [
        name, number(side["best"], ".3f"), number(side["median"], ".3f"),
        number(side["best"] / best_peer if best_peer and name == "xdit" else None, ".2f"),
        number(statistics.median(run["seconds"]["host_step"]["median"] for run in runs), ".1f", 1e3),
        number(rate, ".0f" if rate and rate >= 10 else ".4f"),
        number(rate / peak if rate and peak else None, ".0%"),
        number(first["seconds"]["first"], ".1f"), number(memory or None, ".1f", 2**-30),
    ]


def page(groups: dict, plot: str) -> str:
    runs = [(name, run) for sides in groups.values() for name, side in sides.items() for run in side["runs"]]
    about = sorted({f"{run['card']}; {run['versions']}" for _, run in runs if "versions" in run}) or ["no peer has run"]
    kinds = sorted({f"{run['steps']} steps, {run['dtype']} on {run['device']}" for _, run in runs})
    lines = [
        "# Denoising on one GPU", "",
        "Written by `docs/benchmarks/cuda.sh`: random weights of the published configurations, latents out, no text encoder, no",
        "VAE; one after the other on one card, xdit between all others. Seconds of a whole run, best and",
        "median of all runs after a warm-up; *ratio* is xdit's best to the best of the others; *host* is the time in which the",
        "host has issued a step; *first* is the first run, with all compilation. FLOP are counted from the configuration; the",
        "share is of a square product of 8192 that xdit measures in the same runs.", "",
        *[f"- {line}" for line in about + kinds], "", f"![seconds of a run]({plot})", "",
    ]
    header = ["", "best, s", "median, s", "ratio", "host a step, ms", "TFLOP/s", "share", "first, s", "GiB"]
    for (model, size), sides in groups.items():
        peers = [side["best"] for name, side in sides.items() if name != "xdit" and side["best"]]
        ours = sides.get("xdit", dict(runs=[]))["runs"]
        work = ours[0]["step_tflop"]["total"] if ours else None
        lines += [f"## {model}, {size} pixels", "", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        best = min(peers, default=None)
        lines += ["| " + " | ".join(cells(name, side, best, work)) + " |" for name, side in sides.items()]
        lines.append("")
    return "\n".join(lines)


def svg(groups: dict) -> str:
    longest = max((side["best"] for sides in groups.values() for side in sides.values() if side["best"]), default=1.0)
    y, parts = GAP, []
    for (model, size), sides in groups.items():
        parts.append(f'<text x="8" y="{y + 13}" font-weight="bold">{escape(model)}, {size} pixels</text>')
        y += BAR + 4
        for name, side in sides.items():
            parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
            width = (side["best"] or 0.0) / longest * (WIDTH - LEFT - 80)
            colour = "#d0552b" if name == "xdit" else "#8a9ba8"
            said = f"{side['best']:.3f} s" if side["best"] else "failed"
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{colour}"/>')
            parts.append(f'<text x="{LEFT + width + 6:.1f}" y="{y + 13}">{said}</text>')
            y += BAR
        y += GAP
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="12">'
            f'<rect width="{WIDTH}" height="{y}" fill="white"/>{"".join(parts)}</svg>\n')


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    groups, name = merged(rows), Path(sys.argv[2])
    Path(f"{name}.md").write_text(page(groups, f"{name.name}.svg"))
    Path(f"{name}.svg").write_text(svg(groups))


main()
