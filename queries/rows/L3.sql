-- id: L3
-- title: Weight change per layer and module
-- needs: weights
-- stream: none
-- bootstrap: none
-- plot: line x=layer hue=part panels=rms,relative
-- says: Post-training moved the MLP weights by {mlp_min} (least changed layer) to {mlp_max} (most changed, layer
--   {mlp_argmax}) RMS; the late layers (from 0.6 of the depth on) changed {mlp_late_early} times as much as those below.
-- about: Root mean square of the difference IT − PT over all weights of a part, read from both checkpoints; no model
--   runs.
--   - `rms`: tensors grouped by the module they belong to: attention, mlp (dense), experts and router of a mixture,
--     norms (wherever they are), and outside the blocks embed, final_norm, lm_head.
--   - `relative`: `rms` over PT's own root mean square.
--   - `rms_seed`: tensors grouped by parts of their names, as the study's collector does. A tensor may be in several
--     groups: attention also takes post_attention_layernorm, router takes gate_proj. There is a router only where the
--     model has one.
--   - `mlp_min`, `mlp_max`, `mlp_argmax`: smallest and largest layer of the study's mlp group, and the layer of the
--     largest.
--   - `mlp_late_early`: mean over layers round(0.6 L) and up, over the mean of those below.
-- measures:
--   - rms | change of the weights | RMS | root mean square of IT − PT over the weights of a part
--   - relative | change over PT's weights | times PT's RMS | root mean square of IT − PT over that of PT's
--     weights
--   - rms_seed | change of the weights, the study's groups | RMS | root mean square of IT − PT, tensors
--     grouped by parts of their names
--   - mlp_min | least changed MLP | RMS | smallest change of a layer's MLP weights
--   - mlp_max | most changed MLP | RMS | largest change of a layer's MLP weights
--   - mlp_argmax | layer of the most changed MLP | layer | the layer whose MLP weights changed most
--   - mlp_late_early | late layers over the ones below | times | mean change of layers round(0.6 L) and up
--     over the mean of those below
-- positions: None. The unit is the weight; there are no intervals.
-- pitfalls:
--   - late weight change: The study's claim that Gemma changed most at the corrective layers is not in its own
--     arrays.
--   - DeepSeek exceptions: The study's router group matches gate_proj, so that for DeepSeek it is mostly expert
--     projections.
-- published: `mlp_*` for six families, from the study's mlp group.
-- source: METHODS 4, row L3
WITH mine AS (
    SELECT *, CASE WHEN layer >= 0 THEN layer END AS place, max(layer) OVER () + 1 AS layers FROM weights
), mlp AS (
    SELECT layer, rms, parameters, layers FROM mine WHERE grouping = 'seed' AND "group" = 'mlp' AND layer >= 0
), summary AS (
    SELECT sum(parameters) AS n, min(rms) AS smallest, max(rms) AS largest, arg_max(layer, rms) AS most,
        avg(rms) FILTER (layer >= round(0.6 * layers)) / nullif(avg(rms) FILTER (layer < round(0.6 * layers)), 0) AS ratio
    FROM mlp
), mixture AS (
    -- Of rows from elsewhere with the study's grouping alone it is not known whether there is a router.
    SELECT bool_or("group" = 'router') OR count(*) = 0 AS routed FROM mine WHERE grouping = 'module'
)
SELECT 'rms' AS measure, "group" AS part, place AS layer, rms AS estimate, parameters AS n, 'weights' AS unit FROM mine
WHERE grouping = 'module'
UNION ALL
SELECT 'relative', "group", place, rms / nullif(rms_pt, 0), parameters, 'weights' FROM mine
WHERE grouping = 'module' AND layer >= 0
UNION ALL
SELECT 'rms_seed', replace(replace("group", 'attn', 'attention'), 'norm', 'norms'), place, rms, parameters, 'weights' FROM mine
WHERE grouping = 'seed' AND layer >= 0 AND ("group" <> 'router' OR (SELECT routed FROM mixture))
UNION ALL
SELECT name, 'mlp', NULL, value, n, 'weights'
FROM summary, (VALUES ('mlp_min', smallest), ('mlp_max', largest), ('mlp_argmax', most), ('mlp_late_early', ratio)) AS v (name, value)
