-- id: dla
-- title: Direct logit attribution of blocks and heads
-- needs: dla, dla_heads?
-- models: 1
-- compares: models, prompts, streams, layers
-- stream: native
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: line x=layer hue=variant panels=attn,mlp forest=lead,late_attn,late_mlp,embed hide=head,head_norm
-- says: Over the final 20 % of layers IT's MLPs write {late_mlp?more|less|about as much} for the model's likeliest token
--   against the second {late_mlp?than|than|as} PT's ({late_mlp} logits), its attention {late_attn?more|less|about as much}
--   ({late_attn})[; the lead of the likeliest token itself is {lead@pt} logits in PT, {lead@it} in IT].
-- about: What each part of a model adds to its own answer: the logit of the likeliest next token less that of the second is a
--   sum over what embedding, attention and MLPs add to the residual, read through the final norm with its scale held fixed.
--   - `attn`, `mlp`: what a block's attention and its MLP add, a layer each. What attention adds is the rest of its block.
--   - `lead`: the sum of all parts, biases too: the difference of the two logits before a soft cap.
--   - `late_attn`, `late_mlp`: sums over layers floor(0.8 L) and up. `embed`: what enters block 0.
--   - `head`, `head_norm`: each attention head's part of `attn`, and the length of what it adds. They are there where the
--     captures keep the site z (profile heads) and the models' files are at hand.
--   - Parts act on each other through later blocks: this is what reaches the logits directly, no effect of taking a part out.
-- measures:
--   - attn | attention, direct effect | logits | what a block's attention adds to the lead of the likeliest token
--   - mlp | MLP, direct effect | logits | what a block's MLP adds to the lead of the likeliest token
--   - head | attention head, direct effect | logits | what a head adds to the lead of the likeliest token
--   - head_norm | attention head, length of its output | 1 | length of what a head adds to the residual
--   - lead | lead of the likeliest token | logits | its logit less that of the second, before a soft cap
--   - embed | embedding, direct effect | logits | what enters block 0 adds to the lead of the likeliest token
--   - late_attn | attention, final 20 % of layers | logits | direct effects of attention, sum over layers floor(0.8 L) and up
--   - late_mlp | MLPs, final 20 % of layers | logits | direct effects of MLPs, sum over layers floor(0.8 L) and up
-- positions: Continuation tokens from the second on, each model on its own text, tokens alike.
-- pitfalls:
--   - MLP before post-norm: What an MLP adds is taken behind its post-norm where a family has one.
-- published: none; the row is no part of the PT/IT study.
-- source: METHODS 3.5
WITH depth AS (
    SELECT max(layer) + 1 AS layers FROM dla
), cells AS MATERIALIZED (
    SELECT variant, prompt, layer, part, sum(effect) AS total, count(*) AS n
    FROM dla
    WHERE step >= 1
    GROUP BY ALL
), heads AS MATERIALIZED (
    SELECT variant, prompt, layer, head, sum(effect) AS effect, sum(norm) AS norm, count(*) AS n
    FROM dla_heads
    WHERE step >= 1
    GROUP BY ALL
)
SELECT part AS measure, variant, layer, prompt, total, n FROM cells WHERE layer >= 0
UNION ALL BY NAME
SELECT 'late_' || part AS measure, variant, prompt, sum(total) AS total, max(n) AS n
FROM cells, depth
WHERE layer >= floor(0.8 * layers)
GROUP BY ALL
UNION ALL BY NAME
SELECT 'embed' AS measure, variant, prompt, total, n FROM cells WHERE part = 'embed'
UNION ALL BY NAME
SELECT 'lead' AS measure, variant, prompt, sum(total) AS total, max(n) AS n FROM cells GROUP BY ALL
UNION ALL BY NAME
SELECT 'head' AS measure, variant, layer, head, prompt, effect AS total, n FROM heads
UNION ALL BY NAME
SELECT 'head_norm' AS measure, variant, layer, head, prompt, norm AS total, n FROM heads
