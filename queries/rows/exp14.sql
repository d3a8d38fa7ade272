-- id: exp14
-- title: Sufficient in the PT, necessary in the IT: MLPs exchanged both ways
-- needs: graft(B_early), graft(B_early_tuned)?, graft(B_mid), graft(B_mid_tuned)?, graft(B_late), graft(B_late_tuned)?,
--   mechanism(B_late)?, graft(D_early), graft(D_early_tuned)?, graft(D_mid), graft(D_mid_tuned)?, graft(D_late),
--   graft(D_late_tuned)?, mechanism(D_late)?, mechanism(A)?, mechanism(C)?, lens(raw), lens(tuned)?, delta
-- stream: teacher
-- bootstrap: prompt
-- plot: line x=layer hue=condition panels=dkl_raw
--   forest=dkl_final20_b_early_raw,dkl_final20_b_mid_raw,dkl_final20_b_late_raw,dkl_final20_d_early_raw,dkl_final20_d_mid_raw,dkl_final20_d_late_raw
-- says: With IT's late MLPs in the PT the final 20 % layers' KL to their own final distribution
--   {dkl_final20_b_late_raw?rises|falls|shows no clear change} ({dkl_final20_b_late_raw} nats on {kl_final20_a_raw}); with the PT's late
--   MLPs in the IT it {dkl_final20_d_late_raw?rises|falls|shows no clear change} ({dkl_final20_d_late_raw} on {kl_final20_c_raw}). Early and mid:
--   {dkl_final20_b_early_raw} and {dkl_final20_b_mid_raw} in the PT, {dkl_final20_d_early_raw} and {dkl_final20_d_mid_raw} in the IT.
--   [With the tuned lens late ones give {dkl_final20_b_late_tuned} in the PT and {dkl_final20_d_late_tuned} in the IT.] Over the
--   exchanged blocks' own layers: PT {dkl_window_b_early_raw}, {dkl_window_b_mid_raw}, {dkl_window_b_late_raw}, IT
--   {dkl_window_d_early_raw}, {dkl_window_d_mid_raw}, {dkl_window_d_late_raw} (early, mid, late). [Late MLPs write {support_teacher_a} along the answer's next
--   token in the PT, {support_teacher_b_late} with IT's MLPs; {support_teacher_c} in the IT, {support_teacher_d_late} with the PT's.]
-- about: MLPs exchanged both ways. B: the PT, on its raw prompt and IT's continuation, with IT's MLPs in a window of
--   blocks, against A', the PT as it is. D: the IT, on its own prompt and continuation, with the PT's MLPs, against
--   C, the IT as it is. Each is a replay of its recipient from the window on, read through the recipient's own lens.
--   - `dkl_final20`: difference of KL(layer || own final), mean over layers floor(0.8 L) and up, pooled over tokens.
--     `dkl_window`: over the layers of the window itself. `kl_final20_a`, `kl_final20_c`: the levels of A' and C.
--   - `dcos`: of the cosine between an MLP's output and what it reads, final 20 %.
--   - Mechanism of late MLPs in A', B_late, C and D_late, mean over the final 20 % of layers, by gradients of each
--     recipient's raw lens through norm and unembedding alone: `support_teacher` is the length of an MLP's output
--     along the gradient of the next token's logit; `anti_top1` minus its length along that of the layer's own top
--     token; `anti_kl` its length along that of KL(final || layer) (above zero it moves away); `*_cos` the cosines;
--     `kl_rest` what is left across the last one; `rank_gain` the places that the next token gains against the
--     unedited recipient.
--   - `correlation_*`: Pearson's r of a token's mean scalar and its mean KL(layer || final), over all tokens of the
--     four; no intervals.
-- measures:
--   - dkl_<lens> | change of KL(layer ‖ final), <lens> | nats | with the other model's MLPs less without,
--     each against its own final distribution
--   - dcos | change of the MLP's δ-cosine | cosine | with the other model's MLPs less without
--   - dkl_final20_<recipient>_<window>_<lens> | <recipient> <window> MLPs, <lens> | nats | change of KL(layer
--     ‖ final), mean over layers floor(0.8 L) and up
--   - dkl_window_<recipient>_<window>_<lens> | <recipient> <window> MLPs, their own layers, <lens> | nats |
--     change of KL(layer ‖ final), mean over the layers of the window
--   - dcos_<recipient>_<window> | <recipient> <window> MLPs, MLP's δ-cosine | cosine | change over the final
--     20 % of layers
--   - kl_final20_<state>_<lens> | KL(layer ‖ final), <state>, <lens> | nats | mean over layers floor(0.8 L)
--     and up
--   - rank_gain_<state> | ranks that the next token gains, <state> | ranks | places gained against the
--     unedited recipient
--   - <pushed>_<state> | <pushed>, <state> | of the MLP's output | late MLPs, through norm and unembedding
--     alone, mean over the final 20 % of layers
--   - correlation_mlp_cos | δ-cosine and KL over tokens | Pearson's r | correlation of a token's mean
--     δ-cosine with its mean KL(layer ‖ final)
--   - correlation_<pushed> | <pushed> and KL over tokens | Pearson's r | correlation of a token's mean with
--     its mean KL(layer ‖ final)
-- positions: From the last prompt token to the token before the last (METHODS 0, set c).
-- pitfalls:
--   - two KL directions: KL(layer || final) here, KL(final || layer) in L2.
--   - double BOS: The study's IT prompts begin with two BOS tokens.
--   - MLP before post-norm: `dcos` and the mechanism take the MLP's output before any norm that follows.
--   - overlapping windows: Mid shares blocks with late.
--   - endpoint coupling: That late windows matter most is a statement about this readout, whose end point the
--     exchange moves too. At the same layer (exp16_BD) it can be mid.
--   - graft-window effect: Over the window's own layers the study has D_mid and D_early as large as D_late, or
--     larger.
-- published: Six families and their pool, by the tuned lens over masked logits, with a probe on the last layer too.
-- source: METHODS 9
WITH base AS (
    SELECT variant, lens, lens.prompt, lens.step, layer, kl_layer_final, mlp_cos, rank_target, layer >= floor(0.8 * (max(layer) OVER () + 1)) AS late
    FROM (SELECT * REPLACE (coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step) FROM lens WHERE coalesce(step >= 0, true)) AS lens
    LEFT JOIN (SELECT variant, coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step, layer, mlp_cos FROM delta WHERE coalesce(step >= 0, true))
        USING (variant, prompt, step, layer)
    WHERE layer >= 0
), cells AS (
    SELECT condition, lens, prompt, step, layer, late, layer >= window_start AND layer < window_stop AS inside,
        edited.kl_layer_final - base.kl_layer_final AS dkl, edited.mlp_cos - base.mlp_cos AS dcos,
        edited.kl_layer_final AS kl, edited.mlp_cos, base.rank_target - edited.rank_target AS gain
    FROM (
        SELECT * REPLACE (coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step) FROM graft
        WHERE condition IN ('B_early', 'B_mid', 'B_late', 'D_early', 'D_mid', 'D_late')
    ) AS edited
    JOIN base USING (variant, lens, prompt, step, layer)
), tokens AS (
    SELECT lower(condition) AS condition, lens, prompt, step, avg(dkl) FILTER (late) AS dkl_final20, avg(dkl) FILTER (inside) AS dkl_window,
        avg(dcos) FILTER (late) AS dcos
    FROM cells
    GROUP BY condition, lens, prompt, step
    UNION ALL BY NAME
    SELECT CASE variant WHEN 'pt' THEN 'a' ELSE 'c' END AS condition, lens, prompt, step, avg(kl_layer_final) AS kl_final20
    FROM base
    WHERE late
    GROUP BY variant, lens, prompt, step
), numbers AS (
    UNPIVOT tokens ON dkl_final20, dkl_window, dcos, kl_final20 INTO NAME measure VALUE value
), pushed AS (
    SELECT variant, condition, coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step, avg(support_teacher) AS support_teacher, avg(anti_top1) AS anti_top1,
        avg(anti_kl) AS anti_kl, avg(teacher_cos) AS teacher_cos, avg(top1_cos) AS top1_cos, avg(kl_cos) AS kl_cos,
        avg(kl_rest) AS kl_rest
    FROM mechanism
    GROUP BY ALL
), outcomes AS (
    SELECT CASE variant WHEN 'pt' THEN 'A' ELSE 'C' END AS condition, prompt, step, avg(kl_layer_final) AS kl, avg(mlp_cos) AS mlp_cos
    FROM base WHERE late AND lens = 'raw' GROUP BY variant, prompt, step
    UNION ALL BY NAME
    SELECT condition, prompt, step, avg(kl) AS kl, avg(mlp_cos) AS mlp_cos, avg(gain) AS rank_gain
    FROM cells WHERE late AND lens = 'raw' AND ends_with(condition, 'late') GROUP BY condition, prompt, step
), related AS (
    SELECT corr(support_teacher, kl) AS support_teacher, corr(anti_top1, kl) AS anti_top1, corr(anti_kl, kl) AS anti_kl,
        corr(mlp_cos, kl) AS mlp_cos, count(*) AS n
    FROM pushed JOIN outcomes USING (condition, prompt, step)
), profiles AS (
    UNPIVOT (SELECT condition, lens, prompt, layer, dkl, dcos FROM cells) ON dkl, dcos INTO NAME measure VALUE value
)
SELECT measure || CASE measure WHEN 'dcos' THEN '' ELSE '_' || lens END AS measure, layer, condition, prompt, sum(value) AS total,
    count(*) AS n, NULL AS estimate, NULL AS unit
FROM profiles
WHERE measure <> 'dcos' OR lens = 'raw'
GROUP BY ALL
UNION ALL
SELECT measure || '_' || condition || CASE measure WHEN 'dcos' THEN '' ELSE '_' || lens END, NULL, NULL, prompt, sum(value), count(*),
    NULL, NULL
FROM numbers
WHERE measure <> 'dcos' OR lens = 'raw'
GROUP BY measure, condition, lens, prompt
UNION ALL
SELECT measure || '_' || lower(condition), NULL, NULL, prompt, sum(value), count(*), NULL, NULL
FROM (
    UNPIVOT (FROM pushed) ON support_teacher, anti_top1, anti_kl, teacher_cos, top1_cos, kl_cos, kl_rest INTO NAME measure VALUE value
)
GROUP BY measure, condition, prompt
UNION ALL
SELECT 'rank_gain_' || lower(condition), NULL, NULL, prompt, sum(rank_gain), count(*), NULL, NULL
FROM outcomes
WHERE rank_gain IS NOT NULL
GROUP BY condition, prompt
UNION ALL
SELECT 'correlation_' || measure, NULL, NULL, NULL, NULL, n, value, 'tokens'
FROM (UNPIVOT related ON support_teacher, anti_top1, anti_kl, mlp_cos INTO NAME measure VALUE value)
