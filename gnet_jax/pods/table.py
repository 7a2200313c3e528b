"""Plans as a table for people: a column for each topology."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from gnet_jax.pods.plan import Plan


def plan_table(plans: Sequence[Plan], title: str) -> Table:
    """Every figure of the plans, one below the other; a dash where there is none."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for plan in plans:
        table.add_column(plan.topology, justify="right")
    columns = [list(_figures(plan)) for plan in plans]
    for rows in zip(*columns, strict=True):
        if rows[0] is None:
            table.add_section()
            continue
        table.add_row(rows[0][0], *(value for _, value in rows))
    return table


def _figures(plan: Plan) -> Iterator[tuple[str, str] | None]:
    """Name and text of every figure; None between their groups."""
    seconds = plan.seconds or {}
    yield "chips on hosts", f"{plan.chips} on {plan.hosts}"
    yield "images a step", f"{plan.batch_size:,} ({plan.batch_size / plan.chips:g} a chip)"
    yield None
    yield "fits", "yes" if plan.fits else "NO"
    need, have = (value / 2**30 for value in (plan.hbm_bytes, plan.hbm_available))
    yield "memory a chip", f"{need:.2f} of {have:.2f} GiB"
    yield "  arguments", _in(plan.argument_bytes, 2**20, 0, " MiB")
    yield "  temporaries", _in(plan.temp_bytes, 2**20, 0, " MiB")
    yield "  temporaries an image", _in(plan.temp_bytes_per_image, 2**20, 1, " MiB")
    yield None
    yield "GFLOP an image", _in(plan.flops_per_image, 1e9, 2)
    yield "  by the cost ledger", _in(plan.ledger_flops_per_image, 1e9, 2)
    yield "MB an image", _in(plan.bytes_per_image, 1e6, 1)
    yield "collectives", _collectives(plan)
    yield "fusions", _in(plan.fusions, 1, 0)
    yield "convolutions", _in(plan.convolutions, 1, 0)
    yield None
    for side in ("compute", "memory", "network"):
        yield f"ms a step, {side} alone", _in(seconds.get(side), 1e-3, 2)
    yield "bound by", plan.bound or "-"
    yield "images/s at most", _in(plan.images_per_sec, 1, 0)
    yield "  that each host decodes", _in(plan.images_per_sec_per_host, 1, 0)
    yield "days at least", _in(plan.days, 1, 3)


def _collectives(plan: Plan) -> str:
    parts = [f"{c.count} {c.kind}, {c.bytes / 2**20:.1f} MiB" for c in plan.collectives]
    return "; ".join(parts) or "none"


def _in(value: float | None, unit: float, digits: int, name: str = "") -> str:
    return "-" if value is None else f"{value / unit:,.{digits}f}{name}"
