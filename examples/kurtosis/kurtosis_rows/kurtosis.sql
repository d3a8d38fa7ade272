-- id: kurtosis
-- title: Kurtosis of the residual stream
-- needs: resid_kurtosis
-- models: 1
-- stream: native
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: line x=layer hue=variant panels=kurtosis forest=late_kurtosis
-- says: In the last third of the layers IT's residual is {late_kurtosis?heavier-tailed than|lighter-tailed than|about as
--   heavy-tailed as} PT's (excess kurtosis {late_kurtosis}).
-- about: How far a few dimensions of the residual stand out; 0 is a normal distribution.
-- measures:
--   - kurtosis | excess kurtosis of the residual | 1 | fourth over squared second moment over the dimensions, less 3
--   - late_kurtosis | excess kurtosis, last third of the layers | 1 | mean over the layers of the last third
-- positions: Continuation tokens, each model on its own text.
-- pitfalls: none
-- source: the example package of actlake
WITH depth AS (
    SELECT max(layer) + 1 AS layers FROM resid_kurtosis
), cells AS (
    SELECT variant, prompt, layer, kurtosis FROM resid_kurtosis WHERE step >= 1 AND layer >= 0
)
SELECT 'kurtosis' AS measure, variant, layer, prompt, sum(kurtosis) AS total, count(*) AS n
FROM cells
GROUP BY ALL
UNION ALL BY NAME
SELECT 'late_kurtosis' AS measure, variant, prompt, sum(kurtosis) AS total, count(*) AS n
FROM cells, depth
WHERE layer >= 2 * layers // 3
GROUP BY ALL
