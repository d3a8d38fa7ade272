-- id: L2
-- title: Convergence gap and commitment (raw lens)
-- needs: lens(raw)
-- stream: native
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: line x=layer hue=variant facet=measure y="KL (nats)" numbers=nats commit_top1_raw_mean=layers
--   commit_kl01_raw_mean=layers
-- says: Through the second half of the layers IT stays {cg_raw?farther from|closer to|about as far from} its own final
--   distribution {cg_raw?than|than|as} PT (convergence gap {cg_raw} nats); its top token settles
--   {commit_top1_raw_mean?later|earlier|neither clearly later nor earlier} ({commit_top1_raw_mean} layers), and its KL stays
--   under 0.1 nats from {commit_kl01_raw_mean?a later|an earlier|about the same} layer on ({commit_kl01_raw_mean}).
-- about: `kl_final_layer` = KL(final || layer) is the direction of the seed's code and of its published gaps;
--   `kl_layer_final` = KL(layer || final) is the direction its text names and exp11/14 use. `cg_raw` is the mean over layers
--   floor(L/2) and up of IT minus PT, pooled over tokens (long answers weigh more, as in the seed); `cg_raw_prompt` weighs
--   prompts equally. Positions: continuation tokens from the second on (the step that predicts the first is left out, as
--   the seed's hooks did). `commit_*_mean` is the mean layer from which the lens keeps the final top token (top1) or stays
--   under 0.1 nats (kl01); tokens that never do count as the last layer. Medians: `actlake sql "SELECT variant, rule,
--   median(layer) FROM commitment WHERE step >= 1 GROUP BY ALL"`.
-- source: METHODS 4, row L2; rules in METHODS 3.3
WITH tokens_of AS (
    SELECT variant, prompt, token, layer, kl_final_layer, kl_layer_final, max(layer) OVER () + 1 AS layers
    FROM lens
    WHERE lens = 'raw' AND step >= 1 AND layer >= 0
), late AS (
    SELECT variant, prompt, token, avg(kl_final_layer) AS kl FROM tokens_of WHERE layer >= floor(layers / 2)
    GROUP BY variant, prompt, token
), commits AS (
    SELECT variant, prompt, rule, layer FROM commitment
    WHERE lens = 'raw' AND step >= 1 AND rule IN ('top1', 'kl_0.1')
)
SELECT 'kl_final_layer' AS measure, variant, layer, prompt, sum(kl_final_layer) AS total, count(*) AS n FROM tokens_of
GROUP BY variant, layer, prompt
UNION ALL
SELECT 'kl_layer_final', variant, layer, prompt, sum(kl_layer_final), count(*) FROM tokens_of GROUP BY variant, layer, prompt
UNION ALL
SELECT 'cg_raw', variant, NULL, prompt, sum(kl), count(*) FROM late GROUP BY variant, prompt
UNION ALL
SELECT 'cg_raw_prompt', variant, NULL, prompt, avg(kl), 1 FROM late GROUP BY variant, prompt
UNION ALL
SELECT 'commit_' || replace(replace(rule, 'kl_0.1', 'kl01'), '_', '') || '_raw_mean', variant, NULL, prompt, sum(layer), count(*) FROM commits
GROUP BY variant, rule, prompt
