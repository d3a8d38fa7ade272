-- id: exp11
-- title: IT's MLPs in the PT: windows of blocks on a matched prefix
-- needs: graft(B_early), graft(B_early_tuned)?, graft(B_mid), graft(B_mid_tuned)?, graft(B_late), graft(B_late_tuned)?,
--   lens(raw)@pt, lens(tuned)@pt?, delta@pt, graft(B_early_jacobian)??, graft(B_mid_jacobian)??,
--   graft(B_late_jacobian)??, lens(jacobian)@pt??
-- stream: teacher
-- bootstrap: prompt
-- plot: line x=layer hue=window panels=dkl_raw,dcross_kl_raw
--   forest=dkl_final20_early_raw,dkl_final20_mid_raw,dkl_final20_late_raw,dcross_kl_early_raw,dcross_kl_mid_raw,dcross_kl_late_raw
-- says: With IT's MLPs in its late blocks the PT's final 20 % of layers are {dkl_final20_late_raw?farther from|closer to|about as
--   far from} their own final distribution {dkl_final20_late_raw?than|than|as} without ({dkl_final20_late_raw} nats[, with the
--   tuned lens {dkl_final20_late_tuned}][, with the Jacobian lens {dkl_final20_late_jacobian}]); early ones change that by
--   {dkl_final20_early_raw}, mid ones by {dkl_final20_mid_raw}. Late ones bring these layers {dcross_kl_late_raw?farther from|closer to|neither closer to nor
--   farther from} IT's at the same layer ({dcross_kl_late_raw}); early {dcross_kl_early_raw}, mid {dcross_kl_mid_raw}.
-- about: The PT reads its raw prompt and IT's continuation (A'). In B_early, B_mid and B_late the MLPs of a window of
--   blocks are IT's (a graft): they read the PT's normed residual, and their output is added as the PT's would be, at
--   all positions, prompt too. Each condition is a replay of the PT from the window's first block on. Numbers are B −
--   A', token by token, pooled over tokens.
--   - `dkl_final20`: of KL(layer || own final) over layers floor(0.8 L) and up. `dkl_window`: over the window's own
--     layers.
--   - `dcross_kl`: of KL(B's layer || IT's layer), both read by the PT's head (and probes). `dcos`: of the cosine
--     between an MLP's output and what it reads. Both over the final 20 %.
--   - `dcommit`: of the layer from which KL(layer || final) stays below 0.1.
-- measures:
--   - dkl_<lens> | change of KL(layer ‖ final), <lens> | nats | with IT's MLPs less without, each against its
--     own final distribution
--   - dcross_kl_<lens> | change of KL to IT's layer, <lens> | nats | with IT's MLPs less without, of KL(PT's
--     layer ‖ IT's layer), both read by the PT's head
--   - dcos | change of the MLP's δ-cosine | cosine | with IT's MLPs less without, of the cosine between an
--     MLP's output and what it reads
--   - dkl_final20_<window>_<lens> | <window> MLPs, final 20 % of layers, <lens> | nats | change of KL(layer ‖
--     final), mean over layers floor(0.8 L) and up
--   - dkl_window_<window>_<lens> | <window> MLPs, their own layers, <lens> | nats | change of KL(layer ‖
--     final), mean over the layers of the window
--   - dcross_kl_<window>_<lens> | <window> MLPs, KL to IT's layer, <lens> | nats | change of KL to IT's
--     layer, mean over the final 20 % of layers
--   - dcommit_<window>_<lens> | <window> MLPs, shift of commitment, <lens> | layers | change of the layer
--     from which KL(layer ‖ final) stays below 0.1
--   - dcos_<window> | <window> MLPs, MLP's δ-cosine | cosine | change over the final 20 % of layers
-- positions: From the last prompt token to the token before the last (METHODS 0, set c).
-- pitfalls:
--   - two KL directions: KL(layer || final) here, KL(final || layer) in L2.
--   - double BOS: The study's IT prompts begin with two BOS tokens.
--   - MLP before post-norm: `dcos` takes the MLP's output before any norm that follows; it is not L1's cosine.
--   - overlapping windows: Windows overlap unless the catalog names others, so mid holds part of late.
--   - endpoint coupling: `dkl` is measured against B's own final distribution, which the graft moves too. On
--     `dcross_kl`, and on JS at the same layer (exp16_BD), the window that moves most can be another.
--   - dropped uncommitted tokens: The study drops tokens that never commit. Here every token commits, for the last
--     layer's KL is zero.
-- published: Six families and their pool, by the tuned lens over masked logits (METHODS 1.4; ours are whole), with a
--   probe on the last layer too.
-- source: METHODS 8
WITH cells AS (
    SELECT split_part(condition, '_', 2) AS "window", lens, prompt, step, layer, layer >= window_start AND layer < window_stop AS inside,
        layer >= floor(0.8 * (max(layer) OVER () + 1)) AS late, edited.kl_layer_final AS kl, base.kl_layer_final AS kl_host,
        edited.kl_layer_final - base.kl_layer_final AS dkl, cross_kl - cross_kl_host AS dcross_kl, edited.mlp_cos - own.mlp_cos AS dcos
    FROM (
        -- Rows of a mean (a foreign table) have neither prompt nor step, and are joined by -1.
        SELECT * REPLACE (coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step) FROM graft
        WHERE condition IN ('B_early', 'B_mid', 'B_late') AND layer >= 0
    ) AS edited
    JOIN (
        SELECT lens, coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step, layer, kl_layer_final FROM lens
        WHERE variant = 'pt' AND coalesce(step >= 0, true)
    ) AS base
        USING (lens, prompt, step, layer)
    LEFT JOIN (
        SELECT coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step, layer, mlp_cos FROM delta WHERE variant = 'pt' AND coalesce(step >= 0, true)
    ) AS own USING (prompt, step, layer)
), tokens AS (
    SELECT "window", lens, prompt, step, avg(dkl) FILTER (late) AS dkl_final20, avg(dkl) FILTER (inside) AS dkl_window,
        avg(dcross_kl) FILTER (late) AS dcross_kl, avg(dcos) FILTER (late) AS dcos,
        (coalesce(max(layer) FILTER (kl >= 0.1), -1) - coalesce(max(layer) FILTER (kl_host >= 0.1), -1))::DOUBLE AS dcommit
    FROM cells
    GROUP BY "window", lens, prompt, step
), numbers AS (
    UNPIVOT tokens ON dkl_final20, dkl_window, dcross_kl, dcos, dcommit INTO NAME measure VALUE value
), profiles AS (
    UNPIVOT (SELECT "window", lens, prompt, layer, dkl, dcross_kl, dcos FROM cells)
    ON dkl, dcross_kl, dcos INTO NAME measure VALUE value
)
SELECT measure || CASE measure WHEN 'dcos' THEN '' ELSE '_' || lens END AS measure, layer, "window", prompt, sum(value) AS total,
    count(*) AS n
FROM profiles
WHERE measure <> 'dcos' OR lens = 'raw'
GROUP BY ALL
UNION ALL
SELECT measure || '_' || "window" || CASE measure WHEN 'dcos' THEN '' ELSE '_' || lens END, NULL, NULL, prompt, sum(value), count(*)
FROM numbers
WHERE measure <> 'dcos' OR lens = 'raw'
GROUP BY measure, "window", lens, prompt
