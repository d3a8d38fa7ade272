-- id: exp23_KL
-- title: Middle × late MLPs exchanged: KL of the late layers
-- needs: graft(B_mid), graft(B_late), graft(B_midlate), graft(D_mid), graft(D_late), graft(D_midlate), lens(raw)
-- stream: teacher
-- bootstrap: prompt
-- plot: line x=layer hue=effect panels=effect_pt,effect_it
--   forest=late_pt,mid_pt,interaction_pt,late_it,mid_it,interaction_it
-- says: In the PT, IT's late MLPs change the KL between the final 20 % of layers and their own final distribution by {late_pt} nats
--   and IT's mid ones by {mid_pt}; the two together do {interaction_pt?more|less|neither clearly more nor less} than their sum
--   ({interaction_pt}). In the IT, PT's late ones change it by {late_it}, PT's mid ones by {mid_it}; together
--   {interaction_it?more|less|neither clearly more nor less} than their sum ({interaction_it}; less of two falls is a smaller fall).
-- about: Four cells for each recipient (PT with IT's MLPs, IT with PT's), on IT's continuation: no exchange, mid
--   window, late window, and the run of blocks from the first of the mid window to the last of the late one
--   (B_midlate, D_midlate), each a replay of the recipient through its own raw lens. y = KL(layer || own final), mean
--   over layers floor(0.8 L) and up, pooled over tokens.
--   - `late` = half of (y(late) − y(none)) + (y(midlate) − y(mid)); `mid` likewise.
--   - `interaction` = y(midlate) − y(mid) − y(late) + y(none).
--   - `alone_*`: an exchange without the other one. `with_*`: on top of the other one.
-- measures:
--   - effect_<variant> | effects on KL(layer ‖ final), in the <variant> | nats | of the other model's MLPs in
--     the middle and the late window
--   - late_<variant> | late MLPs in the <variant> | nats | change of KL(layer ‖ final) over the final 20 % of
--     layers, mean with and without the middle ones
--   - mid_<variant> | middle MLPs in the <variant> | nats | change of KL(layer ‖ final) over the final 20 %
--     of layers, mean with and without the late ones
--   - interaction_<variant> | both less their sum in the <variant> | nats | interaction of middle and late
--     MLPs
--   - alone_<window>_<variant> | <window> MLPs alone in the <variant> | nats | change of KL(layer ‖ final)
--     without the others
--   - with_<window1>_<window2>_<variant> | <window2> MLPs on top of <window1> ones in the <variant> | nats |
--     change of KL(layer ‖ final) on top of the others
--   - kl_final20_<variant> | KL(layer ‖ final), the <variant> as it is | nats | mean over layers floor(0.8 L)
--     and up
-- positions: From the last prompt token to the token before the last (METHODS 0, set c).
-- pitfalls:
--   - two KL directions: KL(layer || final) here, KL(final || layer) in L2.
--   - overlapping windows: Blocks that both windows share are exchanged once in the run of both; part of the
--     interaction is that the sum counts them twice.
--   - endpoint coupling: The end point moves with every exchange.
-- published: Simple effects, as `alone_*`, and interactions, for the pool of five families.
-- source: METHODS 17 (exp23, Part A)
WITH base AS (
    SELECT variant, coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step, layer, kl_layer_final AS kl_none, layer >= floor(0.8 * (max(layer) OVER () + 1)) AS late
    FROM lens WHERE lens = 'raw' AND coalesce(step >= 0, true) AND layer >= 0
), cells AS (
    SELECT variant, prompt, step, layer, late, any_value(kl_none) AS kl_none,
        any_value(kl_layer_final) FILTER (ends_with(condition, '_mid')) AS kl_mid,
        any_value(kl_layer_final) FILTER (ends_with(condition, '_late')) AS kl_late,
        any_value(kl_layer_final) FILTER (ends_with(condition, '_midlate')) AS kl_both
    FROM (SELECT * REPLACE (coalesce(prompt, -1) AS prompt, coalesce(step, -1) AS step) FROM graft) AS graft JOIN base USING (variant, prompt, step, layer)
    WHERE lens = 'raw' AND condition IN ('B_mid', 'B_late', 'B_midlate', 'D_mid', 'D_late', 'D_midlate')
    GROUP BY ALL
), effects AS (
    SELECT variant, prompt, step, layer, late AS inside, kl_none, kl_late - kl_none AS alone_late, kl_mid - kl_none AS alone_mid,
        kl_both - kl_mid AS with_mid_late, kl_both - kl_late AS with_late_mid, (alone_late + with_mid_late) / 2 AS late,
        (alone_mid + with_late_mid) / 2 AS mid, kl_both - kl_mid - kl_late + kl_none AS interaction
    FROM cells
), profiles AS (
    UNPIVOT (SELECT variant, layer, prompt, late, mid, interaction FROM effects) ON late, mid, interaction INTO NAME effect VALUE value
), numbers AS (
    UNPIVOT (
        SELECT variant, prompt, step, avg(late) AS late, avg(mid) AS mid, avg(interaction) AS interaction, avg(alone_late) AS alone_late,
            avg(alone_mid) AS alone_mid, avg(with_mid_late) AS with_mid_late, avg(with_late_mid) AS with_late_mid,
            avg(kl_none) AS kl_final20
        FROM effects
        WHERE inside
        GROUP BY variant, prompt, step
    )
    ON COLUMNS(* EXCLUDE (variant, prompt, step)) INTO NAME measure VALUE value
)
SELECT 'effect_' || variant AS measure, layer, effect, prompt, sum(value) AS total, count(*) AS n FROM profiles GROUP BY ALL
UNION ALL
SELECT measure || '_' || variant, NULL, NULL, prompt, sum(value), count(*) FROM numbers GROUP BY measure, variant, prompt
