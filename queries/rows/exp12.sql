-- id: exp12
-- title: Free replies of PT, PT with IT's late MLPs, IT
-- needs: scores(exp12), judged(exp12)?
-- stream: native
-- bootstrap: prompt
-- plot: line x=layer hue=arm forest=format,alignment,answer,ended,str
-- says: With IT's MLPs in its late blocks the PT writes {b_minus_a_str?more|fewer|about as many} structural words
--   ({b_minus_a_str} of its words, where the IT differs by {c_minus_a_str}), meets {b_minus_a_format?more|fewer|about as
--   many} formats asked for ({b_minus_a_format}, the IT {c_minus_a_format}), reacts rightly to SAFETY prompts
--   {b_minus_a_alignment?more|less|about as} often ({b_minus_a_alignment}, the IT {c_minus_a_alignment}) and ends
--   {b_minus_a_ended?more|fewer|about as many} replies within the budget ({b_minus_a_ended})[; to the IT its replies are
--   {b_minus_a_nll_it?less|more|about as} likely ({b_minus_a_nll_it} nats a token; the IT's own {c_minus_a_nll_it})].[ It
--   closes {gap_closed_str} of the gap in structural words][ and {gap_closed_format} of the gap in format][ (G1:
--   {gap_closed_g1})].
-- about: A = PT on the bare text, B = the same with IT's MLPs in the late blocks (each reads the PT's normed
--   residual), C = IT in its template, so that C − A is also the template's. `B - A` and `C - A` are paired by
--   prompt.
--   - `gap_closed_METRIC` = (B − A) / (C − A), a ratio of means without an interval, only where C − A is more than
--     two standard errors from zero.
--   - `str`: share of structural and discourse words and lone marks. `format`: all criteria of a GOV-FORMAT prompt
--     hold. `answer`: the right one is contained.
--   - `alignment`: SAFETY prompts refused or answered as they should be. `refusal`, `false_refusal`,
--     `missed_refusal`: by phrases.
--   - `coherent`: the study's rule; `degenerate`: loops and symbols that it lets pass.
--   - `nll_pt`, `nll_it`: nats a token of the reply under each model as it is, on its own form of the prompt.
--   - `ended`: a reply that stops by itself. A base model runs to the budget, and longer replies have more of
--     everything that is counted (`words`, `headers`, `bullets`).
--   - With a judge (`actlake score --judge`): `g1`, `g2`, `s1_*` and `s2`.
-- measures:
--   - <metric> | <metric> | <metric> | <metric>
--   - <arm>_minus_a_<metric> | <arm> less PT: <metric> | <metric> | difference to the PT as it is, on the
--     same prompts: <metric>
--   - gap_closed_<metric> | gap closed: <metric> | of the IT's difference | what IT's late MLPs change over
--     what the IT differs by: <metric>
-- positions: Free greedy replies, no prefix in common, only tokens real for both models, up to the budget of the
--   captures' continuations (the study: 512).
-- pitfalls:
--   - MLP before post-norm: The graft takes the MLP's output before any norm that follows.
--   - DeepSeek exceptions: DeepSeek's replies have at most 64 tokens in the study, and are judged alike.
--   - incoherent replies: Incoherent replies lack refusal phrases: read `coherent` and `degenerate` beside them.
-- published: An LLM judge's: G1 structure and G2 register of 5 points, S1 share of harmful prompts refused, S2 of
--   harmless ones refused. Claims: S2 falls in 6 of 6 families, G2 rises in 4 of 6, 3.8 % of the structure gap (mean
--   of the families' G1 ratios) is closed. The programmatic `str` and `format` answer the same question by other
--   means.
-- source: METHODS 11, 18
WITH marked AS (
    SELECT arm, metric, coalesce(prompt, -1) AS prompt, value FROM scores WHERE sweep = 'exp12'
    UNION ALL
    SELECT arm, metric, coalesce(prompt, -1) AS prompt, value FROM judged WHERE sweep = 'exp12'
), cells AS (
    FROM marked WHERE metric IN ('str', 'format', 'answer', 'alignment', 'refusal', 'false_refusal', 'missed_refusal',
        'coherent', 'degenerate', 'words', 'headers', 'bullets', 'tokens', 'ended', 'nll_pt', 'nll_it', 'g1', 'g2', 's1_refuse', 's1_comply',
        's1_incoherent', 's2')
), changes AS (
    SELECT metric, edited.arm, prompt, edited.value - base.value AS change
    FROM cells AS edited JOIN (SELECT metric, prompt, value FROM cells WHERE arm = 'A') AS base USING (metric, prompt)
    WHERE edited.arm IN ('B', 'C')
), gaps AS (
    -- Means from elsewhere (prompt -1) have no error: any gap is one.
    SELECT metric, avg(b.change) AS moved, avg(c.change) AS gap,
        if(max(prompt) < 0, 0, stddev_samp(c.change) / sqrt(count(*))) AS error, count(*) AS n
    FROM (FROM changes WHERE arm = 'B') AS b JOIN (FROM changes WHERE arm = 'C') AS c USING (metric, prompt)
    GROUP BY metric
)
SELECT metric AS measure, arm, prompt, value AS total, 1 AS n FROM cells
UNION ALL BY NAME
SELECT metric AS measure, arm || ' - A' AS arm, prompt, change AS total, 1 AS n FROM changes
UNION ALL BY NAME
SELECT lower(arm) || '_minus_a_' || metric AS measure, prompt, change AS total, 1 AS n FROM changes
UNION ALL BY NAME
SELECT 'gap_closed_' || metric AS measure, moved / gap AS estimate, n, if(error = 0, 'curves', 'prompts') AS unit FROM gaps
WHERE abs(gap) > 2 * error
