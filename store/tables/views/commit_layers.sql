-- Layer at which each token's lens commits, a column per rule (METHODS 3.3).
-- What a query does not name is not computed.
-- Lists go along the thresholds T = 0.05, 0.1, 0.2, 0.5, 1.0 nats, cos along C = 0.8, 0.9, 0.95, 0.99. Never: the last layer.
-- Curves without tokens (foreign tables) are left out: the rules are about tokens. Models of up to 126 layers.
-- column depth (layer): last layer
-- A rank <= K of the final token from here on, as the study's qualified rules ask for too, follows from top1.
-- column top1 (layer): from here on the lens' top token is that of its own last layer (of a tuned lens the tuned one)
-- column kl (layer): from here on KL(final || layer) < T
-- column kl_q3 (layer): KL < T here, and < 3 T from here on
-- column kl_q5 (layer): KL < T here, and < 5 T from here on
-- column majority (layer): the smallest layer from which KL < T in at least 90 % of the layers that are left
-- column adaptive (layer): the same, but with fewer than 10 layers left in all of them except one
-- column mean (layer): mean of KL over the layers that are left < T
-- column median (layer): median of KL over the layers that are left < T
-- column here_mean (layer): mean of KL over the layers that are left < T, and KL < T here
-- column entropy (layer): from here on within T of the last layer's entropy
-- column low_entropy (layer): entropy < T from here on
-- column cos (layer): from here on the residual's cosine with the final one is >= C
-- column continuous (layer): KL = 0.1 for the first time, interpolated between layers (exp10)
WITH final AS (
    SELECT model, stream, lens, token, arg_max(top1, layer) AS final_top1, arg_max(entropy, layer) AS final_entropy
    FROM lens
    WHERE token IS NOT NULL
    GROUP BY model, stream, lens, token
), packed AS (
    -- last_*: the last layer that breaks a rule, the commitment is the one after. over: bit l is set where KL_l >= T.
    SELECT pair, variant, model, stream, lens, token,
        any_value(prompt) AS prompt, any_value(prompt_id) AS prompt_id, any_value(category) AS category,
        any_value(position) AS position, any_value(step) AS step, max(layer)::INTEGER AS depth,
        max(layer) FILTER (top1 <> final_top1) AS last_top1,
        [max(layer) FILTER (kl_final_layer >= 0.05), max(layer) FILTER (kl_final_layer >= 0.1),
         max(layer) FILTER (kl_final_layer >= 0.2), max(layer) FILTER (kl_final_layer >= 0.5),
         max(layer) FILTER (kl_final_layer >= 1.0)] AS last_kl,
        [max(layer) FILTER (kl_final_layer >= 0.15), max(layer) FILTER (kl_final_layer >= 0.3),
         max(layer) FILTER (kl_final_layer >= 0.6), max(layer) FILTER (kl_final_layer >= 1.5),
         max(layer) FILTER (kl_final_layer >= 3.0)] AS last_kl3,
        [max(layer) FILTER (kl_final_layer >= 0.25), max(layer) FILTER (kl_final_layer >= 0.5),
         max(layer) FILTER (kl_final_layer >= 1.0), max(layer) FILTER (kl_final_layer >= 2.5),
         max(layer) FILTER (kl_final_layer >= 5.0)] AS last_kl5,
        [max(layer) FILTER (abs(entropy - final_entropy) >= 0.05), max(layer) FILTER (abs(entropy - final_entropy) >= 0.1),
         max(layer) FILTER (abs(entropy - final_entropy) >= 0.2), max(layer) FILTER (abs(entropy - final_entropy) >= 0.5),
         max(layer) FILTER (abs(entropy - final_entropy) >= 1.0)] AS last_entropy,
        [max(layer) FILTER (entropy >= 0.05), max(layer) FILTER (entropy >= 0.1), max(layer) FILTER (entropy >= 0.2),
         max(layer) FILTER (entropy >= 0.5), max(layer) FILTER (entropy >= 1.0)] AS last_low,
        [max(layer) FILTER (cos_final < 0.8), max(layer) FILTER (cos_final < 0.9), max(layer) FILTER (cos_final < 0.95),
         max(layer) FILTER (cos_final < 0.99)] AS last_cos,
        [coalesce(bit_or(1::HUGEINT << layer) FILTER (kl_final_layer >= 0.05), 0),
         coalesce(bit_or(1::HUGEINT << layer) FILTER (kl_final_layer >= 0.1), 0),
         coalesce(bit_or(1::HUGEINT << layer) FILTER (kl_final_layer >= 0.2), 0),
         coalesce(bit_or(1::HUGEINT << layer) FILTER (kl_final_layer >= 0.5), 0),
         coalesce(bit_or(1::HUGEINT << layer) FILTER (kl_final_layer >= 1.0), 0)] AS over,
        list(kl_final_layer ORDER BY layer) AS curve
    FROM lens JOIN final USING (model, stream, lens, token)
    WHERE layer >= 0
    GROUP BY pair, variant, model, stream, lens, token
), tails AS (
    -- Mean and median of KL over the layers that are left, from each layer on.
    SELECT *, [list_avg(curve[l + 1:]) for l in layers] AS means, [list_median(curve[l + 1:]) for l in layers] AS medians
    FROM (SELECT *, range(depth + 1) AS layers, [0.05, 0.1, 0.2, 0.5, 1.0] AS bounds FROM packed)
)
SELECT pair, variant, model, stream, lens, prompt, prompt_id, category, token, position, step, depth,
    least(coalesce(last_top1, -1) + 1, depth) AS top1,
    [least(coalesce(l, -1) + 1, depth) for l in last_kl] AS kl,
    [least(coalesce(l, -1) + 1, depth) for l in last_entropy] AS entropy,
    [least(coalesce(l, -1) + 1, depth) for l in last_low] AS low_entropy,
    [least(coalesce(l, -1) + 1, depth) for l in last_cos] AS cos,
    [coalesce(list_min([l for l in layers if l > coalesce(last_kl3[i], -1) and (over[i] >> l) & 1 = 0]), depth)
        for i in [1, 2, 3, 4, 5]] AS kl_q3,
    [coalesce(list_min([l for l in layers if l > coalesce(last_kl5[i], -1) and (over[i] >> l) & 1 = 0]), depth)
        for i in [1, 2, 3, 4, 5]] AS kl_q5,
    [coalesce(list_min([l for l in layers if bit_count(m >> l) <= 0.1 * (depth + 1 - l)]), depth) for m in over] AS majority,
    [coalesce(list_min([l for l in layers
            if bit_count(m >> l) <= (case when depth + 1 - l >= 10 then 0.1 * (depth + 1 - l) else 1 end)]), depth)
        for m in over] AS adaptive,
    [coalesce(list_min([l for l in layers if means[l + 1] < t]), depth) for t in bounds] AS mean,
    [coalesce(list_min([l for l in layers if medians[l + 1] < t]), depth) for t in bounds] AS median,
    [coalesce(list_min([l for l in layers if curve[l + 1] < t and means[l + 1] < t]), depth) for t in bounds] AS here_mean,
    coalesce([case when l = 0 then 0 else l - 1 + (curve[l] - 0.1) / (curve[l] - curve[l + 1]) end
        for l in layers if curve[l + 1] < 0.1][1], depth) AS continuous
FROM tails
