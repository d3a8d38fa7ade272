-- id: A5a
-- title: IT without its last blocks: does form go before coherence?
-- needs: scores(A5a)
-- stream: native
-- bootstrap: prompt
-- contrast: of format - coherent
-- plot: line x=skipped hue=of panels=format+coherent+alignment+answer,str
--   forest=format_change_1,coherent_change_1,format_change_all,coherent_change_all
-- says: Without its last block IT's replies of the form asked for {format_change_1?become more|become fewer|show no clear
--   response} ({format_change_1}, as a share), coherent ones {coherent_change_1?become more|become fewer|show no clear
--   response} ({coherent_change_1})[; without its last three form changes by {format_change_3}, coherence by
--   {coherent_change_3}]; without all its late blocks form changes by {format_change_all}, coherence by
--   {coherent_change_all}. [With the last block gone what is left of form is {relative_first?more|less|not clearly more or
--   less} than what is left of coherence ({relative_first}, as shares of the whole IT's).]
-- about: IT writes replies while its last blocks do nothing: their MLP and attention outputs are set to zero, so that
--   the residual passes. Metrics as in A1; `str` of an incoherent reply means little.
--   - `skipped`: how many of the last blocks, from none (IT as it is) to all late ones. A model of L blocks skips at
--     most its late ones, 14 of 34 in the study's and fewer in a shallow one: compare shares of the depth, not
--     counts.
--   - `*_relative`: a share over that of the whole IT, on prompts that both have a score of; undefined where the
--     whole IT scores 0.
--   - `relative_first`, `relative_all`: one block and all late blocks skipped, form less coherence.
--   - `*_change_K`: K blocks skipped less none, on the same prompts.
-- measures:
--   - <metric> | <metric> | <metric> | <metric>
--   - <metric>_relative | what is left of <metric> | of skipping none | share over that of the whole IT:
--     <metric>
--   - relative_first | what is left without the last block | of skipping none | share over that of the whole
--     IT, one block skipped
--   - relative_all | what is left without all late blocks | of skipping none | share over that of the whole
--     IT, all late blocks skipped
--   - <metric>_change_all | all late blocks skipped: change of <metric> | <metric> | all late blocks skipped
--     less none, on the same prompts: <metric>
--   - <metric>_change_<n> | last <n> skipped: change of <metric> | <metric> | so many of the last blocks
--     skipped less none, on the same prompts: <metric>
-- positions: As A1: free greedy replies, each prompt once.
-- pitfalls:
--   - pooled duplicate replies: The study counts re-generated replies again, this row does not.
--   - incoherent replies: A refusal counts only in a coherent reply.
-- published: Two levels with three blocks skipped, from the paper's prose.
-- source: METHODS 5.2 to 5.4, 18
WITH cells AS (
    SELECT metric, dose AS skipped, max(dose) OVER () AS every, coalesce(prompt, -1) AS prompt, value
    FROM behaviour
    WHERE sweep = 'A5a' AND metric IN ('str', 'format', 'answer', 'reasoning', 'alignment', 'coherent', 'harmful_refused',
        'harmful_complied', 'harmful_incoherent', 'harmless_refused', 'harmless_complied', 'harmless_incoherent', 'tokens', 'ended')
), paired AS (
    -- A prompt that scores 0 in the whole IT still counts in the sum above the line: its weight below is as good as none.
    SELECT metric, skipped, prompt, edited.value, base.value AS base, greatest(base.value, 1e-12) AS weight,
        unnest(if(skipped = every, [printf('%g', skipped), 'all'], [printf('%g', skipped)])) AS dose
    FROM cells AS edited JOIN (SELECT metric, prompt, value FROM cells WHERE skipped = 0) AS base USING (metric, prompt)
)
SELECT metric AS measure, skipped, prompt, value AS total, 1 AS n FROM cells
UNION ALL BY NAME
SELECT metric || '_relative' AS measure, skipped, prompt, value AS total, weight AS n
FROM paired WHERE metric IN ('format', 'coherent') AND dose <> 'all'
UNION ALL BY NAME
SELECT 'relative_' || if(dose = '1', 'first', 'all') AS measure, metric AS of, prompt, value AS total, weight AS n
FROM paired WHERE metric IN ('format', 'coherent') AND dose IN ('1', 'all')
UNION ALL BY NAME
SELECT metric || '_change_' || dose AS measure, prompt, value - base AS total, 1 AS n
FROM paired WHERE dose IN ('1', '3', '6', 'all')
