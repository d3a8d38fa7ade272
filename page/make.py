"""What a lake gets: the methods of `actlake.Lake` that run models or bring in what others made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..store.core.errors import needs
from ..store.tables.names import known_pairs, stored_models
from .look import Look, listed

if TYPE_CHECKING:
    from ..capture.run.capture import Result
    from ..capture.streams.prompts import PromptSet
    from ..exchange.server import Server
    from ..exchange.tokens import Written
    from ..judge.judge import Cost
    from ..queries.generation.generate import Generated
    from ..store.tables.imported import Added


class Make(Look):
    """A lake that models are captured into."""

    @needs()
    def plan(
        self,
        names: str | Sequence[str],
        streams: str | Sequence[str] = (),
        prompts: str | None = None,
        profiles: str | Sequence[str] = (),
        *,
        limit: int | None = None,
        max_new_tokens: int | None = None,
        date: str | None = None,
        control_tokens: bool = False,
        thinking: str | None = None,
        dtype: str = "auto",
        batch: int = 16,
        by_layer: bool = False,
        precision: str | None = None,
        tokens_per_second: float = 2000,
        disk_speed: float = 500,
    ) -> pd.DataFrame:
        """What captures will take: tokens, shard rows, bytes by variable, bytes on disk, memory, seconds; a row a capture.

        Arguments as in `capture`; every profile of the catalog unless some are named. `tokens_per_second` is what the model
        reads, `disk_speed` what the disk takes in MB/s. Reads configs and tokenizers, loads no weights. `exact` says that
        the stream is in the lake; otherwise every continuation counts in full. LakeError for what `capture` would refuse.
        """
        from ..capture.streams.capture_pair import Options
        from ..capture.streams.requests import Request, plan_captures

        request = Request(tuple(listed(streams)), prompts, limit, max_new_tokens, date, control_tokens, thinking)
        options = Options(self.device, dtype, batch, by_layer=by_layer, precision=precision)
        found = plan_captures(self.layout, self.catalog, listed(names), request, listed(profiles), options)
        return pd.DataFrame(one.row(tokens_per_second, disk_speed * 1e6) for one in found)

    @needs()
    def capture(
        self,
        names: str | Sequence[str],
        streams: str | Sequence[str] = (),
        prompts: str | None = None,
        profile: str = "full",
        *,
        limit: int | None = None,
        max_new_tokens: int | None = None,
        date: str | None = None,
        control_tokens: bool = False,
        thinking: str | None = None,
        outputs: str | None = None,
        dtype: str = "auto",
        batch: int = 16,
        double_bos: bool = False,
        allow_nonfinite: bool = False,
        device_map: str | None = None,
        with_weights: bool = False,
        by_layer: bool = False,
        precision: str | None = None,
        server: Server | str | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> list[Result]:
        """Read models on token streams into the lake; what a stream needs (continuations, say) is made first.

        `names` are MODEL, PAIR (its models), PAIR/ROLE or CHAIN, `streams` recipes of the catalog (none: native), `prompts` a
        set of the catalog or the lake, or a .jsonl or .csv file (None: pocket for the pocket models, else core), `profile` what
        is kept. Only the first `limit` prompts are read; `thinking` (on or off) is for chat templates that have a switch for
        it; `outputs` (VARIANT/KEY) reads texts that `generate` wrote in place of a stream. `rank` and `world` share the work
        among processes. `by_layer` reads each block's weights once and takes the whole stream through it, for models larger
        than memory: the same bytes. `precision` rounds sites to int8 or fp8, some as resid=int8,mlp_out=fp8 (None: as the
        profile says). `server` (an `actlake.Server`, or its address) lets an engine write the continuations; how many of its
        tokens are not the model's own choice is said in the end. What is there is reused, and a killed capture goes on where it
        stopped and seals the same bytes. Returns a result a capture: path, sealed, reused, tokens, bytes, seconds. LakeError
        for models, prompts and settings that can't be captured, with the reason.
        """
        from ..capture.run.ranks import Rank
        from ..capture.streams.capture_pair import Options
        from ..capture.streams.requests import Request, capture_models
        from ..exchange.server import capture_from

        place = Rank.find(rank, world)
        device = place.device(self.device)
        request = Request(tuple(listed(streams)), prompts, limit, max_new_tokens, date, control_tokens, thinking)
        options = Options(
            device, dtype, batch, double_bos, allow_nonfinite, place, device_map, with_weights, by_layer, precision=precision
        )  # fmt: skip
        read = partial(capture_models, self.layout, self.catalog, listed(names), request, profile, outputs)
        return read(options) if server is None else capture_from(server, self.layout, read, options)

    @needs()
    def seal(self, capture: str | None = None) -> pd.DataFrame:
        """Seal captures whose ranks have all come to their end (one by name, or all that are not sealed): path, tokens, bytes.

        LakeError names the rows that are missing.
        """
        from ..capture.run.reforward import seal_captures

        found = [
            {"path": str(path), "tokens": manifest["n_tokens"], "bytes": manifest["bytes"]}
            for path, manifest in seal_captures(self.layout, capture)
        ]
        return pd.DataFrame(found, columns=["path", "tokens", "bytes"])

    @needs()
    def fit_lens(
        self,
        names: str | Sequence[str],
        kind: str = "tuned",
        *,
        stream: str = "native",
        recipe: str = "ridge",
        tokens: int | None = None,
        batch: int | None = None,
        scale: float | None = None,
        seed: int = 0,
        folds: int = 2,
        count: int | None = None,
        skip: int = 16,
        length: int = 128,
        centred: bool = False,
    ) -> dict[Path, dict[str, Any]]:
        """Fit a lens, a map per layer: tuned, trained from a stored capture alone, or jacobian, by backward passes of the model.

        `names` are MODEL, PAIR, PAIR/ROLE or CHAIN, `stream` a unique beginning of the captured stream's name. Each of `folds`
        lenses is kept for the prompts it was not fitted on; of a single one, tuned is trained on 80 % of the prompts, jacobian on
        all. What is interrupted goes on.
        tuned: `recipe` ridge, adam or sgd (the published one; `scale` is its learning rate divided by 0.1), `tokens` and `batch`
        the recipe's unless given. jacobian: `count` prompts drawn by `seed` (100, from width 576 on 200), each cut after `length`
        tokens of which the first `skip` do not count; `centred` maps the mean residual to the last mean one; `batch` tokens are
        computed together. Returns path -> record, with the held-out KL in nats, raw and through the lens. LakeError for an
        unknown kind or recipe, for an option of the other kind, and a capture that is not there or too small.
        """
        from ..capture.streams.names import named
        from ..queries.probes.fitting import fit_lens

        models = dict.fromkeys(one.model for one in named(listed(names), self.catalog, self.layout))
        return fit_lens(
            self._context(), models, kind, stream, recipe=recipe, tokens=tokens, batch=batch, scale=scale, seed=seed, folds=folds,
            count=count, skip=skip, length=length, centred=centred,
        )  # fmt: skip

    @needs()
    def import_lens(self, file: str | Path, model: str) -> tuple[Path, dict[str, Any]]:
        """Keep a published Jacobian lens ({J, n_prompts, source_layers, d_model}, written by torch.save) for a model of the lake.

        No code in the file is run. Its layer l is what leaves block l; the embeddings, of which it has none, are read as they
        are. Returns the path and what is on record of it. LakeError for another format, for other sizes than the model's, and
        for maps that read stored residuals far worse than no map.
        """
        from ..queries.probes.imported import import_jacobian

        return import_jacobian(self._context(), Path(file), self._model(model))

    @needs()
    def generate(
        self,
        names: str | Sequence[str],
        edits: Sequence[str] = (),
        *,
        conditions: Sequence[str] = (),
        sweeps: Sequence[str] = (),
        template: str = "native",
        prompts: str | None = None,
        limit: int | None = None,
        max_new_tokens: int | None = None,
        date: str | None = None,
        control_tokens: bool = False,
        thinking: str | None = None,
        batch: int = 64,
        dry_run: bool = False,
        rank: int | None = None,
        world: int | None = None,
        show: Callable[[str], None] | None = None,
    ) -> Generated:
        """Let models write, greedily, with or without edits; every text stays in the lake and is never made twice.

        `edits` are edits in words ("scale:layers=late,direction=d_mean,alpha=0") or of actlake.edits, done in order, with
        `template` raw, chat or native; `conditions` are those of the catalog, `sweeps` all conditions of a row. `prompts` as in
        `capture`, or a stream's name (its beginning) where several of one set were captured: its prompts, and directions from it
        ("SET,STREAM": these alone), else those of the pair's captures. With `dry_run` nothing is written. `show` is called with
        what there is to do, before it is done. The result says what was asked for and missing; `.texts` is a
        table. LakeError for an edit, direction, condition or sweep that is unknown.
        """
        from ..capture.run.ranks import Rank
        from ..capture.streams.names import one_pair
        from ..queries.generation.generate import Generation, generate

        place = Rank.find(rank, world)
        pair, roles = one_pair(listed(names), "generate", self.catalog, self.layout)
        wanted = Generation(
            tuple(map(str, listed(edits))), tuple(listed(conditions)), tuple(listed(sweeps)), template, prompts, limit,
            max_new_tokens, date, control_tokens, thinking, batch,
        )  # fmt: skip
        return generate(self._context(place.device(self.device)), pair, roles, wanted, place, dry_run, show)

    @needs()
    def score(
        self, pair: str, sweep: str = "exp12", metrics: str | Sequence[str] = (), prompts: str | None = None
    ) -> pd.DataFrame:
        """Means of what a program reads off the texts of a sweep (form, answers, refusals, coherence, structure), by condition.

        Texts that are not there yet are generated. `metrics` are names or patterns such as share_*; the usual ones unless given.
        LakeError for an unknown sweep, a pair of one model, and a pattern that no metric fits.
        """
        from ..queries.generation.scores import mean_scores, scope_of

        context = self._context()
        return mean_scores(context, scope_of(context, pair, prompts), sweep, listed(metrics))

    @needs()
    def judge(
        self,
        pair: str,
        sweep: str = "exp12",
        *,
        gold: str | Path | None = None,
        rubrics: str | Path | None = None,
        prompts: str | None = None,
        second: str | None = None,
        referee: str | None = None,
        agree: Callable[[Cost], bool] = lambda cost: True,
        check: bool = False,
        **server: Any,
    ) -> list[str]:
        """Ask an LLM judge about every reply of a sweep that it has not judged yet; a line per rubric.

        With `gold` (a file of id, rubric, reply, value) only the judge's agreement with it is measured. `agree` is asked with the
        estimated calls and tokens before anything is sent. `second` and `referee` are further models: the referee decides where
        two judges differ. With `check` nothing is judged: LakeError where texts are still to be written and no judge could be
        asked about them. `server`: url, model, price_in, price_out, else ACTLAKE_JUDGE_URL, ACTLAKE_JUDGE_MODEL; the key is
        ACTLAKE_JUDGE_KEY. Verdicts stay in the lake. LakeError without a judge, and for a server that does not answer.
        """
        from ..queries.generation.judging import agreement_with, check_judge, judge_sweep
        from ..queries.generation.scores import scope_of

        context, file = self._context(), Path(rubrics) if rubrics else None
        scope = scope_of(context, pair, prompts)
        if gold:
            return agreement_with(context, scope, Path(gold), file, **server)
        if check:
            check_judge(context, scope, sweep, file, second, referee, **server)
            return []
        return judge_sweep(context, scope, sweep, file, agree, second, referee, **server)

    @needs()
    def add_prompts(
        self, file: str | Path, name: str | None = None, columns: Mapping[str, str] | None = None
    ) -> PromptSet:
        """Check a .jsonl or .csv file of prompts and keep it in the lake under a name (the file's, unless given).

        `columns` says which column is text, id and category where they have other names; prompts without ids are numbered.
        LakeError for a name that is taken, and for a row that is no prompt.
        """
        from ..capture.streams.requests import keep_prompts

        return keep_prompts(self.layout, self.catalog, Path(file), name, dict(columns or {}))

    def add_table(self, name: str, file: str | Path, **given: str | None) -> Added:
        """Check other people's numbers (a .parquet or .csv file with columns of the table `name`) and keep them in the lake.

        `given` fills columns that the file lacks: model, or pair and variant, stream, stream_pt, lens. Rows without prompt and
        token stand for the mean over them. Nothing is written on LakeError: columns that the table lacks or needs, values out
        of range, rows that are there twice.
        """
        from ..store.tables.imported import add_table

        pairs = known_pairs(self.catalog, stored_models(self.layout))
        return add_table(self.layout, name, Path(file), pairs, **given)

    @needs()
    def add_capture(
        self,
        format: str,
        path: str | Path,
        model: str,
        stream: str | None = None,
        *,
        name: str | None = None,
        boundaries: Sequence[int] = (),
        dtype: str = "auto",
        allow_nonfinite: bool = False,
    ) -> Result:
        """Bring in a capture that another tool made: its tokens become a stream, its values a sealed capture, bit for bit.

        `format` is vllm, speculators, specforge, crosscoder, saelens, transformerlens, nnsight, datasets or npy (docs/IMPORT.md),
        `path` its file or folder, `model` the model it is of, whose head and vocabulary are kept beside it. `stream` names the
        stream that it was made on, needed where the files hold no token ids; `name` is the prompt set's name (the file's, unless
        given). `boundaries` says which the layers of unnamed states are: 0 enters block 0, l + 1 leaves block l. Streamed; what
        is interrupted goes on. Returns a result as `capture` does; `verify(.., reforward=N)` says whether it is right.
        LakeError for files that are damaged, hold anything but numbers, or do not fit the model.
        """
        from ..exchange.importing import add_capture

        return add_capture(
            self.layout, self.catalog, format, Path(path), self._model(model), stream, name, boundaries, self.device, dtype,
            allow_nonfinite,
        )  # fmt: skip

    @needs()
    def add_tokens(
        self,
        file: str | Path,
        model: str,
        *,
        engine: str = "",
        settings: Mapping[str, str] | None = None,
        name: str | None = None,
        profile: str = "full",
        dtype: str = "auto",
        batch: int = 16,
    ) -> Written:
        """Capture a model on text that another engine wrote: a .jsonl or .parquet file of prompt_token_ids and token_ids.

        `engine` and `settings` (temperature ...) go into the stream's recipe, `name` names the prompt set, `profile` is what is
        kept. Returns `.result` (as `capture`), `.stream`, `.tokens` written, and `.other`: how many of these are not what the
        model would have chosen itself, `.first` of them the first of their prompt. LakeError for ids that the model lacks.
        """
        from ..exchange.tokens import import_tokens

        return import_tokens(
            self.layout, self.catalog, Path(file), self._model(model), engine, settings, name, profile, self.device, dtype, batch
        )  # fmt: skip
