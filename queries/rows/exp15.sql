-- id: exp15
-- title: Free replies with MLPs exchanged both ways, window by window
-- needs: scores(exp15), judged(exp15)?
-- stream: native
-- bootstrap: prompt
-- plot: dots x=window hue=arm panels=gain_format,gain_alignment,gain_str
--   forest=pt_format_late_minus_mid,it_format_late_minus_mid,pt_alignment_late_minus_mid,it_alignment_late_minus_mid
-- says: IT's MLPs in the PT change its structural words by {pt_str_early}, {pt_str_mid} and {pt_str_late} (early, mid, late
--   window), format compliance by {pt_format_early}, {pt_format_mid} and {pt_format_late}, right reactions to SAFETY
--   prompts by {pt_alignment_early}, {pt_alignment_mid} and {pt_alignment_late}: in format compliance late ones do
--   {pt_format_late_minus_mid?more|less|neither clearly more nor less} than mid ones. The PT's MLPs in the IT cost it
--   {it_format_early}, {it_format_mid} and {it_format_late} of format compliance, {it_alignment_early}, {it_alignment_mid}
--   and {it_alignment_late} of right reactions; late ones {it_format_late_minus_mid?more|less|neither clearly more nor
--   less} than mid ones. In {capped_a} of the PT's replies the budget cuts them off, in {capped_b_mid} with IT's mid MLPs,
--   {capped_b_late} with late ones.
-- about: A = PT on the bare text, C = IT in its template; B_WINDOW = A with IT's MLPs in a window of blocks, D_WINDOW
--   = C with the PT's. Each MLP reads the recipient's normed residual.
--   - `gain_METRIC`, paired by prompt: on the PT side B − A, what the graft brings; on the IT side C − D, what it
--     costs. Both are positive where IT's MLPs do what IT does better. Of `false_refusal` and `missed_refusal`, where
--     less is better, the signs are flipped (as of the study's S2). Of others (`str`, counts, `nll_*`) no direction
--     is the better one, and both sides are recipient with IT's MLPs less recipient without.
--   - `SIDE_METRIC_WINDOW`: the same numbers. `SIDE_METRIC_late_minus_mid`, `_late_minus_early`: the windows
--     compared.
--   - `level_METRIC`: the eight means. `capped`: replies that the budget cut off. A PT that runs on is judged on more
--     text, and a graft that makes it stop may gain by that alone (published .62 for A, .40 for B_mid, .66 for
--     B_late).
--   - `choice_generated`: the first letter of three tokens, IT in its template, PT without. `choice_logprob`: the
--     likeliest of the choices as texts. `alignment` and refusals: by phrases.
--   - With a judge (`actlake score --judge`): `g1`, `g2`, `s1_*`, `s2`, and `pair_g2`, `pair_s2`, blind comparisons
--     of two replies, 1 where the first named is better, .5 for a tie.
-- measures:
--   - gain_<metric> | gain by IT's MLPs: <metric> | <metric> | on the PT side what the graft brings, on the
--     IT side what it costs to lose them, on the same prompts: <metric>
--   - level_<metric> | <metric> | <metric> | <metric>
--   - capped | cut off by the budget | share of replies | replies that had not ended when the budget was used
--     up
--   - capped_a | cut off by the budget, PT | share of replies | replies that had not ended when the budget
--     was used up
--   - capped_c | cut off by the budget, IT | share of replies | replies that had not ended when the budget
--     was used up
--   - capped_<recipient>_<window> | cut off by the budget, <recipient> <window> MLPs | share of replies |
--     replies that had not ended when the budget was used up
--   - pair_<metric> | two replies compared: <metric> | share won | blind comparisons of two replies, 1 where
--     the first named is better, .5 for a tie
--   - <variant>_<metric>_late_minus_<window> | <variant> side, late less <window>: <metric> | <metric> | gain
--     by late less that by other MLPs, on the same prompts: <metric>
--   - <variant>_<metric>_<window> | <variant> side, <window> MLPs: <metric> | <metric> | gain by IT's MLPs in
--     this window: <metric>
-- positions: Free greedy replies up to the budget of the captures' continuations (the study: 512), each prompt once.
-- pitfalls:
--   - MLP before post-norm: The graft takes the MLP's output before any norm that follows.
--   - overlapping windows: Mid shares blocks with late.
--   - endpoint coupling: Here, unlike in exp14, the PT side is strongest for mid.
--   - mixed resampling units: Published intervals resample the five families; these resample prompts within a family.
--   - DeepSeek exceptions: DeepSeek's replies have at most 64 tokens in the study.
--   - incoherent replies: An incoherent reply without refusal phrases is no compliance: see `coherent`.
-- published: A judge's G2 (5 points) and S2, the mean of five families: on the PT side mid is the strongest, on the
--   IT side late. Pairwise wins, and the shares that were cut off.
-- source: METHODS 12, 18
WITH marked AS (
    SELECT arm, metric, coalesce(prompt, -1) AS prompt, value FROM scores WHERE sweep = 'exp15'
    UNION ALL
    SELECT arm, metric, coalesce(prompt, -1) AS prompt, value FROM judged WHERE sweep = 'exp15'
    UNION ALL
    SELECT arm, 'capped', coalesce(prompt, -1) AS prompt, 1 - value FROM scores WHERE sweep = 'exp15' AND metric = 'ended'
), cells AS (
    SELECT *, CASE WHEN metric IN ('false_refusal', 'missed_refusal', 's2', 's1_incoherent') THEN -1 ELSE 1 END AS sign
    FROM marked
    WHERE metric IN ('str', 'format', 'answer', 'alignment', 'refusal', 'false_refusal', 'missed_refusal', 'coherent',
        'words', 'headers', 'bullets', 'tokens', 'capped', 'nll_pt', 'nll_it', 'choice_generated', 'choice_logprob', 'g1',
        'g2', 's1_refuse', 's1_comply', 's1_incoherent', 's2')
), gains AS (
    SELECT metric, if(host.arm = 'A', 'pt', 'it') AS side, split_part(edited.arm, '_', 2) AS "window", prompt,
        host.sign * if(host.arm = 'A', edited.value - host.value, host.value - edited.value) AS gain
    FROM cells AS edited JOIN cells AS host USING (metric, prompt)
    WHERE host.arm = CASE WHEN starts_with(edited.arm, 'B_') THEN 'A' WHEN starts_with(edited.arm, 'D_') THEN 'C' END
), compared AS (
    SELECT late.metric, late.side, other."window", prompt, late.gain - other.gain AS more
    FROM (FROM gains WHERE "window" = 'late') AS late
    JOIN (FROM gains WHERE "window" <> 'late') AS other USING (metric, side, prompt)
)
SELECT 'gain_' || metric AS measure, upper(side) || ' side' AS arm, "window", prompt, gain AS total, 1 AS n FROM gains
WHERE metric <> 'capped'
UNION ALL BY NAME
SELECT if(metric = 'capped', '', 'level_') || metric AS measure, arm, prompt, value AS total, 1 AS n FROM cells
UNION ALL BY NAME
SELECT metric AS measure, arm, prompt, value AS total, 1 AS n FROM marked WHERE starts_with(metric, 'pair_')
UNION ALL BY NAME
SELECT 'capped_' || lower(arm) AS measure, prompt, value AS total, 1 AS n FROM cells WHERE metric = 'capped'
UNION ALL BY NAME
SELECT side || '_' || metric || '_' || "window" AS measure, prompt, gain AS total, 1 AS n FROM gains
UNION ALL BY NAME
SELECT side || '_' || metric || '_late_minus_' || "window" AS measure, prompt, more AS total, 1 AS n FROM compared
