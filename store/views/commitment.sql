-- Layer at which a token's lens commits to its own final distribution (METHODS 3.3).
-- rule top1: from here on the lens' top token is the last layer's; kl_T: from here on KL(final || layer) < T nats;
-- cos_C: from here on the residual's cosine with the final one is >= C. Never: the last layer.
WITH last AS (
    SELECT pair, variant, stream, lens, max(layer) AS depth FROM lens GROUP BY ALL
), final AS (
    SELECT pair, variant, stream, lens, token, top1 AS final_top1, depth
    FROM lens JOIN last USING (pair, variant, stream, lens)
    WHERE layer = depth
), breaks AS (
    -- For each rule the last layer that breaks it; the commitment is the layer after.
    SELECT pair, variant, stream, lens, token,
        any_value(prompt) AS prompt, any_value(prompt_id) AS prompt_id, any_value(category) AS category,
        any_value(position) AS position, any_value(step) AS step, any_value(depth) AS depth,
        max(layer) FILTER (top1 <> final_top1) AS "top1",
        max(layer) FILTER (kl_final_layer >= 0.05) AS "kl_0.05",
        max(layer) FILTER (kl_final_layer >= 0.1) AS "kl_0.1",
        max(layer) FILTER (kl_final_layer >= 0.2) AS "kl_0.2",
        max(layer) FILTER (kl_final_layer >= 0.5) AS "kl_0.5",
        max(layer) FILTER (kl_final_layer >= 1.0) AS "kl_1.0",
        max(layer) FILTER (cos_final < 0.8) AS "cos_0.8",
        max(layer) FILTER (cos_final < 0.9) AS "cos_0.9",
        max(layer) FILTER (cos_final < 0.95) AS "cos_0.95",
        max(layer) FILTER (cos_final < 0.99) AS "cos_0.99"
    FROM lens JOIN final USING (pair, variant, stream, lens, token)
    WHERE layer >= 0
    GROUP BY pair, variant, stream, lens, token
)
SELECT pair, variant, stream, lens, prompt, prompt_id, category, token, position, step, rule,
    least(coalesce(last_break, -1) + 1, depth)::INTEGER AS layer
FROM breaks UNPIVOT INCLUDE NULLS (last_break FOR rule IN (
    "top1", "kl_0.05", "kl_0.1", "kl_0.2", "kl_0.5", "kl_1.0", "cos_0.8", "cos_0.9", "cos_0.95", "cos_0.99"
))
