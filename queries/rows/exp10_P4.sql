-- id: exp10_P4
-- title: Steering along the convergence direction and along the mean one
-- needs: scores(exp10_P4)
-- stream: native
-- bootstrap: prompt
-- plot: line x=alpha hue=direction panels=format,str,coherent
--   forest=format_d_mean_0,format_d_conv_0,format_d_mean_5,format_d_conv_5
-- says: Along d_conv, the direction that predicts IT's later convergence, form {format_d_conv_0?gains|suffers|shows no
--   clear response} when the component is taken out of IT's late MLPs (alpha 0, {format_d_conv_0}, as a share) and
--   {format_d_conv_5?gains|suffers|shows no clear response} at five times ({format_d_conv_5})[; structural words are
--   {str_times_5_d_conv} times as frequent at alpha 5 as at 1]. Along d_mean form changes by {format_d_mean_0} and
--   {format_d_mean_5}[, structural words are {str_times_5_d_mean} times as frequent]. At alpha 5 form is
--   {format_apart_5?higher|lower|not clearly higher or lower} along d_mean than along d_conv ({format_apart_5}), structural
--   words are {str_apart_5?more|fewer|not clearly more or fewer} ({str_apart_5}).
-- about: A1's sweep along d_conv (exp10, from the teacher stream by the raw lens) and along d_mean (0A), both in the
--   late blocks' MLP outputs as in the study, though d_conv comes from residuals. d_conv has no vector for the last
--   block, whose KL is zero by definition: along it the last block is left as it is, which matters in a shallow
--   model. Metrics as in A1.
--   - `METRIC_DIRECTION_A`: alpha = A less alpha = 1 on the same prompts.
--   - `*_apart_A`: along d_mean less along d_conv.
--   - `str_times_5_*`: mean share at alpha = 5 over that at 1.
-- measures:
--   - <metric> | <metric> | <metric> | <metric>
--   - <metric>_<direction>_<n> | along <direction>, α = <n>: change of <metric> | <metric> | α = <n> less α =
--     1 on the same prompts: <metric>
--   - <metric>_apart_<n> | d_mean less d_conv, α = <n>: change of <metric> | <metric> | the change along
--     d_mean less that along d_conv: <metric>
--   - str_times_5_<direction> | structural words at α = 5 over α = 1, along <direction> | times | mean share
--     at α = 5 over that at 1
-- positions: As A1: free greedy replies, each prompt once.
-- pitfalls:
--   - pooled duplicate replies: The study counts re-generated replies again, this row does not.
--   - untraceable ratios: The README's "11-19x" is in no stored file of this row, and is not quoted.
--   - DeepSeek exceptions: DeepSeek's texts have 64 tokens in the study.
--   - in-sample fit: A good R² in exp10 does not show that the direction steers anything.
--   - incoherent replies: Read `coherent` first.
-- published: Means without intervals. Along d_conv the study's structural words stay within 3 % of the baseline in
--   five of six families. Baselines of DeepSeek and Qwen come from another prompt setting than their alpha = 1.
--   `mmlu` there is our `choice_generated`; `g1` is a judge's grade of structure, 1 to 5.
-- source: METHODS 7 (P4), 5.2, 5.4, 18
WITH cells AS (
    SELECT metric, arm AS direction, dose AS alpha, coalesce(prompt, -1) AS prompt, value
    FROM behaviour
    WHERE sweep = 'exp10_P4' AND metric IN ('str', 'format', 'answer', 'reasoning', 'alignment', 'coherent', 'harmful_refused',
        'harmful_complied', 'harmful_incoherent', 'harmless_refused', 'harmless_complied', 'harmless_incoherent',
        'choice_generated', 'choice_logprob', 'tokens', 'ended')
), changes AS (
    SELECT metric, direction, prompt, printf('%g', alpha) AS dose, edited.value, base.value AS base, edited.value - base.value AS change
    FROM cells AS edited JOIN (SELECT metric, direction, prompt, value FROM cells WHERE alpha = 1) AS base
        USING (metric, direction, prompt)
    WHERE alpha IN (0, 5)
)
SELECT metric AS measure, direction, alpha, prompt, value AS total, 1 AS n FROM cells
UNION ALL BY NAME
SELECT metric || '_' || direction || '_' || dose AS measure, prompt, change AS total, 1 AS n FROM changes
UNION ALL BY NAME
SELECT metric || '_apart_' || dose AS measure, prompt, one.change - other.change AS total, 1 AS n
FROM changes AS one JOIN changes AS other USING (metric, prompt, dose)
WHERE one.direction = 'd_mean' AND other.direction = 'd_conv'
UNION ALL BY NAME
-- A prompt whose plain reply has no such word still counts in the sum above the line: its weight below is as good as none.
SELECT 'str_times_5_' || direction AS measure, prompt, value AS total, greatest(base, 1e-12) AS n FROM changes
WHERE metric = 'str' AND dose = '5'
