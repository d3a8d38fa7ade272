-- id: exp14
-- title: Sufficient in the PT, necessary in the IT: MLPs exchanged both ways (B, D)
-- needs: graft(B_early), graft(B_early_tuned)?, graft(B_mid), graft(B_mid_tuned)?, graft(B_late), graft(B_late_tuned)?,
--   graft(D_early), graft(D_early_tuned)?, graft(D_mid), graft(D_mid_tuned)?, graft(D_late), graft(D_late_tuned)?,
--   lens(raw), lens(tuned)?, delta
-- stream: teacher
-- bootstrap: prompt
-- plot: line x=layer hue=condition y="with the other's MLPs − without" numbers=nats dcos_*=cosine
--   hide=dkl_window_*,dcos_*,kl_final20_*
-- says: IT's late MLPs in the PT {dkl_final20_b_late_raw?raise|lower|leave about as it was} the final 20 % layers' KL to their
--   own final distribution ({dkl_final20_b_late_raw} nats on {kl_final20_a_raw}); the PT's late MLPs in the IT
--   {dkl_final20_d_late_raw?raise|lower|leave about as it was} it ({dkl_final20_d_late_raw} on {kl_final20_c_raw}). Early and mid:
--   {dkl_final20_b_early_raw} and {dkl_final20_b_mid_raw} in the PT, {dkl_final20_d_early_raw} and {dkl_final20_d_mid_raw} in the IT.
--   [With the tuned lens late ones give {dkl_final20_b_late_tuned} in the PT and {dkl_final20_d_late_tuned} in the IT.] Over the
--   exchanged blocks' own layers: PT {dkl_window_b_early_raw}, {dkl_window_b_mid_raw}, {dkl_window_b_late_raw}, IT
--   {dkl_window_d_early_raw}, {dkl_window_d_mid_raw}, {dkl_window_d_late_raw} (early, mid, late).
-- about: B: the PT, on its raw prompt and IT's answer, with IT's MLPs in a window of blocks, against A', the PT as it is. D: the
--   IT, on its own prompt and answer, with the PT's MLPs, against C, the IT as it is. Each is a replay of its host from the window
--   on. `dkl_final20`: difference of KL(layer || own final) (trap 1), mean over layers floor(0.8 L) and up, pooled over tokens,
--   each host through its own lens; `dkl_window` over the layers of the window itself; `dcos` of the cosine between an MLP's output
--   and what it reads, before any norm that follows (trap 6), final 20 %. `kl_final20_a` and `_c` are the hosts' own. Trap 11: that
--   late windows matter most is a statement about this readout, whose end point the exchange moves too; at the same layer
--   (exp16_BD) it can be mid. Trap 22: over the window's own layers the seed has D_mid and D_early as large as D_late or larger.
--   Windows overlap (trap 10). Published: the tuned lens, over masked logits, the last layer through a probe too.
-- source: METHODS 9; traps in METHODS 21 (1, 6, 10, 11, 22)
WITH base AS (
    SELECT variant, lens, prompt, step, layer, kl_layer_final, mlp_cos, layer >= floor(0.8 * (max(layer) OVER () + 1)) AS late
    FROM lens JOIN (SELECT variant, prompt, step, layer, mlp_cos FROM delta WHERE step >= 0) USING (variant, prompt, step, layer)
    WHERE layer >= 0
), cells AS (
    SELECT condition, lens, prompt, step, layer, late, layer >= window_start AND layer < window_stop AS inside,
        edited.kl_layer_final - base.kl_layer_final AS dkl, edited.mlp_cos - base.mlp_cos AS dcos
    FROM (FROM graft WHERE condition IN ('B_early', 'B_mid', 'B_late', 'D_early', 'D_mid', 'D_late')) AS edited
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
), profiles AS (
    UNPIVOT (SELECT condition, lens, prompt, layer, dkl, dcos FROM cells) ON dkl, dcos INTO NAME measure VALUE value
)
SELECT measure || CASE measure WHEN 'dcos' THEN '' ELSE '_' || lens END AS measure, layer, condition, prompt, sum(value) AS total,
    count(*) AS n
FROM profiles
WHERE measure <> 'dcos' OR lens = 'raw'
GROUP BY ALL
UNION ALL
SELECT measure || '_' || condition || CASE measure WHEN 'dcos' THEN '' ELSE '_' || lens END, NULL, NULL, prompt, sum(value), count(*)
FROM numbers
WHERE measure <> 'dcos' OR lens = 'raw'
GROUP BY measure, condition, lens, prompt
