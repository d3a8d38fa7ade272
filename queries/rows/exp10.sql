-- id: exp10
-- title: Direction of later convergence
-- needs: directions(contrast), lens(raw), directions(contrast_tuned)?, lens(tuned)?
-- stream: teacher
-- bootstrap: prompt
-- plot: line x=layer hue=part panels=dkl_raw+dkl_tuned,r2_raw,cosine_raw
--   forest=r2_in_sample_raw,r2_held_out_raw,r2_in_sample_tuned,r2_held_out_tuned
-- says: On the same answer IT is {dkl_late_raw?farther from|closer to|about as far from} its final distribution
--   {dkl_late_raw?than|than|as} PT in the second half of the layers ({dkl_late_raw} nats[, with the tuned lens
--   {dkl_late_tuned}]). A ridge on the residual difference explains {r2_in_sample_raw} of that in sample and
--   {r2_held_out_raw} on prompts held out (corrective layers)[; with the tuned lens {r2_in_sample_tuned} and
--   {r2_held_out_tuned}]; its direction has a cosine of {conv_mean_raw} with the mean direction.
-- about: Is there a direction in the residual that makes a model converge later? Both models read IT's continuation.
--   At every token and block, x = h_it − h_pt, and y = `dkl` is IT − PT of KL(final || layer), each through its own
--   lens, winsorised to the prompt's own 5th and 95th percentile. d_conv is the direction of a centred ridge
--   regression (lambda 1) of y on x, from statistics summed over all tokens. Suffixes `_raw` and `_tuned` name the
--   lens; the study takes the tuned one except for Gemma. Nothing is fitted at the last layer, where the raw KL is
--   zero.
--   - `r2`: in_sample is the study's R², on the tokens it was fitted to; held_out is that of a fit to 80 % of the
--     prompts on the other 20 % (train: on its own).
--   - `cosine`: conv_mean, conv_grad, mean_grad are cosines between d_conv, the mean direction of 0A and the mean
--     gradient of KL(final || layer) in IT's residual (up to 1,024 tokens, spread over the continuations).
--   - Single numbers are means over the corrective layers (round(0.6 L) and up). `redundant` is 1 where |conv_mean|
--     exceeds 0.95 in all of them. `dkl_late`: mean over layers floor(L / 2) and up.
--   - `dh_norm`: mean length of x.
-- measures:
--   - dkl_<lens> | KL(final ‖ layer), IT − PT, <lens> | nats | difference of the models' divergence from
--     their own final distributions on the same answer, winsorised
--   - dkl_late_<lens> | KL(final ‖ layer), IT − PT, second half, <lens> | nats | mean over layers floor(L/2)
--     and up
--   - r2_<fit>_<lens> | explained <fit>, corrective layers, <lens> | R² | share of the variance of the KL
--     difference that the ridge explains
--   - r2_<lens> | explained by the residual difference, <lens> | R² | share of the variance of the KL
--     difference that a ridge on the residual difference explains
--   - cosine_<lens> | cosines of directions, <lens> | cosine | between d_conv, the mean direction and the
--     mean gradient of KL
--   - <cosine>_<lens> | <cosine>, corrective layers, <lens> | cosine | mean over layers round(0.6 L) and up
--   - redundant_<lens> | d_conv is the mean direction, <lens> | 1 = yes | whether their cosine exceeds 0.95
--     in all corrective layers
--   - dh_norm | length of the residual difference | length | mean length of h_it − h_pt
-- positions: Every token of IT's continuation, read by both models. PT reads its raw prompt here; the study gave both
--   IT's template: for that, give the stream teacher in your catalog.yaml `template: chat`.
-- pitfalls:
--   - double BOS: The study's templated prompts begin with two BOS tokens.
--   - in-sample fit: The study has the in-sample R² only.
-- published: none; the published figures are those of steering (exp10_P4).
-- source: METHODS 7 (P1, P2)
WITH mine AS (
    SELECT lens, variant, prompt, layer, position, step, kl_final_layer, max(layer) OVER () + 1 AS layers FROM lens
    WHERE layer >= 0
), starts AS (
    SELECT lens, variant, prompt, position AS last FROM mine WHERE layer = 0 AND step = 0
), answered AS (
    SELECT lens, variant, prompt, layer, layers, position - last AS place, kl_final_layer AS kl
    FROM mine JOIN starts USING (lens, variant, prompt) WHERE position > last
), paired AS (
    SELECT lens, prompt, layer, layers, it.kl - pt.kl AS dkl
    FROM (FROM answered WHERE variant = 'it') AS it
    JOIN (SELECT lens, prompt, layer, place, kl FROM answered WHERE variant = 'pt') AS pt USING (lens, prompt, layer, place)
), tails AS (
    SELECT lens, prompt, layer, quantile_cont(dkl, 0.05) AS low, quantile_cont(dkl, 0.95) AS high, count(*) AS tokens
    FROM paired GROUP BY lens, prompt, layer
), clipped AS (
    SELECT lens, prompt, layer, layers, CASE WHEN tokens > 4 THEN least(greatest(dkl, low), high) ELSE dkl END AS dkl
    FROM paired JOIN tails USING (lens, prompt, layer)
), fits AS (
    SELECT CASE kind WHEN 'contrast' THEN 'raw' ELSE 'tuned' END AS lens, name, layer, value, n,
        max(layer) OVER () + 2 AS layers
    FROM directions WHERE kind IN ('contrast', 'contrast_tuned')
), corrective AS (
    FROM fits WHERE layer >= round(0.6 * layers)
)
SELECT 'dkl_' || lens AS measure, NULL AS part, layer, prompt, sum(dkl) AS total, count(*) AS n, NULL AS estimate, NULL AS unit
FROM clipped GROUP BY lens, layer, prompt
UNION ALL
SELECT 'dkl_late_' || lens, 'all tokens', NULL, prompt, sum(dkl), count(*), NULL, NULL FROM clipped
WHERE layer >= layers // 2 GROUP BY lens, prompt
UNION ALL
SELECT CASE WHEN starts_with(name, 'r2') THEN 'r2_' ELSE 'cosine_' END || lens, replace(name, 'r2_', ''), layer, NULL, NULL, n,
    value, 'prompts'
FROM fits WHERE name <> 'dh_norm'
UNION ALL
SELECT name, NULL, layer, NULL, NULL, n, value, 'prompts' FROM fits WHERE name = 'dh_norm' AND lens = 'raw'
UNION ALL
SELECT name || '_' || lens, NULL, NULL, NULL, NULL, min(n), avg(value), 'prompts' FROM corrective
WHERE name IN ('r2_in_sample', 'r2_held_out', 'conv_mean', 'conv_grad') GROUP BY lens, name
UNION ALL
SELECT 'redundant_' || lens, 'conv_mean', NULL, NULL, NULL, min(n), bool_and(abs(value) > 0.95)::INTEGER, 'prompts'
FROM corrective WHERE name = 'conv_mean' GROUP BY lens
