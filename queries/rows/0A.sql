-- id: 0A
-- title: Stability of the mean direction
-- needs: directions(stability)
-- stream: native
-- bootstrap: none
-- plot: line x=layer hue=records panels=subset,canonical,pairwise
--   forest=early_pairwise_mean,mid_pairwise_mean,corrective_pairwise_mean
-- says: Directions from two resamples of the records agree to {corrective_pairwise_mean} in the corrective layers (worst pair
--   {corrective_pairwise_min}, weakest layer {corrective_pairwise_layer_min}), each with that of all records to {corrective_canonical_mean}[; {records_to_993} records are
--   enough for 0.993].
-- about: How far the mean direction depends on the records it is made from. The direction of a layer is the
--   normalised mean difference IT − PT of the MLP module's output. A record is a prompt, averaged over its tokens;
--   records weigh equally.
--   - `pairwise_*`: cosines between 50 bootstrap resamples of the records (seed 42). `canonical_*`: cosines of these
--     with the direction of all records.
--   - `subset`: cosine of 20 random subsets of so many records with the direction of all. A subset of most records
--     agrees with all of them by construction: read it well below the number of records.
--   - Layer groups: `early` is layers 1 to round(0.33 L), `corrective` round(0.6 L) and up, `mid` between. Layer 0 is
--     drawn, but is in no group; the study has no direction for it.
--   - `*_mean`: mean over layers. `*_min`: the worst single pair (or resample) of any layer. `*_layer_min`: the
--     smallest layer mean, which the study's text calls the minimum.
--   - Low and high are percentiles over the resamples.
-- measures:
--   - canonical | resamples against all records | cosine | cosine of a bootstrap resample's direction with
--     that of all records, mean over 50 resamples
--   - pairwise | resamples against each other | cosine | cosine of the directions of two bootstrap resamples,
--     mean over pairs of 50
--   - subset | subsets against all records | cosine | cosine of the direction of a random subset of so many
--     records with that of all, mean over 20 subsets
--   - <group>_pairwise_mean | two resamples, <group> layers | cosine | cosine of the directions of two
--     resamples, mean over pairs and layers
--   - <group>_pairwise_min | worst pair of resamples, <group> layers | cosine | smallest cosine of any pair
--     of resamples in any layer
--   - <group>_pairwise_layer_min | two resamples, weakest of the <group> layers | cosine | smallest layer
--     mean of the cosine of two resamples
--   - <group>_canonical_mean | resample and all records, <group> layers | cosine | cosine of a resample with
--     all records, mean over resamples and layers
--   - <group>_canonical_min | worst resample, <group> layers | cosine | smallest cosine of any resample with
--     all records in any layer
--   - <group>_canonical_layer_min | resample and all records, weakest of the <group> layers | cosine |
--     smallest layer mean of the cosine with all records
--   - records_to_993 | records that are enough for 0.993 | records | fewest records whose subsets agree with
--     all records to more than 0.993 in every corrective layer
-- positions: Each model on its own continuation, the first min(length PT, length IT, 200) − 1 generated tokens;
--   prompts with fewer than 5 are left out.
-- pitfalls:
--   - MLP before post-norm: The direction is of the MLP's output before any norm that follows it.
-- published: Gemma's cosines by layer group. The study takes the 600 of 1,400 prompts with the highest contrast,
--   which needs a judge (see 0H); here all records count.
-- source: METHODS 5.1, 6 (0A)
WITH cells AS (
    SELECT name, layer, draw, value, n, max(layer) OVER () + 1 AS layers FROM directions WHERE kind = 'stability'
), placed AS (
    SELECT *, CASE WHEN layer = 0 THEN NULL WHEN layer >= round(0.6 * layers) THEN 'corrective'
        WHEN layer <= round(0.33 * layers) THEN 'early' ELSE 'mid' END AS region
    FROM cells
), per_layer AS (
    SELECT region, layer, n, avg(value) FILTER (name = 'resample') AS canonical_mean,
        min(value) FILTER (name = 'resample') AS canonical_min,
        quantile_cont(value, 0.025) FILTER (name = 'resample') AS low,
        quantile_cont(value, 0.975) FILTER (name = 'resample') AS high,
        any_value(value) FILTER (name = 'pairwise_mean') AS pairwise_mean,
        any_value(value) FILTER (name = 'pairwise_min') AS pairwise_min
    FROM placed WHERE name <> 'subset' GROUP BY region, layer, n
), subsets AS (
    SELECT region, layer, n AS size, avg(value) AS mean, quantile_cont(value, 0.025) AS low, quantile_cont(value, 0.975) AS high,
        count(*) AS draws
    FROM placed WHERE name = 'subset' GROUP BY region, layer, size
), enough AS (
    SELECT size FROM subsets WHERE region = 'corrective' AND size <= (SELECT max(n) FROM per_layer) / 2
    GROUP BY size HAVING min(mean) > 0.993
)
SELECT 'canonical' AS measure, 'all' AS records, layer, canonical_mean AS estimate, low, high, n, 'records' AS unit,
    'resample (2.5 to 97.5 %)' AS method FROM per_layer
UNION ALL
SELECT 'pairwise', 'all', layer, pairwise_mean, NULL, NULL, n, 'records', 'none' FROM per_layer
UNION ALL
SELECT 'subset', size::VARCHAR, layer, mean, low, high, size, 'records', 'subset (2.5 to 97.5 %)' FROM subsets
UNION ALL
SELECT region || '_' || name, NULL, NULL, value, NULL, NULL, n, 'records', 'none' FROM (
    SELECT region, min(n) AS n, avg(pairwise_mean) AS pairwise_mean, min(pairwise_min) AS pairwise_min,
        min(pairwise_mean) AS pairwise_layer_min, avg(canonical_mean) AS canonical_mean, min(canonical_min) AS canonical_min,
        min(canonical_mean) AS canonical_layer_min
    FROM per_layer WHERE region IS NOT NULL GROUP BY region
) UNPIVOT (
    value FOR name IN (pairwise_mean, pairwise_min, pairwise_layer_min, canonical_mean, canonical_min, canonical_layer_min)
)
WHERE region = 'corrective' OR name = 'pairwise_mean'
UNION ALL
SELECT 'records_to_993', 'all', NULL, min(size), NULL, NULL, NULL, NULL, 'none' FROM enough HAVING count(*) > 0
