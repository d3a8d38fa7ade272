-- id: tuned
-- title: Tuned lens against raw lens, on prompts not trained on
-- needs: lens_eval
-- models: 1
-- stream: native
-- bootstrap: prompt
-- plot: line x=layer hue=lens panels=kl/pt,kl/it,top1/it forest=reduction_pt,reduction_it,reduction60_pt,reduction60_it
-- says: On prompts it was not trained on, the tuned lens takes away {reduction_pt} (PT) and {reduction_it} (IT) of the raw
--   lens' KL to the final distribution, over all layers but the last; at 60 % of the depth {reduction60_pt} and
--   {reduction60_it}. With the other variant's probes the KL is {transfer_ratio_pt} (PT) and {transfer_ratio_it} (IT) times
--   that of its own.
-- about: How well the tuned lens predicts the final distribution on prompts it was not trained on.
--   - `kl`: KL(final || layer), the objective. `top1`: share of tokens whose top token is already the final one.
--   - `tuned`: a variant's own probes. `transfer`: the other variant's probes on the same activations, read by the
--     activations' own head; the study calls transfer fine below 2 (its test took text without template).
--   - `reduction` = 1 − KL tuned / KL raw, each summed over tokens and layers; `reduction60` at 60 % of the depth.
--   - Probes come in two folds, each trained on one half of the prompts (by the hash of the id, the same in PT, IT
--     and every stream) and used for the other half, in all rows that use the tuned lens. On prompts they were
--     trained on, probes of small captures look too good, and gaps between models shrink.
--   - Probes are only as good as their text: for figures to compare with the study's (65.5 M tokens a variant),
--     capture a long text and run `actlake fit-lens` on it.
--   - Which probes are used: of those that `actlake probes ls` lists as trained on request, the ones with the most
--     tokens; else the usual ones are trained from the native stream. When a probe's training stops is decided on
--     some of the prompts it is kept for. The last layer has no probe: its distribution is the reference.
-- measures:
--   - kl | KL(final ‖ layer) | nats | divergence of the lens from the model's own final distribution, on
--     prompts not trained on
--   - top1 | lens names the final top token | share of tokens | share of tokens whose top token is already
--     the final one
--   - reduction_<variant> | KL taken away, <variant> | share of the raw lens' KL | 1 − KL tuned / KL raw,
--     each summed over tokens and layers
--   - reduction60_<variant> | KL taken away at 60 % of the depth, <variant> | share of the raw lens' KL | 1 −
--     KL tuned / KL raw at 60 % of the depth
--   - transfer_ratio_<variant> | other model's probes over own, <variant> | times | KL with the other model's
--     probes over that with its own
-- positions: Every token but a prompt's first.
-- pitfalls:
--   - off-by-one step: The study's fast collector is shifted by one.
--   - double BOS: The study's IT prompts begin with two BOS tokens.
--   - Adam lens figures: The study's committed quality figures are those of an earlier Adam run.
-- published: none; the paper claims a reduction of 50 to 74 % at 60 % of the depth for five families and 3 % for
--   Gemma.
-- source: METHODS 3.2
WITH found AS (
    SELECT *, max(layer) OVER () + 1 AS layers, if(probe_variant = variant, 'tuned', 'transfer') AS lens
    FROM lens_eval
    WHERE layer >= 0
), own AS (
    SELECT * FROM found WHERE lens = 'tuned'
)
SELECT 'kl' AS measure, variant, lens, layer, prompt, kl_tuned * n AS total, n FROM found
UNION ALL BY NAME
SELECT 'kl' AS measure, variant, 'raw' AS lens, layer, prompt, kl_raw * n AS total, n FROM own
UNION ALL BY NAME
SELECT 'top1' AS measure, variant, lens, layer, prompt, top1_tuned * n AS total, n FROM found
UNION ALL BY NAME
SELECT 'top1' AS measure, variant, 'raw' AS lens, layer, prompt, top1_raw * n AS total, n FROM own
UNION ALL BY NAME
SELECT 'reduction_' || variant AS measure, prompt, sum((kl_raw - kl_tuned) * n) AS total, sum(kl_raw * n) AS n FROM own
GROUP BY ALL
UNION ALL BY NAME
SELECT 'reduction60_' || variant AS measure, prompt, sum((kl_raw - kl_tuned) * n) AS total, sum(kl_raw * n) AS n FROM own
WHERE layer = round(0.6 * layers)
GROUP BY ALL
UNION ALL BY NAME
SELECT 'transfer_ratio_' || variant AS measure, prompt, sum(kl_tuned * n) FILTER (lens = 'transfer') AS total,
    sum(kl_tuned * n) FILTER (lens = 'tuned') AS n
FROM found
WHERE (SELECT count(DISTINCT probe_variant) FROM found) > 1  -- a pair of one model has no other's probes
GROUP BY variant, prompt
