"""Results as tables and as a figure."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import CASES, SHARES, Case
from benchmarks.peers.servers import KINDS

OURS = "ddaebm"
BEGIN, END = "<!-- serving:begin -->", "<!-- serving:end -->"

Found = dict[str, Any]


def median(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def combine(rounds: list[Found]) -> Found:
    """Medians of numbers, sums of errors."""
    numbers = {key: median([entry[key] for entry in rounds]) for key in rounds[0] if key != "errors"}
    errors: dict[str, int] = {}
    for entry in rounds:
        for name, times in entry["errors"].items():
            errors[name] = errors.get(name, 0) + times
    return numbers | {"errors": errors}


def measured(found: Found, name: str, loop: str, case: str) -> Found | None:
    """One server in one case, over the rounds in which it got there."""
    entries = [
        r["servers"][name][loop][case] for r in found["rounds"] if case in r["servers"].get(name, {loop: {}})[loop]
    ]
    return combine(entries) if entries else None


def ceilings(found: Found) -> dict[str, tuple[float, str]]:
    """Images a second of the graphs alone, at best, and in which kind of call, by the kind of a case."""
    best: dict[str, tuple[float, str]] = {}
    for operation in ("sample", "score"):
        kinds = found["rounds"][0]["raw"][operation]
        rates = {kind: statistics.median(r["raw"][operation][kind] for r in found["rounds"]) for kind in kinds}
        best[operation] = max((rate, kind) for kind, rate in rates.items())
    return best | {"mix": (2 / (1 / best["sample"][0] + 1 / best["score"][0]), "both")}


def number(value: float | None, form: str = ",.0f") -> str:
    return "–" if value is None else format(value, form)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def closed_rows(found: Found, case: Case, ceiling: float) -> list[str]:
    ours = measured(found, OURS, "closed", case.name)
    rows = []
    for name in found["versions"]:
        if not (entry := measured(found, name, "closed", case.name)):
            continue
        rate = entry["images_per_second"]
        times = ratio(ours["images_per_second"], rate) if ours and name != OURS else None
        rows.append(
            row(
                case.name, KINDS[name].label, number(rate), number(ratio(rate, ceiling), ".2f"), number(times, ".2f"),
                number(entry["p50_ms"], ".1f"), number(entry["p99_ms"], ".1f"), errors(entry),
                number(entry["peak_rss_mib"]), number(entry["cpu_seconds_per_1000"], ".1f"),
            )
        )  # fmt: skip
    return rows


def errors(entry: Found) -> str:
    return ", ".join(f"{times} {name}" for name, times in entry["errors"].items()) or "0"


def open_rows(found: Found, name: str) -> list[str]:
    entries = [(share, measured(found, name, "open", f"{share:.0%}")) for share in SHARES]
    return [
        row(
            KINDS[name].label, f"{share:.0%}", number(entry["rate"]), number(entry["images_per_second"]),
            number(entry["p50_ms"], ".1f"), number(entry["p99_ms"], ".1f"), errors(entry),
            number(entry["cpu_seconds_per_1000"], ".1f"),
        )
        for share, entry in entries
        if entry
    ]  # fmt: skip


def start_rows(found: Found) -> list[str]:
    rows = []
    for name, version in found["versions"].items():
        there = [r["servers"][name] for r in found["rounds"] if name in r["servers"]]
        ready, rss = (median([entry.get(key) for entry in there]) for key in ("ready_seconds", "ready_rss_mib"))
        entries = [entry for server in there for loop in ("closed", "open") for entry in server[loop].values()]
        peak, pss = (max((e[key] for e in entries), default=None) for key in ("peak_rss_mib", "pss_mib"))
        rows.append(row(KINDS[name].label, version, number(ready, ".1f"), number(rss), number(peak), number(pss)))
    return rows


def head(*cells: str) -> list[str]:
    return ["", row(*cells), "|---" * len(cells) + "|"]


def tables(found: Found, machine: str) -> str:
    """Markdown."""
    best = ceilings(found)
    raw = "; ".join(f"{kind} {number(best[kind][0])} ({best[kind][1]})" for kind in ("sample", "score"))
    lines = [
        f"{machine}; medians of {len(found['rounds'])} rounds, errors summed. Raw ONNX Runtime, images a second: {raw}."
    ]
    lines += head(
        "case", "server", "img/s", "of raw", "this service is × as fast", "p50 ms", "p99 ms", "errors",
        "peak RSS MiB", "CPU s / 1,000 img",
    )  # fmt: skip
    lines += [line for case in CASES for line in closed_rows(found, case, best[case.kind][0])]
    lines += ["", "Poisson arrivals of single images, at a share of what the same server did at best above:"]
    lines += head("server", "share", "arrive/s", "img/s", "p50 ms", "p99 ms", "errors", "CPU s / 1,000 img")
    lines += [line for name in found["versions"] for line in open_rows(found, name)]
    lines += head("server", "version", "start to first image s", "RSS then MiB", "highest RSS MiB", "highest PSS MiB")
    lines += start_rows(found)
    for name, reasons in found["failures"].items():
        lines += ["", *(f"{KINDS[name].label}: {reason}." for reason in reasons)]
    return "\n".join(lines)


def plot(found: Found, path: Path) -> None:
    """Throughput of each case beside the ceiling, tail latency over arrivals, CPU time of an image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    best, names = ceilings(found), list(found["versions"])
    figure, (rates, tails, costs) = plt.subplots(3, figsize=(10, 12), layout="constrained")
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        label = KINDS[name].label
        entries = [measured(found, name, "closed", case.name) for case in CASES]
        for axes, key in ((rates, "images_per_second"), (costs, "cpu_seconds_per_1000")):
            heights = [entry[key] or 0 if entry else 0 for entry in entries]
            axes.bar([j + (i - (len(names) - 1) / 2) * width for j in range(len(CASES))], heights, width, label=label)
        arrivals = [entry for share in SHARES if (entry := measured(found, name, "open", f"{share:.0%}"))]
        tails.plot([e["rate"] for e in arrivals], [e["p99_ms"] for e in arrivals], marker="o", label=label)
    for j, case in enumerate(CASES):
        rates.hlines(best[case.kind][0], j - 0.45, j + 0.45, colors="black", linestyles="dashed")
    for axes, title in ((rates, "images a second (dashed: raw ONNX Runtime)"), (costs, "CPU seconds for 1,000 images")):
        axes.set_xticks(range(len(CASES)), [case.name.replace(", ", "\n") for case in CASES], fontsize=8)
        axes.set_title(title)
    tails.set(title="99th percentile in ms over single images arriving a second (Poisson)", yscale="log")
    for axes in (rates, tails, costs):
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
