-- id: A2
-- title: The mean direction added to the PT's late MLPs
-- needs: scores(A2)
-- stream: native
-- bootstrap: prompt
-- plot: line x=beta hue=direction panels=format,str,coherent
--   forest=format_change_1,coherent_change_1,format_apart_random_1,coherent_apart_random_1
-- says: With the PT-IT direction added to the PT's late MLPs at the length of their output (beta 1) its replies of the
--   form asked for {format_change_1?become more|become fewer|show no clear response} ({format_change_1}, as a share),
--   structural words {str_change_1?become more|become fewer|show no clear response} ({str_change_1}), coherent replies
--   {coherent_change_1?become more|become fewer|show no clear response} ({coherent_change_1}); what it writes is
--   {nll_it_change_1?less likely|more likely|not clearly more or less likely} to IT ({nll_it_change_1} nats a token).
--   Beside a random direction of the same length form is {format_apart_random_1?higher|lower|not clearly higher or lower}
--   ({format_apart_random_1}), structural words are {str_apart_random_1?more|fewer|not clearly more or fewer}
--   ({str_apart_random_1}), coherent replies {coherent_apart_random_1?more|fewer|not clearly more or fewer}
--   ({coherent_apart_random_1}).
-- about: The PT writes replies while beta times the norm of each late MLP output is added along d_mean (0A), at every
--   position. Negative beta adds the opposite; beta = 0 is the PT as it is, one condition. Metrics as in A1.
--   - Controls of equal length at beta 0, 1 and 3: `random`, a random unit vector per block; `rotated`, a random one
--     orthogonal to d_mean; `content`, the mean of d_mean over the blocks before the late ones, the same in all
--     blocks. The study's `content` takes those of layers 0 to 19 that it has, which are not layer 0; ours takes
--     layer 0 too.
--   - `*_change_B`: along d_mean, beta = B less 0 on the same prompts. `*_apart_CONTROL_B`: that change less the
--     control's.
--   - `format` can rise while `coherent` falls: an incoherent reply meets criteria that ask for little (no commas,
--     few words).
--   - `nll_it`, of the replies under IT in its template, shows how close they are to IT's own; `nll_pt`, under the PT
--     as it is, how far the edit leads away from it.
--   - `ended`, `tokens`: a PT that does not end its turn writes its whole budget.
-- measures:
--   - <metric> | <metric> | <metric> | <metric>
--   - <metric>_change_<n> | β = <n>: change of <metric> | <metric> | along d_mean, β = <n> less 0 on the same
--     prompts: <metric>
--   - <metric>_apart_<control>_<n> | d_mean less <control>, β = <n>: <metric> | <metric> | the change along
--     d_mean less that along the control: <metric>
-- positions: Free greedy replies to the bare prompt, each counted once: only real tokens, at most as many as the
--   captures' continuations have (the study: 200).
-- pitfalls:
--   - pooled duplicate replies: The study counts re-generated replies again, this row does not.
--   - MLP before post-norm: The edit acts on the MLP's output before any norm that follows.
--   - incoherent replies: Read `coherent` first.
-- published: none; the study's figures of this row are plots without numbers.
-- source: METHODS 5.2 to 5.4, 18
WITH cells AS (
    SELECT metric, arm AS direction, dose AS beta, coalesce(prompt, -1) AS prompt, value
    FROM behaviour
    WHERE sweep = 'A2' AND metric IN ('str', 'format', 'answer', 'alignment', 'coherent', 'harmful_refused', 'harmful_complied',
        'harmful_incoherent', 'harmless_refused', 'harmless_complied', 'harmless_incoherent', 'nll_pt', 'nll_it', 'tokens', 'ended')
), changes AS (
    SELECT metric, direction, prompt, printf('%g', beta) AS dose, edited.value - base.value AS change
    FROM cells AS edited JOIN (SELECT metric, direction, prompt, value FROM cells WHERE beta = 0) AS base
        USING (metric, direction, prompt)
    WHERE beta IN (1, 3)
)
SELECT metric AS measure, direction, beta, prompt, value AS total, 1 AS n FROM cells
UNION ALL BY NAME
SELECT metric || '_change_' || dose AS measure, prompt, change AS total, 1 AS n FROM changes WHERE direction = 'd_mean'
UNION ALL BY NAME
SELECT metric || '_apart_' || control.direction || '_' || dose AS measure, prompt, along.change - control.change AS total, 1 AS n
FROM changes AS along JOIN changes AS control USING (metric, prompt, dose)
WHERE along.direction = 'd_mean' AND control.direction <> 'd_mean'
