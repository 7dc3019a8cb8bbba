"""``posemesh-node diagram``."""

from __future__ import annotations

from pathlib import Path

import click

import posemesh.machines
import posemesh.machines.diagram as tables

__all__ = ("diagram",)

_EXAMPLES = """\b
Examples:
  posemesh-node diagram             write MACHINES.md anew
  posemesh-node diagram --check     fail where it is stale or a table is faulty
  posemesh-node diagram --json      the tables for other programs
"""


@click.command(epilog=_EXAMPLES)
@click.option("--check", is_flag=True, help="Write nothing; fail where the page is stale or a table is faulty.")
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON.")
def diagram(check: bool, as_json: bool) -> None:
    """Write MACHINES.md, the page made from the machines' tables, and print its path.

    Outside a checkout the page itself is printed.
    """
    page = Path(posemesh.machines.__path__[0]) / "MACHINES.md"
    if check and as_json:
        raise click.UsageError("--check and --json exclude each other")
    if as_json:
        click.echo(tables.render_json())
        return
    if not check and not (page.parents[3] / "setup.cfg").is_file():
        click.echo(tables.render_markdown(), nl=False)  # installed: there is no page to keep current
        return
    if not check:
        page.write_text(tables.render_markdown(), encoding="utf-8")
        click.echo(page)
        return
    faults = tables.lint()
    if not page.is_file() or page.read_text(encoding="utf-8") != tables.render_markdown():
        faults = [*faults, f"{page} is stale; run: bin/posemesh-node diagram"]
    if faults:
        raise click.ClickException("\n".join(faults))
