-- id: 0G
-- title: Commitment layers, every rule
-- needs: lens(raw)?, lens(tuned)?, lens(jacobian)??
-- models: 1
-- compares: models, prompts, streams
-- stream: native
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: line x=threshold hue=variant panels=kl/raw,majority/raw,entropy/raw
--   forest=commit_top1_raw_mean_skip5,commit_kl01_raw_mean_skip5,commit_top1_tuned_mean_skip5,commit_kl01_tuned_mean_skip5,commit_top1_jacobian_mean_skip5
-- says: By the primary rules IT commits {commit_top1_raw_mean_skip5?later|earlier|neither clearly later nor earlier} than PT
--   by its top token ({commit_top1_raw_mean_skip5} layers, median {commit_top1_raw_median}) and
--   {commit_kl01_raw_mean_skip5?later|earlier|neither clearly later nor earlier} by KL < 0.1 nats
--   ({commit_kl01_raw_mean_skip5}, median {commit_kl01_raw_median})[; with the tuned lens {commit_top1_tuned_mean_skip5} and
--   {commit_kl01_tuned_mean_skip5}][; with the Jacobian lens {commit_top1_jacobian_mean_skip5} and
--   {commit_kl01_jacobian_mean_skip5}].
-- about: Commitment is the layer from which a token's lens keeps to a rule, or the last layer where it never does.
--   Rules and thresholds: METHODS 3.3, and the comment of the view `commit_layers`.
--   - `commit_top1_*`, `commit_kl01_*`: the primary rules, for each lens. The second is "KL(final || layer) stays
--     under 0.1 nats"; the paper says "first crossing", the code is stays-below. For a tuned lens, top1 is the top
--     token of the tuned last layer.
--   - Medians are over all positions. `mean_skip5` leaves out the first five, as the study's intervals do.
--     `prompt_mean` is over the same positions with every prompt alike.
--   - `continuous_*`: the interpolated first crossing of exp10.
--   - By `threshold`: the mean of every rule. The figure has kl, majority, entropy and cos, the table has the
--     variants (kl_q3, adaptive, mean, median ...) too.
--   - Two of the paper's rules do not exist in the study's code: "no flip back for 3 consecutive layers", and a
--     rank-qualified rule that says more than top1.
-- measures:
--   - <family> | <family> | layer | mean layer from which the rule holds, at its threshold T
--   - commit_<rule>_<lens>_median | <rule>, <lens>, median token | layer | median over tokens of the layer
--     from which the rule holds
--   - commit_<rule>_<lens>_mean_skip5 | <rule>, <lens> | layer | mean over tokens of the layer from which the
--     rule holds, the first five tokens left out
--   - commit_<rule>_<lens>_prompt_mean | <rule>, <lens>, prompts alike | layer | the same with every prompt
--     alike
--   - continuous_<lens> | first crossing of 0.1 nats, <lens> | layer | layer at which KL is 0.1 nats for the
--     first time, interpolated between layers
-- positions: Continuation tokens from the second on; `mean_skip5` and `prompt_mean` after the first five of these.
-- pitfalls:
--   - off-by-one step: The study's fast collector is shifted by one.
--   - mixed commitment runs: Under `prompt_mean` the published delay of Llama and of Qwen is negative.
--   - dropped uncommitted tokens: They count as the last layer here; exp11 of the study drops them.
--   - Adam lens figures: The study's early quality figures of its tuned lens come from an Adam run, not from the
--     published probes.
--   - skipped first steps: Medians use all positions, `mean_skip5` and `prompt_mean` leave out five.
-- published: Medians by four rules, and means with and without equal weight of prompts, for six families.
-- source: METHODS 3.3, 6 (0G)
WITH found AS (
    SELECT * FROM commit_layers WHERE step >= 1
), named AS (
    UNPIVOT (SELECT lens, variant, prompt, step, top1, kl[2]::INTEGER AS kl01 FROM found)
    ON top1, kl01 INTO NAME rule VALUE value
), main AS MATERIALIZED (
    -- n tokens commit at layer `value`, n_skip5 of them after the first five records
    SELECT 'commit_' || rule || '_' || lens AS name, variant, prompt, value, count(*) AS n,
        count(*) FILTER (step > 5) AS n_skip5
    FROM named
    GROUP BY ALL
), families AS (
    UNPIVOT (
        SELECT lens, variant, prompt, count(*) AS n,
            [sum(kl[1]), sum(kl[2]), sum(kl[3]), sum(kl[4]), sum(kl[5])]::DOUBLE[] AS kl,
            [sum(kl_q3[1]), sum(kl_q3[2]), sum(kl_q3[3]), sum(kl_q3[4]), sum(kl_q3[5])]::DOUBLE[] AS kl_q3,
            [sum(kl_q5[1]), sum(kl_q5[2]), sum(kl_q5[3]), sum(kl_q5[4]), sum(kl_q5[5])]::DOUBLE[] AS kl_q5,
            [sum(majority[1]), sum(majority[2]), sum(majority[3]), sum(majority[4]), sum(majority[5])]::DOUBLE[] AS majority,
            [sum(adaptive[1]), sum(adaptive[2]), sum(adaptive[3]), sum(adaptive[4]), sum(adaptive[5])]::DOUBLE[] AS adaptive,
            [sum(mean[1]), sum(mean[2]), sum(mean[3]), sum(mean[4]), sum(mean[5])]::DOUBLE[] AS mean,
            [sum(median[1]), sum(median[2]), sum(median[3]), sum(median[4]), sum(median[5])]::DOUBLE[] AS median,
            [sum(here_mean[1]), sum(here_mean[2]), sum(here_mean[3]), sum(here_mean[4]), sum(here_mean[5])]::DOUBLE[] AS here_mean,
            [sum(entropy[1]), sum(entropy[2]), sum(entropy[3]), sum(entropy[4]), sum(entropy[5])]::DOUBLE[] AS entropy,
            [sum(low_entropy[1]), sum(low_entropy[2]), sum(low_entropy[3]), sum(low_entropy[4]), sum(low_entropy[5])]::DOUBLE[] AS low_entropy,
            [sum(cos[1]), sum(cos[2]), sum(cos[3]), sum(cos[4])]::DOUBLE[] AS cos
        FROM found
        GROUP BY ALL
    )
    ON kl, kl_q3, kl_q5, majority, adaptive, mean, median, here_mean, entropy, low_entropy, cos INTO NAME measure VALUE totals
)
SELECT measure, lens, variant, prompt, unnest(totals) AS total, n,
    unnest(CASE measure WHEN 'cos' THEN [0.8, 0.9, 0.95, 0.99] ELSE [0.05, 0.1, 0.2, 0.5, 1.0] END)::DOUBLE AS threshold
FROM families
UNION ALL BY NAME
SELECT name || '_median' AS measure, variant, prompt, value, n FROM main
UNION ALL BY NAME
SELECT name || '_mean_skip5' AS measure, variant, prompt, sum(value * n_skip5) AS total, sum(n_skip5) AS n
FROM main
GROUP BY ALL HAVING sum(n_skip5) > 0
UNION ALL BY NAME
SELECT name || '_prompt_mean' AS measure, variant, prompt, sum(value * n_skip5) / sum(n_skip5) AS total, 1 AS n
FROM main
GROUP BY ALL HAVING sum(n_skip5) > 0
UNION ALL BY NAME
SELECT 'continuous_' || lens AS measure, variant, prompt, sum(continuous) AS total, count(*) AS n FROM found GROUP BY ALL
