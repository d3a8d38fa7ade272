"""Trust and transport: the methods of `actlake.Lake` that check what is there, and move it between places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from ..store.core.catalog import Catalog
from ..store.core.errors import LakeError, needs
from ..store.core.progress import Estimate
from ..store.exchange.card import keep_card
from ..store.exchange.plan import Planner, origin_of
from ..store.exchange.transfer import Plan, Selection, move, note_source, write_index
from ..store.remote.store import Store, is_remote
from .look import Look, listed

if TYPE_CHECKING:
    from ..explore.server import ExplorerServer
    from ..store.captures.verify import Report
    from ..store.remote.serve import LakeServer

ALL = Selection()
Show = Callable[[Plan], None]


class Share(Look):
    """A lake that is checked, cited and moved."""

    @needs()
    def verify(
        self, capture: str | None = None, pair: str | None = None, *, reforward: int = 0, device_map: str | None = None
    ) -> list[Report]:
        """Re-hash every file of one capture (MODEL/STREAM), of a pair's, or of all; check counts and values.

        `reforward` prompts of each are run again and compared, which loads the models. A report a capture, and one for each
        model whose files the lake keeps: `.ok`, `.problems`, `.files`, `.bytes`. LakeError when there is nothing to verify.
        """
        from ..capture.run.check import check_captures

        return check_captures(self.layout, self.catalog, capture, pair, reforward, self.device, device_map)

    def cite(self, capture: str) -> dict[str, Any]:
        """An immutable reference to a sealed capture, and the model, stream, prompts and versions behind it.

        `capture` is MODEL/STREAM, or a whole reference, which is checked. LakeError for another hash.
        """
        from ..store.captures.verify import citation, find_cited

        return citation(self.layout, find_cited(self.layout, capture, self._model))

    def gc(self, dry_run: bool = False) -> pd.DataFrame:
        """Remove table files that are never read any more (as `stale()` lists them); the table of what was removed."""
        found = self.stale()
        for row in [] if dry_run else found.itertuples():
            self.layout.files.remove(self.layout.table(str(row.table)) / str(row.file))
        return found

    def push(
        self,
        url: str,
        what: Selection = ALL,
        *,
        check: bool = False,
        take: str | None = None,
        dry_run: bool = False,
        show: Show | None = None,
    ) -> Plan:
        """Copy this lake, or what `what` selects of it, to another place: only what is missing there moves, checked by hashes.

        `url` is a folder, a URL, or a name of the catalog's lakes. With `check` what is there already is hashed, and replaced
        where it is damaged. With `dry_run` nothing moves. `show` is called with what will move, before it does. Returns that.
        Interrupted, the same call goes on. What has one name and other content in both lakes is refused and listed (of tables the
        target keeps its own); `take` decides, "mine" for this lake, "theirs" for the other: what loses is kept below kept/.
        LakeError for a place out of reach, CorruptError for a file that is not what its record says.
        """
        winner = _winner(take, mine="source")
        planner = Planner(origin_of(self.layout), self._there(url), what, check, self.catalog, winner)
        return _carry_out(planner.plan(), dry_run, show)

    def pull(
        self,
        url: str,
        what: Selection = ALL,
        *,
        check: bool = False,
        take: str | None = None,
        dry_run: bool = False,
        show: Show | None = None,
    ) -> Plan:
        """Copy another lake, or a part of it, into this one; as `push` does, the other way."""
        source, target = self._there(url), origin_of(self.layout)
        return pull_lake(source, target, what, self.catalog, check=check, take=take, dry_run=dry_run, show=show)

    def sync(
        self,
        url: str,
        what: Selection = ALL,
        *,
        check: bool = False,
        take: str | None = None,
        dry_run: bool = False,
        show: Show | None = None,
    ) -> list[Plan]:
        """Give this lake and another one what either lacks of the other: pull, then push. LakeError for parts of captures."""
        if what.cuts:
            raise LakeError("sync moves whole captures: take a part of some with pull or push")
        here, there = origin_of(self.layout), self._there(url)
        plans = [
            Planner(there, here, what, check, self.catalog, _winner(take, mine="target")).plan(),
            Planner(here, there, what, catalog=self.catalog, take=_winner(take, mine="source")).plan(),
        ]
        return [_carry_out(plan, dry_run, show) for plan in plans]

    @needs()
    def export(
        self,
        capture: str,
        format: str,
        out: str | Path,
        *,
        sites: str | Sequence[str] = (),
        boundaries: Sequence[int] = (),
        limit: int | None = None,
        show: Callable[[Estimate], None] | None = None,
    ) -> Path:
        """Write a sealed capture (MODEL/STREAM), or a part of it, in a format of other tools; returns where.

        `format` is safetensors (a file a prompt), npy (a tree of arrays to be mapped), parquet, arrow (a row a prompt, lists of
        fixed size) or netcdf; `out` a file or folder that is not there yet. `sites`, `boundaries` and the first `limit` prompts
        choose a part. `show` is called with the size before anything is written. bfloat16 stays so in safetensors and is float32
        elsewhere, with the same values; `add_capture` reads all but netcdf back. LakeError for what the capture lacks, a place
        that is taken, and a disk without room.
        """
        from ..exchange.export import export
        from ..store.captures.reader import find_capture, split_capture

        model, stream = split_capture(capture)
        path = find_capture(self.layout, self._model(model), stream)
        return export(self.layout, path, format, Path(out), listed(sites), boundaries, limit, show)

    def index(self) -> int:
        """Write files.json, which names all files, for web servers that list no folders; returns how many there are."""
        return write_index(origin_of(self.layout))

    @contextmanager
    def serve(self, port: int = 8080, host: str = "127.0.0.1") -> Iterator[LakeServer]:
        """Hand out this lake over http, read-only; inside the block `.url` says where, `.serve_forever()` waits for readers.

        LakeError for a lake that is remote itself, and a port that is taken.
        """
        from ..store.remote.serve import LakeServer

        if is_remote(self.layout.address):
            raise LakeError(f"{self.layout}: is served already; `actlake serve` hands out a lake in a folder")
        try:
            server = LakeServer(self.layout.root, host, port)
        except (OSError, OverflowError) as error:
            raise LakeError(f"{host}:{port}: can't listen there ({error}); choose another --port or --host") from error
        with server:
            yield server

    @overload
    def explore(
        self, out: None = None, *, prompts: str | None = None, limit: int | None = None, top: int = 5, port: int = 0
    ) -> ExplorerServer: ...
    @overload
    def explore(
        self,
        out: str | Path,
        *,
        prompts: str | None = None,
        limit: int | None = None,
        top: int = 5,
        dry_run: bool = False,
        show: Callable[[Estimate], None] | None = None,
    ) -> Path: ...
    @needs()
    def explore(
        self,
        out: str | Path | None = None,
        *,
        prompts: str | None = None,
        limit: int | None = None,
        top: int = 5,
        port: int = 0,
        dry_run: bool = False,
        show: Callable[[Estimate], None] | None = None,
    ) -> ExplorerServer | Path:
        """The lake in a browser: prompts, what each layer would say, both models side by side. Nothing is computed into the lake.

        With `out` a static site is written into that folder, for any web server or to be opened from the disk, and its page's
        path returned; `show` is called with its size before, and with `dry_run` nothing is written. Without, a server on
        127.0.0.1 starts in the background (`port` 0: any that is free) and is returned: `.url` is to be opened, `.close()` ends
        it. `prompts` keeps one prompt set, `limit` the first prompts of each, `top` is how many likeliest tokens a cell has.
        LakeError for a folder that holds something else, a prompt set that is not captured, and a disk without room.
        """
        from ..explore.server import ExplorerServer
        from ..explore.site import ExplorerSite
        from ..explore.source import ExplorerSource

        site = ExplorerSite(
            ExplorerSource(self.layout, self.device, self._catalog, prompts, limit), top, server=out is None
        )
        if out is None:
            return ExplorerServer.start(site, self._ask, port)
        if show:
            show(site.plan())
        return Path(out) / "index.html" if dry_run else site.write(Path(out))

    def _ask(self, sql: str, rows: int, seconds: float) -> pd.DataFrame:
        """What is in the lake, for a page: nothing is computed."""
        return self.sql_frame(sql, rows, compute=False, timeout=seconds)  # type: ignore[attr-defined]

    def _there(self, url: str) -> Store:
        return origin_of(self.catalog.lakes.get(url, url))


def pull_lake(
    source: Store,
    target: Store,
    what: Selection,
    catalog: Catalog | None = None,
    *,
    check: bool = False,
    take: str | None = None,
    dry_run: bool = False,
    show: Show | None = None,
) -> Plan:
    """Copy a lake, or a part of it, to a place that need not be a lake yet."""
    plan = Planner(source, target, what, check, catalog, _winner(take, mine="target")).plan()
    _carry_out(plan, dry_run, show)
    if not dry_run:
        note_source(plan)
    return plan


def _winner(take: str | None, mine: str) -> str:
    """Which end of a transfer wins, source or target; `mine` is this lake's end."""
    if take not in (None, "theirs", "mine"):
        raise LakeError(f"take {take!r}: expected theirs (the other lake's) or mine (this lake's)")
    other = "target" if mine == "source" else "source"
    return "" if take is None else mine if take == "mine" else other


def _carry_out(plan: Plan, dry_run: bool, show: Show | None) -> Plan:
    if show:
        show(plan)
    if not dry_run:
        move(plan)
        if plan.target.scheme == "hf" and plan.todo:
            keep_card(plan.target)
    return plan
