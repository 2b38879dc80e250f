"""The results of a plan: as numbers for programs, as lines on a terminal, as a page."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from maejax.pages import page
from maejax.plan.compiled import Compiled
from maejax.plan.hlo import parse
from maejax.plan.hlo_cost import module_cost
from maejax.plan.roofline import GPU_ASSUMPTIONS, TPU_ASSUMPTIONS, step_time
from maejax.plan.target import Target
from maejax.storage.atomic import write_whole

SWEPT = ("layers", "remat", "sharding", "batch", "peak", "traffic", "step", "images/s", "MFU", "compiled in")
FIRM, ESTIMATE, UNKNOWN = "firm", "estimate", "unknown"


class PlanRow(NamedTuple):
    """A line of a plan: name, value in words, a remark, and `FIRM`, `ESTIMATE` or `UNKNOWN`."""

    name: str
    value: str
    remark: str = ""
    certainty: str = FIRM


class Work(NamedTuple):
    """The size of a training run: images of a step, bytes and FLOP of an image, steps, images of an epoch."""

    batch_size: int
    image_bytes: int
    image_flop: int
    steps: int
    images: int


def facts_of(compiled: Compiled, target: Target, work: Work) -> dict[str, Any]:
    """Return all numbers of a plan, in bytes, seconds and FLOP; unknown ones are None."""
    devices, chip = len(target.devices), target.chip
    facts: dict[str, Any] = {
        "topology": target.name,
        "device_kind": target.devices[0].device_kind,
        "devices": devices,
        "hosts": target.hosts,
        "batch_size": work.batch_size,
        "batch_per_device": work.batch_size / devices,
        "compile_seconds": compiled.seconds,
        "memory_available": target.memory,
        "memory_share": target.share,
        "fits": compiled.memory is not None and (not target.memory or compiled.memory.peak <= target.memory),
        "model_flop": work.image_flop * work.batch_size,
    }
    if compiled.memory is None:
        return facts | {"memory": {"needed_at_least": compiled.needs, "compiler_allows": compiled.has}}
    cost = module_cost(parse(compiled.text))
    facts |= {
        "memory": compiled.memory._asdict() | {"peak": compiled.memory.peak},
        "hlo_flop": cost.flop * devices,
        "hlo_flop_by_type": {k: v * devices for k, v in cost.flop_by_type.items()},
        "hbm_bytes": cost.nbytes,
        "loops_counted_once": cost.unknown_loops,
        "kernels": cost.kernels,
        "collectives": [
            {"kind": kind, "dtype": dtype, "count": count, "bytes": nbytes}
            for (kind, dtype), (count, nbytes) in cost.messages.items()
        ],
    }
    if chip is None:
        return facts | {"step_seconds": None}
    times = step_time(cost, chip, devices)
    slow, fast = times.mix + times.messages, max(times.roof, times.messages)
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
        "assumptions": list(TPU_ASSUMPTIONS if chip.clock else GPU_ASSUMPTIONS),
    }


def rows_of(facts: Mapping[str, Any]) -> list[PlanRow]:
    """Return the numbers of a plan as lines."""
    rows = [
        PlanRow("devices", f"{facts['devices']} x {facts['device_kind']} on {count(facts['hosts'], 'host')}"),
        PlanRow("batch", f"{facts['batch_size']:,} images, {facts['batch_per_device']:g} per device"),
        *_memory_rows(facts),
        PlanRow("model FLOP", f"{facts['model_flop']:.3g} a step", "matrix products of the published algorithm"),
    ]
    if "hbm_bytes" not in facts:
        return rows
    kernels = f"; {count(len(facts['kernels']), 'library call')} or kernels not counted" if facts["kernels"] else ""
    types = ", ".join(f"{flop / facts['hlo_flop']:.1%} {name}" for name, flop in facts["hlo_flop_by_type"].items())
    loops = f"; {count(len(facts['loops_counted_once']), 'loop')} counted once" if facts["loops_counted_once"] else ""
    products, moved = f"{facts['hlo_flop']:.3g} a step", f"{traffic(facts['hbm_bytes'])} a step and device"
    rows.append(PlanRow("HLO FLOP", products, f"matrix products of the compiled step: {types}{kernels}"))
    rows.append(PlanRow("memory traffic", moved, f"reads and writes of device memory{loops}"))
    for c in facts["collectives"]:
        sent = f"{count(c['count'], 'message')}, {traffic(c['bytes'])} a step"
        rows.append(PlanRow(f"  {c['kind']} {c['dtype']}", sent))
    return rows + _time_rows(facts)


def _memory_rows(facts: Mapping[str, Any]) -> list[PlanRow]:
    memory, has = facts["memory"], facts["memory_available"]
    of = f" of {size(has)}" if has else ""
    share = f"{facts['memory_share']:.0%} of the card is JAX's; " if facts.get("memory_share", 1) < 1 else ""
    if "peak" in memory:
        verdict = "fits" if facts["fits"] else "does not fit"
        spare = f"{100 * (1 - memory['peak'] / has):.0f} % to spare; " if has and facts["fits"] else ""
        parts = "the sum of the next lines and the program, the part in place counted once"
        in_place = f"{size(memory['output'])}, of which {size(memory['given_back'])} in place"
        rows = [
            PlanRow("memory per device", f"peak {size(memory['peak'])}{of}: {verdict}", spare + share + parts),
            PlanRow("  arguments", size(memory["arguments"]), "weights, optimizer state, batch"),
            PlanRow("  temporaries", size(memory["temporaries"]), "activations, buffers of the compiler"),
            PlanRow("  output", in_place, "in place: written over the arguments"),
        ]
    else:
        needs, allows = memory["needed_at_least"], memory["compiler_allows"]
        value = f"needs {size(needs)}{of}: does not fit" if needs > 0 else "does not fit"
        rows = [PlanRow("memory per device", value, f"the compiler may use {size(allows)}" if allows > 0 else "")]
    if "remedy" in facts:
        value, certainty, remark = facts["remedy"]
        rows.append(PlanRow("  to make it fit", value, remark, certainty))
    if "largest" in facts:
        value, certainty, remark = facts["largest"]
        rows.append(PlanRow("  largest batch", value, remark, certainty))
    return rows


def _time_rows(facts: Mapping[str, Any]) -> list[PlanRow]:
    if facts["step_seconds"] is None:
        return [PlanRow("time", "not estimated", "the speed of these devices is not known here: measure it", UNKNOWN)]
    mfu, hours = facts["mfu"], span(facts["chip_hours"], "{:,.0f}", "")
    run = f"{facts['steps']:,} steps, {facts['epochs']:.1f} epochs, {hours} device-hours"
    pixels = f"{facts['input_bytes_per_second_per_host'] / 1e6:,.0f} MB/s of pixels, in the fastest case"
    of_peak, messages = f"{mfu['mix']:.0%} to {mfu['roof']:.0%}", f"{1e3 * facts['message_seconds']:.3g} ms"
    arrive = f"{facts['input_images_per_second_per_host']:,.0f} images/s"
    rows = [
        ("step", span(facts["step_seconds"], "{:.3g}", " ms", 1e3), "fastest to slowest case, see the assumptions"),
        ("  of peak (MFU)", of_peak, "model FLOP a second over the peak of the devices, without messages"),
        ("  messages", messages, "hidden in the fastest case, waited for in the slowest"),
        ("images", span(facts["images_per_second"], "{:,.0f}", "/s"), ""),
        ("whole run", span(facts["days"], "{:.3g}", " days"), run),
        ("input per host", arrive, pixels),
    ]
    return [PlanRow(*row, ESTIMATE) for row in rows]


def size(nbytes: float) -> str:
    """Format bytes of memory."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**28 else f"{nbytes / 2**20:.1f} MiB"


def traffic(nbytes: float) -> str:
    """Format bytes that are moved."""
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def span(values: Sequence[float], form: str, unit: str, scale: float = 1.0) -> str:
    """Format a range."""
    low, high = (form.format(value * scale) for value in sorted(values))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def count(number: int, thing: str) -> str:
    """Format a number of things, with an s for the plural."""
    return f"{number} {thing}{'s' * (number != 1)}"


def show(console: Console, facts: Mapping[str, Any]) -> None:
    """Print a plan."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for wraps in (False, False, False, True):
        table.add_column(no_wrap=not wraps)
    for row in rows_of(facts):
        table.add_row(row.name, row.value, f"[dim]{row.certainty}[/]", f"[dim]{row.remark}[/]")
    console.print(table)
    if facts.get("sweep"):
        choices = Table(*SWEPT, box=None, pad_edge=False)
        for row in facts["sweep"]:
            choices.add_row(*sweep_cells(row))
        console.print(choices)
    for sentence in facts.get("assumptions", ()):
        console.print(f"[dim]- {sentence}[/]", highlight=False)


def write(folder: Path, facts: Mapping[str, Any], sweep: Sequence[Mapping[str, Any]], command: str) -> None:
    """Write a plan to a folder: plan.json and plan.html."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**facts, "command": command, **({"sweep": list(sweep)} if sweep else {})}
    write_whole(folder / "plan.json", json.dumps(content, indent=2) + "\n")
    rows = "\n".join(
        f"<tr><th{' class=part' if row.name.startswith(' ') else ''}>{escape(row.name.strip())}</th>"
        f"<td>{escape(row.value)}</td><td class={row.certainty}>{row.certainty}</td>"
        f"<td class=remark>{escape(row.remark)}</td></tr>"
        for row in rows_of(facts)
    )
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in sweep_cells(row)) for row in sweep)
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in facts.get("assumptions", ()))
    parts = [
        f'<div class="wide"><table class="facts"><tbody>\n{rows}\n</tbody></table></div>',
        page.section("Choices", page.table(SWEPT, (f"<tr>{row}</tr>" for row in cells)) if sweep else ""),
        page.section("Assumptions of the estimates", f"<ul>\n{items}\n</ul>" if items else ""),
        page.section("Do it again", page.command_line(command)),
    ]
    footer = [
        "Firm: read from the program that the compiler made for these devices, and from published tables.",
        "Estimate: computed from that program; nothing was run.",
    ]
    page.write_page(folder / "plan.html", f"Plan for {facts['topology']}", parts, footer)


def sweep_cells(facts: Mapping[str, Any]) -> list[str]:
    """Return one line of a sweep, in the order of `SWEPT`."""
    memory, choice = facts["memory"], facts["choice"]
    cells = [choice["layers"], choice["remat"], choice["sharding"], f"{facts['batch_size']:,}"]
    if "peak" in memory:
        values = {row.name.strip(): row.value for row in _time_rows(facts)}
        times = [values.get(name, "") for name in ("step", "images", "of peak (MFU)")]
        cells += [size(memory["peak"]), traffic(facts["hbm_bytes"]), times[0], times[1].removesuffix("/s"), times[2]]
    else:
        needs = memory["needed_at_least"]
        cells.append(f"does not fit ({size(needs)})" if needs > 0 else "does not fit")
    return [*cells, *[""] * (len(SWEPT) - 1 - len(cells)), f"{facts['compile_seconds']:.0f} s"]
