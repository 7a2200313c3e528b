"""How the result of a scan is shown to a person."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gnet_jax.config.paths import as_text
from gnet_jax.data.check.scan import Scan, SplitScan
from gnet_jax.data.sources.walk import REASONS

NAMED = 10  # examples named of each kind
ODD_NAMED = 3  # and of what is merely odd
ROWS = 30  # classes shown; of more, the smallest and the largest


def print_scan(console: Console, found: Scan) -> None:
    """Sizes and classes as tables, then every finding with its first ten examples."""
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
    if found.manifest is not None:
        for what in ("changed", "missing", "new"):
            names = getattr(found.manifest, what)
            _print_names(console, f"{what} since {found.manifest.file}", names)
    mend = found.must_be_mended
    if mend:
        console.print("to be mended: " + escape("; ".join(mend)), soft_wrap=True)
    else:
        console.print("nothing has to be mended")


def _split_table(found: Scan) -> Table:
    table = Table(title=escape(found.source), title_justify="left")
    table.add_column("split")
    for name in ("images", "damaged", "classes", "width (least, median, most)", "height"):
        table.add_column(name, justify="right")
    for each in found.splits:
        table.add_row(
            each.split,
            f"{each.images:,}",
            f"{len(each.bad):,}",
            f"{len(each.class_names):,}",
            _spread(each.width),
            _spread(each.height),
        )
    return table


def _spread(values: tuple[int, int, int] | None) -> str:
    return "" if values is None else " ".join(f"{value:,}" for value in values)


def _class_table(found: Scan) -> Table:
    table = Table(title="images of each class", title_justify="left")
    table.add_column("class")
    for each in found.splits:
        table.add_column(each.split, justify="right")
    counts = [dict(zip(s.class_names, s.class_counts, strict=True)) for s in found.splits]
    names = list(dict.fromkeys(name for each in counts for name in each))
    hidden = max(0, len(names) - ROWS)
    if hidden:
        names.sort(key=lambda name: counts[0].get(name, 0))
    for place, name in enumerate(names):
        if hidden and place == ROWS // 2:
            table.add_row(f"... {hidden:,} between", *["" for _ in counts])
        if not ROWS // 2 <= place < ROWS // 2 + hidden:
            table.add_row(
                escape(name), *(f"{each[name]:,}" if name in each else "" for each in counts)
            )
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
