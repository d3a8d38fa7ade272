-- id: exp16_BD
-- title: Divergence at the same layer with MLPs exchanged
-- needs: graft(B_early), graft(B_mid), graft(B_late), graft(D_early), graft(D_mid), graft(D_late), pair_lens
-- stream: teacher
-- bootstrap: prompt
-- plot: line x=layer hue=condition panels=js_target
--   forest=closer_b_early_final20,closer_b_mid_final20,closer_b_late_final20,closer_d_early_final20,closer_d_mid_final20,closer_d_late_final20
-- says: Against {js_ac_final20} nats of JS between the models over the final 20 % of layers, IT's MLPs bring the PT closer to the
--   IT by {closer_b_early_final20} (early), {closer_b_mid_final20} (mid) and {closer_b_late_final20} (late), the PT's bring the IT
--   closer to the PT by {closer_d_early_final20}, {closer_d_mid_final20} and {closer_d_late_final20}. Mid ones bring
--   {closer_b_mid_late_final20?more than|less than|about as much as} late ones in the PT ({closer_b_mid_late_final20}) and
--   {closer_d_mid_late_final20?more than|less than|about as much as} them in the IT ({closer_d_mid_late_final20}).
-- about: JS between raw-lens distributions at the same layer and token, on IT's continuation. Pairs: A' with C (row
--   exp16), and for each exchange of MLPs (B: IT's in the PT, D: the PT's in the IT; early, mid, late) the edited
--   recipient with the other model (`js_target`) and with itself unedited (`js_host`): 13 in all. Each side through
--   its own norm and unembedding, limited to tokens real for both, or for the recipient.
--   - Regions: `full`, `pre` (below round(0.6 L)), `final20` (floor(0.8 L) and up), `window` (the exchanged blocks),
--     pooled over tokens. `*_prompt_mean` are means of prompt means.
--   - `closer` = js(A', C) − js_target token by token: above zero where the exchange brings the recipient closer to
--     the other model. `closer_*_mid_late` is mid less late.
--   - Below the window nothing has changed: js_host is 0 and js_target that of A' and C.
-- measures:
--   - js_target | divergence from the other model | nats | Jensen-Shannon divergence of the edited recipient
--     and the other model
--   - js_host | divergence from itself unedited | nats | Jensen-Shannon divergence of the edited and the
--     unedited recipient
--   - js_ac_<region> | PT and IT unedited, <region> | nats | Jensen-Shannon divergence, mean over these
--     layers
--   - js_ac_<region>_prompt_mean | PT and IT unedited, <region>, prompts alike | nats | the same with every
--     prompt alike
--   - js_target_<recipient>_<window>_<region> | <recipient> <window> MLPs and the other model, <region> |
--     nats | Jensen-Shannon divergence, mean over these layers
--   - js_target_<recipient>_<window>_<region>_prompt_mean | <recipient> <window> MLPs and the other model,
--     <region>, prompts alike | nats | the same with every prompt alike
--   - js_host_<recipient>_<window>_<region> | <recipient> <window> MLPs and itself unedited, <region> | nats
--     | Jensen-Shannon divergence, mean over these layers
--   - js_host_<recipient>_<window>_<region>_prompt_mean | <recipient> <window> MLPs and itself unedited,
--     <region>, prompts alike | nats | the same with every prompt alike
--   - closer_<recipient>_mid_late_<region> | <recipient> middle less late MLPs, closer by, <region> | nats |
--     how much closer middle than late MLPs bring the recipient to the other model
--   - closer_<recipient>_<window>_<region> | <recipient> <window> MLPs, <region> | nats | how much closer the
--     exchange brings the recipient to the other model
-- positions: As exp16.
-- pitfalls:
--   - overlapping windows: Mid shares blocks with late.
--   - endpoint coupling: No end point enters here, unlike in exp11 and exp14; the study finds mid windows strongest.
--   - mixed resampling units: Of the study's later intervals only some resample prompts; these do.
-- published: Target JS over the final 20 %, for the pool of five families.
-- source: METHODS 13
WITH cells AS (
    SELECT lower(condition) AS condition, prompt, step, layer, window_start, window_stop, js_target, js_host, js,
        max(layer) OVER () + 1 AS layers
    FROM (
        SELECT * REPLACE (coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step) FROM graft
        WHERE condition IN ('B_early', 'B_mid', 'B_late', 'D_early', 'D_mid', 'D_late') AND lens = 'raw'
    ) AS edited
    JOIN (SELECT coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step, layer, js FROM pair_lens) USING (prompt, step, layer)
    WHERE layer >= 0
), tokens AS (
    SELECT condition, region, prompt, step, avg(js_target) AS js_target, avg(js_host) AS js_host, avg(js) AS js_ac,
        avg(js - js_target) AS closer
    FROM cells, (VALUES ('full'), ('pre'), ('final20'), ('window')) AS names (region)
    WHERE CASE region WHEN 'pre' THEN layer < round(0.6 * layers) WHEN 'final20' THEN layer >= floor(0.8 * layers)
        WHEN 'window' THEN layer >= window_start AND layer < window_stop ELSE true END
    GROUP BY condition, region, prompt, step
), sides AS (
    SELECT left(condition, 1) AS side, region, prompt, step, sum(CASE condition[3:] WHEN 'mid' THEN closer ELSE -closer END) AS closer
    FROM tokens
    WHERE condition[3:] IN ('mid', 'late') AND region <> 'window'
    GROUP BY side, region, prompt, step
    HAVING count(DISTINCT condition) = 2
), numbers AS (
    SELECT measure || '_' || condition || '_' || region AS measure, prompt, value
    FROM (UNPIVOT tokens ON js_target, js_host, closer INTO NAME measure VALUE value)
    UNION ALL
    SELECT 'js_ac_' || region, prompt, js_ac FROM tokens WHERE condition = 'b_late' AND region <> 'window'
    UNION ALL
    SELECT 'closer_' || side || '_mid_late_' || region, prompt, closer FROM sides
)
SELECT measure, NULL AS layer, NULL AS condition, prompt, sum(value) AS total, count(*) AS n FROM numbers GROUP BY measure, prompt
UNION ALL
SELECT measure || '_prompt_mean', NULL, NULL, prompt, avg(value), 1 FROM numbers WHERE starts_with(measure, 'js_') GROUP BY measure, prompt
UNION ALL
SELECT measure, layer, upper(condition[1]) || condition[2:], prompt, sum(value), count(*)
FROM (UNPIVOT cells ON js_target, js_host INTO NAME measure VALUE value)
GROUP BY measure, layer, condition, prompt
UNION ALL
SELECT 'js_target', layer, 'A''C', prompt, sum(js), count(*) FROM cells WHERE condition = 'b_late' GROUP BY layer, prompt
