-- id: exp16
-- title: Divergence of PT and IT at the same layer
-- needs: pair_lens, pair_lenses(jacobian)??
-- stream: teacher
-- bootstrap: prompt
-- tokens: js_ac_full js_ac_pre js_ac_final20
-- plot: line x=layer panels=js forest=js_ac_full,js_ac_pre,js_ac_final20,js_ac_final20_jacobian
-- says: On the same answer tokens PT and IT differ by {js_ac_full} nats of JS over all layers and by {js_ac_final20} over
--   the final 20 %, against {js_ac_pre} before the corrective onset[; read by the Jacobian lens of
--   each, {js_ac_full_jacobian}, {js_ac_final20_jacobian} and {js_ac_pre_jacobian}].
-- about: PT reads its raw prompt followed by IT's continuation (branch A'), IT its own prompt and continuation
--   (branch C). At each layer the raw-lens distributions of both are compared, each through its own norm and
--   unembedding, limited to tokens real for both. JS is at most ln 2 = 0.693. The prompts differ (raw against chat),
--   so part of the difference is the template's.
--   - `js_ac_full`: all layers. `js_ac_pre`: layers below round(0.6 L). `js_ac_final20`: layers floor(0.8 L) and up.
--     These pool tokens; `*_prompt_mean` are means of prompt means. `*_jacobian`: each model through its own Jacobian lens,
--     where both have one.
--   - Pooled over pairs: the mean of the pairs' numbers, and `*_token_weighted` over all tokens, layers and pairs
--     alike, as the study prints them.
-- measures:
--   - js | Jensen-Shannon divergence of PT and IT | nats | between both models' raw-lens distributions at the
--     same layer and token
--   - js_<lens> | Jensen-Shannon divergence of PT and IT, <lens> | nats | the same, each model read through its own lens of
--     this kind
--   - js_ac_<region> | <region> | nats | Jensen-Shannon divergence of PT and IT, mean over these layers,
--     tokens alike
--   - js_ac_<region>_prompt_mean | <region>, prompts alike | nats | the same with every prompt alike
--   - js_ac_<region>_<lens> | <region>, <lens> | nats | Jensen-Shannon divergence of PT and IT, each through its own lens of
--     this kind, mean over these layers
--   - js_ac_<region>_<lens>_prompt_mean | <region>, <lens>, prompts alike | nats | the same with every prompt alike
-- positions: From the last prompt token, which predicts the first continuation token, to the one before the last
--   (METHODS 0, set c).
-- pitfalls:
--   - double BOS: The study's IT prompts begin with two BOS tokens.
--   - endpoint coupling: JS at the same layer has no end point. Models with MLPs exchanged are read the same way in
--     exp16_BD.
--   - mixed resampling units: Of the study's later intervals only some resample prompts; these do.
-- published: Five families, their pool by tokens and by prompts, token counts, and the reverse (both read PT's
--   continuation).
-- source: METHODS 13
WITH every AS (
    SELECT '' AS read, prompt, step, layer, js FROM pair_lens
    UNION ALL
    SELECT '_' || lens AS read, prompt, step, layer, js FROM pair_lenses WHERE lens = 'jacobian'
), cells AS (
    SELECT *, max(layer) OVER () + 1 AS layers FROM every WHERE coalesce(step >= 0, true) AND layer >= 0
), regions AS (
    SELECT read, region, prompt, step, avg(js) AS js
    FROM cells, (VALUES ('full'), ('pre'), ('final20')) AS names (region)
    WHERE CASE region WHEN 'pre' THEN layer < round(0.6 * layers) WHEN 'final20' THEN layer >= floor(0.8 * layers) ELSE true END
    GROUP BY read, region, prompt, step
)
SELECT 'js' || read AS measure, layer, prompt, sum(js) AS total, count(*) AS n FROM cells GROUP BY read, layer, prompt
UNION ALL
SELECT 'js_ac_' || region || read, NULL, prompt, sum(js), count(*) FROM regions GROUP BY read, region, prompt
UNION ALL
SELECT 'js_ac_' || region || read || '_prompt_mean', NULL, prompt, avg(js), 1 FROM regions GROUP BY read, region, prompt
