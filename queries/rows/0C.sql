-- id: 0C
-- title: Is it the direction? Random ones of matched size
-- needs: scores(0C)
-- stream: native
-- bootstrap: prompt
-- plot: line x=alpha hue=arm panels=str,format,reasoning forest=gap_str_0,gap_str_3,gap_str_5
-- says: At alpha 5 replies have {gap_str_5?more|fewer|about as many} structural words along d_mean {gap_str_5?than|than|as}
--   along a random direction with the same share of each MLP output ({gap_str_5}), at 3 {gap_str_3}, with the component
--   taken out (alpha 0) {gap_str_0}; format-compliance rates differ by {gap_format_5}, {gap_format_3} and {gap_format_0},
--   right answers to CONTENT-REASON by {gap_reasoning_5} at 5 and {gap_reasoning_minus1} at -1. Five random seeds spread by
--   at most {spread_str} of structural words and {spread_reasoning} of right answers.
-- about: A1 along d_mean against random directions whose change is as large. The component along a random direction
--   is rescaled, token by token, to the size of the one along d_mean, so that alpha moves both outputs equally far.
--   If both have the same effect, the size of the change has it, not the direction.
--   - `seed42` has all 14 alphas; four more seeds have alpha 2, 1, .5, 0 and -1.
--   - `gap_METRIC_A`: d_mean less seed42 at alpha = A, paired by prompt.
--   - `five seeds`: mean, smallest and largest of the five seeds' means. `seeds_METRIC`: each seed. `spread_METRIC`:
--     the largest standard deviation over alphas of the five seeds' means; no interval.
--   - Metrics as in 0D: `str`, `format`, `reasoning` (answers contained, CONTENT-REASON), `answer` of all questions,
--     `alignment`, `coherent`.
-- measures:
--   - <metric> | <metric> | <metric> | <metric>
--   - seeds_<metric> | <metric>, each random direction | <metric> | <metric>, under one random direction
--   - gap_<metric>_<n> | d_mean less random, α = <n>: <metric> | <metric> | difference between d_mean and the
--     matched random direction on the same prompts: <metric>
--   - spread_<metric> | spread of five random directions: <metric> | <metric> | largest standard deviation
--     over α of the five seeds' means: <metric>
-- positions: Replies of IT under the edit; each prompt once.
-- pitfalls:
--   - pooled duplicate replies: The study counts re-generated replies again, this row does not.
--   - untraceable ratios: The README's threefold of A1_rand belongs to this row; its 2.9-fold is of alpha 5.
--   - incoherent replies: Read `coherent` first: large doses can't be read without it.
-- published: Gemma's levels, named `METRIC@A@ARM`.
-- source: METHODS 6 (0C), 5.2
WITH cells AS (
    SELECT metric, arm, dose AS alpha, coalesce(prompt, -1) AS prompt, value FROM scores
    WHERE sweep = '0C' AND metric IN ('str', 'format', 'answer', 'alignment', 'coherent', 'reasoning')
    UNION ALL
    SELECT 'reasoning', arm, dose, coalesce(prompt, -1) AS prompt, value FROM scores
    WHERE sweep = '0C' AND metric = 'answer' AND category = 'CONTENT-REASON'
), seeds AS (
    SELECT metric, alpha, count(*) AS seeds, avg(mean) AS middle, min(mean) AS least, max(mean) AS most, stddev_samp(mean) AS spread
    FROM (SELECT metric, alpha, arm, avg(value) AS mean FROM cells WHERE starts_with(arm, 'seed') GROUP BY ALL)
    GROUP BY metric, alpha
    HAVING count(*) = 5
)
SELECT metric AS measure, arm, alpha, prompt, value AS total, 1 AS n FROM cells WHERE arm IN ('d_mean', 'seed42')
UNION ALL BY NAME
SELECT 'seeds_' || metric AS measure, arm, alpha, prompt, value AS total, 1 AS n FROM cells WHERE starts_with(arm, 'seed')
UNION ALL BY NAME
SELECT metric AS measure, 'five seeds' AS arm, alpha, middle AS estimate, least AS low, most AS high, seeds AS n, 'seeds' AS unit,
    'range of seeds (100 %)' AS method
FROM seeds
UNION ALL BY NAME
SELECT 'gap_' || metric || '_' || replace(alpha::INTEGER::VARCHAR, '-', 'minus') AS measure, prompt,
    found.value - drawn.value AS total, 1 AS n
FROM (FROM cells WHERE arm = 'd_mean') AS found JOIN (FROM cells WHERE arm = 'seed42') AS drawn USING (metric, alpha, prompt)
WHERE alpha IN (5, 3, 0, -1)
UNION ALL BY NAME
SELECT 'spread_' || metric AS measure, max(spread) AS estimate, max(seeds) AS n, 'seeds' AS unit FROM seeds
GROUP BY metric
