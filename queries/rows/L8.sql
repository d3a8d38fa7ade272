-- id: L8
-- title: Geometry of the last prompt token
-- needs: geometry
-- models: 1
-- compares: models, prompts, streams, layers
-- stream: native
-- bootstrap: none
-- contrast: variant it - pt
-- plot: line x=layer hue=variant panels=participation_ratio,twonn,pc1
--   forest=late_participation_ratio,late_effective_rank,late_twonn,late_mle,late_lpca
-- says: Over the final 20 % of layers the cloud of prompts has {late_participation_ratio?a higher|a lower|about the same}
--   participation ratio in IT {late_participation_ratio?than|than|as} in PT ({late_participation_ratio}), effective rank {late_effective_rank}, share of the first
--   component {late_pc1}, intrinsic dimension {late_twonn} (TwoNN).
-- about: The cloud of prompts at the last prompt token, one point a prompt: the residual after each block.
--   - `twonn`, `mle`, `lpca`: intrinsic dimensions by scikit-dimension. TwoNN discards 10 % of the ratios, MLE takes
--     20 neighbours; of points that coincide one counts.
--   - `participation_ratio`, `effective_rank`, `pc1`, `pc5`, `pc10`: from the eigenvalues of the covariance of at
--     most 2,000 prompts.
--   - `late_*`: mean over layers floor(0.8 L) and up.
--   - Low and high: the estimate plus and minus 1.96 standard errors of the delete-d jackknife, sqrt(b / (n − b))
--     times the standard deviation over 100 subsamples of b = 80 % of the n prompts without replacement (seed 42, the
--     same ones for PT and IT, so that differences are paired). They are 95 % intervals for what another n prompts
--     would give, not for infinitely many: fewer points shift every metric here. benchmarks/jackknife.py checks their
--     coverage on clouds of known shape.
--   - No rank can exceed the number of prompts minus one: compare models on the same prompts only.
-- measures:
--   - late_<dimension> | <dimension>, final 20 % of layers | dimensions | mean over layers floor(0.8 L) and
--     up of the cloud of last prompt tokens
--   - late_<firsts> | <firsts>, final 20 % of layers | share of variance | mean over layers floor(0.8 L) and
--     up
--   - <dimension> | <dimension> | dimensions | of the cloud of last prompt tokens, one point a prompt
--   - <firsts> | <firsts> | share of variance | share of the cloud's variance in these principal components
-- positions: The last prompt token of every prompt, layers 0 and up. Layer -1, the embedding of the last token, is in
--   the table `geometry`; there many prompts share a point.
-- pitfalls:
--   - double BOS: The study's IT prompts begin with two BOS tokens.
-- published: Differences IT − PT of the late means, six families. The study's low and high are the 5th and 95th
--   percentile of the subsamples, which is no 95 % interval and may leave out the estimate.
-- source: METHODS 4, row L8
WITH cells AS (
    SELECT variant, layer, metric, coalesce(draw, 0) AS draw, value, n, max(layer) OVER () + 1 AS layers FROM geometry WHERE layer >= 0
), lines AS (
    SELECT metric AS measure, variant, layer, draw, value, n FROM cells
    UNION ALL
    SELECT 'late_' || metric, variant, NULL, draw, CASE WHEN count(value) = count(*) THEN avg(value) END, min(n) FROM cells
    WHERE layer >= floor(0.8 * layers) GROUP BY metric, variant, draw
), arms AS (
    FROM lines
    UNION ALL
    SELECT measure, 'it - pt', it.layer, draw, it.value - pt.value, least(it.n, pt.n)
    FROM (FROM lines WHERE variant = 'it') AS it JOIN (FROM lines WHERE variant = 'pt') AS pt USING (measure, draw)
    WHERE it.layer IS NOT DISTINCT FROM pt.layer
), errors AS (
    SELECT measure, variant, layer, any_value(value) FILTER (draw = 0) AS estimate, min(n) AS n,
        count(*) FILTER (draw = 0) AS wholes, round(0.8 * min(n)) AS b,
        sqrt(b / (min(n) - b)) * stddev_samp(value) FILTER (draw > 0) AS error
    FROM arms GROUP BY measure, variant, layer
), bounded AS (
    -- No share leaves 0 to 1, no dimension or rank falls below 0; differences may.
    SELECT *, if(contains(variant, ' - '), '-infinity'::DOUBLE, 0) AS least,
        if(contains(variant, ' - ') OR NOT contains(measure, 'pc1') AND NOT contains(measure, 'pc5'), 'infinity'::DOUBLE, 1) AS most
    FROM errors
)
SELECT measure, variant, layer, estimate, if(error IS NOT NULL, greatest(estimate - 1.96 * error, least), NULL) AS low,
    if(error IS NOT NULL, least(estimate + 1.96 * error, most), NULL) AS high, n, 'prompts' AS unit,
    CASE WHEN estimate IS NOT NULL THEN if(error IS NULL, 'none', 'delete-d jackknife')
        WHEN wholes = 0 THEN 'undefined: no value of all points'
        WHEN n IS NULL THEN 'undefined: not given'
        ELSE 'undefined: points coincide' END AS method
FROM bounded
