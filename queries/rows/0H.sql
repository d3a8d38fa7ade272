-- id: 0H
-- title: Directions from other calibration prompts, and replies steered along them
-- needs: directions(splits), scores(0H)?
-- stream: native
-- bootstrap: prompt
-- plot: line x=layer hue=sets panels=cosine
--   forest=corrective_top_bottom,corrective_top_random,corrective_bottom_random,str_5_top,str_5_bottom,str_5_random
-- says: In the corrective layers the directions of the highest- and the lowest-contrast records have a cosine of
--   {corrective_top_bottom}, of the highest and random ones {corrective_top_random}.[ With five times the component along
--   them IT's replies have {str_5_top} structural words (top), {str_5_bottom} (bottom) and {str_5_random} (random), with
--   none {str_0_top}, {str_0_bottom} and {str_0_random}: at five times the top one gives
--   {str_5_top_minus_bottom?more|fewer|neither clearly more nor fewer} than the bottom one ({str_5_top_minus_bottom}),
--   format-compliance rates differ by {format_5_top_minus_bottom}.]
-- about: The direction of 0A from parts of the records, and A1 along each. Layer groups as in 0A, metrics as in 0D.
--   - `top` and `bottom`: the records of highest and lowest contrast, disjoint. `random` overlaps both, in the study
--     too. `all`: every record. Each part has 600 records as in the study, or half of all where there are fewer.
--   - Contrast is here PT's mean negative log-likelihood of IT's continuation alone (nats a token, stream teacher).
--     The study adds scores of structure and of a judge.
--   - `corrective_A_B` and alike: cosines of two parts' directions by layer group. Intervals as in 0B, with resamples
--     of the records within their parts.
--   - `str_A`, `format_A`: metrics at alpha = A, by part (`str_A_SET`). `str_5_top_minus_bottom` and alike are paired
--     by prompt. The table has `str`, `format`, `answer`, `alignment` and `coherent` at all 14 alphas; alpha 1 of any
--     part is the baseline.
--   - Without texts the row has the cosines alone.
-- measures:
--   - cosine | cosine of two parts' directions | cosine | cosine between the mean directions of two parts of
--     the records
--   - corrective_<set1>_<set2> | <set1> and <set2>, corrective layers | cosine | cosine of the two parts' directions,
--     mean over the corrective layers
--   - <metric> | <metric> | <metric> | <metric>
--   - <metric>_<n> | α = <n>: <metric> | <metric> | mean at α = <n> along the direction of a part of the
--     records: <metric>
--   - <metric>_<n>_<set> | α = <n>, <set>: <metric> | <metric> | mean at α = <n> along the direction of this
--     part of the records: <metric>
--   - <metric>_<n>_top_minus_<set> | α = <n>, highest contrast less <set>: <metric> | <metric> | difference
--     between two parts' directions at α = <n> on the same prompts: <metric>
-- positions: Directions: as in 0A. Metrics: replies of IT under the edit, intervals over prompts, each prompt once.
-- pitfalls:
--   - pooled duplicate replies: The study counts re-generated replies again, this row does not.
--   - MLP before post-norm: Directions are of the MLP's output before any norm that follows it.
--   - incoherent replies: Small changes at alpha 5 say little where replies are incoherent (`coherent`).
-- published: STR at alpha 0, 3 and 5 along each part's direction, for Gemma.
-- source: METHODS 6 (0H), 5.1
WITH cells AS (
    SELECT replace(name, '-', '_') AS sets, layer, coalesce(draw, 0) AS draw, value, n, max(layer) OVER () + 1 AS layers FROM directions
    WHERE kind = 'splits'
), lines AS (
    SELECT 'cosine' AS measure, sets, layer, draw, value, n FROM cells
    UNION ALL
    SELECT 'corrective_' || sets, NULL, NULL, draw, avg(value), min(n) FROM cells
    WHERE layer >= 1 AND layer >= round(0.6 * layers) GROUP BY sets, draw
), replies AS (
    SELECT metric, arm AS sets, dose AS alpha, coalesce(prompt, -1) AS prompt, value FROM scores
    WHERE sweep = '0H' AND metric IN ('str', 'format', 'answer', 'alignment', 'coherent')
), chosen AS (
    SELECT metric || '_' || alpha::INTEGER AS name, sets, prompt, value FROM replies
    WHERE metric IN ('str', 'format') AND alpha IN (0, 3, 5)
)
SELECT measure, sets, layer, estimate,
    tanh(atanh(estimate) - 1.96 * spread) AS low, tanh(atanh(estimate) + 1.96 * spread) AS high, n, 'records' AS unit,
    CASE WHEN spread IS NOT NULL THEN 'bootstrap Fisher z' ELSE 'none' END AS method
FROM (
    SELECT measure, sets, layer, any_value(greatest(least(value, 0.9999999), -0.9999999)) FILTER (draw = 0) AS estimate,
        stddev(atanh(greatest(least(value, 0.9999999), -0.9999999))) FILTER (draw > 0) AS spread, min(n) AS n
    FROM lines GROUP BY measure, sets, layer
)
UNION ALL BY NAME
SELECT metric AS measure, sets, alpha, prompt, value AS total, 1 AS n FROM replies
UNION ALL BY NAME
SELECT name AS measure, sets, prompt, value AS total, 1 AS n FROM chosen
UNION ALL BY NAME
SELECT name || '_' || sets AS measure, prompt, value AS total, 1 AS n FROM chosen
UNION ALL BY NAME
SELECT name || '_top_minus_' || other.sets AS measure, prompt, top.value - other.value AS total, 1 AS n
FROM (FROM chosen WHERE sets = 'top') AS top JOIN (FROM chosen WHERE sets <> 'top') AS other USING (name, prompt)
