-- id: 1A
-- title: Spread of the PT-IT difference
-- needs: directions(spread)
-- stream: native
-- bootstrap: none
-- plot: line x=layer panels=pc1+pc5+pc10+mean_share,pc1_mean,between
--   forest=early_early,early_corrective,corrective_corrective
--   heat=between down=other
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
-- measures:
--   - pc1_mean | first component and mean direction | cosine | absolute cosine of the first principal
--     component with the mean direction
--   - <firsts> | <firsts> | share of variance | share of the records' variance in these principal components
--   - mean_share | mean difference | share of variance | share of the mean square that the mean difference
--     makes up
--   - between | directions of two layers | cosine | cosine between the mean directions of two layers
--   - <group1>_<group2> | <group1> and <group2> layers | cosine | cosine between the directions of two
--     different layers, mean over such pairs
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
UNION ALL BY NAME
SELECT 'between' AS measure, a.layer, b.layer AS other, coalesce(found.value, 1) AS estimate, n, 'records' AS unit
FROM (SELECT DISTINCT layer, n FROM cells) AS a CROSS JOIN (SELECT DISTINCT layer FROM cells) AS b
    LEFT JOIN (SELECT layer, other, value FROM cells WHERE name = 'between') AS found
        ON (found.layer = a.layer AND found.other = b.layer) OR (found.layer = b.layer AND found.other = a.layer)
WHERE found.value IS NOT NULL OR a.layer = b.layer
