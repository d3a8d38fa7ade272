-- id: A2
-- title: The mean direction added to the PT's late MLPs
-- needs: scores(A2)
-- stream: native
-- bootstrap: prompt
-- plot: line x=beta hue=direction y="share (nll: nats a token)" numbers=share
--   hide=tokens*,ended*,harm*_complied*,harmless_*,harm*_change_*,harm*_apart_*,answer_*_1,answer_*_3,alignment_*,nll_*_change_*,
--   nll_*_apart_*,*_content_*,*_rotated_*
-- says: With the PT-IT direction added to the PT's late MLPs at the length of their output (beta 1) its replies of the
--   form asked for {format_change_1?become more|become fewer|show no clear response} ({format_change_1}, as a share),
--   structural words {str_change_1?become more|become fewer|show no clear response} ({str_change_1}), coherent replies
--   {coherent_change_1?become more|become fewer|show no clear response} ({coherent_change_1}); what it writes is
--   {nll_it_change_1?less likely|more likely|not clearly more or less likely} to IT ({nll_it_change_1} nats a token).
--   Beside a random direction of the same length form is {format_apart_random_1?higher|lower|not clearly higher or lower}
--   ({format_apart_random_1}), structural words are {str_apart_random_1?more|fewer|not clearly more or fewer}
--   ({str_apart_random_1}), coherent replies {coherent_apart_random_1?more|fewer|not clearly more or fewer}
--   ({coherent_apart_random_1}).
-- about: The PT writes freely on the bare prompt (greedy, only real tokens, as many as the captures' continuations have at
--   most; the PT/IT study: 200); in its late blocks beta times the norm of each MLP module's output is added along d_mean
--   (0A), at every position. Controls of equal length at beta 0, 1 and 3: `random`, a random unit vector per block;
--   `rotated`, a random one orthogonal to d_mean; `content`, the mean of d_mean over the blocks before the late ones, the
--   same in all (the study: those of layers 0 to 19 that it has, and it has none for layer 0; ours takes in layer 0). beta
--   = 0 is the PT as it is, one condition. `*_change_B`: along d_mean, beta = B less 0 on the same prompts;
--   `*_apart_CONTROL_B`: that change less the control's. Negative beta adds the opposite. Metrics as in A1; an incoherent
--   reply meets criteria that ask for little (no commas, few words), so that `format` can rise while `coherent` falls;
--   `nll_it`, of the replies under IT in its template, says how far they are its own manner; `nll_pt`, under the PT as it
--   is, how far the edit leads away from it. A PT that does not end its turn writes its whole budget: `ended`, `tokens`.
--   The study's figures of this row are plots without numbers.
-- pitfalls: pooled duplicate replies, MLP before post-norm, incoherent replies
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
