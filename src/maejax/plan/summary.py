"""A plan as facts for programs, as lines on a terminal, and as a page."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from maejax.plan.compiled import Compiled
from maejax.plan.estimate import ASSUMPTIONS, estimate
from maejax.plan.hlo import parse
from maejax.plan.target import Target
from maejax.plan.walk import walk

FIRM, ESTIMATE, UNKNOWN = "firm", "estimate", "unknown"


class PlanRow(NamedTuple):
    """A line of a plan: what, how much in words, whether it is firm or an estimate, and a remark."""

    name: str
    value: str
    sure: str
    remark: str = ""


class Work(NamedTuple):
    """What training is about: images a step, bytes of one, FLOP of one, steps in all, images of an epoch."""

    batch_size: int
    image_bytes: int
    image_flop: int
    steps: int
    images: int


def facts_of(compiled: Compiled, target: Target, work: Work) -> dict[str, Any]:
    """Collect all numbers of a plan, in bytes, seconds, FLOP; what cannot be known is None."""
    devices, chip = len(target.devices), target.chip
    facts: dict[str, Any] = {
        "topology": target.name,
        "device_kind": target.kind,
        "devices": devices,
        "hosts": target.hosts,
        "batch_size": work.batch_size,
        "batch_per_device": work.batch_size / devices,
        "compile_seconds": compiled.seconds,
        "memory_available": chip.memory if chip else None,
        "fits": compiled.memory is not None and (chip is None or compiled.memory.peak <= chip.memory),
        "model_flop": work.image_flop * work.batch_size,
    }
    if compiled.memory is None:
        return facts | {"memory": {"needed_at_least": compiled.needs, "compiler_allows": compiled.has}}
    walked = walk(parse(compiled.text))
    facts |= {
        "memory": compiled.memory._asdict() | {"peak": compiled.memory.peak},
        "hlo_flop": walked.flop * devices,
        "hlo_flop_by_type": {k: v * devices for k, v in walked.flop_by_type.items()},
        "hbm_bytes": walked.nbytes,
        "loops_counted_once": walked.unknown_loops,
        "kernels": walked.kernels,
        "collectives": [
            {"kind": kind, "dtype": dtype, "count": count, "bytes": nbytes}
            for (kind, dtype), (count, nbytes) in walked.messages.items()
        ],
    }
    if chip is None or not chip.clock:
        return facts | {"step_seconds": None}
    times = estimate(walked, chip, devices)
    slow, fast = times.slowest, times.fastest
    ideal = facts["model_flop"] / devices / chip.peak
    epochs = work.steps * work.batch_size / work.images
    return facts | {
        "step_seconds": [fast, slow],
        "images_per_second": [work.batch_size / slow, work.batch_size / fast],
        "mfu": {"roof": ideal / times.roof, "mix": ideal / times.mix, "cycles": ideal / times.cycles},
        "message_seconds": times.messages,
        "steps": work.steps,
        "epochs": epochs,
        "days": [work.steps * fast / 86400, work.steps * slow / 86400],
        "chip_hours": [devices * work.steps * s / 3600 for s in (fast, slow)],
        "input_images_per_second_per_host": work.batch_size / fast / target.hosts,
        "input_bytes_per_second_per_host": work.batch_size / fast / target.hosts * work.image_bytes,
        "assumptions": list(ASSUMPTIONS),
    }


def rows_of(facts: Mapping[str, Any]) -> list[PlanRow]:
    """Say a plan's facts line by line."""
    devices = f"{facts['devices']} x {facts['device_kind']} on {count(facts['hosts'], 'host')}"
    rows = [
        PlanRow("devices", devices, FIRM),
        PlanRow("batch", f"{facts['batch_size']:,} images, {facts['batch_per_device']:g} per device", FIRM),
    ]
    memory, has = facts["memory"], facts["memory_available"]
    of = f" of {size(has)}" if has else ""
    if "peak" in memory:
        verdict = "fits" if facts["fits"] else "does not fit"
        spare = f"{100 * (1 - memory['peak'] / has):.0f} % to spare; " if has and facts["fits"] else ""
        rows += [
            PlanRow(
                "memory per device",
                f"peak {size(memory['peak'])}{of}: {verdict}",
                FIRM,
                spare + "arguments + temporaries + output - what the output takes over + code",
            ),
            PlanRow("  arguments", size(memory["arguments"]), FIRM, "weights, optimizer, batch"),
            PlanRow("  temporaries", size(memory["temporaries"]), FIRM, "activations and what the compiler needs"),
            PlanRow("  output", f"{size(memory['output'])}, of it {size(memory['given_back'])} in place", FIRM),
        ]
    else:
        needs = f"needs {size(memory['needed_at_least'])}{of}: " if memory["needed_at_least"] > 0 else ""
        allows = f"the compiler may use {size(memory['compiler_allows'])}" if memory["compiler_allows"] > 0 else ""
        rows.append(PlanRow("memory per device", f"{needs}does not fit", FIRM, allows))
    if "remedy" in facts:
        rows.append(PlanRow("  to make it fit", *facts["remedy"]))
    rows.append(
        PlanRow("model FLOP", f"{facts['model_flop']:.3g} a step", FIRM, "published algorithm, matrix products")
    )
    if "hbm_bytes" not in facts:
        return rows
    kernels = f"; {count(len(facts['kernels']), 'library call')} or kernels not counted" if facts["kernels"] else ""
    types = ", ".join(f"{flop / facts['hlo_flop']:.1%} {name}" for name, flop in facts["hlo_flop_by_type"].items())
    loops = f"; {count(len(facts['loops_counted_once']), 'loop')} counted once" if facts["loops_counted_once"] else ""
    rows += [
        PlanRow(
            "HLO FLOP", f"{facts['hlo_flop']:.3g} a step", FIRM, f"matrix products of the module: {types}{kernels}"
        ),
        PlanRow("memory traffic", f"{traffic(facts['hbm_bytes'])} a step and device", FIRM, "scheduled module" + loops),
    ]
    for c in facts["collectives"]:
        rows.append(PlanRow(f"  {c['kind']} {c['dtype']}", f"{c['count']}, {traffic(c['bytes'])} in all", FIRM))
    if facts["step_seconds"] is None:
        return [
            *rows,
            PlanRow("time", "not estimated", UNKNOWN, "nothing is known of the speed of these devices: measure"),
        ]
    mfu = facts["mfu"]
    return [
        *rows,
        PlanRow("step", span(facts["step_seconds"], "{:.3g}", " ms", 1e3), ESTIMATE, "assumptions below"),
        PlanRow("  of peak (MFU)", f"{mfu['mix']:.0%} to {mfu['roof']:.0%}", ESTIMATE, "model FLOP; messages left out"),
        PlanRow("  messages", f"{1e3 * facts['message_seconds']:.3g} ms", ESTIMATE, "none hidden in the slowest case"),
        PlanRow("images", span(facts["images_per_second"], "{:,.0f}", "/s"), ESTIMATE),
        PlanRow(
            "whole run",
            span(facts["days"], "{:.3g}", " days"),
            ESTIMATE,
            f"{facts['steps']:,} steps, {facts['epochs']:.1f} epochs, {span(facts['chip_hours'], '{:,.0f}', '')} "
            "device-hours",
        ),
        PlanRow(
            "input per host",
            f"{facts['input_images_per_second_per_host']:,.0f} images/s",
            ESTIMATE,
            f"{facts['input_bytes_per_second_per_host'] / 1e6:,.0f} MB/s of pixels, in the fastest case",
        ),
    ]


def size(nbytes: float) -> str:
    """Say a number of bytes."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**28 else f"{nbytes / 2**20:.1f} MiB"


def traffic(nbytes: float) -> str:
    """Say a number of bytes that are moved."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def span(values: Sequence[float], form: str, unit: str, scale: float = 1.0) -> str:
    """Say a range."""
    low, high = (form.format(value * scale) for value in sorted(values))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def count(number: int, thing: str) -> str:
    """Say how many."""
    return f"{number} {thing}{'s' * (number != 1)}"


def show(console: Console, facts: Mapping[str, Any]) -> None:
    """Print a plan."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for wraps in (False, False, False, True):
        table.add_column(no_wrap=not wraps)
    for row in rows_of(facts):
        table.add_row(row.name, row.value, f"[dim]{row.sure}[/]", f"[dim]{row.remark}[/]")
    console.print(table)
    if facts.get("sweep"):
        console.print(sweep_table(facts["sweep"]))
    for sentence in facts.get("assumptions", ()):
        console.print(f"[dim]- {sentence}[/]", highlight=False)


def write(folder: Path, facts: Mapping[str, Any], sweep: Sequence[Mapping[str, Any]], command: str) -> None:
    """Write a plan to a folder: plan.json and plan.html."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**facts, "command": command, **({"sweep": list(sweep)} if sweep else {})}
    (folder / "plan.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    page = Template(Path(__file__).with_name("plan.html").read_text(encoding="utf-8"))
    table = "\n".join(
        f"<tr><th>{escape(row.name)}</th><td>{escape(row.value)}</td><td class={row.sure}>{row.sure}</td>"
        f"<td>{escape(row.remark)}</td></tr>"
        for row in rows_of(facts)
    )
    sentences = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in facts.get("assumptions", ()))
    (folder / "plan.html").write_text(
        page.substitute(
            title=escape(f"Plan for {facts['topology']}"),
            rows=table,
            assumptions=sentences,
            sweep=sweep_html(sweep),
            command=escape(command),
        ),
        encoding="utf-8",
    )


SWEPT = ("layers", "remat", "sharding", "batch", "peak", "traffic", "step", "images/s", "MFU", "compiled in")


def sweep_cells(facts: Mapping[str, Any]) -> list[str]:
    """Say one line of a sweep, in the order of `SWEPT`."""
    memory, choice = facts["memory"], facts["choice"]
    cells = [choice["layers"], choice["remat"], choice["sharding"], f"{facts['batch_size']:,}"]
    if "peak" not in memory:
        needs = memory["needed_at_least"]
        verdict = f"does not fit ({size(needs)})" if needs > 0 else "does not fit"
        return [*cells, verdict, *[""] * 4, f"{facts['compile_seconds']:.0f} s"]
    cells += [size(memory["peak"]), traffic(facts["hbm_bytes"])]
    if facts["step_seconds"]:
        mfu = facts["mfu"]
        cells += [
            span(facts["step_seconds"], "{:.3g}", " ms", 1e3),
            span(facts["images_per_second"], "{:,.0f}", ""),
            f"{mfu['mix']:.0%} to {mfu['roof']:.0%}",
        ]
    else:
        cells += ["", "", ""]
    return [*cells, f"{facts['compile_seconds']:.0f} s"]


def sweep_table(sweep: Sequence[Mapping[str, Any]]) -> Table:
    """Lay a sweep out for a terminal."""
    table = Table(*SWEPT, box=None, pad_edge=False)
    for facts in sweep:
        table.add_row(*sweep_cells(facts))
    return table


def sweep_html(sweep: Sequence[Mapping[str, Any]]) -> str:
    """Lay a sweep out for a page; nothing where there is none."""
    if not sweep:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in SWEPT)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in sweep_cells(facts))}</tr>" for facts in sweep
    )
    return f"<h2>Choices</h2>\n<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
