-- id: L8
-- title: Geometry of the last prompt token
-- needs: geometry
-- models: 1
-- stream: native
-- bootstrap: none
-- contrast: variant it - pt
-- plot: line x=layer hue=variant y="dimension, rank or share" numbers=""
-- says: Over the final 20 % of layers the cloud of prompts has {late_participation_ratio?a higher|a lower|about the same}
--   participation ratio in IT {late_participation_ratio?than|than|as} in PT ({late_participation_ratio}), effective rank {late_effective_rank}, share of the first
--   component {late_pc1}, intrinsic dimension {late_twonn} (TwoNN).
-- about: One point a prompt: the residual after each block at the last prompt token. `twonn`, `mle`, `lpca` are
--   intrinsic dimensions (scikit-dimension; TwoNN discards 10 % of the ratios, MLE takes 20 neighbours; of points that
--   coincide one counts), `participation_ratio`, `effective_rank`, `pc1`, `pc5`, `pc10` come from the eigenvalues of the
--   covariance of at most 2,000 prompts. No rank can exceed the number of prompts minus one: compare models on the same
--   prompts only. `late_*` is the mean over layers floor(0.8 L) and up. Low and high are the 5th and 95th percentile over
--   100 subsamples of 80 % of the prompts without replacement (seed 42, the same ones for PT and IT, so that differences
--   are paired): they show how much the choice of prompts matters, and are no 95 % confidence interval; where fewer points
--   shift a metric, they lie beside the estimate. Layer -1, the embedding of the last token, is in the table `geometry`;
--   there many prompts share a point.
-- source: METHODS 4, row L8
WITH cells AS (
    SELECT variant, layer, metric, draw, value, n, max(layer) OVER () + 1 AS layers FROM geometry WHERE layer >= 0
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
)
SELECT measure, variant, layer, any_value(value) FILTER (draw = 0) AS estimate,
    CASE WHEN estimate IS NOT NULL THEN quantile_cont(value, 0.05) FILTER (draw > 0) END AS low,
    CASE WHEN estimate IS NOT NULL THEN quantile_cont(value, 0.95) FILTER (draw > 0) END AS high,
    min(n) AS n, 'prompts' AS unit,
    CASE WHEN estimate IS NULL THEN 'undefined: points coincide' ELSE 'subsample (5 to 95 %)' END AS method
FROM arms GROUP BY measure, variant, layer
