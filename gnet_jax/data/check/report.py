"""Print the result of a scan."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gnet_jax.config.paths import as_text
from gnet_jax.data.check.scan import Scan, SplitScan
from gnet_jax.data.sources.walk import REASONS

NAMED = 10  # examples named of each finding that may need a fix
ODD_NAMED = 3  # examples named of each other finding
ROWS = 30  # classes in the table; if there are more, the smallest and the largest


def print_scan(console: Console, found: Scan) -> None:
    """Print sizes and classes as tables, then every finding with its first examples."""
    console.print(_split_table(found))
    if found.missing:
        console.print(f"there is no split {' or '.join(found.missing)}")
    console.print(_class_table(found))
    balance = ", ".join(map(_imbalance, found.splits))
    console.print(f"largest class / smallest: {balance}", soft_wrap=True)
    for each in found.splits:
        _print_names(console, f"damaged in {each.split}", [str(record) for record in each.bad])
        _print_names(console, f"labels out of range in {each.split}", each.labels_out_of_range)
        for kind, names in sorted(each.odd.items()):
            if len(names) == each.images:
                console.print(escape(f"{kind}, in {each.split}: all"))
            else:
                _print_names(console, f"{kind}, in {each.split}", names, ODD_NAMED)
    groups = [
        ("the same bytes in more than one split", [d for d in found.duplicates if d.leak]),
        ("the same bytes twice in one split", [d for d in found.duplicates if not d.leak]),
        ("the same bytes under different labels", [d for d in found.duplicates if d.contradict]),
    ]
    for title, duplicates in groups:
        _print_names(console, title, [_equal(each.names) for each in duplicates])
    for reason, names in found.left_out.items():
        _print_names(console, f"not read, {reason} ({REASONS[reason]})", names, ODD_NAMED)
    to_fix = found.must_be_mended
    line = f"must be fixed: {'; '.join(to_fix)}" if to_fix else "nothing must be fixed"
    console.print(escape(line), soft_wrap=True)


def _split_table(found: Scan) -> Table:
    table = Table(title=escape(found.source), title_justify="left")
    table.add_column("split")
    for name in ("images", "damaged", "classes", "width (least, median, most)", "height"):
        table.add_column(name, justify="right")
    for each in found.splits:
        counts = (each.images, len(each.bad), len(each.class_names))
        sizes = (each.width or (), each.height or ())
        table.add_row(
            each.split,
            *(f"{count:,}" for count in counts),
            *(" ".join(f"{side:,}" for side in sides) for sides in sizes),
        )
    return table


def _class_table(found: Scan) -> Table:
    table = Table(title="images of each class", title_justify="left")
    table.add_column("class")
    for each in found.splits:
        table.add_column(each.split, justify="right")
    counts = [dict(zip(s.class_names, s.class_counts, strict=True)) for s in found.splits]
    names = list(dict.fromkeys(name for each in counts for name in each))
    if len(names) > ROWS:
        names.sort(key=lambda name: counts[0].get(name, 0))
        hidden = slice(ROWS // 2, len(names) - ROWS // 2)
        names[hidden] = [f"... {len(names[hidden]):,} between"]
    for name in names:
        cells = (f"{each[name]:,}" if name in each else "" for each in counts)
        table.add_row(escape(name), *cells)
    return table


def _imbalance(found: SplitScan) -> str:
    small = min(found.class_counts, default=0)
    if not small:
        return f"{found.split} has {len(found.empty_classes)} without an image"
    return f"{found.split} {max(found.class_counts) / small:.2f}"


def _equal(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return " = ".join(names[:NAMED]) + (f" and {rest:,} more" if rest > 0 else "")


def _print_names(console: Console, title: str, names: Sequence[str], named: int = NAMED) -> None:
    if not names:
        return
    console.print(escape(f"{title}: {len(names):,}"), soft_wrap=True)
    for name in names[:named]:
        console.print(escape(f"  {as_text(name)}"), soft_wrap=True)
    if len(names) > named:
        console.print(f"  and {len(names) - named:,} more; --json lists all")
