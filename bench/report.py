"""Rows of a benchmark: what was measured, what it must reach, and whether it does."""
import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class Row:
    name: str
    measured: float | None
    bar: str  # ">= 1.25", "<= 0.9"; empty: none, the figure stands for itself
    unit: str
    holds: bool | None  # None where there is no bar
    command: str


def output_of(command, timeout_s, **kwargs):
    """The command's stdout; RuntimeError with its last words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, **kwargs)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def row(name, measured, bar, unit, command):
    """The Row, with `holds` worked out from the bar."""
    return Row(name, measured, bar, unit, reaches(measured, bar), command)


def reaches(measured, bar):
    if not bar or measured is None:
        return None
    sign, number = bar.split()
    return measured >= float(number) if sign == ">=" else measured <= float(number)


def save(name, rows):
    """build/bench/NAME.json of what is measured so far."""
    folder = ROOT / "build/bench"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps([dataclasses.asdict(one) for one in rows], indent=1) + "\n")
    return file


def readable(measured, unit):
    """A figure of four digits and its unit: 93.61 ms rather than 9.361e+04 µs."""
    if measured is None:
        return "-", unit
    for larger in ("ms", "s") if unit == "µs" else ():
        if measured >= 1000:
            measured, unit = measured / 1000, larger
    return f"{measured:.4g}" if abs(measured) < 10000 else f"{measured:.0f}", unit


def write(name, rows):
    """build/bench/NAME.json, and the rows as an aligned table on stdout."""
    file = save(name, rows)
    cells = [["measure", "measured", "bar", "unit", "holds"]]
    for one in rows:
        holds = "" if one.holds is None else "yes" if one.holds else "NO"
        measured, unit = readable(one.measured, one.unit)
        cells.append([one.name, measured, one.bar, unit, holds])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print(f"written to {file.relative_to(ROOT)}", file=sys.stderr)
