-- id: 0E
-- title: Sensitivity of the structural-word share to word-class boundaries
-- needs: scores(0E)
-- stream: native
-- bootstrap: prompt
-- plot: line x=alpha hue=words panels=shift,share
--   forest=max_marks_to_structural,max_marks_to_content,max_function_to_content,max_content_to_function
-- says: Words at the boundary of the structural classes all counted as structural move the mean share of structural words by
--   {max_marks_to_structural} at most over all conditions, all counted as content by {max_marks_to_content}; function words
--   at the boundary counted as content by {max_function_to_content}, content words counted as function words by
--   {max_content_to_function}: {passes} of 4 stay under .01. [At alpha 3 there are {times_structural} times as many words
--   of structure as at alpha 1. ][Words of discourse are {times_discourse} times as many.]
-- about: The replies of A1, classified again with other boundaries between word classes. Words that could be of
--   another class are set all to one class, then all to the other, and the share STR of structural words is taken
--   again. There are two boundaries: between structural or discourse words and the rest, and between function and
--   content words; at most 500 words each, the most frequent first. The choice of words is ours: the study does not
--   say how it finds its 52.
--   - `shift`: the mean STR with the moved words less the mean STR, at each alpha.
--   - `largest_shift`, `max_*`: the largest absolute shift over all conditions. Its interval is that of the condition
--     it is found in, and does not account for the choice among them.
--   - `passes`: how many of the four stay below .01.
--   - `share`: share of words of each class but OTHER. `base_share`: the same at alpha 1 (IT as it is). `times`: mean
--     share at alpha 3 over that at alpha 1, a ratio of means, prompts resampled.
--   - STR counts neither function nor content words, so moving words between these two changes it only where they are
--     of a structural class in their own text (published as 7e-6).
-- measures:
--   - shift | shift of the share of structural words | share of words | mean share with the moved words less
--     the mean share
--   - largest_shift | largest shift over all conditions | share of words | largest absolute shift of the mean
--     share of structural words
--   - max_<words_moved> | largest shift, <words_moved> | share of words | largest absolute shift of the mean
--     share of structural words when these words are moved
--   - passes | ways of moving words that shift less than .01 | of 4 | how many of the four ways stay below
--     .01
--   - share | share of words of a class | share of words | share of a reply's words that are of this class
--   - base_share | share of words of a class at α = 1 | share of words | share of words of this class in the
--     IT as it is
--   - times | share at α = 3 over that at α = 1 | times | ratio of mean shares of words of this class
--   - times_<words> | <words>, share at α = 3 over that at α = 1 | times | ratio of mean shares of words of
--     this class
-- positions: All words of A1's replies (alphas and random additions); each prompt once.
-- pitfalls:
--   - pooled duplicate replies: The study counts re-generated replies again, this row does not.
--   - overstated robustness: The study's text reports a pass; its files have 3 of 4.
-- published: The four largest shifts, shares and ratios by class, for Gemma.
-- source: METHODS 6 (0E), 18
WITH cells AS (
    SELECT arm, dose, metric, coalesce(prompt, -1) AS prompt, value FROM scores WHERE sweep = '0E'
), shifts AS (
    SELECT replace(replace(moved.metric, 'str_to_', 'str_marks_to_'), 'str_', '') AS words, arm, dose, prompt,
        moved.value - plain.value AS shift
    FROM cells AS moved JOIN (SELECT arm, dose, prompt, value FROM cells WHERE metric = 'str') AS plain USING (arm, dose, prompt)
    WHERE starts_with(moved.metric, 'str_')
), largest AS (
    SELECT words, arm, dose, mean FROM (SELECT words, arm, dose, avg(shift) AS mean FROM shifts GROUP BY words, arm, dose)
    QUALIFY row_number() OVER (PARTITION BY words ORDER BY abs(mean) DESC, arm, dose) = 1
), classes AS (
    SELECT replace(metric, 'share_', '') AS words, dose AS alpha, prompt, value FROM cells
    WHERE arm = 'd_mean' AND starts_with(metric, 'share_') AND metric <> 'share_other'
)
SELECT 'shift' AS measure, words, dose AS alpha, prompt, shift AS total, 1 AS n FROM shifts WHERE arm = 'd_mean'
UNION ALL BY NAME
SELECT 'share' AS measure, words, alpha, prompt, value AS total, 1 AS n FROM classes
UNION ALL BY NAME
SELECT largest_of AS measure, if(largest_of = 'largest_shift', words, NULL) AS words, prompt, if(mean < 0, -shift, shift) AS total,
    1 AS n
FROM shifts JOIN largest USING (words, arm, dose), (VALUES ('largest_shift'), ('max_' || words)) AS twice (largest_of)
UNION ALL BY NAME
SELECT 'passes' AS measure, count(*) FILTER (abs(mean) < 0.01)::DOUBLE AS estimate, count(*) AS n, 'perturbations' AS unit
FROM largest HAVING count(*) > 0
UNION ALL BY NAME
SELECT 'base_share' AS measure, words, prompt, value AS total, 1 AS n FROM classes WHERE alpha = 1
UNION ALL BY NAME
-- A ratio of means: the denominator takes the place of n, and is never zero so that every prompt is resampled.
SELECT measure, if(measure = 'times', words, NULL) AS words, prompt, more.value AS total, greatest(base.value, 1e-9) AS n
FROM (FROM classes WHERE alpha = 3) AS more
JOIN (SELECT words, prompt, value, max(value) OVER (PARTITION BY words) AS most FROM classes WHERE alpha = 1) AS base
    USING (words, prompt), (VALUES ('times'), ('times_' || words)) AS twice (measure)
WHERE base.most > 0
