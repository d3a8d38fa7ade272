-- id: 0F
-- title: Which blocks are steered
-- needs: scores(0F)
-- stream: native
-- bootstrap: prompt
-- plot: line x="alpha (importance: block)" hue=layers panels=str,format,importance
--   forest=str_5_late,str_5_wider,str_5_cut,str_5_later
--   at_importance=block
-- says: With five times the component along d_mean the replies' share of structural words is {str_5_late} when the late
--   blocks are steered[, {str_5_wider} with blocks before them too][, {str_5_cut} without the last ones][, {str_5_later}
--   without the first ones]: the ranges lie up to {spread_str_5} apart (format compliance {spread_format_5}). Taken out of
--   a single block, the component of block {most_important} matters most: it moves structural words by {most_important_by}.
-- about: A1 (IT's MLP outputs along d_mean times alpha) on four ranges of blocks: the late ones, a seventeenth of all
--   blocks more before them (`wider`), as many fewer at the end (`cut`) or at the beginning (`later`). In the study's
--   model of 34 blocks these are 20-33, 18-33, 20-31 and 22-33. Metrics as in 0D.
--   - `str_5_RANGE`, `format_5_RANGE`: means at alpha 5.
--   - `spread_METRIC_5`: the largest of them less the smallest, paired by prompt. The ranges are chosen by their
--     means, so it is never below zero.
--   - `importance`, by block: |mean STR with the component taken out of this one block (alpha 0) − mean STR without|,
--     with the interval of the difference in the direction of its mean.
--   - `most_important`: the block with the largest importance, one of many and not tested.
-- measures:
--   - <metric> | <metric> | <metric> | <metric>
--   - importance | change when one block's component is taken out | share of words | absolute change of the
--     share of structural words with the component taken out of this one block
--   - <metric>_5_<range> | α = 5 in <range>: <metric> | <metric> | mean at α = 5 when these blocks are
--     steered: <metric>
--   - spread_<metric>_5 | largest less smallest of the ranges: <metric> | <metric> | difference of the ranges
--     with the highest and the lowest mean at α = 5: <metric>
--   - most_important_by | change by the most important block | share of words | change of the share of
--     structural words with the component taken out of that block
--   - most_important | most important block | block | the block whose component changes the share of
--     structural words most when it is taken out
-- positions: Replies of IT under the edit; each prompt once.
-- pitfalls:
--   - pooled duplicate replies: The study counts re-generated replies again, this row does not.
--   - overstated robustness: The study calls the result stable; its own figures at alpha 5 run from .30 to .88.
--   - incoherent replies: Read `coherent` first.
-- published: STR at alpha 5 by range, and the most important block, for Gemma.
-- source: METHODS 6 (0F)
WITH cells AS (
    SELECT metric, arm, dose, coalesce(prompt, -1) AS prompt, value FROM scores
    WHERE sweep = '0F' AND metric IN ('str', 'format', 'answer', 'alignment', 'coherent')
), shape AS (
    SELECT min(dose)::INTEGER AS onset, max(dose)::INTEGER AS last FROM cells WHERE arm = 'single'
), ranges AS (
    SELECT arm,
        CASE WHEN first < onset THEN 'wider' WHEN first > onset THEN 'later' WHEN stop < last THEN 'cut' ELSE 'late' END AS name
    FROM (
        SELECT DISTINCT arm, split_part(arm, '-', 1)::INTEGER AS first, split_part(arm, '-', -1)::INTEGER AS stop FROM cells
        WHERE arm <> 'single'
    ), shape
), five AS (
    SELECT metric, arm, name, prompt, value, avg(value) OVER (PARTITION BY metric, arm) AS mean FROM cells JOIN ranges USING (arm)
    WHERE dose = 5
), ends AS (
    SELECT metric, arg_max(arm, mean) AS highest, arg_min(arm, mean) AS lowest FROM five GROUP BY metric
), single AS (
    SELECT dose, prompt, removed.value - base.value AS change,
        avg(removed.value - base.value) OVER (PARTITION BY dose) AS mean
    FROM (FROM cells WHERE metric = 'str' AND arm = 'single') AS removed
    JOIN (
        SELECT prompt, any_value(value) AS value FROM cells WHERE metric = 'str' AND arm <> 'single' AND dose = 1 GROUP BY prompt
    ) AS base USING (prompt)
), most AS (
    SELECT dose FROM single ORDER BY abs(mean) DESC, dose LIMIT 1
)
SELECT metric AS measure, arm AS layers, dose AS "alpha (importance: block)", prompt, value AS total, 1 AS n FROM cells
WHERE arm <> 'single'
UNION ALL BY NAME
SELECT 'importance' AS measure, 'single' AS layers, dose AS "alpha (importance: block)", prompt,
    if(mean < 0, -change, change) AS total, 1 AS n
FROM single
UNION ALL BY NAME
SELECT metric || '_5_' || name AS measure, prompt, value AS total, 1 AS n FROM five WHERE metric IN ('str', 'format')
UNION ALL BY NAME
SELECT 'spread_' || metric || '_5' AS measure, a.prompt, a.value - b.value AS total, 1 AS n
FROM ends JOIN five AS a USING (metric) JOIN five AS b USING (metric)
WHERE a.arm = highest AND b.arm = lowest AND a.prompt = b.prompt
UNION ALL BY NAME
SELECT 'most_important_by' AS measure, prompt, if(mean < 0, -change, change) AS total, 1 AS n FROM single JOIN most USING (dose)
UNION ALL BY NAME
SELECT 'most_important' AS measure, dose::DOUBLE AS estimate FROM most
