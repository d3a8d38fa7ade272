-- id: L1
-- title: δ-cosine of block updates
-- needs: delta
-- stream: native
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: line x=layer hue=variant y="δ-cosine" numbers=cosine
-- says: Over the final 20 % of layers IT's blocks write {final20?less|more|neither clearly more nor less} against the residual
--   they are added to than PT's: δ-cosine difference {final20}.
-- about: The cosine between what a whole block (attention + MLP) adds and the residual it adds to; the seed's text calls it
--   MLP update, its code uses the block. Negative = the block writes against its input. `profile` is the mean over record
--   steps 10 to 99 with equal weight for each step, each step averaged over the prompts that reach it; the seed counts from
--   the second generated token, so record step t is step t + 1 here. `final20` is the mean over layers floor(0.8 L) and up,
--   `last_layer` the last one alone. Layer 0 is undefined in the seed and left out. Free-running: PT and IT read
--   different texts.
-- source: METHODS 4, row L1
WITH cells AS (
    SELECT variant, prompt, step - 1 AS stratum, layer, block_cos, max(layer) OVER () + 1 AS layers
    FROM delta
    WHERE step - 1 BETWEEN 10 AND 99 AND layer >= 1 AND block_cos IS NOT NULL
)
SELECT 'profile' AS measure, variant, layer, prompt, stratum, block_cos AS total, 1 AS n FROM cells
UNION ALL
SELECT 'final20', variant, NULL, prompt, stratum, avg(block_cos), 1 FROM cells WHERE layer >= floor(0.8 * layers)
GROUP BY variant, prompt, stratum
UNION ALL
SELECT 'last_layer', variant, NULL, prompt, stratum, block_cos, 1 FROM cells WHERE layer = layers - 1
