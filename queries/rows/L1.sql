-- id: L1
-- title: δ-cosine of block updates
-- needs: delta
-- models: 1
-- compares: models, prompts, streams, layers
-- stream: native
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: line x=layer hue=variant panels=profile forest=first_third,middle_third,final20,last_layer
-- says: Over the final 20 % of layers IT's blocks write {final20?more|less|neither clearly more nor less} along the residual
--   they are added to than PT's: δ-cosine difference {final20}[ (PT {final20@pt}, IT {final20@it})].
-- about: The cosine between what a whole block (attention and MLP) adds to the residual stream and the residual that
--   it is added to. Above zero the block writes along its input, below zero against it: read the levels before the
--   difference.
--   - `profile`: one value a layer, the mean over steps 10 to 99; each step has the same weight and is averaged over
--     the prompts that reach it.
--   - `final20`: mean over layers floor(0.8 L) and up. `last_layer`: the last layer alone.
--   - `first_third`, `middle_third`, `last_third`: layers split at L // 3 and 2 L // 3.
--   - Pooled over pairs: the mean of the pairs' numbers.
-- measures:
--   - profile | δ-cosine of blocks | cosine | cosine between what a block adds to the residual and the
--     residual that it is added to
--   - final20 | final 20 % of layers | cosine | δ-cosine, mean over layers floor(0.8 L) and up
--   - last_layer | last layer | cosine | δ-cosine of the last layer alone
--   - <third>_third | <third> of the layers | cosine | δ-cosine, mean over these layers
-- positions: Continuation tokens, each model on its own text, so PT and IT read different tokens. The study counts
--   from the second generated token: its step t is step t + 1 here. Layer 0 is undefined in the study and left out.
--   For all steps: `actlake sql "SELECT variant, layer, avg(block_cos) FROM delta WHERE step >= 1 GROUP BY ALL"`.
-- pitfalls:
--   - double BOS: The study's IT prompts begin with two BOS tokens; `actlake capture --double-bos` makes such a
--     stream.
--   - MLP before post-norm: The study's text calls this number an MLP update, its code takes the block. The cosine of
--     the MLP's output, "δ-cosine" in exp11 and exp14, is the column `mlp_cos` of the table `delta`.
--   - skipped first steps: Steps 0 to 9 and those after 99 are left out, as in the study. L2 uses all steps; the
--     study's mean commitments skip 5.
-- published: Mean over the final 20 % of layers and over the last layer, for six families; thirds of the depth for
--   the pool of six.
-- source: METHODS 4, row L1
WITH regions AS (
    SELECT unnest(['final20', 'last_layer', 'first_third', 'middle_third', 'last_third']) AS measure,
        unnest([floor(0.8 * layers), layers - 1, 0, layers // 3, 2 * layers // 3]) AS first,
        unnest([layers, layers, layers // 3, 2 * layers // 3, layers]) AS past
    FROM (SELECT max(layer) + 1 AS layers FROM delta)
), cells AS (
    -- A curve without steps (a foreign table) is a profile already.
    SELECT variant, prompt, step - 1 AS stratum, layer, block_cos
    FROM delta
    WHERE coalesce(step - 1 BETWEEN 10 AND 99, true) AND layer >= 1 AND block_cos IS NOT NULL
)
SELECT 'profile' AS measure, variant, layer, prompt, stratum, block_cos AS total, 1 AS n FROM cells
UNION ALL BY NAME
SELECT measure, variant, prompt, stratum, avg(block_cos) AS total, 1 AS n
FROM cells JOIN regions ON layer >= first AND layer < past
GROUP BY ALL
