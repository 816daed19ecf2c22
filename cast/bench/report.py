"""Rows for people: a table in the terminal and a chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cast._files import replace_file

COLUMNS = {
    "model": "model",
    "superpixels": "superpixels",
    "quality": "quality",
    "batch": "batch",
    "size": "px",
    "dtype": "dtype",
    "launch": "launch",
    "direction": "direction",
    "p50_ms": "ms",
    "spread": "p20..p80",
    "images_per_s": "images/s",
    "ratio": "ratio",
    "baseline": "to",
    "peak_MiB": "peak MiB",
    "note": "note",
}
_NUMBERS = {"batch", "px", "ms", "p20..p80", "images/s", "ratio", "peak MiB"}


def print_table(rows: Sequence[Mapping[str, object]], title: str) -> None:
    """Print rows; columns in which nothing differs from row to row go into the caption.

    With rich where it is installed, else as plain text.
    """
    cells = [{head: _cell(row, name) for name, head in COLUMNS.items()} for row in rows]
    heads = [head for head in COLUMNS.values() if any(row[head] not in ("", "-") for row in cells)]
    same = [h for h in heads if len(cells) > 1 and h not in _FIGURES and len({row[h] for row in cells}) == 1]
    heads = [head for head in heads if head not in same]
    caption = ", ".join(f"{head} {cells[0][head]}" for head in same)
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _print_plain(cells, heads, f"{title}; {caption}" if caption else title)
        return
    print(title)
    table = Table(caption=caption or None)
    for head in heads:
        table.add_column(head, justify="right" if head in _NUMBERS else "left", no_wrap=head != "note", overflow="fold")
    for row in cells:
        table.add_row(*(row[head] for head in heads))
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file has no edge
    console.print(table)


_FIGURES = {"model", "ms", "p20..p80", "images/s", "ratio", "peak MiB", "note"}


def _cell(row: Mapping[str, object], name: str) -> str:
    if name == "spread":
        return f"{float(row['p20_ms']):.4g}..{float(row['p80_ms']):.4g}" if row.get("p50_ms") else ""
    value = row.get(name, "")
    if name in ("p50_ms", "images_per_s") and value != "":
        return f"{float(value):.4g}"
    if name == "ratio" and value not in ("", None):
        return f"{float(value):.2f}"
    return str(value)


def _print_plain(cells: Sequence[Mapping[str, str]], heads: Sequence[str], title: str) -> None:
    widths = {head: max(len(head), *(len(row[head]) for row in cells)) for head in heads}
    print(title)
    for row in ({head: head for head in heads}, *cells):
        print("  ".join(row[h].rjust(widths[h]) if h in _NUMBERS else row[h].ljust(widths[h]) for h in heads).rstrip())


def write_chart(rows: Sequence[Mapping[str, object]], path: Path, title: str) -> None:
    """Draw the latency per image of every measured row, grouped by batch and the other conditions.

    Args:
        rows: At least one with figures.
        path: A .png file, written whole or not at all.
        title: Above the bars, the machine included.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: No row has figures.
    """
    measured = [row for row in rows if row.get("p50_ms")]
    if not measured:
        raise ValueError("nothing was measured, so there is nothing to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = list(dict.fromkeys(_series(row) for row in measured))
    groups = list(dict.fromkeys(_condition(row) for row in measured))
    figure = Figure(figsize=(max(6.0, 0.34 * len(measured) + 2.5), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.86 / len(series)
    for i, name in enumerate(series):
        own = {_condition(row): row for row in measured if _series(row) == name}
        places = [groups.index(group) + (i - (len(series) - 1) / 2) * width for group in own]
        heights, low, high = zip(*(_per_image(row) for row in own.values()), strict=True)
        bars = axes.bar(places, heights, 0.94 * width, label=name, yerr=(low, high), capsize=2)
        axes.bar_label(bars, [str(_cell(row, "ratio")) for row in own.values()], fontsize=7, padding=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("ms per image (median; p20 to p80; above: ratio to the baseline)", fontsize=8)
    axes.set_title(title.replace("; ", "\n"), fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with replace_file(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _per_image(row: Mapping[str, object]) -> tuple[float, float, float]:
    batch = int(row["batch"])
    low, middle, high = (float(row[name]) / batch for name in ("p20_ms", "p50_ms", "p80_ms"))
    return middle, middle - low, high - middle


def _series(row: Mapping[str, object]) -> str:
    source = row.get("superpixels", "-")
    quality = "" if row.get("quality", "-") == "-" else f" ({row['quality']})"
    return str(row["model"]) if source == "-" else f"{row['model']}, superpixels {source}{quality}"


def _condition(row: Mapping[str, object]) -> str:
    return f"batch {row['batch']}\n{row['size']} px {row['dtype']}\n{row['launch']}, {row['direction']}"
