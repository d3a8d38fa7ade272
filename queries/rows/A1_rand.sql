-- id: A1_rand
-- title: Is it the direction? IT scaled along random ones too
-- needs: scores(A1_rand)
-- stream: native
-- bootstrap: prompt
-- plot: line x=alpha hue=arm panels=format,str,coherent
--   forest=format_change_0,format_change_5,coherent_change_5,format_apart_5
-- says: Scaled along random directions, IT's replies of the form asked for {format_change_0?become more|become fewer|show
--   no clear response} at alpha 0 ({format_change_0}) and {format_change_5?become more|become fewer|show no clear
--   response} at alpha 5 ({format_change_5}); structural words {str_change_5?become more|become fewer|show no clear
--   response} at alpha 5 ({str_change_5}), coherent replies {coherent_change_5?become more|become fewer|show no clear
--   response} ({coherent_change_5}). Along the mean direction the change at alpha 5 is {format_apart_5?above that|below
--   that|not clearly apart from that} for form ({format_apart_5}) and {str_apart_5?above it|below it|not clearly apart
--   from it} for structural words ({str_apart_5}).
-- about: A1's sweep along a fixed random unit vector per late block (seed 42), beside d_mean. The change is not
--   matched in size: an output's component along a random vector is small where that along d_mean is large, so alpha
--   = 5 moves far less. No effect here does not show that the direction is special; 0C has random directions with
--   changes as large as d_mean's. Metrics as in A1.
--   - `*_change_A`: random directions, alpha = A less alpha = 1 on the same prompts.
--   - `*_apart_A`: the change along d_mean less that one.
-- measures:
--   - <metric> | <metric> | <metric> | <metric>
--   - <metric>_change_<n> | random direction, α = <n>: change of <metric> | <metric> | random directions, α =
--     <n> less α = 1 on the same prompts: <metric>
--   - <metric>_apart_<n> | d_mean less random, α = <n>: change of <metric> | <metric> | the change along
--     d_mean less that along random directions: <metric>
-- positions: As A1: free greedy replies, each prompt once.
-- pitfalls:
--   - pooled duplicate replies: The study counts re-generated replies again, this row does not.
--   - untraceable ratios: The README's threefold belongs to 0C.
--   - incoherent replies: Read `coherent` first.
-- published: none; the study has this row in prose ("zero effect") and one plot.
-- source: METHODS 5.2, 5.3, 18
WITH cells AS (
    SELECT metric, arm, dose AS alpha, coalesce(prompt, -1) AS prompt, value
    FROM behaviour
    WHERE sweep = 'A1_rand' AND metric IN ('str', 'format', 'answer', 'alignment', 'coherent', 'harmful_refused', 'harmful_complied',
        'harmful_incoherent', 'harmless_refused', 'harmless_complied', 'harmless_incoherent', 'choice_generated',
        'choice_logprob', 'tokens')
), changes AS (
    SELECT metric, prompt, printf('%g', alpha) AS dose, max(edited.value - base.value) FILTER (arm = 'random') AS random,
        max(edited.value - base.value) FILTER (arm = 'd_mean') AS along
    FROM cells AS edited JOIN (SELECT metric, arm, prompt, value FROM cells WHERE alpha = 1) AS base USING (metric, arm, prompt)
    WHERE alpha IN (0, 5)
    GROUP BY ALL
)
SELECT metric AS measure, arm, alpha, prompt, value AS total, 1 AS n FROM cells
UNION ALL BY NAME
SELECT metric || '_change_' || dose AS measure, prompt, random AS total, 1 AS n FROM changes WHERE random IS NOT NULL
UNION ALL BY NAME
SELECT metric || '_apart_' || dose AS measure, prompt, along - random AS total, 1 AS n FROM changes
WHERE along - random IS NOT NULL
