-- id: exp19B
-- title: IT's MLPs in the PT against random ones of the same size
-- needs: graft(B_early), graft(B_early_tuned)?, graft(B_early_random), graft(B_early_random_tuned)?, graft(B_mid),
--   graft(B_mid_tuned)?, graft(B_mid_random), graft(B_mid_random_tuned)?, graft(B_late), graft(B_late_tuned)?,
--   graft(B_late_random), graft(B_late_random_tuned)?, lens(raw)@pt, lens(tuned)@pt?
-- stream: teacher
-- bootstrap: prompt
-- contrast: graft true - random
-- plot: line x=layer hue=graft panels=dkl_early_raw,dkl_mid_raw,dkl_late_raw
--   forest=excess_early_raw,excess_mid_raw,excess_late_raw
-- says: IT's late MLPs change the PT's KL between the final 20 % of layers and their own final distribution by {true_late_raw} nats,
--   a random change of the same size by {random_late_raw}: {excess_late_raw?more|less|no clear difference} ({excess_late_raw}). Early:
--   {true_early_raw} against {random_early_raw}, mid: {true_mid_raw} against {random_mid_raw}.[ With the tuned lens, late:
--   {true_late_tuned} against {random_late_tuned}.]
-- about: Is it IT's MLPs, or any change of that size? `true` is the graft of exp11: in a window of blocks the PT's
--   MLPs are replaced by IT's. `random` keeps the PT's and adds a vector that has, token by token, the same signed
--   projection on the MLP's input as the change that the graft makes (donor − recipient), and across that input the
--   same length, along a direction drawn at random (one a block, seed 42). Both are replays of the PT on its raw
--   prompt and IT's continuation.
--   - Numbers: difference to the PT as it is of KL(layer || own final), mean over layers floor(0.8 L) and up; first a
--     mean per prompt, then over prompts, as in the study.
--   - `excess`: true less random, prompt by prompt. One random draw: its noise is not in the intervals, which
--     resample prompts.
-- measures:
--   - dkl_<window>_<lens> | change of KL(layer ‖ final), <window> MLPs, <lens> | nats | with the graft less
--     without, each against its own final distribution
--   - true_<window>_<lens> | IT's <window> MLPs, <lens> | nats | change of KL(layer ‖ final), mean over the
--     final 20 % of layers
--   - random_<window>_<lens> | random change as large, <window> MLPs, <lens> | nats | change of KL(layer ‖
--     final), mean over the final 20 % of layers
--   - excess_<window>_<lens> | <window> MLPs, IT's less random, <lens> | nats | what IT's MLPs change less
--     what a random change of that size does
-- positions: From the last prompt token to the token before the last (METHODS 0, set c).
-- pitfalls:
--   - two KL directions: KL(layer || final) here, KL(final || layer) in L2.
--   - overlapping windows: Mid shares blocks with late.
--   - endpoint coupling: On other readouts than this one other windows are strongest.
-- published: 120 prompts a family, all 599 prompts of five families alike (the mean of the families is .3274 for the
--   .3271 of late); random late is the mean of three draws.
-- source: METHODS 17 (exp19B), 8
WITH cells AS (
    SELECT split_part(condition, '_', 2) AS "window", CASE WHEN ends_with(condition, '_random') THEN 'random' ELSE 'true' END AS graft,
        lens, prompt, step, layer, layer >= floor(0.8 * (max(layer) OVER () + 1)) AS late,
        edited.kl_layer_final - base.kl_layer_final AS dkl
    FROM (SELECT * REPLACE (coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step) FROM graft
        WHERE starts_with(condition, 'B_') AND split_part(condition, '_', 2) IN ('early', 'mid', 'late') AND layer >= 0) AS edited
    JOIN (
        SELECT lens, coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step, layer, kl_layer_final FROM lens
        WHERE variant = 'pt' AND coalesce(step >= 0, true)
    ) AS base
        USING (lens, prompt, step, layer)
), prompts AS (
    SELECT "window", graft, lens, prompt, avg(dkl) AS dkl
    FROM (SELECT "window", graft, lens, prompt, step, avg(dkl) AS dkl FROM cells WHERE late GROUP BY ALL)
    GROUP BY ALL
)
SELECT 'dkl_' || "window" || '_' || lens AS measure, layer, graft, prompt, avg(dkl) AS total, 1 AS n FROM cells GROUP BY ALL
UNION ALL
SELECT graft || '_' || "window" || '_' || lens, NULL, NULL, prompt, dkl, 1 FROM prompts
UNION ALL
SELECT 'excess_' || "window" || '_' || lens, NULL, NULL, prompt, sum(CASE graft WHEN 'true' THEN dkl ELSE -dkl END), 1
FROM prompts
GROUP BY "window", lens, prompt
HAVING count(DISTINCT graft) = 2
