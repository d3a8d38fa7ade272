"""Prompts that begin alike: does a prefix computed once give the bits of the usual forward?

Each family of the tests as a random model, some of them also of a larger width, in float32 and bfloat16, reads a batch of eight
prompts that share their first 48 or 37 tokens. The usual forward of the batch, padded, is compared with a forward of the prefix
alone, once, and one of what follows it with the prefix's keys and values in the cache: all residuals, bit by bit.
"""

import tempfile
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import helpers  # noqa: F401
import numpy as np
import tiny
import torch
import transformers
from measure import Row, main
from torch import Tensor
from transformers import AutoModelForCausalLM

PREFIXES, BATCH = (48, 37), 8
WIDTHS: dict[int, dict[str, Any]] = {
    32: {},
    512: {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8},
}
LARGER = ("llama", "gemma3", "gpt2", "olmo2", "cohere")
DTYPES = (torch.float32, torch.bfloat16)


def prompts(prefix: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask [batch, tokens] of prompts with a common prefix, of unequal lengths, padded on the right."""
    rng = np.random.default_rng(prefix)
    lengths = prefix + np.sort(rng.integers(4, 40, BATCH))
    ids = torch.from_numpy(rng.integers(5, 290, (BATCH, lengths.max())))
    ids[:, :prefix] = ids[0, :prefix]
    mask = torch.arange(lengths.max())[None] < torch.from_numpy(lengths)[:, None]
    return ids * mask, mask.long()


@torch.no_grad()
def both_ways(hf: Any, ids: Tensor, mask: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Residuals [boundary, batch, token, d] of the usual forward, and of the one that reuses the prefix."""
    at = torch.arange(ids.shape[1]).expand_as(ids)
    usual = hf(input_ids=ids, attention_mask=mask, position_ids=at, use_cache=False, output_hidden_states=True)
    head = hf(input_ids=ids[:1, :prefix], position_ids=at[:1, :prefix], use_cache=True, output_hidden_states=True)
    cache = head.past_key_values
    cache.batch_repeat_interleave(len(ids))
    tail = hf(
        input_ids=ids[:, prefix:],
        attention_mask=mask,
        position_ids=at[:, prefix:],
        past_key_values=cache,
        output_hidden_states=True,
    )
    parts = [
        torch.cat([begin.expand(len(ids), -1, -1), end], 1)
        for begin, end in zip(head.hidden_states, tail.hidden_states, strict=True)
    ]
    return torch.stack(usual.hidden_states), torch.stack(parts)


def measured(folder: Path, family: str, dtype: torch.dtype, width: int, prefix: int) -> tuple[float, float, float]:
    """Shares of residual values with equal bits, in the prefix and after it, and the largest difference in roundings of the
    largest value."""
    sizes = {
        name: value for name, value in WIDTHS[width].items() if family != "deepseek_v2" or name != "num_attention_heads"
    }
    hf: Any = AutoModelForCausalLM.from_pretrained(tiny.make_model(folder, family, dtype=dtype, **sizes), dtype=dtype)
    ids, mask = prompts(prefix)
    usual, reused = both_ways(hf.eval(), ids, mask, prefix)
    real = mask.bool()
    values = (usual == reused).float().mean((0, -1))
    after = real.clone()
    after[:, :prefix] = False
    apart = (usual.double() - reused.double()).abs()[:, real].max() / usual[:, real].double().abs().max()
    return values[:, :prefix].mean().item(), values[after].mean().item(), apart.item() / torch.finfo(dtype).eps


def run() -> list[Row]:
    """All rows of this benchmark."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = []
    for prefix, dtype, width in product(PREFIXES, DTYPES, WIDTHS):
        found = {}
        for family in tiny.FAMILIES if width == 32 else LARGER:
            with tempfile.TemporaryDirectory(prefix="actlake-bench-") as name:
                found[family] = measured(Path(name), family, dtype, width, prefix)
        what = f"prefix of {prefix}, {str(dtype).removeprefix('torch.')}, width {width}"
        exact = [family for family, (before, after, _) in found.items() if before == after == 1]
        rows.append(Row(f"{what}: families with the same bits", len(exact), len(found), "families", ">= 1"))
        for place, name in enumerate(("in the prefix", "after it")):
            least = min(one[place] for one in found.values())
            rows.append(Row(f"{what}: values with the same bits {name}, least of all families", least, 1.0, "of all"))
        worst = max(one[2] for one in found.values())
        rows.append(
            Row(f"{what}: largest difference", worst, 1.0, "eps", "", "of the largest value, in roundings of the dtype")
        )
    return rows


if __name__ == "__main__":
    main("prefix", run, __doc__)
