-- id: exp10
-- title: Direction of later convergence (P1, P2)
-- needs: directions(contrast), lens(raw)
-- stream: teacher
-- bootstrap: prompt
-- plot: line x=layer hue=part y="nats, length, R² or cosine" numbers="R² or cosine" redundant="1 = yes" dkl_late=nats
-- says: On the same answer IT is {dkl_late?farther from|closer to|about as far from} its final distribution
--   {dkl_late?than|than|as} PT in the second half of the layers ({dkl_late} nats). A ridge on the residual difference explains
--   {corrective_r2_in_sample} of that in sample and {corrective_r2_held_out} on prompts held out (corrective layers); its
--   direction has a cosine of {corrective_conv_mean} with the mean direction.
-- about: Both models read IT's answer; at every answer token and block, x = h_it - h_pt and y = `dkl` = difference of
--   KL(final || layer), each through its own raw lens, winsorised to the prompt's own 5th and 95th percentile. `d_conv` is
--   the direction of a centred ridge (lambda 1) of y on x, from statistics summed over all tokens. `r2` in_sample is the
--   seed's R2, on the tokens it was fitted to; held_out is that of a fit to 80 % of the prompts on the other 20 % (train
--   on its own): trap 18 is that the seed has only the first. `cosine` conv_mean, conv_grad, mean_grad are the cosines
--   between d_conv, the mean direction of 0A and the mean gradient of KL(final || layer) in IT's residual (up to 1,024
--   tokens, spread over the answers). `redundant` is 1 when |conv_mean| exceeds 0.95 in all corrective layers. `dh_norm`
--   is the mean length of x. The last layer's KL to itself is zero, so nothing is fitted there. PT reads its raw prompt
--   here; the seed gave both IT's template: for that, give the stream teacher in your catalog.yaml `template: chat`. The
--   seed's lens is the tuned one except for Gemma. Published figures are those of steering (P4), which needs generation.
-- source: METHODS 7 (P1, P2); trap in METHODS 21 (18)
WITH mine AS (
    SELECT variant, prompt, layer, position, step, kl_final_layer, max(layer) OVER () + 1 AS layers FROM lens
    WHERE lens = 'raw' AND layer >= 0
), starts AS (
    SELECT variant, prompt, position AS last FROM mine WHERE layer = 0 AND step = 0
), told AS (
    SELECT variant, prompt, layer, layers, position - last AS place, kl_final_layer AS kl FROM mine JOIN starts USING (variant, prompt)
    WHERE position > last
), paired AS (
    SELECT prompt, layer, layers, it.kl - pt.kl AS dkl
    FROM (FROM told WHERE variant = 'it') AS it JOIN (SELECT prompt, layer, place, kl FROM told WHERE variant = 'pt') AS pt
        USING (prompt, layer, place)
), tails AS (
    SELECT prompt, layer, quantile_cont(dkl, 0.05) AS low, quantile_cont(dkl, 0.95) AS high, count(*) AS tokens FROM paired
    GROUP BY prompt, layer
), clipped AS (
    SELECT prompt, layer, layers, CASE WHEN tokens > 4 THEN least(greatest(dkl, low), high) ELSE dkl END AS dkl
    FROM paired JOIN tails USING (prompt, layer)
), fits AS (
    SELECT name, layer, value, n, max(layer) OVER () + 2 AS layers FROM directions WHERE kind = 'contrast'
)
SELECT 'dkl' AS measure, NULL AS part, layer, prompt, sum(dkl) AS total, count(*) AS n, NULL AS estimate, NULL AS unit
FROM clipped GROUP BY layer, prompt
UNION ALL
SELECT 'dkl_late', 'all tokens', NULL, prompt, sum(dkl), count(*), NULL, NULL FROM clipped WHERE layer >= layers // 2
GROUP BY prompt
UNION ALL
SELECT CASE WHEN name = 'dh_norm' THEN name WHEN starts_with(name, 'r2') THEN 'r2' ELSE 'cosine' END,
    CASE WHEN name <> 'dh_norm' THEN replace(name, 'r2_', '') END, layer, NULL, NULL, n, value, 'prompts' FROM fits
UNION ALL
SELECT 'corrective_' || name, NULL, NULL, NULL, NULL, min(n), avg(value), 'prompts' FROM fits
WHERE layer >= round(0.6 * layers) AND name <> 'dh_norm' GROUP BY name
UNION ALL
SELECT 'redundant', 'conv_mean', NULL, NULL, NULL, min(n), bool_and(abs(value) > 0.95)::INTEGER, 'prompts' FROM fits
WHERE layer >= round(0.6 * layers) AND name = 'conv_mean'
