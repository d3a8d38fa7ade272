-- id: 1A
-- title: Spread of the PT-IT difference
-- needs: directions(spread)
-- stream: native
-- bootstrap: none
-- plot: line x=layer y=share numbers=cosine
-- says: Directions of two corrective layers have a cosine of {corrective_corrective} on average, of two early layers
--   {early_early}, of an early and a corrective layer {early_corrective}.
-- about: How much the records' differences vary around their mean: IT − PT of each record's mean MLP outputs (as in
--   0A), layer by layer. The numbers describe these records and have no intervals.
--   - `pc1`, `pc5`, `pc10`: shares of variance of the first 1, 5 and 10 principal components. `pc1_mean`: absolute
--     cosine of the first one with the mean direction.
--   - `mean_share`: the part of the mean square that the mean difference makes up. If it is low, the direction is an
--     average of very different records.
--   - `early_early`, `early_corrective` and alike: mean cosines between the directions of two different layers, by
--     layer group (0A).
-- positions: As 0A.
-- pitfalls:
--   - MLP before post-norm: Differences are of the MLP's output before any norm that follows it.
-- published: none
-- source: METHODS 20 (1A), 5.1
WITH cells AS (
    SELECT name, layer, other, value, n, max(layer) OVER () + 1 AS layers FROM directions WHERE kind = 'spread'
), regions AS (
    SELECT DISTINCT layer AS l, CASE WHEN layer >= round(0.6 * layers) THEN 'corrective'
        WHEN layer <= round(0.33 * layers) THEN 'early' ELSE 'mid' END AS region
    FROM cells WHERE layer >= 1
), ends AS (
    SELECT least(a.region, b.region) AS one, greatest(a.region, b.region) AS two, value, n
    FROM cells JOIN regions AS a ON a.l = layer JOIN regions AS b ON b.l = other WHERE name = 'between'
)
SELECT 'pc' || k AS measure, layer, sum(value) AS estimate, min(n) AS n, 'records' AS unit
FROM cells JOIN (VALUES (1), (5), (10)) AS firsts (k) ON other <= k WHERE name = 'share' GROUP BY k, layer
UNION ALL
SELECT name, layer, value, n, 'records' FROM cells WHERE name IN ('pc1_mean', 'mean_share')
UNION ALL
SELECT CASE WHEN one = 'corrective' AND two <> 'corrective' THEN two || '_' || one ELSE one || '_' || two END, NULL, avg(value),
    min(n), 'records'
FROM ends GROUP BY one, two
