"""Free generation: every family against Hugging Face's own forward, edits in decoding against the same edits in one forward."""

import numpy as np
import pytest
import tiny
import torch
from actlake.analyze.residual.directions import random_units
from actlake.capture.checkpoint.tokens import encode
from actlake.capture.edit.edits import Graft, Inject, Matched, RandomGraft, Scale, Skip, Zero, edited
from actlake.capture.edit.replay import replay_whole
from actlake.capture.edit.start import open_start
from actlake.capture.model.load import load_model
from actlake.capture.model.partial import load_donor, load_suffix
from actlake.capture.streams.free import decoded
from actlake.capture.streams.greedy import decode, nats
from transformers import AutoModelForCausalLM, LogitsProcessor

FAMILIES = tiny.sampled("mistral", "gemma3", "deepseek_v2", "phi3")

NEW, WIDTH, BLOCKS = 8, 32, (1, 2)
UNITS = random_units(BLOCKS, WIDTH)


@pytest.fixture(scope="module")
def prompts():
    texts = [row[2] for row in tiny.TEXTS]
    return [encode(tiny.tokenizer(), text, "chat") for text in texts]


def edits(donor):
    """One of each kind, as conditions name them; the doses are large enough to change what is said."""
    return {
        "scale": [Scale(UNITS, 6.0)],
        "block": [Scale(UNITS, -4.0, site="block")],
        "attn": [Scale(UNITS, 9.0, site="attn")],
        "inject": [Inject(UNITS, 3.0, relative=True)],
        "matched": [Matched(UNITS, 8.0)],
        "skip": [Skip(blocks=BLOCKS)],
        "graft": [Graft(donor)],
        "random_graft": [RandomGraft(donor)],
        "two": [Graft(donor), Scale(UNITS, 3.0)],
    }


def whole(model, ids, changes=()):
    """Logits [n, V] of one sequence in one forward without a cache, which hooks of one kind act on alike."""
    with torch.no_grad(), edited(model, changes):
        return model.hf(torch.tensor([ids]), use_cache=False).logits[0].float()


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_is_single_and_what_one_forward_says(pairs, prompts, family):
    """Left padding changes nothing, and teacher-forced argmax of the whole text gives its tokens: with edits and without."""
    model, donor = load_model(pairs(family).pt), load_donor(pairs(family).it, BLOCKS)
    seen = set()
    prompts = prompts[:4]
    for changes in ((), *edits(donor).values()):
        with edited(model, changes):
            together = decode(model, prompts, NEW, [tiny.EOS])
            alone = [decode(model, [prompt], NEW, [tiny.EOS])[0] for prompt in prompts]
        assert together == alone
        for prompt, told in zip(prompts, together, strict=True):
            logits = whole(model, [*prompt, *told], changes)
            assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == told
        seen.add(str(together))
    assert len(seen) > len(edits(donor)) - 2  # they do change what is said


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_each_step_are_those_of_one_forward(pairs, prompts, family):
    """What a cached step computes under an edit, against one forward of the whole text under the same edit."""
    model, donor = load_model(pairs(family).pt), load_donor(pairs(family).it, BLOCKS)
    prompt = prompts[1]
    for changes in edits(donor).values():
        with edited(model, changes):
            out = model.hf.generate(
                torch.tensor([prompt]),
                max_new_tokens=NEW,
                do_sample=False,
                pad_token_id=tiny.PAD,
                eos_token_id=None,
                output_logits=True,
                return_dict_in_generate=True,
            )
        told = out.sequences[0, len(prompt) :].tolist()
        steps = torch.stack([step[0] for step in out.logits])
        expected = whole(model, [*prompt, *told], changes)[len(prompt) - 1 : -1]
        assert (steps - expected).abs().max() < 1e-4


class Forced(LogitsProcessor):
    """Makes generation write given tokens; what the model computed is in the logits that are put out."""

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[input_ids.shape[1]]] = 0
        return forced


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_steps_are_the_replay(pairs, tmp_path, family):
    """An edited model that is made to write a capture's tokens gives, step by step, the logits that a replay of the capture
    gives under the same edit."""
    layout = tiny.capture(tmp_path / "lake", pairs(family), tiny.NATIVE, variants=("pt",))
    start = open_start(layout, f"{family}-pt", "native", 1)
    late, model = load_suffix(pairs(family).pt, 1), load_model(pairs(family).pt)
    ids = torch.from_numpy(start.token_id[slice(*start.spans([1])[0])].astype(np.int64))
    options = {"max_new_tokens": len(ids) - 3, "do_sample": False, "pad_token_id": tiny.PAD, "eos_token_id": None}
    options |= {"output_logits": True, "return_dict_in_generate": True, "logits_processor": [Forced(ids)]}
    for changes in edits(load_donor(pairs(family).it, BLOCKS)).values():
        with torch.no_grad(), edited(model, changes):
            out = model.hf.generate(ids[None, :3], **options)
        assert torch.equal(out.sequences[0], ids)
        steps = torch.stack([step[0] for step in out.logits]).float().numpy()
        replayed = replay_whole(late, start, changes, keep=(), logits="full", prompts=[1]).arrays["logits"]
        assert np.abs(steps - replayed[2:-1]).max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma3", "deepseek_v2"])
def test_noops_say_what_the_model_says(pairs, prompts, family):
    model = load_model(pairs(family).pt)
    plain = decode(model, prompts, NEW, [tiny.EOS])
    own = load_donor(pairs(family).pt, BLOCKS)
    for changes in (
        [Scale(UNITS, 1.0)],
        [Inject(UNITS, 0.0)],
        [Matched(UNITS, 1.0)],
        [Zero()],
        [Graft(own)],
        [RandomGraft(own)],
    ):
        with edited(model, changes):
            assert decode(model, prompts, NEW, [tiny.EOS]) == plain


def test_only_real_tokens_are_chosen(pairs, prompts):
    model = load_model(pairs("llama").it)
    plain = decode(model, prompts, NEW, [])
    real = np.ones(model.head.vocab, bool)
    real[[row[0] for row in plain]] = False
    masked = decode(model, prompts, NEW, [], real)
    assert all(real[token] for row in masked for token in row)
    with torch.no_grad():
        logits = model.hf(torch.tensor([prompts[0]])).logits[0, -1]
    logits[torch.from_numpy(~real)] = -torch.inf
    assert masked[0][0] == int(logits.argmax())


def test_batches_skip_what_is_done(pairs, prompts):
    model = load_model(pairs("llama").pt)
    expected = decode(model, prompts, NEW, [tiny.EOS])
    found = {}
    for indices, told in decoded(
        model, prompts, NEW, [tiny.EOS], 2, skip=lambda planned: [i for i in planned if i != 3]
    ):
        assert len(indices) <= 2
        found |= dict(zip(indices, told, strict=True))
    assert found == {index: row for index, row in enumerate(expected) if index != 3}


@pytest.mark.parametrize("family", ["llama", "gemma3_wrapper", "gpt2"])
def test_nats_against_hugging_face(pairs, prompts, family):
    model = load_model(pairs(family).it)
    replies = [[7, 8, 9], [11], [], [12, 13], [14, 15, 16, 17], [18]]
    found = nats(model, prompts, replies, 4)
    hf = AutoModelForCausalLM.from_pretrained(pairs(family).it.path, dtype=torch.float64).eval()
    for prompt, reply, value in zip(prompts, replies, found, strict=True):
        labels = torch.tensor([[-100] * len(prompt) + reply])
        with torch.no_grad():
            loss = hf(torch.tensor([[*prompt, *reply]]), labels=labels).loss
        assert abs(value - (float(loss) * len(reply) if reply else 0)) < 1e-4
