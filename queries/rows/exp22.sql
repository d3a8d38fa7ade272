-- id: exp22
-- title: Endpoint-deconfounded convergence gap
-- needs: lens(raw), endpoint, lens(tuned)?, churn(raw)?, churn(tuned)?
-- stream: native
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: dots x=weights hue=variant panels=late_kl/raw,late_kl/tuned,churn forest=smd_entropy,smd_confidence,smd_margin
-- says: Among tokens whose final distributions are alike in entropy, confidence and margin, IT's last 20 % of layers stay
--   {late_kl_raw_matched?farther from|closer to|about as far from} their own final distribution {late_kl_raw_matched?than|than|as}
--   PT's ({late_kl_raw_matched} nats[, with the tuned lens {late_kl_tuned_matched}]); {retained} of the tokens are matched, the
--   largest standardised difference left is {max_smd}.
-- about: Is the gap of L2 only a gap between final distributions? Tokens of PT and IT are matched on deciles (of both
--   together) of the final entropy, the largest probability and the log-probability margin of the first two
--   (coarsened exact matching). `lens` is raw, tuned, or both (their tokens together, as published for adjacent_js
--   and flips).
--   - `weights`: `all` no matching; `matched` as published, within each cell min(n_pt, n_it) / n each; `ipw` by the
--     inverse of the cell's share of the variant, times its overall share; `overlap` by the share of the other
--     variant. Weights stay as they are while prompts are resampled.
--   - `late_kl`: mean KL(layer || final) over layers floor(0.8 L) and up, the last one too.
--   - Free of the end point: `adjacent_js` is the sum of JS between neighbouring layers from a late layer to the end,
--     mean over late layers before the last; `flips` the changes of the top token counted in the same way; `churn`
--     the mean of 1 − Jaccard of the five likeliest tokens of neighbouring late layers.
--   - `*_matched`: the matched numbers again, beside the published ones. `retained`: share of tokens that are
--     matched. `smd_*`: difference of the matched means in standard deviations.
--   - Both variants read their own prompt and continuation: METHODS 16 has about half of the paired gap as the
--     template's.
-- measures:
--   - late_kl | KL(layer ‖ final), late layers | nats | mean over layers floor(0.8 L) and up
--   - adjacent_js | divergence of neighbouring layers to the end | nats | sum of the Jensen-Shannon
--     divergence of neighbouring layers from a late layer to the end, mean over late layers
--   - flips | changes of the top token to the end | changes | from a late layer to the end, mean over late
--     layers
--   - churn | change of the five likeliest tokens | 1 − Jaccard index | between neighbouring late layers
--   - late_kl_<lens>_matched | KL(layer ‖ final), late layers, <lens> | nats | of tokens matched on their
--     final distributions
--   - adjacent_js_<lens>_matched | divergence of neighbouring layers, <lens> | nats | of tokens matched on
--     their final distributions
--   - flips_<lens>_matched | changes of the top token, <lens> | changes | of tokens matched on their final
--     distributions
--   - churn_<lens>_matched | change of the five likeliest tokens, <lens> | 1 − Jaccard index | of tokens
--     matched on their final distributions
--   - retained | tokens that are matched | share of tokens | of both models together
--   - retained_by_variant | tokens that are matched | share of tokens | of each model
--   - smd_<covariate> | left between the matched: <covariate> | standard deviations | difference of the
--     matched means in standard deviations
--   - max_smd | largest difference left between the matched | standard deviations | largest absolute
--     standardised difference
-- positions: Continuation tokens from the sixth on, as in the study.
-- pitfalls:
--   - two KL directions: KL(layer || final) here, the other direction than L2's gap.
-- published: Matched differences, retention and balance for the pool of five families; the study resamples prompts
--   too, those of PT and of IT apart. `it_history_*`, `pt_history_*`: a later control in which both models read the
--   same tokens.
-- source: METHODS 16
WITH depth AS (
    SELECT max(layer) + 1 AS layers, least(floor(0.8 * (max(layer) + 1)), max(layer) - 1)::INTEGER AS start FROM lens
), late AS (
    SELECT lens, variant, prompt, token, layer, kl_layer_final, js_next,
        (top1 <> lead(top1) OVER (PARTITION BY lens, variant, token ORDER BY layer))::INTEGER AS flip
    FROM lens
    WHERE step >= 5 AND layer >= (SELECT start FROM depth)
), stack AS (
    -- A step from layer j to j + 1 counts once for every late layer up to j; there are layers - 1 - start of those.
    SELECT lens, variant, prompt, token, avg(kl_layer_final) AS late_kl,
        sum(js_next * (layer - start + 1)) / any_value(layers - 1 - start) AS adjacent_js,
        sum(flip * (layer - start + 1)) / any_value(layers - 1 - start) AS flips
    FROM late, depth
    GROUP BY lens, variant, prompt, token
), churned AS (
    SELECT lens, variant, token, avg(churn) AS churn FROM churn WHERE step >= 5 GROUP BY ALL
), outcomes AS (
    UNPIVOT (SELECT * FROM stack LEFT JOIN churned USING (lens, variant, token))
    ON late_kl, adjacent_js, flips, churn INTO NAME measure VALUE value
), facts AS (
    SELECT variant, prompt, token, entropy, confidence, margin FROM endpoint WHERE step >= 5
), edges AS (
    SELECT quantile_cont(entropy, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]) AS e,
        quantile_cont(confidence, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]) AS c,
        quantile_cont(margin, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]) AS m, avg((variant = 'it')::INTEGER) AS it_share
    FROM facts
), binned AS (
    SELECT facts.*, it_share, [len([x for x in e if x < entropy]), len([x for x in c if x < confidence]),
        len([x for x in m if x < margin])] AS cell
    FROM facts, edges
), counted AS (
    SELECT *, count(*) FILTER (variant = 'it') OVER (PARTITION BY cell) AS n_it,
        count(*) FILTER (variant = 'pt') OVER (PARTITION BY cell) AS n_pt
    FROM binned
), weighed AS (
    -- cell_share: of the token's own variant in its cell. Cells of one variant alone get no weight.
    SELECT *, 1.0 AS "all", both_there * least(n_it, n_pt) / own AS matched, both_there * share / cell_share AS ipw,
        both_there * (1 - cell_share) AS overlap
    FROM (
        SELECT *, (n_it > 0 AND n_pt > 0)::DOUBLE AS both_there, CASE variant WHEN 'it' THEN n_it ELSE n_pt END AS own,
            own / (n_it + n_pt) AS cell_share, CASE variant WHEN 'it' THEN it_share ELSE 1 - it_share END AS share
        FROM counted
    )
), weighted AS MATERIALIZED (
    SELECT measure, lens, weights, variant, prompt, sum(weight * value) AS total, sum(weight) AS n
    FROM outcomes JOIN (
        UNPIVOT (SELECT variant, token, "all", matched, ipw, overlap FROM weighed)
        ON "all", matched, ipw, overlap INTO NAME weights VALUE weight
    ) USING (variant, token)
    WHERE weight > 0
    GROUP BY ALL
), both_lenses AS (
    SELECT * FROM weighted
    UNION ALL BY NAME
    SELECT measure, 'both' AS lens, weights, variant, prompt, sum(total) AS total, sum(n) AS n
    FROM weighted
    WHERE (SELECT count(DISTINCT lens) FROM weighted) > 1
    GROUP BY measure, weights, variant, prompt
), balance AS (
    SELECT covariate, variant, sum(matched * x) / sum(matched) AS mean, sum(matched * x * x) / sum(matched) - mean * mean AS var,
        count(*) AS n
    FROM (UNPIVOT (SELECT * FROM weighed WHERE matched > 0) ON entropy, confidence, margin INTO NAME covariate VALUE x)
    GROUP BY covariate, variant
), smd AS (
    SELECT covariate, (it.mean - pt.mean) / sqrt(greatest((it.var + pt.var) / 2, 1e-12)) AS smd, it.n + pt.n AS n
    FROM balance AS it JOIN balance AS pt USING (covariate)
    WHERE it.variant = 'it' AND pt.variant = 'pt'
)
SELECT measure, lens, weights, variant, prompt, total, n FROM both_lenses
UNION ALL BY NAME
SELECT measure || '_' || lens || '_matched' AS measure, variant, prompt, total, n FROM both_lenses WHERE weights = 'matched'
UNION ALL BY NAME
SELECT 'retained' AS measure, prompt, sum((matched > 0)::INTEGER) AS total, count(*) AS n FROM weighed GROUP BY prompt
UNION ALL BY NAME
SELECT 'retained_by_variant' AS measure, variant, prompt, sum((matched > 0)::INTEGER) AS total, count(*) AS n
FROM weighed
GROUP BY variant, prompt
UNION ALL BY NAME
SELECT 'smd_' || covariate AS measure, smd AS estimate, n, 'tokens' AS unit FROM smd
UNION ALL BY NAME
SELECT 'max_smd' AS measure, max(abs(smd)) AS estimate, any_value(n) AS n, 'tokens' AS unit FROM smd
