"""`ronctl pack`: builds the world map and looks into packs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import msgspec

from ron.ctl.console import StageConsole
from ron.ctl.node import home, json_option, print_json


class PackInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What `pack info --json` prints. b3: digest of the file in the sidecar, when there is one and it holds."""

    file: str
    tiles: int
    min_zoom: int
    max_zoom: int
    content_type: str
    content_encoding: str | None
    bytes: int
    b3: str | None


@click.group("pack")
def pack() -> None:
    """Build and inspect tile packs (PMTiles archives).

    \b
    Examples:
      ronctl pack build
      ronctl pack build --out /tmp/world.pmtiles --max-zoom 3 --json
      ronctl pack info var/packs/world.pmtiles
    """


@pack.command("build")
@click.option("--out", type=click.Path(path_type=Path), help="Where to. [$RON_HOME/packs/world.pmtiles]")
@click.option("--max-zoom", type=click.IntRange(0, 6), default=5, show_default=True, help="The deepest zoom.")
@click.option("--if-missing", is_flag=True, help="Do nothing when the file is there.")
@click.option("--jobs", type=click.IntRange(1, 64), help="Worker processes. [one a core]")
@json_option
def build(out: Path | None, max_zoom: int, if_missing: bool, jobs: int | None, as_json: bool) -> None:
    """Draw the world from Natural Earth: coasts, borders, names; PNG tiles in one file.

    \b
    Examples:
      ronctl pack build
      ronctl pack build --if-missing
      ronctl pack build --out /tmp/world.pmtiles --jobs 1
    """
    path = (out or home() / "packs" / "world.pmtiles").absolute()
    if if_missing and path.exists():
        if as_json:
            print_json({"out": str(path), "built": False})
        return
    from ron.ctl.worldmap.build import build as build_world

    with StageConsole(sys.stderr) as console:
        built = build_world(
            path,
            max_zoom,
            jobs or len(os.sched_getaffinity(0)),
            lambda done, total: console.show("world map", done, total, f"{done} of {total} tiles"),
        )
    if as_json:
        print_json(built)
    else:
        size = built.bytes / 1e6
        click.echo(
            f"{built.out}: {built.tiles} tiles ({built.unique_tiles} different), {size:.1f} MB, {built.seconds} s"
        )


@pack.command("info")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def info(file: Path, as_json: bool) -> None:
    """Check a pack as the node would, and show what is in it. Exit code 8 when it is broken.

    \b
    Example:
      ronctl pack info var/packs/world.pmtiles --json
    """
    from ron.services.edge.pack import Pack

    opened = Pack(file)
    sidecar = Path(f"{file}.b3")
    header = opened.header
    found = PackInfo(
        file=str(file),
        tiles=header.addressed_tiles,
        min_zoom=header.min_zoom,
        max_zoom=header.max_zoom,
        content_type=header.content_type,
        content_encoding=header.content_encoding,
        bytes=file.stat().st_size,
        b3=sidecar.read_text(encoding="ascii").strip() if sidecar.exists() else None,
    )
    opened.close()
    if as_json:
        print_json(found)
        return
    click.echo(f"{found.file}: {found.tiles} tiles, z{found.min_zoom} to z{found.max_zoom}, {found.content_type}")
    click.echo(f"  {found.bytes} bytes, digest {found.b3 or 'not recorded'}")
