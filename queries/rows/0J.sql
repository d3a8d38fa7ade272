-- id: 0J
-- title: Onset of the corrective layers
-- needs: delta
-- stream: native
-- bootstrap: none
-- plot: line x=layer panels=diff
-- says: First layer of the drop of IT's δ-cosine below PT's, one standard deviation under the baseline layers: with the
--   baseline at the study's share of the depth[: layer {onset_scaled_1sd}||: none, no two consecutive layers qualify][; with its
--   layers (baseline 6 to 14, search from 15) layer {onset_1sd}||; with its own layers (baseline 6 to 14, search from 15) none].
-- about: The first layer of the drop of IT's δ-cosine (L1) below PT's. `diff` is L1's profile of IT − PT.
--   - `onset_*`, as published: the baseline is mean and standard deviation (n in the denominator) of `diff` over
--     layers 6 to 14. The onset is the first of two consecutive layers after 14 with `diff` below mean − k standard
--     deviations (`onset_0.5sd` to `onset_2sd`), or with PT − IT above a threshold (`onset_0.02` to `onset_0.15`). No
--     onset can be before layer 15.
--   - `onset_scaled_*`: the baseline at the same share of the depth, round(6 L / 34) to round(14 L / 34), since the
--     published layers are those of a 34-layer model. Models with 16 layers and fewer have only these.
--   - `*_earliest`, `*_latest`: over all nine rules. `*_rules`: how many of them have an onset.
--   - No line: no two consecutive layers qualify (the study's "none"), or there are fewer than two baseline layers.
--     An onset is a layer, so there are no intervals.
-- measures:
--   - diff | δ-cosine, IT − PT | cosine | difference of the models' cosine between what a block adds and the
--     residual it is added to
--   - onset_scaled_rules | rules with an onset, baseline at the same share of the depth | of 9 | how many of
--     the nine rules find an onset
--   - onset_scaled_<end> | <end> onset of the rules, baseline at the same share of the depth | layer | over
--     all nine rules
--   - onset_scaled_<bound> | onset by <bound>, baseline at the same share of the depth | layer | first of two
--     consecutive layers after the baseline whose difference is below the bound
--   - onset_rules | rules with an onset, baseline layers 6 to 14 | of 9 | how many of the nine rules find an
--     onset
--   - onset_<end> | <end> onset of the rules, baseline layers 6 to 14 | layer | over all nine rules
--   - onset_<bound> | onset by <bound>, baseline layers 6 to 14 | layer | first of two consecutive layers
--     from 15 on whose difference is below the bound
-- positions: As L1: steps 10 to 99 of each model's own continuation, layers 1 and up.
-- pitfalls: none
-- published: Onsets of several families. They do not follow from the published L1 arrays: on these the rule gives
--   Qwen 26 to 29 (published: none), Gemma 19 to 32 (16 to 21), OLMo 17 to 30 (19 to 30). Why is not known.
-- source: METHODS 6, row 0J
WITH depth AS (
    SELECT max(layer) + 1 AS layers FROM delta
), means AS (
    SELECT variant, layer, step, avg(block_cos) AS cosine
    FROM delta
    WHERE coalesce(step - 1 BETWEEN 10 AND 99, true) AND layer >= 1 AND block_cos IS NOT NULL
    GROUP BY ALL
), profile AS (
    SELECT variant, layer, avg(cosine) AS cosine FROM means GROUP BY ALL
), diff AS MATERIALIZED (
    SELECT layer, it.cosine - pt.cosine AS diff
    FROM profile AS it JOIN profile AS pt USING (layer)
    WHERE it.variant = 'it' AND pt.variant = 'pt'
), forms AS (
    SELECT 'onset_' AS form, 6 AS first, 14 AS last FROM depth WHERE layers > 16
    UNION ALL
    SELECT 'onset_scaled_', round(6 * layers / 34), round(14 * layers / 34) FROM depth
), baselines AS (
    SELECT form, last, avg(diff) AS mean, stddev_pop(diff) AS sd
    FROM forms JOIN diff ON layer BETWEEN first AND last
    GROUP BY ALL
    HAVING count(*) > 1
), bounds AS (
    SELECT form, last, unnest(['0.5sd', '0.75sd', '1sd', '1.5sd', '2sd', '0.02', '0.05', '0.10', '0.15']) AS name,
        unnest([mean - 0.5 * sd, mean - 0.75 * sd, mean - sd, mean - 1.5 * sd, mean - 2 * sd, -0.02, -0.05, -0.10, -0.15])
            AS bound
    FROM baselines
), two AS (
    SELECT layer, diff, lead(diff) OVER (ORDER BY layer) AS next FROM diff
), onsets AS (
    SELECT form, name, min(layer) AS onset
    FROM bounds JOIN two ON layer > last AND diff < bound AND next < bound
    GROUP BY ALL
)
SELECT 'diff' AS measure, layer, diff AS estimate FROM diff
UNION ALL BY NAME
SELECT form || name AS measure, onset AS estimate FROM onsets
UNION ALL BY NAME
SELECT form || 'rules' AS measure, count(onset) AS estimate, count(*) AS n, 'rules' AS unit
FROM bounds LEFT JOIN onsets USING (form, name)
GROUP BY ALL
UNION ALL BY NAME
SELECT form || unnest(['earliest', 'latest']) AS measure, unnest([min(onset), max(onset)]) AS estimate FROM onsets GROUP BY form
