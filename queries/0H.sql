-- id: 0H
-- title: Directions from other calibration prompts
-- needs: directions(splits)
-- stream: native
-- bootstrap: none
-- plot: line x=layer hue=sets y=cosine numbers=cosine
-- says: In the corrective layers the directions of the highest- and the lowest-contrast records have a cosine of
--   {corrective_top_bottom}, of the highest and random ones {corrective_top_random}.
-- about: The direction of 0A from parts of the records: `top` and `bottom` by contrast, `random`, `all`; each part has
--   600 records as in the seed, or half of all where there are fewer. The seed's contrast adds structure and judge scores;
--   without a judge it is here PT's mean negative log-likelihood of IT's answer (nats a token, stream teacher) alone.
--   `top` and `bottom` are disjoint, `random` overlaps both, in the seed too. Intervals as in 0B, with resamples of the
--   records within their parts. Only directions are compared here; the published figures are shares of structural tokens
--   under steering with them, which needs generation. Groups as in 0A.
-- source: METHODS 6 (0H), 5.1
WITH cells AS (
    SELECT replace(name, '-', '_') AS sets, layer, draw, value, n, max(layer) OVER () + 1 AS layers FROM directions
    WHERE kind = 'splits'
), lines AS (
    SELECT 'cosine' AS measure, sets, layer, draw, value, n FROM cells
    UNION ALL
    SELECT 'corrective_' || sets, NULL, NULL, draw, avg(value), min(n) FROM cells
    WHERE layer >= 1 AND layer >= round(0.6 * layers) GROUP BY sets, draw
)
SELECT measure, sets, layer, estimate,
    tanh(atanh(estimate) - 1.96 * spread) AS low, tanh(atanh(estimate) + 1.96 * spread) AS high, n, 'records' AS unit,
    CASE WHEN spread IS NOT NULL THEN 'bootstrap Fisher z' ELSE 'none' END AS method
FROM (
    SELECT measure, sets, layer, any_value(least(value, 0.9999999)) FILTER (draw = 0) AS estimate,
        stddev(atanh(least(value, 0.9999999))) FILTER (draw > 0) AS spread, min(n) AS n
    FROM lines GROUP BY measure, sets, layer
)
