-- id: L2
-- title: Convergence gap and commitment
-- needs: lens(raw)?, lens(tuned)?, lens(jacobian)??
-- models: 1
-- compares: models, prompts, streams, layers
-- stream: native
-- bootstrap: prompt
-- contrast: variant it - pt
-- plot: line x=layer hue=variant panels=kl_final_layer/raw,committed_top1/raw,committed_kl01/raw
--   forest=cg_raw,cg_tuned,cg_jacobian,commit_top1_raw_mean,commit_kl01_raw_mean
--   bars=committed_*
-- says: [Through the second half of the layers IT stays {cg_raw?farther from|closer to|about as far from} its own final
--   distribution {cg_raw?than|than|as} PT (convergence gap {cg_raw} nats). ][With the tuned lens the gap is {cg_tuned} nats. ]
--   [With the Jacobian lens the gap is {cg_jacobian} nats. ]
--   [Its top token settles {commit_top1_raw_mean?later|earlier|neither clearly later nor earlier} ({commit_top1_raw_mean}
--   layers), and its KL stays under 0.1 nats from {commit_kl01_raw_mean?a later|an earlier|about the same} layer on
--   ({commit_kl01_raw_mean}).]
-- about: How far each layer's lens is from the model's own final distribution, and from which layer on it stays
--   close.
--   - `kl_final_layer` is KL(final || layer), the direction of the study's code and of its published gaps.
--     `kl_layer_final` is KL(layer || final), the direction that its text names.
--   - `cg_raw`, `cg_tuned`, the convergence gap: mean over layers floor(L/2) and up of IT − PT, pooled over tokens,
--     so that long continuations weigh more, as in the study. `*_prompt` weighs prompts equally.
--   - `gap_*_third`: the same over thirds that split at L // 3 and 2 L // 3.
--   - `late_half_layers_it_above_pt_*`: the number of layers of that half in which IT's mean KL is above PT's. The
--     last layer, where both are zero, counts if its rounding is above (one of Mistral's published 15).
--   - `commit_top1_*`: the layer from which the lens keeps its own last top token. `commit_kl01_*`: the layer from
--     which KL stays under 0.1 nats. Mean and median over tokens. All rules and prompt means: row 0G.
--   - The tuned lens is left out where a capture has no residuals to train it from. On few prompts its probes are
--     poorer than the study's, and poorer still for the variant with fewer tokens (row tuned).
--   - The Jacobian lens is there where `actlake fit-lens --kind jacobian` or `import-lens` put one of each model; it is not
--     fitted to predict the final distribution, so that its gap is no better measured one (METHODS 3.4).
-- measures:
--   - kl_final_layer | KL(final ‖ layer) | nats | divergence of the layer's lens from the model's own final
--     distribution; the direction of the study's code
--   - kl_layer_final | KL(layer ‖ final) | nats | the other direction of the divergence, that the study's
--     text names
--   - cg_<lens> | convergence gap, <lens> | nats | KL(final ‖ layer), mean over layers floor(L/2) and up,
--     tokens alike
--   - cg_<lens>_prompt | convergence gap, <lens>, prompts alike | nats | the same with every prompt alike
--   - gap_<lens>_<third>_third | <third> of the layers, <lens> | nats | KL(final ‖ layer), mean over these
--     layers
--   - commit_<rule>_<lens>_mean | <rule>, <lens> | layer | mean over tokens of the layer from which the rule
--     holds
--   - commit_<rule>_<lens>_median | <rule>, <lens>, median token | layer | median over tokens of the layer
--     from which the rule holds
--   - committed_<rule> | tokens that commit at a layer, <rule> | share of tokens | share of tokens for which
--     the rule holds from this layer on and not before
--   - late_half_layers | layers of the second half | layers | how many layers the gap is a mean over
--   - late_half_layers_it_above_pt_<lens> | of these with IT above PT, <lens> | layers | layers of the second
--     half in which IT's mean KL is above PT's
--   - tokens_<variant> | tokens of the <variant> | tokens | continuation tokens that were counted
-- positions: Continuation tokens from the second on (METHODS 0, set a); no further step is dropped.
-- pitfalls:
--   - two KL directions: The gap uses KL(final || layer); exp11, exp14 and exp22 use KL(layer || final).
--   - off-by-one step: The study's fast collector is shifted by one; for its positions ask the table `lens` for step
--     >= 2.
--   - double BOS: The study's IT prompts begin with two BOS tokens.
--   - mixed commitment runs: The claim that no family commits earlier does not hold for all of the study's own files.
--   - mixed resampling units: The study gives no interval for the gap; this row resamples prompts.
--   - dropped uncommitted tokens: Tokens that never commit count as the last layer here; exp11 of the study drops
--     them.
--   - skipped first steps: L1 and the study's mean commitments leave out first steps, this row does not.
-- published: The gap for both lenses, thirds of the tuned gap, counts of late layers, token counts, and commitment by
--   top token and by KL < 0.1.
-- source: METHODS 4, row L2; rules in METHODS 3.3
WITH depth AS (
    SELECT max(layer) + 1 AS layers FROM lens
), cells AS MATERIALIZED (
    -- Curves without steps (foreign tables) are means over the positions already.
    SELECT lens, variant, prompt, layer, sum(kl_final_layer) AS kl, sum(kl_layer_final) AS kl_back, count(kl_final_layer) AS n
    FROM lens
    WHERE coalesce(step >= 1, true) AND layer >= 0
    GROUP BY ALL
), late AS (
    SELECT * FROM cells, depth WHERE layer >= floor(layers / 2)
), curves AS (
    SELECT lens, variant, layer, sum(kl) / sum(n) AS kl FROM late GROUP BY ALL
), thirds AS (
    SELECT lens, variant, prompt, kl, n,
        CASE WHEN layer < layers // 3 THEN 'first' WHEN layer < 2 * layers // 3 THEN 'middle' ELSE 'last' END AS third
    FROM cells, depth
), picked AS (
    UNPIVOT (SELECT lens, variant, prompt, top1, kl[2]::INTEGER AS kl01 FROM commit_layers WHERE step >= 1)
    ON top1, kl01 INTO NAME rule VALUE value
), commits AS MATERIALIZED (
    SELECT lens, variant, prompt, rule, value, count(*) AS n FROM picked GROUP BY ALL
), places AS (
    SELECT *, unnest(range((SELECT layers FROM depth)::BIGINT)) AS layer
    FROM (SELECT lens, variant, prompt, rule, sum(n) AS every FROM commits GROUP BY ALL)
)
SELECT 'kl_final_layer' AS measure, lens, variant, layer, prompt, kl AS total, n FROM cells
UNION ALL BY NAME
SELECT 'kl_layer_final' AS measure, lens, variant, layer, prompt, kl_back AS total, n FROM cells
UNION ALL BY NAME
SELECT 'cg_' || lens AS measure, variant, prompt, sum(kl) AS total, sum(n) AS n FROM late GROUP BY ALL
UNION ALL BY NAME
SELECT 'cg_' || lens || '_prompt' AS measure, variant, prompt, sum(kl) / sum(n) AS total, 1 AS n FROM late GROUP BY ALL
UNION ALL BY NAME
SELECT 'gap_' || lens || '_' || third || '_third' AS measure, variant, prompt, sum(kl) AS total, sum(n) AS n
FROM thirds
GROUP BY ALL
UNION ALL BY NAME
SELECT 'commit_' || rule || '_' || lens || '_mean' AS measure, variant, prompt, sum(value * n) AS total, sum(n) AS n
FROM commits
GROUP BY ALL
UNION ALL BY NAME
SELECT 'commit_' || rule || '_' || lens || '_median' AS measure, variant, prompt, value, n FROM commits
UNION ALL BY NAME
SELECT 'committed_' || rule AS measure, lens, variant, layer, prompt, coalesce(commits.n, 0) AS total, every AS n
FROM places LEFT JOIN (SELECT * RENAME (value AS layer) FROM commits) AS commits USING (lens, variant, prompt, rule, layer)
UNION ALL BY NAME
SELECT 'late_half_layers' AS measure, count(DISTINCT layer) AS estimate, count(DISTINCT layer) AS n, 'layers' AS unit
FROM late
UNION ALL BY NAME
SELECT 'late_half_layers_it_above_pt_' || it.lens AS measure, count(*) FILTER (it.kl > pt.kl) AS estimate, count(*) AS n,
    'layers' AS unit
FROM curves AS it JOIN curves AS pt USING (lens, layer)
WHERE it.variant = 'it' AND pt.variant = 'pt'
GROUP BY ALL
UNION ALL BY NAME
SELECT 'tokens_' || variant AS measure, sum(n) AS estimate, sum(n) AS n, 'tokens' AS unit
FROM cells
WHERE prompt IS NOT NULL AND lens = (SELECT min(lens) FROM cells) AND layer = (SELECT max(layer) FROM cells)
GROUP BY variant
