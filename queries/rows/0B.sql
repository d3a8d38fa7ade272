-- id: 0B
-- title: Matched-token direction against the canonical one
-- needs: directions(matched), directions(reverse)?
-- stream: native
-- bootstrap: none
-- plot: line x=layer panels=matched+reverse forest=early_matched,mid_matched,corrective_matched,corrective_reverse
-- says: With PT reading IT's tokens, the direction keeps a cosine of {corrective_matched} with the canonical one in the
--   corrective layers, of {early_matched} in the early ones: the rest of the canonical direction is difference in text.
-- about: Whether the mean direction is a difference between the models or between their texts.
--   - `matched`: both models read IT's continuation (the PT after its own raw prompt); the direction is the mean
--     difference IT − PT, records weigh equally. Shown is its cosine with the canonical direction of 0A (each model
--     on its own text, tokens weigh equally), over the same records.
--   - `reverse`: the same where both read PT's continuation. It is there once the stream `reverse` is captured
--     (`actlake capture PAIR --stream reverse`).
--   - Prompts differ (raw against chat), so part of what remains is the template's. Layer groups as in 0A.
--   - Intervals: the estimate plus and minus 1.96 standard deviations over 200 resamples of the records, on Fisher's
--     z scale. Percentiles would be too low, because a resampled direction is noisier.
-- measures:
--   - <which> | cosine with the canonical direction, <which> | cosine | cosine with the canonical direction, of the mean difference where both
--     models read the same continuation
--   - <group>_<which> | <which>, <group> layers | cosine | the cosine with the canonical direction, mean over
--     these layers
--   - <group>_<which>_min | <which>, weakest of the <group> layers | cosine | smallest cosine with the
--     canonical direction in these layers
--   - all_<which>_min | <which>, weakest layer | cosine | smallest cosine with the canonical direction in any
--     layer
--   - all_<which>_max | <which>, strongest layer | cosine | largest cosine with the canonical direction in
--     any layer
-- positions: The first min(length, 80) tokens of the continuation that both read (streams teacher and reverse).
-- pitfalls:
--   - MLP before post-norm: Both directions are of the MLP's output before any norm that follows it.
-- published: Gemma's cosines by layer group, for both. Here the direction is IT − PT in both; the study prints its
--   reverse figures with a negative sign, and its subtraction is not documented.
-- source: METHODS 6 (0B)
WITH cells AS (
    SELECT name, layer, coalesce(draw, 0) AS draw, value, n, max(layer) OVER () + 1 AS layers FROM directions WHERE kind IN ('matched', 'reverse')
), placed AS (
    SELECT *, CASE WHEN layer >= round(0.6 * layers) THEN 'corrective' WHEN layer <= round(0.33 * layers) THEN 'early'
        ELSE 'mid' END AS region
    FROM cells WHERE layer >= 1
), lines AS (
    SELECT name AS measure, layer, draw, value, n FROM cells
    UNION ALL
    SELECT region || '_' || name, NULL, draw, avg(value), min(n) FROM placed GROUP BY region, name, draw
    UNION ALL
    SELECT 'corrective_' || name || '_min', NULL, draw, min(value), min(n) FROM placed WHERE region = 'corrective' GROUP BY name, draw
    UNION ALL
    SELECT 'all_' || name || '_' || side, NULL, draw, CASE side WHEN 'min' THEN min(value) ELSE max(value) END, min(n)
    FROM placed, (VALUES ('min'), ('max')) AS sides (side) GROUP BY name, side, draw
)
SELECT measure, layer, estimate,
    tanh(atanh(estimate) - 1.96 * spread) AS low, tanh(atanh(estimate) + 1.96 * spread) AS high, n, 'records' AS unit,
    CASE WHEN spread IS NOT NULL THEN 'bootstrap Fisher z' ELSE 'none' END AS method
FROM (
    SELECT measure, layer, any_value(greatest(least(value, 0.9999999), -0.9999999)) FILTER (draw = 0) AS estimate,
        stddev(atanh(greatest(least(value, 0.9999999), -0.9999999))) FILTER (draw > 0) AS spread, min(n) AS n
    FROM lines GROUP BY measure, layer
)
