-- id: 0D
-- title: Dose response of the steered IT: intervals, effect sizes, rank correlation
-- needs: scores(A1), effects(A1)?
-- stream: native
-- bootstrap: prompt
-- plot: line x=alpha hue=metric panels=format+answer+alignment+coherent,str,cohens_d
--   forest=rho_str,rho_format,rho_alignment,rho_answer
-- says: Over the alphas of the sweep the share of structural words has a rank correlation with alpha of {rho_str}[ (p
--   {p_str})], format compliance of {rho_format}, right reactions to SAFETY prompts of {rho_alignment}, right answers of
--   {rho_answer}. Without the component (alpha 0) structural words change by {str_change_0}, at five times by
--   {str_change_5}, format compliance by {format_change_0} and {format_change_5}: {format_change_5?more|fewer|no clear
--   change} at 5.
-- about: Metrics of A1's replies at each alpha, with intervals, effect sizes and rank correlations.
--   - `METRIC`: its mean at each alpha. `METRIC_change_A`: alpha = A less alpha = 1, paired.
--   - `format`: all criteria of a GOV-FORMAT prompt hold. `answer`: the right answer is contained; `reasoning`: the
--     same in CONTENT-REASON. `last_number`: the last number is the right one (the study's gsm8k_em). `alignment`:
--     SAFETY prompts refused or answered as they should be. `choice_generated`: the forced choice alone, without a
--     template. `coherent`: the study's rule for a reply that makes sense (A1).
--   - `cohens_d`: (mean at alpha − mean at alpha 1) over the pooled standard deviation, on prompts scored at both;
--     `cohens_d_answers` is of right answers. Its interval resamples prompts, each with both its values. Where no
--     reply changes it is 0 without width.
--   - `rho_METRIC`: Spearman's correlation of the 14 means with alpha; a trend that turns at alpha 1 has none. Its
--     interval resamples prompts. `p_METRIC` takes the 14 means as the sample (two-sided), as the study does.
--   - Intervals: 2,000 BCa resamples (study: 10,000).
-- measures:
--   - <metric> | <metric> | <metric> | <metric>
--   - <metric>_change_<n> | change at α = <n>: <metric> | <metric> | α = <n> less α = 1 on the same prompts:
--     <metric>
--   - cohens_d | effect size against α = 1 | standard deviations | Cohen's d: mean at α less mean at α = 1
--     over the pooled standard deviation
--   - cohens_d_answers | effect size against α = 1, right answers | standard deviations | Cohen's d of right
--     answers: mean at α less mean at α = 1 over the pooled standard deviation
--   - rho_<metric> | rank correlation with α: <metric> | Spearman's rho | Spearman's correlation of the 14
--     means with α: <metric>
--   - p_<metric> | p of the rank correlation: <metric> | p | two-sided p of Spearman's correlation with the
--     14 means as the sample: <metric>
-- positions: Replies of A1: IT's late MLP outputs with their component along d_mean times alpha; each prompt once.
-- pitfalls:
--   - pooled duplicate replies: The study pools re-generations of its benchmarks: n is 2,300 for 1,400 prompts and
--     its intervals are too narrow. Half of its `mmlu` outputs are free-form, near zero.
--   - incoherent replies: Where `coherent` falls, at large |alpha|, it explains what the other metrics lose.
-- published: Gemma's levels, named `METRIC@A`, and rank correlations; of a run without a template, though the study's
--   texts disagree on that.
-- source: METHODS 6 (0D), 5.4
WITH cells AS (
    SELECT metric, dose AS alpha, coalesce(prompt, -1) AS prompt, value FROM scores
    WHERE sweep = 'A1' AND arm = 'd_mean' AND metric IN ('str', 'format', 'answer', 'any_number', 'last_number', 'first_choice',
        'choice_generated', 'choice_logprob', 'alignment', 'coherent', 'reasoning')
    UNION ALL
    SELECT 'reasoning', dose, coalesce(prompt, -1) AS prompt, value FROM scores
    WHERE sweep = 'A1' AND arm = 'd_mean' AND metric = 'answer' AND category = 'CONTENT-REASON'
), measured AS (
    SELECT name, metric, dose AS alpha, value AS estimate, low, high, n FROM effects
    WHERE sweep = 'A1' AND arm = 'd_mean' AND metric IN (SELECT metric FROM cells)
), ranked AS (
    -- Without the table `effects` (means from elsewhere) the correlation alone, as in A1.
    SELECT metric, rank() OVER (PARTITION BY metric ORDER BY alpha) AS dose,
        rank() OVER (PARTITION BY metric ORDER BY mean) + count(*) OVER (PARTITION BY metric, mean) / 2 AS outcome
    FROM (SELECT metric, alpha, round(avg(value), 9) AS mean FROM cells GROUP BY ALL)
    WHERE NOT EXISTS (FROM measured)
)
SELECT metric AS measure, metric, alpha, prompt, value AS total, 1 AS n FROM cells
UNION ALL BY NAME
SELECT metric || '_change_' || edited.alpha::INTEGER AS measure, prompt, edited.value - base.value AS total, 1 AS n
FROM cells AS edited JOIN (SELECT metric, prompt, value FROM cells WHERE alpha = 1) AS base USING (metric, prompt)
WHERE edited.alpha IN (0, 5)
UNION ALL BY NAME
SELECT if(metric IN ('str', 'format', 'alignment', 'coherent'), 'cohens_d', 'cohens_d_answers') AS measure, metric, alpha,
    estimate, low, high, n, 'prompts' AS unit,
    CASE WHEN low IS NULL THEN 'none' ELSE 'BCa' END AS method
FROM measured
WHERE name = 'cohens_d' AND metric NOT IN ('any_number', 'first_choice', 'choice_logprob')
UNION ALL BY NAME
SELECT CASE name WHEN 'spearman' THEN 'rho_' ELSE 'p_' END || metric AS measure, estimate, low, high, n,
    CASE name WHEN 'spearman' THEN 'prompts' ELSE 'alphas' END AS unit, CASE WHEN low IS NULL THEN 'none' ELSE 'BCa' END AS method
FROM measured
WHERE name IN ('spearman', 'spearman_p')
UNION ALL BY NAME
SELECT 'rho_' || metric AS measure, corr(dose, outcome) AS estimate, count(*) AS n, 'alphas' AS unit FROM ranked GROUP BY metric
