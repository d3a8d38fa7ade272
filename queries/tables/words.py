"""The tables `vocab` and `words`: the class of every token on its own, and of every answer's tokens in their text."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from ...analyze.text.word_class import alone, in_context
from ...store.artifacts.models import has_model, has_vocab, read_model, read_vocab
from ...store.core.columns import IS_SPECIAL, MODELS, PLACE, SIDE, TOKEN, TOKEN_ID, TOKEN_TEXT, Column
from ...store.core.errors import LakeError
from ...store.format.parquet import read_parquet
from ...store.tables.declared import TABLES
from ...store.tables.files import drop_tables
from ..engine.blocks import following
from ..engine.context import Context, Scope
from ..engine.declare import table
from ..engine.job import TableJob

OTHER = "OTHER"  # the class of ids that stand for no text


class Vocab(TableJob):
    """Text and class of every token id of a pair, as IT's vocabulary has it, which knows the PT's tokens and the chat's.

    Ids that only the PT has are as in the PT's; of a pair of one model all are that one's. A lake of an older version, which
    keeps no vocabulary, takes the model's tokenizer.
    """

    def __init__(self, kit: Context, scope: Scope):
        there = {variant: model for variant, model in scope.models.items() if has_model(kit.layout, model)}
        if not there:
            raise LakeError(f"table vocab needs a model of pair {scope.pair}; the lake has captured none")
        records = {variant: read_model(kit.layout, model) for variant, model in there.items()}
        recipe = {
            "models": scope.models,
            "heads": {variant: record["head_sha256"] for variant, record in records.items()},
        }
        super().__init__(kit.layout, "vocab", recipe | {"version": TABLES["vocab"].version})
        self._kit, self._scope, self._models = kit, scope, list(there.values())
        self._tokenizer, last = None, list(there)[-1]
        if not self.path.exists() and not has_vocab(kit.layout, there[last]):
            self._tokenizer = _tokenizer(kit, there[last], records[last]["tokenizer_sha256"])

    def finish(self) -> None:
        """Classify every id."""
        size = max(self._kit.head((model, "")).vocab for model in self._models)
        texts, known = self._texts(size)
        classes = [alone(text) if there else OTHER for text, there in zip(texts, known, strict=True)]
        drop_tables(self._kit.layout, "vocab", {"models": self._scope.models}, keep=self.path)
        columns = {"token_text": texts, "is_special": ~known, "word_class": classes}
        self.add({**self._scope.columns, "token_id": np.arange(size), **columns})

    def _texts(self, size: int) -> tuple[list[str], np.ndarray]:
        """What each id below `size` adds to a running text, and whether it stands for text, bool [size]."""
        if self._tokenizer is not None:
            from ...capture.checkpoint.tokens import is_text, running_texts

            return running_texts(self._tokenizer, size), is_text(self._tokenizer, size)
        texts, known, real = [""] * size, np.zeros(size, bool), np.zeros(size, bool)
        for model in self._models[::-1]:
            table = read_vocab(self._kit.layout, model)
            for place, row in enumerate(table.to_pylist() if table else []):
                if model == self._models[-1] or (row["real"] and not real[place]):
                    texts[place], real[place] = row["text"], row["real"]
                    known[place] = row["real"] and not row["special"]
        return texts, known

    def column(self, name: str) -> Any:
        """A column of the finished table, by token id; a NumPy array [V]."""
        return read_parquet(self.path, TABLES["vocab"].schema, columns=[name])[name].to_numpy()


def vocab_table(kit: Context, scope: Scope) -> Vocab:
    """The job that makes a pair's rows. LakeError when its tokenizer is not found, or is not that of the lake's captures."""
    return kit.once(Vocab, kit.scope(scope.pair, {}))


@table(
    "vocab",
    [
        *MODELS,
        TOKEN_ID,
        TOKEN_TEXT,
        IS_SPECIAL,
        Column("word_class", "text", "class of the word by its text alone; OTHER: no text"),
    ],
    "Text and word class of every token id of a pair, as IT's vocabulary has it.",
    "token id",
    of="pair",
    version=1,
    alone=True,
)
def pair_vocab(kit: Context, scope: Scope) -> Vocab:
    """`vocab_table` for the pair of a question."""
    return vocab_table(kit, scope)


def _tokenizer(kit: Context, model: str, sha256: str) -> Any:
    from ...capture.checkpoint.configs import load_tokenizer
    from ...capture.checkpoint.tokens import tokenizer_hash
    from ...capture.edit.replay import find_weights

    try:
        found = load_tokenizer(find_weights(kit.layout, model, kit.catalog))
    except LakeError as error:
        raise LakeError(
            f"the lake keeps no vocabulary of {model} (it is of an older version), and its tokenizer is not found ({error});"
            f" a new `actlake capture {model}` keeps it"
        ) from error
    if tokenizer_hash(found) != sha256:
        raise LakeError(
            f"model {model}: its tokenizer is not the one that the lake's captures were made with; name the same checkpoint,"
            " or give the other one another name"
        )
    return found


@table(
    "words",
    [
        *SIDE,
        *TOKEN,
        *PLACE,
        Column("target", "int32", "id of the next token"),
        Column("target_class", "text", "class of the word that it is part of, in the answer's text; OTHER: no text"),
    ],
    "The class of every token of an answer.",
    "answer token",
    of="side",
    version=1,
)
class _Words(TableJob):
    """The class of each target of a capture's answers in the answer's text; the stream's own texts lack some blanks."""

    def __init__(self, kit: Context, scope: Scope, variant: str):
        self._kit, self._names, self._vocab = kit, scope.names(variant), vocab_table(kit, scope)
        self._named = {**scope.columns, "variant": variant, "stream": scope.streams[variant]}
        super().__init__(kit.layout, "words", kit.side("words", scope, variant, vocab=self._vocab.path.stem))
        self.before = (self._vocab,)

    def finish(self) -> None:
        """Classify answer by answer."""
        columns = self._kit.capture(self._names).columns()
        target, answer = following(columns), np.flatnonzero(columns["step"] >= 0)
        texts, special = (self._vocab.column(name) for name in ("token_text", "is_special"))
        classes = []
        for _, places in groupby(answer, columns["prompt"].__getitem__):
            ids = target[list(places)]
            found = in_context(["" if special[index] else texts[index] for index in ids])
            classes += [OTHER if special[index] else name for index, name in zip(ids, found, strict=True)]
        kept = {name: values[answer] for name, values in columns.items()}
        named = {**self._named, **kept, "token": answer}
        self.add({**named, "target": target[answer], "target_class": classes})
