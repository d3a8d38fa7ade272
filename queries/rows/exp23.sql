-- id: exp23
-- title: Upstream state × late blocks at the first differing token
-- needs: factorial
-- stream: raw
-- bootstrap: prompt
-- plot: dots x=steps hue=readout panels=interaction_by_step,late_it_by_step,late_pt_by_step
--   forest=late_pt,late_it,interaction,late_weight,upstream
-- says: At the first token where PT and IT differ, IT's late blocks in place of PT's change the logit of IT's token less
--   that of PT's by {late_pt} on PT's upstream state and by {late_it} on IT's own. The interaction is
--   {interaction?positive|negative|not clearly different from zero}: {interaction} logits through IT's head[; with the
--   labels swapped at random 99.9 % of its means lie below {interaction_null_999}]. [From step 3 on it is
--   {interaction_step3?positive|negative|not clearly different from zero} ({interaction_step3}).]
-- about: Does what IT's late blocks do depend on IT's state before them? Both models read the bare text; an event is
--   the first step at which their greedy continuations differ (view `first_diff`). Four cells: the state that enters
--   the late window (METHODS 1.6), at all positions, is PT's or IT's (upstream), and so are the blocks from there on
--   (late). PT/PT and IT/IT are stored, the other two replay only the late blocks. y = logit of IT's token − logit of
--   PT's, both real tokens of either model, in float32 (the study's are bfloat16, in steps of 1/16 to 1/8).
--   - `cell_pt_it`: mean y of PT's upstream state with IT's late blocks; other cells alike.
--   - `late_pt` = y(PT, IT) − y(PT, PT), `late_it` = y(IT, IT) − y(IT, PT), `interaction` = late_it − late_pt,
--     `late_weight` = their mean, `upstream` = mean over late blocks of IT's upstream state less PT's.
--   - Single numbers are read by IT's head (common_it, as published first); the panels show common_pt and native
--     (each cell by the head of its late blocks) too.
--   - `interaction_step3`: events from step 3 on; steps count generated tokens, as in the study's "position >= 3".
--     Strata of fewer than 5 prompts are left out.
--   - `interaction_null_999`: the two labels of each event are swapped at random (10,240 draws, signs from MD5 of the
--     prompt's id), and 99.9 % of the mean interactions are below this value. The two tokens are chosen where the
--     models differ, so y(PT, PT) < 0 < y(IT, IT) through their own heads by selection; the null does not tell
--     whether the choice of events makes the interaction. Pooled over pairs, it is the mean of the pairs'
--     percentiles, wider than that of the mean.
-- measures:
--   - cell_<cell> | <cell> | logits | logit of IT's token less PT's
--   - <path> | <path> | logits | change of the logit of IT's token less PT's
--   - <path>_by_step | <path> | logits | change of the logit of IT's token less PT's, by the step of the
--     first differing token
--   - interaction_step3 | interaction, from step 3 on | logits | of events from step 3 on
--   - interaction_null_999 | interaction with labels swapped at random | logits | 99.9 % of the mean
--     interactions are below this value
-- positions: The last token of the shared text of each event; where one continuation ends first there is none. Every
--   prompt counts once.
-- pitfalls:
--   - overlapping windows: Late windows share blocks with mid ones in deeper models.
--   - mixed resampling units: Published pooled intervals keep the families fixed, as these do.
--   - mislabelled hold-out: The published "hold-out" of Qwen2.5-32B (`*_holdout599`, in Core-5 too) is not the
--     hold-out file but the first 300, 150 and 150 valid prompts of three categories of the full set. The true one
--     has 598 prompts (`*_holdout598`).
-- published: Six families, their pools, the null, and strata. The factorial of KL at the late layers is row exp23_KL.
-- source: METHODS 17
WITH cells AS (
    SELECT prompt, prompt_id, step, readout,
        avg(margin) FILTER (upstream = 'pt' AND late = 'pt') AS pt_pt,
        avg(margin) FILTER (upstream = 'pt' AND late = 'it') AS pt_it,
        avg(margin) FILTER (upstream = 'it' AND late = 'pt') AS it_pt,
        avg(margin) FILTER (upstream = 'it' AND late = 'it') AS it_it
    FROM factorial
    WHERE event = 'first_diff'
    GROUP BY prompt, prompt_id, step, readout
), effects AS MATERIALIZED (
    SELECT *, pt_it - pt_pt AS late_pt, it_it - it_pt AS late_it, late_it - late_pt AS interaction,
        (late_pt + late_it) / 2 AS late_weight, (it_pt - pt_pt + it_it - pt_it) / 2 AS upstream,
        CASE WHEN step < 1 THEN '0' WHEN step < 3 THEN '1-2' WHEN step < 8 THEN '3-7' WHEN step >= 8 THEN '8+' END AS bin
    FROM cells
), common AS (
    SELECT *, pt_pt AS cell_pt_pt, pt_it AS cell_pt_it, it_pt AS cell_it_pt, it_it AS cell_it_it
    FROM effects
    WHERE readout = 'common_it'
), numbers AS (
    UNPIVOT (
        SELECT prompt, late_pt, late_it, interaction, late_weight, upstream, cell_pt_pt, cell_pt_it, cell_it_pt, cell_it_it
        FROM common
    )
    ON COLUMNS(* EXCLUDE (prompt)) INTO NAME measure VALUE value
), strata AS (
    UNPIVOT (
        SELECT prompt, readout, unnest(['all', bin]) AS steps, late_pt, late_it, interaction, late_weight, upstream FROM effects
    )
    ON late_pt, late_it, interaction, late_weight, upstream INTO NAME measure VALUE value
), hashes AS MATERIALIZED (
    SELECT interaction, block, md5_number_lower(coalesce(prompt_id, prompt::VARCHAR) || ' ' || block) AS signs
    FROM common, range(160) AS blocks (block)
    WHERE prompt IS NOT NULL
), null_draws AS (
    -- 64 signs an MD5: the same draws everywhere.
    SELECT avg(CASE (signs >> bit) & 1 WHEN 1 THEN -interaction ELSE interaction END) AS mean, count(*) AS n
    FROM hashes, range(64) AS bits (bit)
    GROUP BY block, bit
)
SELECT measure, prompt, avg(value) AS total, 1 AS n FROM numbers GROUP BY measure, prompt
UNION ALL BY NAME
SELECT 'interaction_step3' AS measure, prompt, avg(interaction) AS total, 1 AS n
FROM common
WHERE step >= 3
GROUP BY prompt
QUALIFY count(*) OVER () >= 5
UNION ALL BY NAME
SELECT 'interaction_null_999' AS measure, quantile_cont(mean, 0.999) AS estimate, any_value(n) AS n, 'prompts' AS unit
FROM null_draws
HAVING count(*) > 0
UNION ALL BY NAME
SELECT measure || '_by_step' AS measure, readout, steps, prompt, avg(value) AS total, 1 AS n
FROM strata
WHERE steps IS NOT NULL
GROUP BY measure, readout, steps, prompt
QUALIFY count(*) OVER (PARTITION BY strata.measure, readout, steps) >= 5
