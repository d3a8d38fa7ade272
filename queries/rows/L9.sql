-- id: L9
-- title: Attention entropy at the last prompt token
-- needs: attention
-- models: 1
-- compares: models, prompts, streams, layers
-- stream: native
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: line x=layer hue=variant panels=entropy,entropy_norm
-- says: At the last prompt token IT's attention is {mean_entropy?more spread out than|narrower than|about as spread out
--   as} PT's ({mean_entropy} nats, mean over layers); as a share of the most that its prompt length allows, the difference is
--   {mean_entropy_norm}.
-- about: Entropy of the attention row of the last prompt token, mean over heads, then over prompts. The capture takes
--   the entropies while the model runs (site attn_entropy, profile attention).
--   - `entropy`: in nats, as in the study. It grows with the prompt's length, and IT's prompt is longer by the
--     template.
--   - `entropy_norm`: `entropy` over ln(number of tokens up to that position), so that 1 is uniform. Layers with a
--     sliding window can reach it only on short prompts.
--   - `mean_*`: mean over layers. `argmax_layer`: the layer where IT − PT is largest.
-- measures:
--   - entropy | attention entropy | nats | entropy of the last prompt token's attention, mean over heads
--   - entropy_norm | attention entropy over its largest possible value | share | entropy over the logarithm
--     of the number of tokens; 1 is uniform
--   - mean_entropy | attention entropy, mean over layers | nats | entropy of the last prompt token's
--     attention, mean over heads and layers
--   - mean_entropy_norm | attention entropy over its largest possible value, mean over layers | share | the
--     same as a share of the uniform
--   - argmax_layer | layer where IT − PT is largest | layer | the layer with the largest difference of
--     attention entropy
-- positions: The last prompt token of every prompt.
-- pitfalls:
--   - double BOS: The study's IT prompts begin with two BOS tokens.
-- published: Means over layers of IT − PT and the layer of the largest difference, six families.
-- source: METHODS 4, row L9
WITH cells AS (
    SELECT variant, prompt, layer, avg(entropy) AS entropy, avg(entropy_norm) AS entropy_norm FROM attention
    GROUP BY variant, prompt, layer
), by_layer AS (
    SELECT layer, avg(entropy) FILTER (variant = 'it') - avg(entropy) FILTER (variant = 'pt') AS difference FROM cells
    GROUP BY layer
)
SELECT 'entropy' AS measure, variant, layer, prompt, entropy AS total, 1 AS n, NULL AS estimate FROM cells
UNION ALL
SELECT 'entropy_norm', variant, layer, prompt, entropy_norm, 1, NULL FROM cells WHERE entropy_norm IS NOT NULL
UNION ALL
SELECT 'mean_entropy', variant, NULL, prompt, avg(entropy), 1, NULL FROM cells GROUP BY variant, prompt
UNION ALL
SELECT 'mean_entropy_norm', variant, NULL, prompt, avg(entropy_norm), 1, NULL FROM cells WHERE entropy_norm IS NOT NULL
GROUP BY variant, prompt
UNION ALL
SELECT 'argmax_layer', 'it - pt', NULL, NULL, NULL, NULL, arg_max(layer, difference) FROM by_layer
HAVING count(difference) > 0
