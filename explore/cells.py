"""One prompt of one capture, and of a pair: every token and layer with its numbers and likeliest tokens.

Numbers come from the lake's tables where these have rows of the prompt, else from the stored residuals with the kernels that
make the tables; the likeliest tokens come from the residuals. A part that neither gives is left out, with a sentence.
"""

from __future__ import annotations

from functools import cache
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd

from ..queries.engine.blocks import Block, BlockReader
from ..queries.engine.context import Names, aligned, pair_columns
from ..queries.tables.tuned import lens_columns, translated
from ..store.core.columns import LENSES
from ..store.core.errors import LakeError
from .packing import packed
from .source import Captured, ExplorerSource, View

TOP = 5
NUMBERS = ("kl_final_layer", "entropy", "p_target", "rank_target", "cos_final")
HELD = 1 << 27  # bytes of residuals that are read together
NO_LENS = (
    "no lens: the lake has no rows of the table lens for this capture, and not all residuals. Where the capture kept what it"
    ' takes, `actlake sql "SELECT count(*) FROM lens"` computes the table'
)
NO_KERNELS = "computing from stored residuals takes torch: pip install 'actlake[capture]'"


class Cells:
    """The data files of prompts; `top` likeliest tokens a cell, 0 for none but the first."""

    def __init__(self, source: ExplorerSource, top: int = TOP):
        self.source, self.kit, self.top = source, source.kit, top
        self._readers: dict[int, tuple[BlockReader, int]] = {}  # of a capture, and the prompt that it reads next
        self._held: dict[int, Block] = {}  # the prompts of a capture that were read last
        self._pairs: dict[View, dict[str, Block]] = {}
        self._batch: list[str] = []
        self._read: dict[tuple[str, ...], dict[str, pd.DataFrame]] = {}

    def ahead(self, prompt_ids: list[str]) -> None:
        """These prompts are asked for next, one after the other: their rows are read together."""
        self._batch, self._read, self._held, self._pairs = prompt_ids, {}, {}, {}

    def prompt(self, number: int, prompt_id: str) -> bytes:
        """One prompt of a capture: its tokens, and per lens and layer numbers and likeliest tokens."""
        source, one = self.source, self.source.captures[number]
        names, place = (one.model, one.stream), source.places(number)[prompt_id]
        stream, word = source.stream(one.stream), source.words(one.model)
        tokens = slice(int(stream.offset[place]), int(stream.offset[place + 1]))
        columns = {name: values[tokens] for name, values in stream.columns.items()}
        block, missing = self._block(one, place)
        mine = slice(tokens.start - block.tokens.start, tokens.stop - block.tokens.start) if block else slice(None)
        arrays: dict[str, Any] = {"id": (columns["token_id"], "u4"), "step": (columns["step"], "i2")}
        arrays["flags"] = (columns["is_special"] + 2 * columns["is_continuation"], "u1")
        used = Used()
        notes, lenses, layers = [missing] if missing else [], list[str](), np.array([], np.int32)
        for lens in LENSES:
            found = self._numbers(one, prompt_id, lens, block, mine)
            if found is None:
                continue
            layers = found.pop("layers")
            top, share = self._likeliest(lens, block, names)
            if top is None or share is None:
                top, share = found["top1"][None], None
            else:  # the table and the selection may differ among equals: the table's name stands first
                top, share = _first(top[..., mine], found["top1"]), share[..., mine]
            found.pop("top1")
            arrays |= {f"{lens}.{name}": values for name, values in found.items()}
            arrays[f"{lens}.top"] = used.places(top)
            if share is not None:
                arrays[f"{lens}.p"] = share
            lenses.append(lens)
        if not lenses:
            notes.append(NO_LENS)
        if (cosine := self._delta(one, prompt_id, block, mine, len(layers))) is not None:
            arrays["block_cos"] = cosine
        arrays["word"] = used.places(columns["token_id"])
        value = {
            "tokens": tokens.stop - tokens.start,
            "start": int(stream.starts[place]),
            "words": [word(token) for token in used.tokens],
            "layers": layers.tolist(),
            "lenses": lenses,
            "notes": notes,
        }
        return packed(value, arrays)

    def pair(self, view: View, prompt_id: str) -> bytes:
        """Both models of a view at the same steps: Jensen-Shannon divergence and KL of their raw lenses."""
        source = self.source
        names = {role: (source.captures[at].model, source.captures[at].stream) for role, at in view.captures.items()}
        found = self._rows(
            "SELECT prompt_id, layer, step, js, kl_pt_it, kl_it_pt FROM pair_lens WHERE pair = ? AND stream = ? AND"
            " stream_pt = ?",
            (view.name, names["it"][1], names["pt"][1]),
            prompt_id,
            "step",
        )
        if len(found):
            steps, layers = found["step"].unique(), found["layer"].unique()
            shape = (len(layers), len(steps))
            columns = {name: _grid(found, name, shape) for name in ("js", "kl_pt_it", "kl_it_pt")}
        else:
            blocks, missing = self._both(view, prompt_id)
            try:
                wide = {} if missing else pair_columns(self.kit, names, blocks["pt"], blocks["it"])
            except (LakeError, ValueError) as error:  # vocabularies that can't be compared
                missing = str(error)
            if missing:
                return packed({"layers": [], "notes": [f"no Jensen-Shannon divergence: {missing}"]})
            at = aligned(blocks["pt"], blocks["it"])[0]
            mine = blocks["pt"].columns["prompt_id"][at] == prompt_id
            columns = {name: wide[name][mine].T for name in ("js", "kl_pt_it", "kl_it_pt")}
            steps = blocks["pt"].columns["step"][at[mine]]
            layers = np.arange(-1, len(columns["js"]) - 1)
        arrays: dict[str, Any] = {"step": (np.asarray(steps), "i2"), **columns}
        return packed({"layers": layers.tolist(), "notes": []}, arrays)

    # --- parts -----------------------------------------------------------------------------------------------------------

    def _both(self, view: View, prompt_id: str) -> tuple[dict[str, Block], str]:
        """The residuals of the same prompts of both captures, or why there are none."""
        captures = {role: self.source.captures[at] for role, at in view.captures.items()}
        places = {role: self.source.places(one.number)[prompt_id] for role, one in captures.items()}
        held = self._pairs.get(view, {})
        if held and all(places[role] in block.prompts for role, block in held.items()):
            return held, ""
        ids = [self.source.stream(one.stream).prompt_ids[places[role] :] for role, one in captures.items()]
        count = sum(
            1 for _ in takewhile(lambda two: two[0] == two[1] and two[0] in self._batch, zip(*ids, strict=False))
        )
        found: dict[str, Block] = {}
        for role, one in captures.items():
            block, missing = self._block(one, places[role], max(1, count))
            if block is None:
                return {}, missing
            found[role], count = block, len(block.prompts)
        if len({len(block.prompts) for block in found.values()}) > 1:  # the second is larger: the first gets fewer
            role, one = next(iter(captures.items()))
            found[role] = self._block(one, places[role], count)[0] or found[role]
        self._pairs = {view: found}
        return found, ""

    def _block(self, one: Captured, place: int, count: int | None = None) -> tuple[Block | None, str]:
        """The stored residuals of a prompt, or why there are none; with those of the prompts that come next, or of `count`."""
        held = self._held.get(one.number)
        if held is not None and place in held.prompts and count is None:
            return held, ""
        capture = self.kit.capture((one.model, one.stream))
        if "resid" not in capture or capture.array("resid").shape[1] <= len(capture.array("layer")[:]):
            return None, "this capture kept no residual at every layer, so that only tables can be shown"
        if not has_kernels():
            return None, NO_KERNELS
        sites = [site for site in ("resid", "mlp_out") if site in capture]
        try:
            reader, following = self._readers.get(one.number) or (BlockReader(capture, sites), 0)
            if following != place:
                reader.seek(place)
            stop = self._stop(reader, one, place, count)
            self._readers[one.number] = reader, stop
            block = reader.take(range(place, stop))
            if count is None:
                self._held[one.number] = block
            return block, ""
        except LakeError as error:  # a copy of a part of the lake
            self._readers.pop(one.number, None)
            return None, str(error)

    def _stop(self, reader: BlockReader, one: Captured, place: int, count: int | None) -> int:
        """Where a block that begins with a prompt ends: with the prompts that come next, or when it is large."""
        ids, stop = self.source.stream(one.stream).prompt_ids, place + 1
        last = len(ids) if count is None else place + count
        room = int(reader.offset[place]) + HELD // reader.bytes_per_token
        while stop < last and ids[stop] in self._batch and reader.offset[stop + 1] <= room:
            stop += 1
        return stop

    def _rows(self, sql: str, values: tuple[str, ...], prompt_id: str, place: str) -> pd.DataFrame:
        """The rows of a prompt by layer and `place`, read together with those of the prompts that come next."""
        key = (sql, *values)
        if prompt_id not in self._read.get(key, {}):
            batch = self._batch if prompt_id in self._batch else [prompt_id]
            found = self.source.rows(
                f"SELECT DISTINCT * FROM ({sql} AND prompt_id IN (SELECT unnest(?))) ORDER BY prompt_id, layer, {place}",
                [*values, batch],
            )
            empty = found.iloc[:0]
            self._read[key] = dict.fromkeys(batch, empty) | {
                str(name): rows for name, rows in found.groupby("prompt_id")
            }
        return self._read[key][prompt_id]

    def _numbers(
        self, one: Captured, prompt_id: str, lens: str, block: Block | None, mine: slice
    ) -> dict[str, np.ndarray] | None:
        """Columns [layers, tokens] of a lens, top1 and layers among them; None where there is none."""
        found = self._rows(
            f"SELECT prompt_id, layer, position, top1, {', '.join(NUMBERS)} FROM lens WHERE model = ? AND stream = ? AND"
            " lens = ? AND token IS NOT NULL",
            (one.model, one.stream, lens),
            prompt_id,
            "position",
        )
        if len(found):
            layers = found["layer"].unique()
            shape = (len(layers), found["position"].nunique())
            columns = {name: _grid(found, name, shape) for name in NUMBERS}
            columns["top1"] = found["top1"].to_numpy(np.int64).reshape(shape)
        elif block is not None:
            names = (one.model, one.stream)
            try:
                wide = lens_columns(self.kit, names, block, lens)
            except LakeError:  # no such lens was fitted
                return None
            columns = {name: wide[name][mine].T for name in (*NUMBERS, "top1")}
            layers = np.arange(-1, len(columns["top1"]) - 1)
        else:
            return None
        rank = columns.pop("rank_target")
        return {**columns, "rank_target": np.nan_to_num(np.asarray(rank, float)).astype(np.int64), "layers": layers}

    def _likeliest(self, lens: str, block: Block | None, names: Names) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Ids and probabilities of the likeliest tokens of a block [top, layers, tokens]; nothing without residuals."""
        if block is None or self.top < 2:
            return None, None
        return block.once(("likeliest", lens), lambda: self._select(lens, block, names))

    def _select(self, lens: str, block: Block, names: Names) -> tuple[np.ndarray | None, np.ndarray | None]:
        import torch

        from ..analyze.lens.topk import LOGITS, top_k

        head, device = self.kit.head(names).to(self.kit.device), self.kit.device
        try:
            resid = translated(self.kit, names, block, lens)
        except LakeError:
            return None, None
        if lens != "raw":  # the last layer is the model's own
            resid = np.concatenate([resid[:, :-1], block["resid"][:, -1:]], axis=1)
        count, layers, width = resid.shape
        rows, step = resid.reshape(-1, width), max(1, LOGITS // head.vocab)
        top, share = np.empty((len(rows), self.top), np.int64), np.full((len(rows), self.top), np.nan, np.float32)
        with torch.no_grad():
            for start in range(0, len(rows), step):
                logits = head.logits(torch.as_tensor(rows[start : start + step]).to(device, torch.float32))
                values, ids = top_k(logits, min(self.top, head.vocab))
                p = (values - logits.logsumexp(-1, keepdim=True)).exp()
                part = slice(start, start + len(ids))
                top[part], share[part] = ids.cpu().numpy(), p.cpu().numpy()
        shape = (count, layers, self.top)
        return top.reshape(shape).transpose(2, 1, 0), share.reshape(shape).transpose(2, 1, 0)

    def _delta(self, one: Captured, prompt_id: str, block: Block | None, mine: slice, layers: int) -> np.ndarray | None:
        """Cosine of what a block adds and what it reads [layers, tokens], NaN for the input; None where nothing says it."""
        found = self._rows(
            "SELECT prompt_id, layer, position, block_cos FROM delta WHERE model = ? AND stream = ? AND token IS NOT NULL",
            (one.model, one.stream),
            prompt_id,
            "position",
        )
        if len(found):
            values = _grid(found, "block_cos", (found["layer"].nunique(), found["position"].nunique()))
        elif block is not None:
            from ..analyze.residual.delta import delta

            values = delta(block["resid"][mine], None, device=self.kit.device)["block_cos"].T
        else:
            return None
        lacking = layers - len(values)  # a table without the input of block 0
        return (
            np.concatenate([np.full((lacking, values.shape[1]), np.nan, np.float32), values]) if lacking > 0 else values
        )


@cache
def has_kernels() -> bool:
    """Whether lenses can be computed here."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


class Used:
    """Token ids in the order of their first use, so that a file holds each word once."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._at: dict[int, int] = {}

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Where each id stands in `tokens`, of the same shape."""
        names, inverse = np.unique(ids, return_inverse=True)
        for name in names.tolist():
            if name not in self._at:
                self._at[name] = len(self.tokens)
                self.tokens.append(name)
        return np.array([self._at[name] for name in names.tolist()], np.int64)[inverse].reshape(ids.shape)


def _first(top: np.ndarray, top1: np.ndarray) -> np.ndarray:
    """The likeliest tokens with `top1` in the first place, where it is among them."""
    at = np.argmax(top == top1, axis=0)[None]
    found = top.copy()
    np.put_along_axis(found, at, top[:1], axis=0)
    found[0] = np.where(np.take_along_axis(top, at, 0)[0] == top1, top1, top[0])
    return found


def _grid(rows: pd.DataFrame, name: str, shape: tuple[int, int]) -> np.ndarray:
    return rows[name].to_numpy(np.float32, na_value=np.nan).reshape(shape)
