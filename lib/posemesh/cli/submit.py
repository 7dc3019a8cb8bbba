"""``posemesh-node submit``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from posemesh.cli._client import AppSettings, Client, Download, JobView, ServiceError, Unavailable, printable
from posemesh.cli._progress import Progress
from posemesh.runners.executors.declared import check_capability

__all__ = ("submit",)

#: A service that is away this long while waiting ends the waiting, not the job.
_AWAY_SECS: Final = 60.0
_POLL_SECS: Final = (0.2, 2.0)
_UNSAFE: Final = re.compile(r"[^\w. -]")
_SEGMENT_CHARS: Final = 80

_EXAMPLES = """\b
Examples:
  posemesh-node submit /examples/hello/v1 --input a.txt --wait
  posemesh-node submit /scan/v1 --input scan.ply --meta '{"voxel": 0.05}' --out results
  posemesh-node submit /posemesh/noop/v1 --wait --env-file .devnet/app.env
"""


@click.command(epilog=_EXAMPLES)
@click.argument("capability")
@click.option(
    "--input",
    "inputs",
    metavar="FILE",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
    help="A file the task gets as input; may be given several times.",
)
@click.option("--meta", metavar="JSON", default="{}", help="An object the task finds as its meta.")
@click.option("--mode", type=click.Choice(["public", "dedicated"]), default="public", help="Which nodes may do it.")
@click.option("--wait", is_flag=True, help="Show how the job goes, and end when it ends.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Put what the task hands in into DIR and print the path of each file; implies --wait.",
)
@click.option("--env-file", metavar="F", help="Settings beside the environment's, in place of ./.env.")
def submit(
    capability: str, inputs: tuple[Path, ...], meta: str, mode: str, wait: bool, out: Path | None, env_file: str | None
) -> None:
    """Submit a job of one task for CAPABILITY, and see it through.

    Needs DMS_BASE_URL, DOMAIN_SERVER_URL, DOMAIN_ID and APP_JWT. Ends with 0 when the job was submitted or,
    with --wait, completed; with 1 when it failed.
    """
    try:
        check_capability(capability)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="CAPABILITY") from None
    task = {"capability": capability, "meta": _object(meta), "mode": mode}
    settings = AppSettings.from_env(env_file)
    if out is not None:
        _make(out)
    known: list[str] = []
    try:
        code = asyncio.run(_run(settings, task, inputs, wait or out is not None, out, known.append))
    except KeyboardInterrupt:
        if not known:
            raise
        where = f"{settings.dms_base_url}/jobs/{known[0]}/cancel"
        click.echo(
            f'\nThe job goes on. To cancel it: curl -X POST -H "Authorization: Bearer $APP_JWT" {where}', err=True
        )
        code = 1
    click.get_current_context().exit(code)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # 1e999 is infinite, \\ud800 is no text
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"expected a JSON object: {error}", param_hint="--meta") from None
    if not isinstance(value, dict):
        raise click.BadParameter("expected a JSON object like '{\"size\": 1}'", param_hint="--meta")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _make(out: Path) -> None:
    """Now, as a job may take hours before anything is put there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        why = f"expected a directory that can be written into, got {out}: {error.strerror}; name another one"
        raise click.BadParameter(why, param_hint="--out") from None


async def _run(
    settings: AppSettings,
    task: dict[str, Any],
    inputs: Sequence[Path],
    wait: bool,
    out: Path | None,
    tell_id: Callable[[str], None],
) -> int:
    async with Client(settings=settings) as client:
        task["inputs_cids"] = [await client.upload(path) for path in inputs]
        job_id = await client.submit(_job(task))
        tell_id(job_id)
        click.echo(f"job {job_id}")
        if not wait:
            return 0
        view = await _watch(client, job_id)
        if view.status != "completed":
            reason = view.reason()
            why = f": {printable(reason)}" if reason else ""
            click.echo(f"posemesh-node: job {job_id} {view.status}{why}", err=True)
            return 1
        click.echo(f"job {job_id} completed")
        if out is not None:
            await _fetch(client, view, out)
        return 0


def _job(task: dict[str, Any]) -> dict[str, Any]:
    label = task["capability"].strip("/") or task["capability"]
    common = {"label": label, "stage": label, "capability_filters": {}, "priority": 0, "outputs_prefix": ""}
    task = common | {"max_attempts": 3} | task
    return {"label": label, "priority": 0, "meta": {}, "tasks": [task], "edges": []}


async def _watch(client: Client, job_id: str) -> JobView:
    """The job once it ended. Outages of up to a minute are waited out."""
    began = heard = time.monotonic()
    with Progress() as progress:
        while True:
            now = time.monotonic()
            try:
                view = await client.job(job_id)
                heard = now
                progress.show(view)
                if view.ended:
                    return view
            except Unavailable as error:
                if now - heard > _AWAY_SECS:
                    raise ServiceError(f"{error}; the job {job_id} may still go on") from None
                progress.trouble(str(error))
            shortest, longest = _POLL_SECS
            await asyncio.sleep(min(longest, shortest + (now - began) / 20))


async def _fetch(client: Client, view: JobView, out: Path) -> None:
    taken: set[Path] = set()
    for key, logical_path in view.artifacts().items():
        async with client.download(key) as download:
            inferred = ".".join(filter(None, (download.name, download.data_type))) or key
            path = _free(out / safe_path(logical_path or inferred), taken)
            await _save(download, path)
        click.echo(str(path))


def safe_path(logical_path: str) -> Path:
    """A relative path that stays below where it is put, whatever the network called it."""
    segments = (_UNSAFE.sub("_", one).strip(" .")[-_SEGMENT_CHARS:] for one in logical_path.split("/"))
    return Path(*[one for one in segments if one] or ["artifact"])


def _free(path: Path, taken: set[Path]) -> Path:
    """``path``, or one like it that no other artifact of this job has."""
    free, number = path, 1
    while free in taken:
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    taken.add(free)
    return free


async def _save(download: Download, path: Path) -> None:
    """All of it or nothing: the file gets its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    size = 0
    try:
        with part.open("wb") as file:
            async for chunk in download.chunks:
                size += len(chunk)
                file.write(chunk)
        if download.size not in (None, size):
            raise ServiceError(f"{path}: expected {download.size} bytes, got {size}; try again")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
