-- id: L1
-- title: δ-cosine of block updates
-- needs: delta
-- models: 1
-- stream: native
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: line x=layer hue=variant y="δ-cosine" numbers=cosine
-- says: Over the final 20 % of layers IT's blocks write {final20?more|less|neither clearly more nor less} along the residual
--   they are added to than PT's: δ-cosine difference {final20}[ (PT {final20@pt}, IT {final20@it})].
-- about: The cosine between what a whole block (attention + MLP) adds and the residual it adds to; the PT/IT study's text
--   calls it MLP update, its code uses the block (known pitfall: MLP before post-norm; "δ-cosine" is cos(m, r) in exp11 and
--   exp14; that one is `mlp_cos` of the table `delta`). Above zero the block writes along its input, below zero against it:
--   read the levels before the difference. `profile` is the mean over record steps 10 to 99 with equal weight for each
--   step, each step averaged over the prompts that reach it; the study counts from the second generated token, so record
--   step t is step t + 1 here. Steps 0 to 9 and those after 99 are left out as in the study (known pitfall: skipped first
--   steps; L2 uses all, the study's mean commitments skip 5); for all of them: `actlake sql "SELECT variant, layer,
--   avg(block_cos) FROM delta WHERE step >= 1 GROUP BY ALL"`. `final20` is the mean over layers floor(0.8 L) and up,
--   `last_layer` the last one alone, thirds split at L // 3 and 2 L // 3 (the published thirds of L2 need this cut). Layer
--   0 is undefined in the study and left out. Pooled over pairs: the mean of the pairs' numbers. Free-running: PT and IT
--   read different texts. Known pitfall: double BOS. The study's IT prompts began with two BOS tokens (`actlake capture
--   --double-bos`).
-- pitfalls: double BOS, MLP before post-norm, skipped first steps
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
